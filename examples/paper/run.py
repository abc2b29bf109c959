"""The paper's tables on one or more models, and a page that says which findings hold.

    python examples/paper/run.py                                  # reduced: 24 prompts, on two cores
    python examples/paper/run.py --prompts 100 --processes 12 --local --device cuda

Each table is a study of its own in OUT/MODEL/TABLE; stopped in any way, the same command goes on where it was. The
tables are the files beside this program, with the prompts, the model and the budget of table 9 that are given here.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))
import findings

HERE = Path(__file__).resolve().parent
ORDER = ("13", "01", "05", "11", "08", "09", "07", "02", "10", "06", "12")
"""The longest first, so that processes end together."""
COMMAND = (sys.executable, "-c", "from lotts_search.cli import main; main()")


def prepared(
    table: Path, model: str, options: argparse.Namespace, nfe: float, attention: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The study of a table for one model: its file with what is given on the command line.

    ``attention`` replaces the file's attention mask, the command line's replaces both.
    """
    study: dict[str, Any] = yaml.safe_load(table.read_text())
    load = {"dtype": options.dtype, "compile": True} if options.compile else {"dtype": options.dtype}
    study["models"] = [{"model": model, "options": load}]
    study["prompts"]["count"] = options.prompts
    if options.guide:
        study["guide"] = options.guide
    if options.prompts_from:
        study["prompts"] = {**study["prompts"], "from": options.prompts_from}
    if options.metrics:
        study["metrics"] = options.metrics.split(",")
    if "nfe" in study["budgets"]:
        study["budgets"]["nfe"] = nfe
    if options.attention:
        attention = json.loads(options.attention)
    for strategy in study["strategies"]:
        settings = strategy.get("settings", {})
        mask = settings.get("mask")
        if attention and isinstance(mask, dict) and mask.get("kind") == "attention":
            settings["mask"] = attention
    return study


def nine_pictures(model: str) -> tuple[float, dict[str, Any] | None]:
    """NFE of LoTTS with nine pictures on a model, and its attention mask where that of the files does not fit it: they
    name a grid of a U-Net's cross-attention."""
    from lotts_search import registry
    from lotts_search.budget import Budget, Costs
    from lotts_search.strategies.lotts import LoTTS
    from lotts_search.work import Sampling

    backbone = registry.load_backbone(model)
    info = backbone.info
    costs = Costs.of(info, Sampling("any", info.defaults.steps, info.defaults.guidance))
    attention = {"kind": "concept-attention"} if hasattr(backbone, "attend_concepts") else None
    return LoTTS().plan(Budget(images=9), costs).nfe, attention


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="shapes-sd", help="names, folders or hub ids, with commas")
    parser.add_argument("--prompts", type=int, default=24, help="prompts of each table (the files say 100)")
    parser.add_argument("--prompts-from", help="another prompt set or file (the files say shapes-test)")
    parser.add_argument("--guide", help="another verifier to guide (the files say shapes-reward)")
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
    parser.add_argument("--dry-run", action="store_true", help="only say what there is to do")
    options = parser.parse_args()

    jobs: list[tuple[Path, list[str]]] = []
    for model in options.models.split(","):
        nfe, attention = nine_pictures(model)
        for number in options.tables.split(","):
            source = HERE / f"table-{int(number):02}.yaml"
            folder = options.out / Path(model).name / source.stem
            study = folder.with_suffix(".yaml")
            study.parent.mkdir(parents=True, exist_ok=True)
            study.write_text(
                yaml.safe_dump(prepared(source, model, options, nfe, attention), allow_unicode=True, sort_keys=False)
            )
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
    # A study that was stopped or had failures still has its finished searches: the page says what they tell.
    page = findings.write(options.out, command=" ".join(["python", *sys.argv]))
    print(f"findings: {page}")
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
