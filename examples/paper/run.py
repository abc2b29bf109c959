"""The paper's tables on one or more models, and a page that says which findings hold.

    python examples/paper/run.py                                  # reduced: 24 prompts, on two cores
    python examples/paper/run.py --prompts 100 --processes 12 --local --device cuda

Each table is a study in OUT/MODEL/TABLE; however a run ends, the same command resumes it. The tables are the files beside
this program, with the prompts and the model of the command line, and settings that fit the model: the budget of table 9,
the values of t0 in table 11, the kind of attention.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lotts_search import registry
from lotts_search.errors import LottsError

sys.path.insert(0, str(Path(__file__).resolve().parent))
import findings

HERE = Path(__file__).resolve().parent
ORDER = ("13", "01", "05", "11", "08", "09", "07", "02", "10", "06", "12")
"""The longest first, so that processes end together."""
STARTS = (1, 4, 7)
"""The values of t0 in table 11's file, of ten steps."""
PAPER_STARTS = {(50, 25): [10, 40], (30, 15): [5, 25], (10, 1): [5, 8]}
"""Those of the paper's Table 11 beside 0 and its default, by T and that default: SD 2.1, SDXL, FLUX.1-schnell."""
TUNED = ("shapes-sd", "shapes-sdxl")
"""The models that the files' attention mask is for: it names a grid of their cross-attention. Others get the paper's."""
COMMAND = (sys.executable, "-c", "from lotts_search.cli import main; main()")


@dataclass(frozen=True)
class Fit:
    """Settings of the tables that depend on the model.

    Attributes:
        nfe: of LoTTS with nine images: the budget of table 9.
        starts: the values of t0 in table 11.
        attention: its attention mask; None = that of the files.
    """

    nfe: float
    starts: list[int]
    attention: dict[str, Any] | None = None


def prepared(table: Path, model: str, options: argparse.Namespace, fit: Fit) -> dict[str, Any]:
    """Return the study of a table for one model: its file, with the options of the command line and the fit."""
    study: dict[str, Any] = yaml.safe_load(table.read_text())
    load = {"dtype": options.dtype, "compile": True} if options.compile else {"dtype": options.dtype}
    study["models"] = [{"model": model, "options": load}]
    study["prompts"]["count"] = options.prompts
    study["verifier"] = options.verifier or registry.default_verifier(model)
    if options.prompts_from:
        study["prompts"] = {**study["prompts"], "from": options.prompts_from}
    if options.metrics:
        study["metrics"] = options.metrics.split(",")
    if "nfe" in study["budgets"]:
        study["budgets"]["nfe"] = fit.nfe
    attention = json.loads(options.attention) if options.attention else fit.attention
    for strategy in study["strategies"]:
        settings = strategy.get("settings", {})
        mask = settings.get("mask")
        if attention and isinstance(mask, dict) and mask.get("kind") == "attention":
            settings["mask"] = attention
        if "start" in strategy.get("grid", {}):
            strategy["grid"]["start"] = fit.starts
    return study


def fitted(model: str) -> Fit:
    """Return the settings that depend on a model, of which only a few small files are read.

    Raises:
        LottsError: there is no such model, or its costs are not known.
    """
    from lotts_search.core.budget import Budget
    from lotts_search.errors import BadInput
    from lotts_search.strategies.lotts import LoTTS
    from lotts_search.study.model_files import costs_of
    from lotts_search.study.spec import ModelEntry

    _, family = registry.family_of(model)
    costs = costs_of(ModelEntry(model, model))
    if costs is None:
        raise BadInput(f"model {model}: the costs of a {family.__name__} are not known; it needs a whole lotts.json")
    t0 = costs.defaults.t0
    scaled = {max(1, round(start * costs.steps / 10)) for start in STARTS} - {t0}
    concepts = hasattr(family, "attend_concepts")
    return Fit(
        LoTTS(refresh=1).plan(Budget(images=9), costs).nfe,
        PAPER_STARTS.get((costs.steps, t0), sorted(scaled)),
        None if model in TUNED else {"kind": "concept-attention" if concepts else "attention"},
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="shapes-sd", help="names, folders or hub ids, with commas")
    parser.add_argument("--prompts", type=int, default=24, help="prompts of each table (the files say 100)")
    parser.add_argument("--prompts-from", help="another prompt set or file (the files say shapes-test)")
    parser.add_argument("--verifier", "--guide", help="verifier of all models [the model's]")
    parser.add_argument("--metrics", help="other held-out metrics, with commas (the files say shapes-oracle)")
    parser.add_argument("--attention", help="settings of the attention mask as JSON, with its kind")
    parser.add_argument("--tables", default=",".join(ORDER), help="their numbers, with commas")
    parser.add_argument("--out", type=Path, default=Path("out/paper"))
    parser.add_argument("--processes", type=int, default=1, help="studies at once")
    parser.add_argument("--local", action="store_true", help="without Ray")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16", help="of the weights; float32 takes twice as long on new CPUs")
    parser.add_argument("--compile", action="store_true", help="compile the network: pays off in long runs")
    parser.add_argument("--generators", type=int)
    parser.add_argument("--dry-run", action="store_true", help="only print what there is to do")
    options = parser.parse_args()

    jobs: list[tuple[Path, list[str]]] = []
    for model in options.models.split(","):
        try:
            fit = fitted(model)
            if not options.verifier:
                registry.default_verifier(model)  # a model without one is refused before any study begins
        except LottsError as error:
            parser.error(str(error))
        for number in options.tables.split(","):
            source = HERE / f"table-{int(number):02}.yaml"
            folder = options.out / Path(model).name / source.stem
            study = folder.with_suffix(".yaml")
            study.parent.mkdir(parents=True, exist_ok=True)
            study.write_text(yaml.safe_dump(prepared(source, model, options, fit), allow_unicode=True, sort_keys=False))
            command = [*COMMAND, "study", str(study), "--out", str(folder), "--device", options.device]
            command += ["--local"] if options.local else []
            command += ["--generators", str(options.generators)] if options.generators else []
            jobs.append((folder, command + (["--dry-run"] if options.dry_run else [])))

    def work(job: tuple[Path, list[str]]) -> int:
        folder, command = job
        began = time.perf_counter()
        if options.processes == 1:
            code = subprocess.run(command, check=False).returncode
        else:
            with folder.with_suffix(".log").open("w") as log:
                code = subprocess.run(command, check=False, stdout=log, stderr=subprocess.STDOUT).returncode
        print(
            f"{folder}: {'done' if code == 0 else f'exit code {code}'}, {time.perf_counter() - began:.0f} s", flush=True
        )
        return code

    with ThreadPoolExecutor(options.processes) as pool:
        codes = list(pool.map(work, jobs))
    if options.dry_run:
        return max(codes)
    # A stopped or partly failed study still has finished searches for the page.
    try:
        page = findings.write(options.out, command=" ".join(["python", *sys.argv]))
    except LottsError as error:
        print(f"error: {error}", file=sys.stderr)
        return max(codes) or 1
    print(f"findings: {page}")
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
