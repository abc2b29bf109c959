"""The report of a study: the numbers of its page, tables and figures, and what a browser draws."""

from __future__ import annotations

import csv
import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lotts_search import search
from lotts_search.cli import main
from lotts_search.cli.outputs import save_png
from lotts_search.core.result import SearchResult
from lotts_search.core.trial_table import to_table, write_parquet
from lotts_search.curves import Setup, load
from lotts_search.curves.results import load_whole
from lotts_search.errors import BadInput, Notice
from lotts_search.report.plot import Series, line_chart, log_ticks
from lotts_search.report.study_gallery import Again, Gallery, thumbnail
from lotts_search.report.study_numbers import numbers, whole_prompts
from lotts_search.report.study_page import failures, unpriced
from lotts_search.testing.analytic import AnalyticPool
from lotts_search.testing.studies import Simulated, simulate
from lotts_search.work.prices import PUBLISHED
from tests.browser import needs_chromium
from tests.made_up import made_up_search
from tests.report.test_report import Page, _chromium

ABOUT = {
    "name": "a <b> study", "command": "lotts-search study 'x <i>.yaml'", "metrics": ["truth"], "verifier": "reward",
    "seconds": 90.0, "busy": 0.93, "started": 1.76e9, "machine": {"cpus": 2, "platform": "Linux"}, "models": [],
    "strategies": [{"label": "best-of-n", "strategy": "best-of-n", "settings": {}, "nested": True,
                    "budgets": [{"nfe": None, "images": 9}, {"nfe": None, "images": 40}]}],
    "searches": [{"label": "ours", "model": "simulated", "prompt_id": "p9", "seed": 0, "status": "failed", "error": "<u>no memory"}],
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A study with a planted speed-up of 3, the images of LoTTS only, and two failed trials."""
    strategies = {"best-of-n": Simulated(images=40), "ours": Simulated("lotts", 9, speed=3)}
    table = simulate(strategies, 20, rng=np.random.default_rng(2))
    broken = {
        "status": ["failed", "failed"],
        "error": ["<s>lost\nat line 3", "<s>lost\nat line 7"],
        "image": [None, None],
    }
    rows = table.slice(len(table) - 2)
    for name, values in broken.items():
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(values, pa.string()))
    table = pa.concat_tables([table.slice(0, len(table) - 2), rows])
    folder = tmp_path / "run"
    write_parquet(table, folder / "trials.parquet")
    (folder / "study.json").write_text(json.dumps(ABOUT))
    (folder / "images").mkdir()
    ours = table.filter(pa.compute.equal(table.column("label"), "ours"))
    for name in filter(None, ours.column("image").to_pylist()):
        shade = np.full((8, 8, 3), int(name.split("-")[1]) % 251, dtype=np.uint8)
        save_png(folder / "images" / f"{name}.png", shade, {})
    return folder


def _report(run: Path, *options: str) -> Path:
    with pytest.raises(SystemExit) as stop:
        main(["report", str(run), "--trees", "0", "--out", str(run.parent / "report"), *options])
    assert stop.value.code in (0, None)
    return run.parent / "report"


def test_the_page_shows_the_numbers_of_the_estimators(run: Path) -> None:
    html = (_report(run, "--no-figures") / "index.html").read_text()
    results = load(run)
    ours, base = results.find("ours"), results.find("best-of-n", images=9)
    faster = results.speed_up(results.find("best-of-n", images=40), ours, over="images")
    assert 1.5 < faster.low < 3 < faster.high or faster.ratio > 2
    for said in (
        str(faster).replace(">", "&gt;"),
        results.difference(ours, base).signed,
        str(results.win_rate(ours, base)),
    ):
        assert said in html
    mean = results.value(ours)
    assert f"{mean.mean:.3f}" in html and f"[{mean.low:.3f}, {mean.high:.3f}]" in html


def test_the_report_compares_at_the_cost_and_the_prices_that_are_asked_for(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On SDXL an image of 20 rows with 3 previews costs more than one without; its NFE are the same."""
    table = pq.read_table(run / "trials.parquet")
    made = np.array(table.column("images").to_pylist())
    steered = made * (np.array(table.column("label").to_pylist()) == "ours")
    for name, values in {"decodes": made + 3 * steered, "previews": 3 * steered}.items():
        table = table.append_column(name, pa.array(values))
    write_parquet(table, run / "trials.parquet")
    said, rows = {}, {}
    for prices in ("sdxl", "sdxl+tiny"):
        out = _report(run, "--no-figures", "--cost", "flops", "--as", prices)
        said[prices] = capsys.readouterr().err
        html = (out / "index.html").read_text()
        assert f"truth against FLOPs per prompt, at the prices of {prices}" in html and "speed-up in FLOPs" in html
        with (out / "results.csv").open() as file:
            rows[prices] = {row["label"]: float(row["flops"]) for row in csv.DictReader(file)}
    sdxl, image = PUBLISHED["sdxl"], 20 * PUBLISHED["sdxl"].row + PUBLISHED["sdxl"].decode
    assert rows["sdxl"]["ours"] == 9 * (image + 3 * sdxl.decode)
    assert rows["sdxl+tiny"]["ours"] == 9 * (image + 3 * PUBLISHED["sdxl+tiny"].preview)
    base = load(run).find("best-of-n", images=40)
    faster = {name: load(run, price=PUBLISHED[name].flops).speed_up(base, _ours(run), over="flops") for name in said}
    assert faster["sdxl"].low < faster["sdxl+tiny"].low
    assert all(f"speed-up in FLOPs: {faster[name]}" in " ".join(said[name].split()) for name in said)


def test_the_page_says_that_the_verifier_does_not_know_what_its_scores_cost() -> None:
    with AnalyticPool() as pool:
        table = to_table(search("red star", pool=pool, strategy="svdd", nfe=60).trials)
    assert unpriced(table) == ""
    flops = np.where(np.array(table.column("decodes").to_pylist()) > 0, table.column("flops").to_pylist(), 0.0)
    assert unpriced(table.set_column(table.column_names.index("flops"), "flops", pa.array(flops))) == "without scores"


def _ours(run: Path) -> Setup:
    return load(run).find("ours")


@pytest.mark.parametrize(("option", "known"), [(["--cost", "steps"], "nfe"), (["--as", "sd3"], "sdxl")])
def test_unknown_costs_and_prices_are_refused_with_the_known_ones(
    run: Path, option: list[str], known: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["report", str(run), *option])
    assert stop.value.code and known in capsys.readouterr().err


def test_the_page_flags_a_strategy_that_over_optimizes(run: Path) -> None:
    """The held-out value of the best-of-n images is turned around: the higher the score, the lower it is."""
    page = (_report(run) / "index.html").read_text()
    assert "truth against score, with more compute" in page and "None does so beyond chance here" in page
    table = pq.read_table(run / "trials.parquet")
    pooled = np.array(table.column("label").to_pylist()) == "best-of-n"
    truth = np.where(pooled, -1.0, 1.0) * np.array(table.column("metric_truth").to_pylist(), dtype=float)
    table = table.set_column(table.column_names.index("metric_truth"), "metric_truth", pa.array(truth))
    write_parquet(table, run / "trials.parquet")
    page = (_report(run) / "index.html").read_text()
    assert re.search(r"best-of-n over-optimizes the verifier:</b> from 1?0 NFE to", page)
    assert "ours over-optimizes" not in page


def test_the_page_is_one_file_and_escapes_its_texts(run: Path) -> None:
    html = (_report(run, "--no-figures") / "index.html").read_text()
    page = Page(html)
    assert page.references and all(r.startswith("data:") for r in page.references)
    assert not {"script", "i", "u", "s"} & set(page.tags)
    assert "&lt;u&gt;no memory" in html and "a &lt;b&gt; study" in html
    assert page.classes.count("pair") == 12


def test_failures_are_counted_by_kind_and_first_line(run: Path) -> None:
    _, table = load_whole(run)
    found = [(f.count, f.status, f.kind, f.reason) for f in failures(table)]
    assert sorted(found) == [(1, "failed", "sample", "<s>lost"), (1, "failed", "score", "<s>lost")]


def test_tables_hold_the_curves(run: Path) -> None:
    out = _report(run, "--no-figures")
    results = load(run)
    with (out / "curves.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if (r["label"], r["value"], r["over"]) == ("best-of-n", "truth", "nfe")]
    curve = results.panel(results.find("best-of-n", images=40), over="nfe").curve()
    np.testing.assert_allclose([float(r["cost"]) for r in rows], curve.x)
    np.testing.assert_allclose([float(r["low"]) for r in rows], curve.low)
    with (out / "results.csv").open() as file:
        cells = {(r["label"], r["budget_images"], r["value"]): r for r in csv.DictReader(file)}
    assert float(cells["ours", "9", "score"]["mean"]) == results.value(results.find("ours"), "score").mean
    assert len(cells) == 6  # three setups, two values


def test_figures_are_drawn(run: Path) -> None:
    pytest.importorskip("matplotlib")
    figures = _report(run, "--figures") / "figures"
    with Image.open(figures / "simulated.png") as image:
        drawn = np.asarray(image.convert("RGB")).astype(int)
    for colour in ((213, 84, 28), (47, 102, 196)):  # both lines
        assert (np.abs(drawn - colour).max(axis=-1) < 6).sum() > 300
    assert (figures / "simulated.pdf").read_bytes().startswith(b"%PDF")


def test_labels_of_figures_do_not_overlap(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = pytest.importorskip("matplotlib.figure")
    save, drawn = figure.Figure.savefig, []

    def saving(self, *arguments, **options) -> None:
        save(self, *arguments, **options)
        drawn.append(self)

    monkeypatch.setattr(figure.Figure, "savefig", saving)
    _report(run, "--figures", "--cost", "flops", "--as", "sdxl")
    assert drawn
    for ax in drawn[0].axes:
        boxes = [label.get_window_extent() for label in ax.get_xticklabels(which="both") if label.get_text()]
        boxes.sort(key=lambda box: box.x0)
        assert len(boxes) > 2 and all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_cases_are_the_prompts_with_the_largest_gaps(run: Path) -> None:
    results, table = load_whole(run)
    setups = [results.find("ours"), results.find("best-of-n", images=9)]
    cases = Gallery(results, table, [run]).cases(setups, "truth", ["truth", "score"], 3)
    # The expected values are computed row by row from the table.
    best: dict[tuple[str, str], tuple[float, float, str]] = {}
    made: dict[str, int] = {}
    for row in table.to_pylist():
        if row["image"] is not None:
            made[row["search_id"]] = made.get(row["search_id"], 0) + 1
            key = (row["label"], row["prompt"])
            if made[row["search_id"]] <= 9 and row["score"] > best.get(key, (-np.inf, 0.0, ""))[0]:
                best[key] = (row["score"], row["metric_truth"], row["image"])
    gaps = {p: best["ours", p][1] - best["best-of-n", p][1] for label, p in best if label == "ours"}
    ranked = sorted(gaps, key=lambda p: -gaps[p])
    assert [c.text for c in cases] == ranked[:3] + ranked[-3:]
    for case in cases:
        assert case.gap == pytest.approx(gaps[case.text])
        ours = case.winners[0]
        assert ours.values["score"] == best["ours", case.text][0]
        assert ours.image == thumbnail(run / "images" / f"{best['ours', case.text][2]}.png")
        assert case.winners[1].image is None  # the study did not keep it


def test_large_images_become_thumbnails(tmp_path: Path) -> None:
    save_png(tmp_path / "a.png", np.zeros((600, 300, 3), dtype=np.uint8), {})
    assert thumbnail(tmp_path / "a.png").startswith("data:image/jpeg;base64,")


def test_several_budgets_of_one_strategy_are_points_of_one_curve() -> None:
    rng = np.random.default_rng(0)
    parts = [simulate({"ours": Simulated("lotts", n)}, 10, rng=rng) for n in (3, 9)]
    for i, part in enumerate(parts):
        ids = pa.array([f"{i} {name}" for name in part.column("search_id").to_pylist()])
        parts[i] = part.set_column(part.column_names.index("search_id"), "search_id", ids)
    from lotts_search.curves import Results, from_table

    results = Results(from_table(pa.concat_tables(parts)))
    found = numbers(results)
    trace = next(t for t in found.traces if (t.over, t.of) == ("images", "truth"))
    assert trace.points and trace.curve.x.tolist() == [3, 9]
    assert trace.curve.mean[1] == pytest.approx(results.value(results.find("ours", images=9)).mean)


def _budgets(arms: dict[str, Simulated], seed: int) -> pa.Table:
    """A simulated study in which each label has a search per budget, of 3 and of 9 images."""
    rng, parts = np.random.default_rng(seed), []
    for count in (3, 9):
        part = simulate({k: replace(v, images=count) for k, v in arms.items()}, 12, rng=rng)
        ids = pa.array([f"{count} {name}" for name in part.column("search_id").to_pylist()])
        parts.append(part.set_column(part.column_names.index("search_id"), "search_id", ids))
    return pa.concat_tables(parts)


def test_each_baseline_is_compared_at_the_same_budget_and_in_pairs(tmp_path: Path) -> None:
    arms = {"weak": Simulated("lotts"), "strong": Simulated("svdd", speed=5), "middle": Simulated("particle", speed=2)}
    write_parquet(_budgets(arms, 1), tmp_path / "run" / "trials.parquet")
    (tmp_path / "run" / "study.json").write_text(json.dumps({"metrics": ["truth"], "baselines": ["middle", "weak"]}))
    results = load(tmp_path / "run")
    found = numbers(results)
    pairs = {(a.setup.label, a.setup.images, a.base.label, a.base.images): a for a in found.against}
    assert set(pairs) == {(a, n, b, n) for n in (3, 9) for b in ("middle", "weak") for a in arms if a != b}
    # Prompt by prompt, from the table alone.
    best: dict[tuple[str, int, str], tuple[float, float]] = {}
    for row in results_table(tmp_path / "run"):
        key = row["label"], row["budget_images"], row["prompt"]
        if row["image"] is not None and row["score"] > best.get(key, (-np.inf, 0.0))[0]:
            best[key] = row["score"], row["metric_truth"]
    for (label, n, base, _), a in pairs.items():
        prompts = [p for one, count, p in best if (one, count) == (label, n)]
        for value, place in (("truth", 1), ("score", 0)):
            mean = np.mean([best[label, n, p][place] - best[base, n, p][place] for p in prompts])
            assert a.differences[value].mean == pytest.approx(mean)
    # The Markdown tables: a matrix in the order of the largest budget, then a table for each budget.
    text = (_report(tmp_path / "run", "--no-figures") / "results.md").read_text()
    matrix, small, large = text.split("### ")
    assert "| strategy | 3 images | 9 images |" in matrix
    order = sorted(arms, key=lambda label: -results.value(results.find(label, images=9)).mean)
    places = [matrix.index(f"| {label} |") for label in order]
    assert places == sorted(places)
    assert small.startswith("simulated, 3 images, 12 prompts") and large.startswith("simulated, 9 images, 12 prompts")
    assert "| strategy | truth | − middle | − weak | score | NFE | images |" in large
    row = next(line for line in large.splitlines() if line.startswith("| strong |"))
    assert pairs["strong", 9, "weak", 9].difference.signed in row
    assert pairs["strong", 9, "middle", 9].difference.signed in row and " 90.0 | 9.0 |" in row
    # The command line wins over the study.
    out = _report(tmp_path / "run", "--no-figures", "--baseline", "strong")
    assert "| strategy | truth | − strong | score |" in (out / "results.md").read_text()


def results_table(run: Path) -> list[dict]:
    return load_whole(run)[1].to_pylist()


def test_of_a_study_with_a_time_limit_whole_prompts_count() -> None:
    table = simulate({"best-of-n": Simulated(images=4), "ours": Simulated("lotts", 4)}, 5, rng=np.random.default_rng(0))
    searches = [
        {"model": "simulated", "prompt_id": f"p{i}", "search_seed": 0, "status": status}
        for i, status in [(0, "done"), (1, "open"), (2, "failed"), (3, "done"), (4, "done"), (4, "open")]
    ]
    assert set(whole_prompts(table, {"searches": searches}).column("prompt_id").to_pylist()) == {"p0", "p3"}


def test_an_unknown_metric_or_baseline_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option, good in ((("--metric", "truht"), "truth"), (("--baseline", "bestofn"), "best-of-n")):
        with pytest.raises(SystemExit) as stop:
            main(["report", str(run), *option])
        assert stop.value.code == 2
        assert good in capsys.readouterr().err


def test_stdout_has_the_json_only(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _report(run, "--no-figures", "--json")
    said = json.loads(capsys.readouterr().out)
    assert Path(said["report"]).is_file() and {r["label"] for r in said["results"]} == {"best-of-n", "ours"}


def test_logarithmic_ticks() -> None:
    assert log_ticks(1, 64) == [1, 2, 5, 10, 20, 50]
    assert log_ticks(30, 1e6) == [100, 1000, 10_000, 100_000, 1_000_000]
    assert log_ticks(3, 6) == [3, 4, 5, 6]
    x = np.array([1.0, 10.0, 100.0])
    chart = line_chart([Series("a", "red", x, x)], "x", "y", "t", log=True)
    path = chart.split('class="line" d="M')[1].split('"')[0].split("L")
    places = [float(point.split()[0]) for point in path]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.02)


def _small_study(folder: Path) -> SearchResult:
    """Write a study that consists of one real search, and return the search."""
    prompt = "top left red circle, top blue star, left pink cross, center yellow square, right green ring on gray"
    result = search(prompt, images=3, seed=5, run_id="s", prompt_id="p")
    write_parquet(result.to_table(), folder / "trials.parquet")
    about = {
        "guide": "shapes-reward", "metrics": [], "workers": 8,  # as version 0.1 wrote it
        "models": [{"label": "shapes-sd", "model": "shapes-sd", "options": {}}],
        "strategies": [{"label": "lotts", "strategy": "lotts", "settings": {}, "budgets": []}],
    }  # fmt: skip
    (folder / "study.json").write_text(json.dumps(about))
    return result


@pytest.mark.slow
def test_repeated_searches_equal_the_originals(tmp_path: Path) -> None:
    result = _small_study(tmp_path)
    with Again(json.loads((tmp_path / "study.json").read_text())) as again:
        repeated = again.search(Setup("shapes-sd", "lotts", images=3), result.prompt, "p", 5)
    assert [t.trial_id for t in repeated.trials] == [t.trial_id for t in result.trials]
    assert repeated.score == pytest.approx(result.score, abs=1e-4)
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path), "--trees", "1", "--no-figures"])
    page = Page((tmp_path / "report" / "index.html").read_text())
    assert page.classes.count("candidate") == 3 and page.classes.count("region") == 1
    assert page.classes.count("found") == 1  # with the stages of its mask beside it


@pytest.mark.browser
@needs_chromium
def test_browser_draws_the_report(run: Path, tmp_path: Path) -> None:
    page = _report(run, "--no-figures") / "index.html"
    dom = Page(_chromium(tmp_path, page, "--dump-dom"))
    assert dom.classes.count("pair") == 12 and dom.classes.count("chart") == 8
    _chromium(tmp_path, page, f"--screenshot={tmp_path / 'shot.png'}", "--window-size=1200,1200")
    shot = np.asarray(Image.open(tmp_path / "shot.png").convert("RGB")).astype(int)
    for colour in ((213, 84, 28), (47, 102, 196)):  # both curves
        assert (np.abs(shot - colour).max(axis=-1) < 6).sum() > 500


def _described(run: Path, **more: object) -> None:
    about = ABOUT | {"models": [{"label": "simulated", "model": "shapes-sd", "options": {}}]} | more
    (run / "study.json").write_text(json.dumps(about))


@pytest.mark.parametrize("names", [[], ["verifier mine:Judge"], ["model org/name", "strategy mine:Search"]])
def test_the_page_names_what_was_not_checked(run: Path, names: list[str]) -> None:
    _described(run, unchecked=names)
    html = (_report(run, "--no-figures") / "index.html").read_text()
    assert (f"Not checked for changes: {', '.join(names)}." in html) == bool(names)
    assert ("Not checked" in html) == bool(names)


@pytest.mark.parametrize(("good", "said"), [(0, "[0.000, 0.161]"), (20, "[0.839, 1.000]"), (1, "[0.009, 0.236]")])
def test_the_page_has_wilsons_interval_for_a_share(run: Path, good: int, said: str) -> None:
    table = pq.read_table(run / "trials.parquet")
    prompts = sorted(set(table.column("prompt_id").to_pylist()))[:good]
    share = [float(prompt in prompts) for prompt in table.column("prompt_id").to_pylist()]
    given = [
        s if known else None
        for s, known in zip(share, table.column("metric_truth").is_valid().to_pylist(), strict=True)
    ]
    place = table.column_names.index("metric_truth")
    write_parquet(table.set_column(place, "metric_truth", pa.array(given, pa.float64())), run / "trials.parquet")
    out = _report(run, "--no-figures")
    assert f'{good / 20:.3f} <small class="soft">{said}' in (out / "index.html").read_text()
    assert f"| {good / 20:.3f} {said} |" in (out / "results.md").read_text()


def test_one_colour_for_a_label_on_all_models_and_places(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    first = simulate({"ours": Simulated("lotts", 9, speed=3), "best-of-n": Simulated(images=9)}, 6, rng=rng)
    second = simulate({"best-of-n": Simulated(images=9), "more": Simulated(images=4)}, 6, rng=rng)
    names = {
        "model": pa.array(["other"] * len(second)),
        "search_id": pa.array([f"o{i}" for i in second["search_id"].to_pylist()]),
    }
    for name, column in names.items():
        second = second.set_column(second.column_names.index(name), name, column)
    write_parquet(pa.concat_tables([first, second], promote_options="permissive"), tmp_path / "run" / "trials.parquet")
    (tmp_path / "run" / "study.json").write_text("{}")
    html = (_report(tmp_path / "run", "--no-figures") / "index.html").read_text()
    found = {
        label: set(re.findall(rf'<li style="--c:([^"]*)">{label}</li>', html))
        for label in ("best-of-n", "ours", "more")
    }
    assert [len(colours) for colours in found.values()] == [1, 1, 1] and len(set.union(*found.values())) == 3
    for label, (colour,) in found.items():
        dots = set(re.findall(rf'<span class="dot" style="--c:([^"]*)">●</span>{label}[,<]', html))
        names = set(re.findall(rf'style="--c:([^"]*)">\s*<div class="name">{label}<', html))
        assert dots == {colour} and names <= {colour}, label


def test_trees_say_what_they_cost_and_are_kept(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _described(run)
    asked: list[Path | None] = []
    said: list[str] = []

    def repeated(self: Again, *search: object, journal: Path | None = None, **more: object) -> SearchResult:
        said.append(capsys.readouterr().err)
        assert journal is not None
        asked.append(journal)
        journal.parent.mkdir(exist_ok=True)
        journal.touch()
        return made_up_search("lotts")

    monkeypatch.setattr(Again, "search", repeated)
    out = run.parent / "report"
    for _ in range(2):
        with pytest.raises(SystemExit):
            main(["report", str(run), "--trees", "2", "--no-figures", "--out", str(out)])
    assert len(asked) == 4 and asked[:2] == asked[2:] and {path.parent for path in asked if path} == {out / "trees"}
    assert "repeating 2 searches of" in said[0] and "NFE in all" in said[0] and "--trees 0 omits them" in said[0]
    assert "tree 1 of 2: ours on simulated" in said[0] and "tree 2 of 2: ours on simulated" in said[1]
    assert "searches of" not in "".join(said[1:]) and "tree 1 of 2" in said[2]
    assert Page((out / "index.html").read_text()).classes.count("candidate") == 18
    # These searches are made up, and so are not those of the study.
    shown = [*said, capsys.readouterr().err]
    assert "is not that of the study, whose search ended with the score " in shown[1] and "this one with" in shown[1]


def test_a_tree_that_is_that_of_the_study_has_no_note(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _described(run)
    table = pq.read_table(run / "trials.parquet")

    def repeated(self: Again, setup: Setup, text: str, prompt: str, seed: int, **_: object) -> SearchResult:
        rows = [row for row in table.to_pylist() if (row["label"], row["prompt_id"]) == (setup.label, prompt)]
        result = made_up_search("lotts")
        best = replace(result.best, score=max(row["score"] for row in rows))
        return replace(result, best=best)

    monkeypatch.setattr(Again, "search", repeated)
    with pytest.raises(SystemExit):
        main(["report", str(run), "--trees", "2", "--no-figures"])
    said = capsys.readouterr().err
    assert "tree 2 of 2" in said and "is not that of the study" not in said


def test_searches_are_repeated_with_the_rows_and_threads_of_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    pools: list[dict[str, object]] = []
    monkeypatch.setattr("lotts_search.engine.local_pool.LocalPool", lambda *_, **options: pools.append(options))
    monkeypatch.setattr("lotts_search.registry.load_backbone", lambda *_, **__: None)
    monkeypatch.setattr("lotts_search.registry.load_verifier", lambda name: None)
    for about in ({"machine": {"batch": 4}}, {}):
        Again(about)._pool({"label": "m", "model": "m"})
    assert [(options["batch"], options["threads"]) for options in pools] == [(4, 1), (16, 1)]


def test_searches_are_repeated_with_the_verifier_of_their_model(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr("lotts_search.engine.local_pool.LocalPool", lambda *_, **options: None)
    monkeypatch.setattr("lotts_search.registry.load_backbone", lambda *_, **__: None)
    monkeypatch.setattr("lotts_search.registry.load_verifier", loaded.append)
    again = Again({"verifier": "of older files"})
    for verifier in ("clean", "noisy", None):
        again._pool({"label": f"m, {verifier}", "model": "m"} | ({"verifier": verifier} if verifier else {}))
    assert loaded == ["clean", "noisy", "of older files"]


def test_a_page_names_every_verifier_that_guides(run: Path) -> None:
    about = json.loads((run / "study.json").read_text())
    del about["verifier"]
    about["models"] = [{"label": f"m, {name}", "model": "m", "verifier": name} for name in ("clean", "noisy", "clean")]
    (run / "study.json").write_text(json.dumps(about))
    with pytest.raises(SystemExit):
        main(["report", str(run), "--no-figures"])
    assert "<b>score</b> is clean or noisy, which guided" in (run / "report" / "index.html").read_text()


def test_a_stale_journal_of_a_tree_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = tmp_path / "a.journal"
    journal.write_bytes(b"of another search")

    def search(*arguments: object, journal: Path, **more: object) -> str:
        if journal.exists():
            raise BadInput("the journal of another search")
        return "repeated"

    monkeypatch.setattr("lotts_search.api.search", search)
    about = {"models": [{"label": "m", "model": "m"}], "strategies": [{"label": "a", "strategy": "a", "settings": {}}]}
    again = Again(about)
    monkeypatch.setattr(again, "_pool", lambda model: None)
    with pytest.warns(Notice, match="a.journal is of another version"):
        assert again.search(Setup("m", "a", 9.0), "p", "id", 0, journal=journal) == "repeated"
    assert not journal.exists()
