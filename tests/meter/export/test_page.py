"""The live page in a real browser, on a real meter that follows a simulated board."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Response, sync_playwright

from tests.meter.export.stand import Stand
from tests.meter.test_daemon import until

pytestmark = pytest.mark.boot

PAGE_LIMIT_BYTES = 150_000
PATIENCE_MS = 30_000
CONTRAST_TEXT = 4.5
"""WCAG 2.2, 1.4.3 (AA)."""

POOR_CONTRAST = """
(least) => {
  const channels = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const over = (top, under) => top.slice(0, 3).map((value, place) => value * top[3] + under[place] * (1 - top[3]));
  const light = (rgb) => {
    const [r, g, b] = rgb.map((value) => { const part = value / 255; return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const layers = [];
    for (let each = element; each; each = each.parentElement) {
      const layer = channels(getComputedStyle(each).backgroundColor);
      layers.push(layer);
      if (layer[3] === 1) break;
    }
    return layers.reverse().reduce((under, layer) => over(layer, under), [255, 255, 255]);
  };
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim());
    const box = element.getBoundingClientRect();
    if (!own || box.width < 2 || box.height < 2 || element.closest(".heard, .watermark, noscript, script")) continue;
    const style = getComputedStyle(element);
    const ground = behind(element);
    const ink = over(channels(element instanceof SVGElement ? style.fill : style.color), ground);
    const [bright, dark] = [light(ink), light(ground)].sort((one, other) => other - one);
    const ratio = (bright + 0.05) / (dark + 0.05);
    if (ratio < least) poor.push(`${element.tagName} ${element.className} "${element.textContent.slice(0, 30)}" ${ratio.toFixed(2)}`);
  }
  return poor;
}
"""
OUTSIDE = """
() => [...document.querySelectorAll(".panel, .figure")].flatMap((panel) => {
  const edge = panel.getBoundingClientRect().right;
  return [...panel.querySelectorAll("*:not(.heard)")].filter((each) => each.getBoundingClientRect().right > edge && !each.closest("thead, .heard")).map((each) => each.outerHTML.slice(0, 90));
})
"""
UNNAMED = """
() => [
  ...[...document.querySelectorAll("button, a, summary")].filter((each) => !each.textContent.trim()),
  ...[...document.querySelectorAll("[role=img]")].filter((each) => !each.getAttribute("aria-label")),
  ...[...document.querySelectorAll("section")].filter((each) => !each.getAttribute("aria-label") && !document.getElementById(each.getAttribute("aria-labelledby"))),
  ...[...document.querySelectorAll("table")].filter((each) => !each.caption?.textContent.trim()),
  ...[...document.querySelectorAll("th")].filter((each) => !each.getAttribute("scope")),
].map((each) => each.outerHTML.slice(0, 120))
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        options = ["--no-sandbox"] if os.getuid() == 0 else []
        with playwright.chromium.launch(executable_path=chromium, args=options) as launched:
            yield launched


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with ExitStack() as stack:
        made = Stand(tmp_path_factory.mktemp("stand"), stack)
        made.engine()
        yield made


@contextmanager
def page_of(browser: Browser, stand: Stand, **options: Any) -> Iterator[Page]:
    """The page, which may say nothing in the console."""
    with browser.new_context(**options) as context:
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        said: list[str] = []
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda message: said.append(message.text) if "net::ERR" not in message.text else None)
        page.goto(stand.url)
        yield page
        assert said == []


def appears(page: Page, selector: str, pattern: str) -> str:
    """The text of what `selector` finds, once it is like `pattern`."""
    script = "([selector, pattern]) => { const text = document.querySelector(selector)?.textContent ?? ''; return new RegExp(pattern).test(text) && text; }"
    return str(page.wait_for_function(script, arg=[selector, pattern]).json_value())


def filled(page: Page) -> None:
    """Wait until a wordy response is settled and classified, and one was cut off."""
    appears(page, "#arms", "truncated")
    appears(page, "#requests", "unconstrained")
    appears(page, "#arms", "slack:")


def test_figures_appear_and_change(browser: Browser, stand: Stand) -> None:
    with page_of(browser, stand) as page:
        assert appears(page, "#link", "^live$")
        assert float(appears(page, "#figures .figure:nth-child(1) .value", r"\d").split()[0]) > 1
        assert re.match(r"[\d.]+ J/token simulated", appears(page, "#figures .figure:nth-child(2) .value", r"\d"))
        assert "made-up-8B (engine-0)" in appears(page, "#serving", "made-up")
        filled(page)
        assert "They agree." in appears(page, "#balance", "counter says")
        assert page.locator("#power svg .band").count() > 0
        assert "100" in page.locator("#sensors tbody").inner_text()
        reads = page.locator("#sensors dd").nth(1)
        before = int(reads.inner_text().replace(",", ""))
        page.wait_for_function(
            "before => Number(document.querySelectorAll('#sensors dd')[1].textContent.replaceAll(',', '')) > before",
            arg=before,
        )


def test_simulated_can_not_be_overlooked(browser: Browser, stand: Stand) -> None:
    with page_of(browser, stand) as page:
        filled(page)
        assert page.title().startswith("SIMULATED")
        banner = page.locator("#simulated")
        assert banner.is_visible()
        assert banner.inner_text().startswith("SIMULATED")
        box = banner.bounding_box()
        assert box is not None
        assert box["y"] < 200
        page.locator("summary", has_text="Power").click()
        appears(page, "#power-table", r"\d")
        units = page.locator("#figures .unit, th small, #power svg .label").all_text_contents()
        of_energy = [unit for unit in units if re.search(r"\b(W|J|µWh)\b", unit)]
        assert len(of_energy) > 10
        assert all("simulated" in unit for unit in of_energy)
        assert "simulated" in page.locator("#balance .sum").inner_text()
        assert "simulated" in str(page.locator("#power").get_attribute("aria-label"))
        assert page.locator("#power svg .watermark").count() > 0


def test_the_page_outlives_its_meter_and_says_so(browser: Browser, stand: Stand) -> None:
    with page_of(browser, stand) as page:
        filled(page)
        page.evaluate("window.same = true")
        page.locator("#power").focus()
        stand.end()
        assert re.fullmatch(r"lost the meter at \d\d:\d\d:\d\d", appears(page, "#link", "lost"))
        assert "what stands here is from then" in page.locator("#notice").inner_text()
        values = page.locator("#figures .value").all_text_contents()
        assert all(value.startswith("–") for value in values), values
        assert "the meter is gone" in page.locator("#figures").inner_text()
        kept = page.locator("#power svg .line").get_attribute("d")
        assert kept
        stand.begin()
        assert appears(page, "#link", "^live$")
        assert "was started again at" in appears(page, "#notice", "started again")
        assert float(appears(page, "#figures .figure:nth-child(1) .value", r"\d").split()[0]) > 1
        assert page.evaluate("window.same"), "the page was not loaded again"
        moves = "() => (document.querySelector('#power svg .line').getAttribute('d').match(/M/g) ?? []).length"
        page.wait_for_function(f"{moves} >= 2")  # what was known before stands on the other side of a gap


@pytest.mark.slow
def test_a_meter_without_engine_shows_power_and_dashes_with_reasons(browser: Browser, tmp_path: Path) -> None:
    with ExitStack() as stack:
        alone = Stand(tmp_path, stack)
        with page_of(browser, alone) as page:
            assert appears(page, "#serving", "no engine yet")
            assert re.match(r"[\d.]+ W simulated", appears(page, "#figures .figure:nth-child(1) .value", r"^\d"))
            output = page.locator("#figures .figure:nth-child(2)")
            assert (output.locator(".value").text_content() or "").startswith("–")
            assert "no tokens in the last minute" in output.inner_text()
            assert page.locator("#arms").inner_text() == "No request has been charged yet."
            alone.engine()
            appears(page, "#figures .figure:nth-child(2) .value", r"^\d")


def test_what_is_transferred_is_small_and_from_the_meter_alone(browser: Browser, stand: Stand) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        answers: list[Response] = []
        page.on("response", lambda answer: answers.append(answer))  # noqa: PLW0108  # a method of a list takes no mark
        page.goto(stand.url)
        appears(page, "#link", "^live$")
        assert {urlsplit(answer.url).netloc for answer in answers} == {f"127.0.0.1:{stand.port}"}
        parts = [answer for answer in answers if not answer.url.endswith("/events")]
        assert len(parts) >= 7
        assert sum(len(answer.body()) for answer in parts) < PAGE_LIMIT_BYTES


@pytest.mark.slow
def test_no_receipt_and_no_text_leave_the_meter(stand: Stand) -> None:
    ledger = until(lambda: (stand.directory / "ledger.db").exists() and stand.meter.get("/health")[0] == 200)
    assert ledger
    with subprocess.Popen(
        ["curl", "--silent", "--no-buffer", "--max-time", "4", f"{stand.url}events"], stdout=subprocess.PIPE, text=True
    ) as process:
        told = process.communicate()[0]
    snapshots = [json.loads(line[6:]) for line in told.splitlines() if line.startswith("data: ") and line.endswith("}")]
    assert len(snapshots) >= 8, "two a second"
    assert "Zanzibar" not in told
    assert not re.search(r"[0-9a-f]{32}", told)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "scheme"),
    [(390, "light"), (390, "dark"), (800, "light"), (1060, "light"), (1280, "light"), (1440, "light"), (1600, "dark")],
)
def test_it_fits_and_can_be_read(browser: Browser, stand: Stand, scheme: str, width: int) -> None:
    with page_of(browser, stand, viewport={"width": width, "height": 844}, color_scheme=scheme) as page:
        filled(page)
        page.locator("summary", has_text="Power").click()
        appears(page, "#power-table", r"\d")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        wide = "width => [...document.querySelectorAll('body *')].filter((each) => each.getBoundingClientRect().right > width + 1 && !each.closest('.skip')).map((each) => each.outerHTML.slice(0, 90))"
        assert page.evaluate(wide, width) == []
        assert page.evaluate(OUTSIDE) == []
        assert page.evaluate(POOR_CONTRAST, CONTRAST_TEXT) == []
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground)[:3])) > 380) == (scheme == "light")


@pytest.mark.slow
def test_wasted_joules_are_shown_by_arm_by_request_and_together(browser: Browser, stand: Stand) -> None:
    with page_of(browser, stand) as page:
        appears(page, "#requests", r"truncated \d")
        assert re.search(r"truncated \d", page.locator("#arms").inner_text())
        assert re.search(
            r"Wasted of what requests took: [\d.]+ J simulated \(truncated", page.locator("#balance").inner_text()
        )


def test_it_can_be_heard_and_used_by_keyboard(browser: Browser, stand: Stand) -> None:
    with page_of(browser, stand) as page:
        filled(page)
        assert page.evaluate(UNNAMED) == []
        assert page.locator("html").get_attribute("lang") == "en"
        levels = [
            int(tag[1]) for tag in page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(h => h.tagName)")
        ]
        assert levels[0] == 1
        assert levels.count(1) == 1
        summary = page.locator("#summary")
        assert summary.get_attribute("aria-live") == "polite"
        assert re.search(r"watts simulated, .* per output token|power is not known", summary.text_content() or "")
        reached = []
        page.evaluate("document.body.focus()")
        for _ in range(7):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        assert reached == ["A", "pause", "theme", "power", "SUMMARY", "SUMMARY", "A"]
        page.locator("#power").focus()
        for _ in range(3):
            page.keyboard.press("ArrowLeft")
        told = page.locator("#readout").inner_text()
        assert re.match(r"(?s)\d\d:\d\d:\d\d: ([\d.]+ W simulated|–.*), \d+ request", told), told
        page.locator("#pause").focus()
        page.keyboard.press("Enter")
        assert page.locator("#pause").get_attribute("aria-pressed") == "true"
        assert page.locator("#link").inner_text() == "paused"


@pytest.mark.slow
def test_the_theme_is_chosen_and_kept(browser: Browser, stand: Stand) -> None:
    with page_of(browser, stand, color_scheme="light") as page:
        ground: Callable[[], str] = lambda: str(page.evaluate("getComputedStyle(document.body).backgroundColor"))  # noqa: E731
        light = ground()
        page.locator("#theme").click()
        page.locator("#theme").click()
        assert page.locator("#theme").inner_text() == "Theme: dark"
        dark = ground()
        assert dark != light
        page.reload()
        assert ground() == dark
