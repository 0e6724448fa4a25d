"""``inspect --html`` in a real browser: what it shows, what it runs, what it asks for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.options import OptimizeOptions
from onnx_ternary.reports.page import render_page
from onnx_ternary.reports.report import Report, format_size
from tests.catalogue.case import K, N, changed, matmul, model, ternary

DIGITS = Path(__file__).parents[2] / "examples/digits_mlp.onnx"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
HOSTILE = (
    "<script>window.hacked = true</script>",
    '"><img src="https://example.com/x.png" onerror="window.hacked = true">',
    "</td></tr></table><h1>other</h1>",
    "$title ${script} &lt;b&gt;",
    "line\nbreak \u202e turned",
)


def inspect(model: Path, page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onnx_ternary", "inspect", str(model), "--html", str(page)]
    return subprocess.run([*command, *options], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = os.environ.get("ONNX_TERNARY_BROWSER") or next(
        filter(None, map(shutil.which, BROWSERS)), None
    )
    with api.sync_playwright() as playwright:
        if program is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("no Chromium; install one, or run 'playwright install chromium'")
        # In a container, as root, its own sandbox does not start.
        chromium = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox"], headless=True
        )
        yield chromium
        chromium.close()


class Visit:
    """A page in the browser, with everything it logged and asked for."""

    def __init__(self, browser: Any, path: Path, **context: Any) -> None:
        self.page = browser.new_context(**context).new_page()
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def texts(self, selector: str) -> list[str]:
        texts: list[str] = self.page.locator(selector).all_inner_texts()
        return texts

    def visible_nodes(self) -> list[str]:
        return self.texts("#rows tr:not([hidden]) th")


@pytest.fixture(scope="module")
def digits_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    done = inspect(DIGITS, path)
    assert done.returncode == 0, done.stderr
    return path


def test_page_shows_every_product(browser: Any, digits_page: Path) -> None:
    visit = Visit(browser, digits_page)
    assert visit.visible_nodes() == [
        "node_linear",
        "node_linear_1",
        "node_linear_2",
        "node_linear_3",
    ]
    assert "3 of 4 products can be rewritten" in visit.texts(".total")[0]
    assert "distinct magnitudes" in visit.texts("#rows tr:last-child td:last-child")[0]
    assert visit.texts("#count") == ["4 of 4 products"]
    assert visit.messages == []
    assert visit.requests == [digits_page.as_uri()]


def test_page_bars_are_as_wide_as_the_bytes(browser: Any, digits_page: Path) -> None:
    visit = Visit(browser, digits_page)
    widths = [
        box["width"]
        for box in visit.page.locator("#rows rect").evaluate_all(
            "bars => bars.map(bar => bar.getBoundingClientRect().toJSON())"
        )
    ]
    report = optimize(DIGITS).report
    sizes = [size for row in report.rows() for size in (row.bytes_before, row.bytes_after)]
    assert len(widths) == len(sizes) == 8
    for width, size in zip(widths, sizes, strict=True):
        assert width / max(widths) == pytest.approx(size / max(sizes), abs=0.003)
    fills = visit.page.locator("#rows rect:first-child").evaluate_all(
        "bars => bars.map(bar => getComputedStyle(bar).fill)"
    )
    assert len(set(fills[:3])) == 1
    assert fills[3] != fills[0]


def test_page_of_a_converted_model_shows_the_bytes_of_its_indices(
    browser: Any, tmp_path: Path
) -> None:
    converted = tmp_path / "digits.onnx"
    result = optimize(DIGITS)
    result.save(converted)
    page = tmp_path / "report.html"
    assert inspect(converted, page).returncode == 0
    visit = Visit(browser, page)
    rows = '#rows tr:has-text("already converted")'
    sizes = [format_size(rewrite.bytes_after) for rewrite in result.report.rewrites]
    assert visit.texts(f"{rows} >> .number:nth-child(5)") == ["", "", ""]
    assert visit.texts(f"{rows} >> .number:nth-child(6)") == sizes
    assert visit.page.locator(f"{rows} >> rect").count() == 3
    assert visit.page.locator(f"{rows} >> rect.after").count() == 3


@pytest.mark.parametrize("width", [390, 1280])
def test_page_lies_within_the_screen(browser: Any, tmp_path: Path, width: int) -> None:
    page = tmp_path / "report.html"
    model = hostile_model(tmp_path / "model.onnx")
    assert inspect(model, page, "--min-elements", "0").returncode == 0
    visit = Visit(browser, page, viewport={"width": width, "height": 800})
    outside = visit.page.evaluate(
        """width => [...document.querySelectorAll("body *")]
            .filter(each => !each.closest("thead") && each.getClientRects().length)
            .filter(each => each.getBoundingClientRect().right > width)
            .map(each => each.outerHTML)""",
        width,
    )
    assert outside == []
    visit.page.fill("#filter", "stays")
    assert len(visit.visible_nodes()) == visit.page.locator("#rows th:visible").count() == 1


def test_page_filters_by_text_and_by_group(browser: Any, digits_page: Path) -> None:
    visit = Visit(browser, digits_page)
    visit.page.fill("#filter", "linear_2 rewritten")
    assert visit.visible_nodes() == ["node_linear_2"]
    assert visit.texts("#count") == ["1 of 4 products"]
    visit.page.fill("#filter", "")
    stays = visit.page.get_by_role("button", name="stays")
    stays.focus()
    visit.page.keyboard.press("Enter")
    assert stays.get_attribute("aria-pressed") == "true"
    assert visit.visible_nodes() == ["node_linear_3"]
    visit.page.keyboard.press("Enter")
    assert len(visit.visible_nodes()) == 4


def test_page_works_without_scripts(browser: Any, digits_page: Path) -> None:
    assert len(Visit(browser, digits_page, java_script_enabled=False).visible_nodes()) == 4


def luminance(color: str) -> float:
    channels = [int(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    brighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_contrast(browser: Any, digits_page: Path, scheme: str) -> None:
    """WCAG 2.2 AA: 4.5 for text, 3 for what carries meaning."""
    visit = Visit(browser, digits_page, color_scheme=scheme)
    ground = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(ground) > 0.5) == (scheme == "light")
    for selector in ("h1", "caption", "#count", "td", "footer", "button"):
        color = visit.page.evaluate(
            "s => getComputedStyle(document.querySelector(s)).color", selector
        )
        assert contrast(color, ground) >= 4.5, selector
    hint = visit.page.evaluate(
        "getComputedStyle(document.querySelector('#filter'), '::placeholder').color"
    )
    assert contrast(hint, ground) >= 4.5
    for number in range(10):
        fill = visit.page.evaluate(
            """n => {
                const rect = document.querySelector("#rows rect");
                rect.setAttribute("class", "c" + n);
                return getComputedStyle(rect).fill;
            }""",
            number,
        )
        assert contrast(fill, ground) >= 3, number


def hostile_model(path: Path) -> Path:
    """Names, a weight's among them, that try to be markup; the first weight is not ternary."""
    names = [f"weight {name}" for name in HOSTILE]
    weights = [ternary(seed=number) for number in range(len(HOSTILE))]
    weights[0] = changed(weights[0], 0, 0, 7.0)
    nodes = [
        matmul(w=weight, y=f"y{number}", name=name)
        for number, (weight, name) in enumerate(zip(names, HOSTILE, strict=True))
    ]
    outputs = [f"y{number}" for number in range(len(HOSTILE))]
    made = model(nodes, dict(zip(names, weights, strict=True)), outputs=outputs)
    onnx.save(made, path)
    return path


def test_page_of_a_hostile_model(browser: Any, tmp_path: Path) -> None:
    model = hostile_model(tmp_path / "<img src=x onerror=alert(1)>.onnx")
    page = tmp_path / "report.html"
    done = inspect(model, page, "--min-elements", "0")
    assert done.returncode == 0, done.stderr
    visit = Visit(browser, page)
    assert visit.messages == []
    assert visit.requests == [page.as_uri()]
    assert visit.page.evaluate("typeof window.hacked") == "undefined"
    assert visit.page.locator("img").count() == 0
    assert visit.page.locator("h1").count() == 1
    assert visit.texts("h1") == [f"{model.name} in onnx-ternary"]
    shown = set(visit.page.locator("#rows th").all_text_contents())
    for name in HOSTILE[:4]:
        assert name in shown
    assert not any("\u202e" in name for name in shown)


def test_page_policy_stops_a_script_that_got_in(browser: Any, digits_page: Path) -> None:
    """The second line of defense works alone."""
    injected = digits_page.with_name("injected.html")
    text = digits_page.read_text(encoding="utf-8")
    attack = '<script>window.hacked = true</script><img src="https://example.com/x.png">'
    injected.write_text(text.replace("</main>", f"{attack}</main>"), encoding="utf-8")
    visit = Visit(browser, injected)
    assert visit.page.evaluate("typeof window.hacked") == "undefined"
    assert any("Content Security Policy" in message for message in visit.messages)


def test_page_of_a_model_without_products() -> None:
    assert "0 of 0 products" in render_page("empty.onnx", Report())


def test_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(DIGITS.read_bytes()[:1000])
    assert inspect(broken, tmp_path / "report.html").returncode == 1
    assert list(tmp_path.iterdir()) == [broken]
    assert inspect(DIGITS, tmp_path / "missing/report.html").returncode == 1
    done = inspect(broken, broken)
    assert done.returncode == 1
    assert "would replace the model" in done.stderr


def test_page_bytes_of_products_that_stay(tmp_path: Path) -> None:
    model = hostile_model(tmp_path / "model.onnx")
    (kept,) = optimize(model, OptimizeOptions(min_elements=0)).report.rejections
    assert kept.weight_shape == (K, N)
    assert kept.weight_bytes == K * N * 4
