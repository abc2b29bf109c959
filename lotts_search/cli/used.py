"""Say once what a command uses: the model and its settings, the verifier and the budget."""

from __future__ import annotations

from lotts_search.study.model_files import folder_of, read_json
from lotts_search.work.model import ModelInfo
from lotts_search.work.requests import Sampling


def used(info: ModelInfo, sampling: Sampling, verifier: str, budget: str, priced_as: str | None = None) -> str:
    """Return the line, e.g. ``using shapes-sd: 64×64 pixels, 10 steps, guidance 2, solver dpm with eta 1 instead of the
    folder's DDIMScheduler; verifier shapes-reward; budget 9 images``, and as which model FLOPs are priced if it is another."""
    priced = f"; FLOPs as on {priced_as}" if priced_as else ""
    config = read_json(info.name, "scheduler/scheduler_config.json") if folder_of(info.name) else {}
    scheduler = info.scheduler or config.get("_class_name", "scheduler")
    height, width = info.image
    return (
        f"using {info.name}: {width}×{height} pixels, {sampling.steps} steps, guidance {sampling.guidance:g}, solver "
        f"{sampling.solver} with eta {sampling.eta:g} instead of the folder's {scheduler}; "
        f"verifier {verifier}; budget {budget}{priced}"
    )
