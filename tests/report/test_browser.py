"""The page in a real browser: nothing is broken, nothing is empty, nothing sticks out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from curlfx.report.page import render
from tests.report.browser import PATIENCE, chromium
from tests.report.example import CHARTS, example

SIZES = {"desktop": (1280, 800), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(example()), encoding="utf-8")
    return path


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    """Where screenshots go: the folder CURLFX_ARTIFACTS, or a temporary one."""
    folder = Path(os.environ.get("CURLFX_ARTIFACTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Opened:
    """A page, and what went wrong on it."""

    def __init__(self, browser: Any, file: Path, size: str, scheme: str = "light") -> None:
        width, height = SIZES[size]
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=size == "phone"
        )
        self.context.set_default_timeout(PATIENCE)
        self.page = self.context.new_page()
        self.faults: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.faults.append(message.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


def until(page: Any, holds: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Whether ``holds`` comes true; the page may not evaluate text, so that it cannot be asked to wait."""
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        page.wait_for_timeout(20)
    return holds()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_the_page_is_whole(browser: Any, file: Path, artifacts: Path, size: str, scheme: str) -> None:
    with Opened(browser, file, size, scheme) as opened:
        page = opened.page
        for chart in CHARTS:
            boxes = page.eval_on_selector_all(
                f"#chart-{chart} svg", "all => all.map(one => [one.clientWidth, one.clientHeight])"
            )
            assert boxes, chart
            assert all(width > 20 and height > 5 for width, height in boxes), (chart, boxes)
        assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
        page.eval_on_selector_all("details", "all => all.forEach(one => one.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
        page.eval_on_selector_all("details", "all => all.forEach(one => one.open = false)")
        page.screenshot(path=artifacts / f"report-{size}-{scheme}.png", full_page=True)
        assert opened.requests == [file.as_uri()]
        assert opened.faults == []


@pytest.mark.slow
def test_marks_are_drawn_in_colours_that_differ_from_the_paper(browser: Any, file: Path) -> None:
    for scheme in ("light", "dark"):
        with Opened(browser, file, "desktop", scheme) as opened:
            paper = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
            for mark in ("#chart-widths path.slim", "#chart-widths path.dense", "#chart-scores path.gone"):
                fill = opened.page.eval_on_selector(mark, "one => getComputedStyle(one).fill")
                assert fill.startswith("rgb"), (mark, fill)
                assert fill not in (paper, "rgba(0, 0, 0, 0)", "rgb(0, 0, 0)"), mark
            line = opened.page.eval_on_selector("#chart-epochs path.curve", "one => getComputedStyle(one).stroke")
            assert line.startswith("rgb"), line


@pytest.mark.slow
def test_the_coupling_graph_zooms_and_moves_and_says_what_is_tied(browser: Any, file: Path) -> None:
    with Opened(browser, file, "desktop") as opened:
        page = opened.page
        viewer = page.locator(".viewer")
        viewer.scroll_into_view_if_needed()
        box = viewer.bounding_box()

        def window() -> list[float]:
            return [float(one) for one in page.locator(".viewer svg").get_attribute("viewBox").split()]

        first = window()
        page.locator(".viewer .row", has_text="conv1").first.click()
        told = page.locator(".told").inner_text()
        assert "group conv1.weight, 64 channels" in told
        assert "tied to " in told
        assert "add (add, models/blocks.py:" in told
        assert page.locator(".lane.lit").count() >= 1
        page.mouse.wheel(0, -300)
        assert until(page, lambda: window()[2] < first[2] - 1)
        zoomed = window()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x - 60, y - 80, steps=4)
        page.mouse.up()
        moved = window()
        assert moved[1] > zoomed[1]
        assert moved[2:] == zoomed[2:]
        page.get_by_label("whole width").click()
        assert window() == first
        assert opened.faults == []


def test_without_the_click_the_wheel_scrolls_the_page(browser: Any, file: Path) -> None:
    with Opened(browser, file, "desktop") as opened:
        page = opened.page
        page.locator(".viewer").scroll_into_view_if_needed()
        page.locator(".viewer").hover()
        before = page.locator(".viewer svg").get_attribute("viewBox"), page.evaluate("scrollY")
        page.mouse.wheel(0, 200)
        assert until(page, lambda: page.evaluate("scrollY") > before[1])
        assert page.locator(".viewer svg").get_attribute("viewBox") == before[0]


def test_a_tap_on_a_column_shows_its_numbers(browser: Any, file: Path) -> None:
    with Opened(browser, file, "phone") as opened:
        page = opened.page
        page.locator("#chart-widths").scroll_into_view_if_needed()

        def shown() -> bool:  # a page that still scrolls hides what it shows: tap again
            page.locator("#chart-widths path.hit").first.tap()
            return bool(page.locator(".tip").inner_text() == "conv1: 64 → 32")

        assert until(page, shown)
        assert page.locator("#chart-widths g").first.get_attribute("aria-label") == "conv1: 64 → 32"


def test_the_command_is_copied(browser: Any, file: Path) -> None:
    with Opened(browser, file, "desktop") as opened:
        page = opened.page
        opened.context.grant_permissions(["clipboard-read", "clipboard-write"])
        button = page.locator("[data-copy=command]")
        button.click()
        assert until(page, lambda: button.inner_text() == "Copied")
        assert page.evaluate("navigator.clipboard.readText()") == example().command


def test_nothing_that_is_injected_runs(browser: Any, tmp_path: Path) -> None:
    """What escaping lets through, the policy of the page would still stop."""
    text = render(example()).replace("</main>", "<script>window.broken = true</script></main>")
    assert "<script>window.broken" in text
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    page = browser.new_page()
    page.add_init_script(
        "window.stopped = [];"
        "document.addEventListener('securitypolicyviolation', (event) => stopped.push(event.effectiveDirective));"
    )
    page.goto((tmp_path / "report.html").as_uri())
    assert until(page, lambda: page.evaluate("stopped") == ["script-src-elem"])
    assert page.evaluate("window.broken") is None
    page.close()


def test_without_a_script_everything_is_there(browser: Any, file: Path) -> None:
    context = browser.new_context(java_script_enabled=False, viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.locator(".viewer svg").is_visible()
    assert not page.locator(".tools").is_visible()
    context.close()
