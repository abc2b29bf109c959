"""The pages: their numbers, their images and, in a browser, what is really drawn."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from lotts_search import search
from lotts_search.core.result import SearchResult
from lotts_search.curves.intervals import interval
from lotts_search.curves.steps import StepFunction, mean_curve
from lotts_search.errors import Failure
from lotts_search.report import page as page_module
from lotts_search.report import write_search_page
from lotts_search.report.colours import COLOURS, colours, css
from lotts_search.report.images import area, colour_map, data_uri, outline
from lotts_search.report.lineages import lineages, start_of
from lotts_search.report.plot import Series, line_chart, ticks
from lotts_search.report.search_figure import write_figure
from lotts_search.report.search_page import best_so_far, ledger_lines
from lotts_search.report.search_tree import Card, build, in_words
from lotts_search.report.unscored import unscored
from lotts_search.strategies.particle import Particle
from lotts_search.testing import AnalyticPool
from lotts_search.work.requests import Score, Work
from tests.browser import CHROMIUM, needs_chromium
from tests.made_up import made_up_search


def test_interval_is_students_t() -> None:
    # Four values with variance 5/3; the 97.5 % point of t with 3 degrees of freedom is 3.182446.
    found = interval([1.0, 2.0, 3.0, 4.0])
    half = 3.182446305 * (5 / 3) ** 0.5 / 2
    assert (found.mean, found.low, found.high) == pytest.approx((2.5, 2.5 - half, 2.5 + half))
    assert interval([2.0]).low == interval([2.0]).high == 2.0
    with pytest.raises(ValueError, match="at least one"):
        interval([])


def test_step_functions_hold_their_value_until_the_next_step() -> None:
    steps = StepFunction(np.array([2.0, 5.0]), np.array([0.1, 0.7]))
    np.testing.assert_array_equal(steps.at(np.array([1.9, 2.0, 4.9, 5.0, 99.0])), [np.nan, 0.1, 0.1, 0.7, 0.7])


def test_mean_curve_begins_where_all_searches_have_an_image() -> None:
    one = StepFunction(np.array([1.0, 4.0]), np.array([0.0, 1.0]))
    two = StepFunction(np.array([2.0, 3.0]), np.array([0.5, 0.7]))
    curve = mean_curve([one, two])
    np.testing.assert_allclose(curve.x, [2, 3, 4])
    np.testing.assert_allclose(curve.mean, [0.25, 0.35, 0.85])
    assert (curve.low < curve.mean).all() and (curve.high > curve.mean).all()


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-0.3, 2.2), (0.91, 0.96), (0.0, 1234.0)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 3 <= len(found) <= 9
    assert low <= min(found) and max(found) <= high
    step = found[1] - found[0]
    assert np.allclose(np.diff(found), step)
    assert f"{step:.6e}"[0] in "125"


def _cells(path: str, shape: tuple[int, int]) -> np.ndarray:
    """Return the cells that an ``area`` path fills, parsed independently."""
    drawn = np.zeros(shape, dtype=bool)
    for a, y, b in re.findall(r"M(\d+) (\d+)H(\d+)V\d+H\d+Z", path):
        drawn[int(y), int(a) : int(b)] = True
    return drawn


def test_mask_paths_follow_the_mask() -> None:
    mask = np.random.default_rng(0).random((16, 12)) < 0.5
    np.testing.assert_array_equal(_cells(area(mask), mask.shape), mask)
    # The outline's length is the number of cell sides between masked and unmasked, counted cell by cell.
    sides = 0
    for y, x in np.argwhere(mask):
        for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            ny, nx = y + dy, x + dx
            sides += not (0 <= ny < 16 and 0 <= nx < 12 and mask[ny, nx])
    horizontal = sum(int(b) - int(a) for a, b in re.findall(r"M(\d+) \d+H(\d+)", outline(mask)))
    vertical = sum(int(b) - int(a) for a, b in re.findall(r"M\d+ (\d+)V(\d+)", outline(mask)))
    assert horizontal + vertical == sides


def test_images_survive_as_data_uris() -> None:
    image = np.random.default_rng(1).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    uri = data_uri(image)
    assert uri.startswith("data:image/png;base64,")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))), image)


def test_colours_show_sign_and_size() -> None:
    signed = colour_map(np.array([[-1.0, 0.0, 0.5]], dtype=np.float32))[0].astype(int)
    assert signed[0, 2] > signed[0, 0]  # blue below zero
    assert signed[2, 0] > signed[2, 2]  # red above
    assert np.ptp(signed[1]) < 12  # pale at zero, although zero is not the middle of the values
    light = colour_map(np.linspace(0, 1, 50, dtype=np.float32)[None])[0] @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(light) >= 0).all()
    assert colour_map(np.zeros((3, 3), dtype=np.float32)).std(axis=(0, 1)).max() == 0


def walk(roots: Sequence[Card]) -> Iterator[Card]:
    """Yield all cards, parents before their children."""
    for root in roots:
        yield root
        yield from walk(root.children)


def test_tree_has_regions_and_children_under_their_parents() -> None:
    result = made_up_search("lotts")
    assert result.best is not None
    roots = build(result.trials, result.images, result.located, result.best.trial_id)
    assert [len(root.children) for root in roots] == [2, 2, 2]
    assert [len(root.regions) for root in roots] == [1, 1, 1]
    assert sum(node.winner for node in walk(roots)) == 1
    winner = next(node for node in walk(roots) if node.winner)
    assert [root.on_path for root in roots] == [any(n is winner for n in walk([root])) for root in roots]
    for root in roots:
        for child in root.children:
            assert child.gain == pytest.approx((child.trial.score or 0) - (root.trial.score or 0))
    stages = roots[0].regions[0].stages
    assert [s.name for s in stages] == ["ori", "pos", "neg", "contrast", "propagated", "reweighted"]


def test_a_partial_candidate_shows_the_prediction_that_was_scored() -> None:
    with AnalyticPool() as pool:
        result = search("red star", strategy="svdd", settings={"children": 3}, nfe=22, pool=pool)
    roots = build(result.trials, result.images, result.located, None)
    cards = [card for card in walk(roots) if card.trial.stop != 8]
    scores = {t.parent_id: t for t in result.trials if t.kind == "score"}
    assert len(cards) == 1 + 3 * 7
    for card in cards:
        made = scores[card.trial.trial_id]
        assert (card.score, card.uri) == (made.score, data_uri(result.images[made.trial_id]))
        assert card.nfe == card.trial.nfe + made.nfe == 1


def test_best_so_far_counts_localization_and_images() -> None:
    result = made_up_search("lotts")
    over_nfe, over_images = best_so_far(result.trials), best_so_far(result.trials, "images")
    assert over_nfe.x[-1] == result.ledger.nfe == 3 * 16 + 3 * 1.5 + 6 * 9
    assert over_images.x[-1] == 9
    assert over_nfe.y[-1] == over_images.y[-1] == result.score
    assert (np.diff(over_nfe.y) >= 0).all()


def test_ledger_adds_up() -> None:
    lines = {line[0]: line for line in ledger_lines(made_up_search("lotts").trials)}
    assert lines["sample"][1:3] == ["3", "48"]
    assert lines["localize"][1:3] == ["3", "4.5"]
    assert lines["refine"][1:3] == ["6", "54"]


def test_chart_leaves_out_values_that_are_not_finite() -> None:
    x = np.array([1.0, 2.0, 3.0])
    chart = line_chart([Series("a", "red", x, np.array([np.nan, 0.2, 0.4]), step=True)], "x", "y", "t")
    line = re.search(r'class="line" d="([^"]+)"', chart)
    assert line is not None and "nan" not in chart
    assert line.group(1).count("L") == 2  # two finite points and the corner between them


class Page(HTMLParser):
    """Collects the references, tags and classes of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.tags: list[str] = []
        self.classes: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        self.references += [v for k, v in attrs if k in ("src", "href", "srcset", "action") and v]
        self.classes += (found.get("class") or "").split()


def test_search_page_is_one_file_and_escapes_the_prompt(tmp_path: Path) -> None:
    result = made_up_search("lotts", prompt="<script>alert(1)</script> & co")
    path = write_search_page(result, tmp_path / "deep" / "search.html", "lotts-search generate '<b>'")
    html = path.read_text()
    page = Page(html)
    assert page.references and all(r.startswith("data:") for r in page.references)
    assert "@import" not in html and "url(" not in html
    assert "script" not in page.tags and "b" not in page.tags
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; co" in html
    assert page.classes.count("candidate") == 9 and page.classes.count("winner") == 1
    # The page contains the exact pixels of the best image.
    assert result.image is not None and data_uri(result.image) in page.references
    assert list(path.parent.iterdir()) == [path]


def test_search_page_of_an_interrupted_search(tmp_path: Path) -> None:
    html = write_search_page(made_up_search("lotts", cancelled=2), tmp_path / "search.html").read_text()
    assert html.count("cancelled") >= 2


def test_figure_shows_the_tree(tmp_path: Path) -> None:
    svg = write_figure(made_up_search("lotts"), tmp_path / "figure.svg").read_text()
    assert svg.count("<image") == 3 * (3 + 2)
    assert svg.count("★ best") == 1


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("seed 3", "seed 3"),
        ("refine@2 0", "refined from step 2, seed 0"),
        ("branch@12 7", "branched at step 12, seed 7"),
        ("vary@3 0.15 7", "step 3 with its noise varied by 0.15, seed 7"),
        ("low 4x4 0a1b", "the noise before with other low frequencies (4x4, 0a1b)"),
        ("near 0.95 1", "noise near the one before (cosine 0.95), seed 1"),
        ("mix 0.3 4", "the noise before, mixed with 0.3 of new noise, seed 4"),
        ("other 1", "other 1"),
    ],
)
def test_a_lineage_is_shown_in_words(entry: str, words: str) -> None:
    assert in_words(entry) == words


def deep_search(depth: int = 9) -> SearchResult:
    """Make up a search whose best image is the end of a chain of refinements, each with five siblings."""
    made = made_up_search("lotts")
    record = next(t for t in made.trials if t.kind == "refine")
    (parent,) = {t.trial_id for t in made.trials if t.trial_id == record.parent_id}
    trials, images, located = list(made.trials), dict(made.images), dict(made.located)
    for level in range(depth):
        for k in range(6):
            name = f"d{level}-{k}"
            lineage = (*record.lineage, f"refine@{level} {k}")
            trials.append(replace(record, trial_id=name, parent_id=parent, lineage=lineage))
            images[name] = images[record.trial_id]
        parent = f"d{level}-0"
        mask = next(t for t in made.trials if t.kind == "localize")
        trials.append(replace(mask, trial_id=f"m{level}", parent_id=parent))
        located[f"m{level}"] = located[mask.trial_id]
    return replace(made, trials=trials, images=images, located=located)


def test_only_children_stand_in_one_line() -> None:
    result = made_up_search("lotts")
    roots = build(result.trials, result.images, result.located, None)
    assert [len(root.chain) for root in roots] == [1, 1, 1]
    roots[0].children = roots[0].children[:1]
    roots[0].children[0].children = [roots[1]]
    assert roots[0].chain == [roots[0], roots[0].children[0], roots[1]]


def test_a_strategy_has_one_colour(tmp_path: Path) -> None:
    alone, both = colours(["lotts"]), colours(["tree-search", "mine", "lotts refinements=2", "best-of-n"])
    assert alone["lotts"] == both["lotts refinements=2"] == colours(["LoTTS depth=1", "Best-of-N"])["LoTTS depth=1"]
    assert both["best-of-n"] == colours(["best-of-n", "other"])["best-of-n"]
    assert len(set(both.values())) == 4
    many = colours([f"lotts refinements={n}" for n in range(11)])
    assert sorted(many.values()) == list(range(len(COLOURS)))
    style = (Path(page_module.__file__).parent / "templates" / "colours.css").read_text()
    light = re.findall(r"--series-(\d): (#\w+)", style)[: len(COLOURS)]
    assert light == [(str(n + 1), colour) for n, colour in enumerate(COLOURS)]
    html = write_search_page(made_up_search("lotts"), tmp_path / "search.html").read_text()
    assert f'style="--c:{css(alone["lotts"])}"' in html


def _chromium(tmp_path: Path, page: Path, *arguments: str) -> str:
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--force-device-scale-factor=1",
        f"--user-data-dir={tmp_path / 'profile'}", *arguments, page.as_uri(),
    ]  # fmt: skip
    environment = {**os.environ, "HOME": str(tmp_path)}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, env=environment).stdout


@pytest.mark.browser
@needs_chromium
def test_browser_draws_the_search(tmp_path: Path) -> None:
    result = made_up_search("lotts")
    page = write_search_page(result, tmp_path / "search.html", "lotts-search generate …")
    dom = Page(_chromium(tmp_path, page, "--dump-dom"))
    assert dom.classes.count("candidate") == 9 and dom.classes.count("winner") == 1
    assert dom.classes.count("region") == 3 and dom.classes.count("chart") == 1

    _chromium(tmp_path, page, f"--screenshot={tmp_path / 'shot.png'}", "--window-size=1200,1500")
    shot = np.asarray(Image.open(tmp_path / "shot.png").convert("RGB")).astype(int)
    assert shot.shape == (1500, 1200, 3)
    golden = (np.abs(shot - [183, 121, 31]).max(axis=-1) < 4).sum()
    yellow = (np.abs(shot - [255, 225, 77]).max(axis=-1) < 4).sum()
    assert golden > 1000  # the frames of the best image
    assert yellow > 500  # outlines of the located regions
    # The best image is at the top of the page, enlarged three times, pixel by pixel.
    assert result.image is not None
    assert _holds(shot, np.kron(result.image.astype(int), np.ones((3, 3, 1), dtype=int))[12:-12, 12:-12])


def _holds(shot: np.ndarray, image: np.ndarray) -> bool:
    """Return whether the upper left of a screenshot contains ``image``, up to one level of its bytes."""
    h, w, _ = image.shape
    off = np.zeros((400 - h, 400 - w))
    for y, x in np.random.default_rng(0).integers(0, (h, w), (200, 2)):
        off = np.maximum(off, np.abs(shot[y : y + off.shape[0], x : x + off.shape[1]] - image[y, x]).max(axis=-1))
    y, x = np.unravel_index(off.argmin(), off.shape)
    return bool(np.abs(shot[y : y + h, x : x + w] - image).max() <= 1)


MEASURE = """<script>document.title = JSON.stringify({
  page: document.documentElement.scrollWidth - innerWidth,
  boxes: [...document.querySelectorAll('.tree')].map(e => e.scrollWidth - e.clientWidth),
  tables: [...document.querySelectorAll('table')].filter(e => !e.closest('.scroll')).length,
})</script>"""


def overflow(tmp_path: Path, page: Path, width: int) -> dict[str, Any]:
    """Return by how many pixels the page and its trees are too wide in a frame of ``width``, as a browser draws it."""
    (tmp_path / "measured.html").write_text(page.read_text().replace("</body>", MEASURE + "</body>"))
    frame = tmp_path / f"frame{width}.html"
    # A frame, because windows have a least width.
    frame.write_text(
        f'<iframe src="measured.html" style="width:{width}px;height:900px;border:0" '
        'onload="document.title = this.contentDocument.title"></iframe>'
    )
    dom = _chromium(tmp_path, frame, "--dump-dom", "--allow-file-access-from-files", "--window-size=1400,1000")
    found = re.search("<title>(.*?)</title>", dom)
    assert found is not None
    return json.loads(found.group(1))


@pytest.mark.browser
@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_a_deep_tree_fits_the_window(tmp_path: Path, width: int) -> None:
    page = write_search_page(deep_search(), tmp_path / "search.html")
    found = overflow(tmp_path, page, width)
    assert found["page"] <= 0 and max(found["boxes"]) <= 0 and found["tables"] == 0


def test_pages_say_which_images_the_verifier_did_not_judge(tmp_path: Path) -> None:
    with AnalyticPool() as pool:
        left = search("red star", pool=pool, strategy="partial-refinement", nfe=8 + 3 * 5)
        judged = search("red star", pool=pool, strategy="lotts", nfe=40)
    assert unscored(left.to_table()) == {"partial-refinement": 0.75} and unscored(judged.to_table()) == {}
    page = write_search_page(left, tmp_path / "left.html").read_text()
    assert "of the images: the verifier did not choose" in page
    assert "the verifier did not choose" not in write_search_page(judged, tmp_path / "judged.html").read_text()


def test_images_whose_score_failed_are_not_taken_for_unscored() -> None:
    count = 0

    def fail(work: Work) -> Exception | None:
        nonlocal count
        count += isinstance(work, Score)
        return Failure("lost") if isinstance(work, Score) and count == 2 else None

    with AnalyticPool(fail=fail) as pool:
        result = search("red star", pool=pool, strategy="best-of-n", nfe=24)
    assert sum(t.kind == "sample" and t.score is None for t in result.trials) == 1
    assert unscored(result.to_table()) == {}


def test_a_lineage_starts_where_its_last_branches_begin() -> None:
    start = ("seed 3", "branch@2 1", "refine@4 0")
    assert start_of((*start, "branch@5 1", "compose@6 0a", "vary@7 0.15 2")) == start_of(start) == start
    assert start_of(("image 0a", "refine@2 1")) == ("image 0a", "refine@2 1") and start_of(()) == ()


@pytest.mark.parametrize(("settings", "local"), [({}, False), ({"resampling": "fleming-viot"}, False), ({}, True)])
def test_reports_count_the_lineages_that_the_particles_count_themselves(settings: dict[str, Any], local: bool) -> None:
    """Those of the weights, which follow the ancestors of each particle through all resamplings."""
    most = 0
    for seed in range(3):
        strategy = Particle(strength=2.0, interval=0.01, adaptive=False, local=local, **settings)
        kept, steer = [], strategy.steer

        async def steered(*arguments: Any, steer: Any = steer, kept: list[int] = kept) -> Any:
            found = await steer(*arguments)
            kept.append(found[1].lineages)
            return found

        strategy.steer = steered  # type: ignore[method-assign]
        with AnalyticPool() as pool:
            result = search("red star", pool=pool, strategy=strategy, nfe=9 + 12 * 8, seed=seed)
        (found,) = lineages(result.to_table())
        assert found.left == kept[0] + local  # the image that is refined is a start with an image, too
        assert found.images == result.ledger.images and found.begun > found.left and found.selected
        most = max(most, kept[0])
    assert most > 1


def test_pages_show_lineages_only_where_a_strategy_selects(tmp_path: Path) -> None:
    with AnalyticPool() as pool:
        halved = search("red star", pool=pool, strategy="successive-halving", nfe=67)
        plain = search("red star", pool=pool, strategy="lotts", nfe=40)
    (found,) = lineages(halved.to_table())
    assert (found.begun, found.left, found.images) == (16, 1, 1)
    assert "of 16 starts have images" in write_search_page(halved, tmp_path / "halved.html").read_text()
    assert "starts have images" not in write_search_page(plain, tmp_path / "plain.html").read_text()


def test_lineages_of_budgets_in_flops_are_counted_apart() -> None:
    """The setups are those of the curves, so that a page can put both side by side."""
    with AnalyticPool() as pool:
        one = search("red star", pool=pool, strategy="successive-halving", flops=60_000)
        two = search("red star", pool=pool, strategy="successive-halving", flops=120_000)
    tables = [result.to_table() for result in (one, two)]
    found = lineages(pa.concat_tables(tables, promote_options="permissive"))
    assert [line.setup.flops for line in found] == [60_000, 120_000]
    assert [line.begun for line in found] == [lineages(table)[0].begun for table in tables]
    assert lineages(tables[0].drop_columns(["budget_flops"]))[0].begun == found[0].begun
