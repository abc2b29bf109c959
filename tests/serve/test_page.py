"""The page in a real browser, over the analytic model."""

from __future__ import annotations

import io
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lotts_search import search
from lotts_search.errors import Failure
from lotts_search.report.colours import USUAL
from lotts_search.serve.config import Config
from lotts_search.serve.service import local_pools
from lotts_search.testing import AnalyticPool
from lotts_search.work.requests import Segment, Work
from tests.browser import CHROMIUM, needs_chromium
from tests.serve.running import PROMPT, Running, running
from tests.serve.test_embedded import PROMPT as SCENE

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: install the extra dev to test the page")
pytestmark = [pytest.mark.browser, needs_chromium]
expect = playwright.expect
Page = Any
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    home = {"HOME": str(tmp_path_factory.mktemp("home"))}
    expect.set_options(timeout=15_000)
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=arguments, env=home)
        yield found
        found.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as found:
        yield found


@pytest.fixture(scope="module")
def embedded() -> Iterator[Running]:
    """A server over shapes-sd, which takes drawn masks."""
    (pool,) = local_pools(Config()).values()
    with running(pool) as found:
        yield found


@pytest.fixture
def visit(browser: Any) -> Iterator[Open]:
    """Open the page of a server; at the end, no page complained or asked another host for anything."""
    contexts, problems = [], []

    def opened(server: Running, refused: bool = False, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
        context.set_default_timeout(15_000)
        contexts.append(context)
        page = context.new_page()

        def complain(message: Any) -> None:
            expected = refused and "Failed to load resource" in message.text
            if message.type in ("error", "warning") and not expected:
                problems.append(message.text)

        def asked(request: Any) -> None:
            if not request.url.startswith((server.url, "data:", "blob:")):
                problems.append(f"asked for {request.url}")

        page.on("console", complain)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", asked)
        page.goto(server.url)
        page.wait_for_selector("body.ready")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not problems


def fill(
    page: Page, images: int = 9, seed: int | None = 3, prompt: str = PROMPT, strategy: str | None = "lotts"
) -> None:
    if strategy is not None:
        page.locator("#first-name").select_option(strategy)
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("Amount").fill(str(images))
    if seed is not None:
        page.get_by_text("More options").click()
        page.get_by_label("Seed").fill(str(seed))


def go(page: Page) -> None:
    page.get_by_role("button", name="Search").click()


def ended(page: Page) -> None:
    expect(page.locator("#go")).to_be_enabled()


def recipe(page: Page, at: int = 0) -> list[str]:
    return shlex.split(page.locator("pre").nth(at).inner_text())


def downloaded(page: Page, name: str) -> bytes:
    with page.expect_download() as download:
        page.get_by_role("link", name=name).click()
    return Path(download.value.path()).read_bytes()


def pixels(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def alone(**arguments: Any) -> Any:
    with AnalyticPool() as pool:
        return search(PROMPT, pool=pool, **arguments)


def file(width: int, height: int) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (160, 160, 160)).save(buffer, format="PNG")
    return {"name": "mine.png", "mimeType": "image/png", "buffer": buffer.getvalue()}


class Gate:
    """Lets a number of pieces of work through, and holds the others until it is opened, at the latest at the end of a block."""

    def __init__(self, free: int):
        self._left, self.open = free, threading.Event()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self.open.set()

    def __call__(self, work: Work) -> None:
        self._left -= 1
        if self._left < 0:
            self.open.wait(120)


def test_a_search_is_shown_while_it_grows_and_can_be_taken_away(visit: Open) -> None:
    gate = Gate(12)
    with running(AnalyticPool(shuffle=1, fail=gate)) as server, gate:
        page = visit(server)
        fill(page)
        go(page)
        expect(page.locator(".candidate.winner img")).to_be_visible()  # while the others wait
        expect(page.locator(".candidate.waiting").first).to_be_visible()
        assert 0 < float(page.locator("progress").evaluate("bar => bar.value")) < 1
        expect(page.get_by_role("button", name="Stop")).to_be_enabled()
        gate.open.set()
        ended(page)
        result = alone(strategy="lotts", seed=3, images=9)
        expect(page.locator(".status")).to_have_text("Done")
        made = [trial for trial in result.trials if trial.kind in ("sample", "refine")]
        expect(page.locator(".candidate img")).to_have_count(len(made))
        assert {f"score {trial.score:.3f}" for trial in made} == {
            next(part for part in alt.split(", ") if part.startswith("score"))
            for alt in page.locator(".candidate img").evaluate_all("all => all.map(one => one.alt)")
        }
        expect(page.locator(".candidate.winner img")).to_have_attribute("alt", f"refinement, score {result.score:.3f}, {result.score - parent_score(result):+.3f} over the image before, best so far")  # fmt: skip
        assert page.locator(".found svg").count() == len(result.located)
        page.get_by_text("As a table").click()
        assert page.locator("tbody tr td").last.inner_text() == f"{result.score:.3f}"
        assert f"Best score {result.score:.3f}" in page.locator("#live").inner_text()
        assert np.array_equal(pixels(downloaded(page, "Download the image")), result.image)
        assert downloaded(page, "Download the recipe").decode().split() == page.locator("pre").inner_text().split()
        assert recipe(page)[:3] == ["lotts-search", "generate", PROMPT] and recipe(page)[-4:] == ["--images", "9", "--seed", "3"]  # fmt: skip


def parent_score(result: Any) -> float:
    trials = {trial.trial_id: trial for trial in result.trials}
    score: float = trials[result.best.parent_id].score
    return score


def test_two_strategies_are_compared_from_the_same_noise(visit: Open, server: Running) -> None:
    page = visit(server)
    fill(page, seed=None, strategy=None)
    page.get_by_label("Compare with a second strategy").check()
    page.get_by_label("Second strategy", exact=True).select_option("random-search")
    go(page)
    ended(page)
    seeds = [int(recipe(page, at)[-1]) for at in (0, 1)]
    assert seeds[0] == seeds[1]
    for at, strategy in enumerate(("adaptive-mosaic", "random-search")):
        score = page.locator(".hero").nth(at).locator("dd").first.inner_text()
        assert score == f"{alone(strategy=strategy, seed=seeds[0], images=9).score:.3f}"
    assert page.locator(".chart path.line").count() == 2
    lefts = page.locator(".hero").evaluate_all("all => all.map(one => one.getBoundingClientRect().top)")
    assert lefts[0] == lefts[1]  # side by side


def test_settings_are_sent_where_they_were_changed(visit: Open, server: Running) -> None:
    page = visit(server)
    fill(page)
    page.get_by_text("Settings of lotts").click()
    page.get_by_label("refinements", exact=True).fill("1")
    page.get_by_text("Region and refinement").click()
    page.get_by_label("mask", exact=True).fill('{"kind": "random", "ratio": 0.25}')
    page.get_by_label("temporal", exact=True).select_option("false")
    go(page)
    ended(page)
    words = recipe(page)
    given = [words[at + 1] for at, word in enumerate(words) if word == "--set"]
    assert sorted(given) == ['mask={"kind": "random", "ratio": 0.25}', "refinements=1", "temporal=False"]


def test_an_image_is_refined_where_the_search_finds_it_wrong(visit: Open, server: Running) -> None:
    page = visit(server)
    page.get_by_text("Refine an image").click()
    assert "best-of-n" not in page.locator("#first-name option").all_inner_texts()  # takes no image
    page.get_by_label("Image PNG").set_input_files(file(12, 12))
    fill(page, images=2)
    go(page)
    ended(page)
    assert recipe(page)[:3] == ["lotts-search", "refine", "image.png"] and "--mask" not in recipe(page)
    expect(page.locator(".candidate img").first).to_have_attribute("alt", "given image, score 1.000, best so far")
    expect(page.get_by_text("Note: the image: 12x12 resampled to 6x6")).to_be_visible()


def marked(page: Page) -> set[tuple[int, int]]:
    """Return the cells (x, y) that the tree shows as located."""
    path = page.locator(".found .shade").first.get_attribute("d")
    corners = [part.removesuffix("h1v1h-1z").split(" ") for part in path.split("M")[1:]]
    return {(int(x), int(y)) for x, y in corners}


def draw_on(page: Page, width: int, height: int) -> None:
    """Upload an image and choose a thin brush."""
    page.get_by_text("Refine an image").click()
    page.get_by_label("Image PNG").set_input_files(file(width, height))
    page.get_by_text("Drawn by me").click()
    fill(page, images=1, prompt=SCENE)
    page.get_by_label("Steps").fill("2")
    page.get_by_label("Brush").fill("2")


def test_a_mask_is_drawn(visit: Open, embedded: Running) -> None:
    """On an image that is too wide: what is used is the square in its middle, 16 x 16 cells."""
    page = visit(embedded)
    draw_on(page, 192, 64)
    go(page)
    expect(page.get_by_role("alert")).to_have_text("Draw over the region that should change.")
    box = page.get_by_role("application").bounding_box()
    x = [box["x"] + box["width"] * (64 + 4 * cell + 2) / 192 for cell in range(16)]
    y = [box["y"] + box["height"] * (4 * cell + 2) / 64 for cell in range(16)]
    page.mouse.move(x[4], y[1])
    page.mouse.down()
    page.mouse.move(x[4], y[3], steps=4)
    page.mouse.up()
    page.mouse.click(x[0], y[0])
    page.get_by_role("button", name="Undo").click()
    go(page)
    ended(page)
    assert marked(page) == {(4, 1), (4, 2), (4, 3)}
    assert "--mask" in recipe(page)
    mask = pixels(downloaded(page, "Download the mask"))
    assert mask.shape[1] == 3 * mask.shape[0] and mask.min() == 0 and mask.max() == 255


def test_a_mask_is_drawn_with_the_keyboard(visit: Open, embedded: Running) -> None:
    """A key moves the brush by half a cell."""
    page = visit(embedded)
    draw_on(page, 64, 64)
    page.get_by_role("application").focus()
    for key in ["ArrowLeft"] * 40 + ["ArrowUp"] * 40 + ["ArrowRight", "ArrowDown", "Space"]:
        page.keyboard.press(key)
    assert page.locator("#marked").inner_text().startswith("Brush at 3 % from the left, 3 % from the top.")
    for key in ["ArrowRight"] * 20 + ["Space", "Backspace"]:
        page.keyboard.press(key)
    go(page)
    ended(page)
    assert marked(page) == {(0, 0)}


def test_stop_ends_the_search_on_the_server_and_keeps_the_best(visit: Open) -> None:
    gate = Gate(12)
    with running(AnalyticPool(shuffle=1, fail=gate)) as server, gate:
        page = visit(server)
        fill(page)
        go(page)
        expect(page.locator(".candidate.winner img")).to_be_visible()
        assert server.service.running == 1
        page.get_by_role("button", name="Stop").click()
        ended(page)
        gate.open.set()
        until = time.monotonic() + 60
        while server.service.running and time.monotonic() < until:
            time.sleep(0.05)
        assert server.service.running == 0
    expect(page.locator(".status")).to_have_text("Stopped")
    assert page.locator("img.best").get_attribute("alt").startswith("best image so far, score")
    assert page.locator(".waiting").count() == 0
    assert pixels(downloaded(page, "Download the preview")).shape == (6, 6, 3)


def test_what_is_wrong_is_said_at_its_field(visit: Open, server: Running) -> None:
    page = visit(server, refused=True)
    go(page)
    expect(page.get_by_role("alert")).to_have_text("Type a prompt first.")
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    expect(page.get_by_label("Prompt", exact=True)).to_have_attribute("aria-invalid", "true")
    fill(page)
    page.get_by_label("Amount").fill("0")
    go(page)
    expect(page.get_by_role("alert")).to_contain_text("Amount:")
    page.get_by_label("Unit").select_option("nfe")
    page.get_by_label("Amount").fill("1")
    go(page)
    expect(page.get_by_role("alert")).to_contain_text("does not pay for one sample")
    page.get_by_label("Amount").fill("20")
    page.get_by_label("Steps").fill("9999")
    go(page)
    expect(page.get_by_role("alert")).to_contain_text("num_inference_steps must be within 1..200")
    expect(page.get_by_label("Steps")).to_be_focused()


def test_a_failed_search_says_why(visit: Open) -> None:
    broken = AnalyticPool(shuffle=1, fail=lambda work: Failure("broken <b>") if isinstance(work, Segment) else None)
    with running(broken) as server:
        page = visit(server)
        fill(page)
        go(page)
        ended(page)
        expect(page.get_by_role("alert")).to_contain_text("broken <b>")
        expect(page.locator(".status")).to_contain_text("Failed: no image was finished")


def test_a_key_is_asked_for_by_the_browser(visit: Open, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("anna 0123456789abcdef\n")
    with running(keys=tmp_path / "keys") as server:
        page = visit(server, http_credentials={"username": "whoever", "password": "0123456789abcdef"}, refused=True)
        fill(page, images=1)
        go(page)
        expect(page.locator(".status")).to_have_text("Done")
        assert 'lotts_nfe_total{key="anna"' in page.request.get(f"{server.url}/metrics").text()


def test_texts_are_no_markup(visit: Open, server: Running) -> None:
    page = visit(server)
    prompt = '<img src="x" onerror="document.title = 1">'
    fill(page, images=1, prompt=prompt)
    go(page)
    ended(page)
    assert recipe(page)[2] == prompt
    assert page.locator("img[src=x]").count() == 0 and page.title() == "lotts-search"


def test_everything_is_reached_with_the_keyboard(visit: Open, server: Running) -> None:
    page = visit(server)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the results")).to_be_focused()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.get_by_label("Prompt", exact=True).evaluate("field => field === document.activeElement"):
            break
    page.keyboard.type(PROMPT)
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.locator("#go").evaluate("field => field === document.activeElement"):
            break
    page.keyboard.press("Enter")
    expect(page.locator(".status")).to_have_text("Done")
    expect(page.locator("#go")).to_be_focused()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.locator(".candidate").first.evaluate("field => field === document.activeElement"):
            break
    page.keyboard.press("ArrowRight")
    second = page.locator(".candidate").nth(1)
    expect(second).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text(
        second.locator("img").get_attribute("alt").split("score ")[1][:5]
    )
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(second).to_be_focused()


def fits(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def test_a_telephone_needs_no_horizontal_scrolling(visit: Open, server: Running) -> None:
    """With all settings open, two trees, one of them deep, and a long prompt without spaces."""
    page = visit(server, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    fits(page)
    page.get_by_text("Refine an image").click()
    page.get_by_label("Image PNG").set_input_files(file(300, 60))
    page.get_by_text("Drawn by me").click()
    page.get_by_label("Compare with a second strategy").check()
    page.locator("#second-name").select_option("particle")
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    fits(page)
    page.get_by_text("Found by the search").click()
    page.get_by_label("Prompt", exact=True).fill(PROMPT + "x" * 300)
    page.get_by_label("Amount").fill("4")
    go(page)
    ended(page)
    fits(page)
    page.locator(".candidate").last.click()
    expect(page.get_by_role("dialog")).to_be_visible()
    fits(page)


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_axe_finds_nothing(visit: Open, server: Running, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.base", reason="no axe: install the extra dev")
    page = visit(server, color_scheme=scheme, reduced_motion="reduce", bypass_csp=True)

    def check() -> None:
        page.evaluate(axe.AXE_SCRIPT)
        found = page.evaluate("axe.run()")["violations"]
        assert not [(one["id"], [node["html"] for node in one["nodes"]]) for one in found]

    check()
    page.get_by_text("Refine an image").click()
    page.get_by_label("Image PNG").set_input_files(file(60, 60))
    page.get_by_text("Drawn by me").click()
    page.get_by_label("Compare with a second strategy").check()
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    go(page)  # without a prompt
    check()
    page.get_by_text("Found by the search").click()
    fill(page, images=3, seed=None)
    go(page)
    ended(page)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    check()
    page.locator(".candidate").first.click()
    check()


def test_nothing_moves_for_those_who_ask_for_it(visit: Open, server: Running) -> None:
    for motion, name in (("reduce", "none"), ("no-preference", "appear")):
        page = visit(server, reduced_motion=motion)
        fill(page, images=1)
        go(page)
        ended(page)
        shown = page.locator(".candidate").first.evaluate("card => getComputedStyle(card).animationName")
        assert shown == name


def test_strategies_have_the_colours_of_reports(visit: Open, server: Running) -> None:
    page = visit(server)
    assert tuple(page.evaluate("import('/web/strategy.js').then(found => found.USUAL)")) == USUAL
