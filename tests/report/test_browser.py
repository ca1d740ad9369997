"""The page in a real browser."""

import json
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cocomix.params import load
from cocomix.report.tuning import SWEEPS
from tests.report import made_metrics
from tests.report.test_page import FOUR, SHIPPED, report
from tests.report.test_tuning import swept

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs chromium")

CONTRASTS = """
() => {
  const numbers = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const luminance = colour => {
    const [r, g, b] = numbers(colour).map(each => each / 255)
      .map(each => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    for (let each = element; each; each = each.parentElement) {
      const colour = getComputedStyle(each).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return colour;
    }
  };
  const found = [];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some(each => each.nodeType === 3 && each.textContent.trim());
    if (!own || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const pair = [element instanceof SVGElement ? style.fill : style.color, behind(element)].map(luminance);
    found.push([(Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05), element.textContent.trim()]);
  }
  return found;
}
"""
"""WCAG contrast of every text with what is behind it, and the text."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser without network."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a page with all there can be."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        swept({"interleaved 0.1": 3.0})
        report(FOUR, right={"ntp": 12, "kd": 12, "pause": 10, "cocomix": 36}, drawn=True)
    return (folder / "artifacts/report/index.html").as_uri()


HOSTILE = """"><img src=x onerror="window.hurt=1"><script>window.hurt=1</script></svg>' $x$ {{ 7 * 7 }} &lt;"""


def test_text_from_elsewhere_stays_text_wherever_it_enters_the_page(
    browser: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made_metrics, "LABELS", [f"label {each} {HOSTILE}" for each in range(3)])
    monkeypatch.setattr(made_metrics, "TEXTS", [f"token {each} {HOSTILE}" for each in range(5)])
    monkeypatch.setattr(made_metrics, "CORPORA", [f"corpus {HOSTILE}"])
    accuracy = made_metrics._accuracy
    monkeypatch.setattr(made_metrics, "_accuracy", lambda task, *rest: accuracy(f"{task} {HOSTILE}", *rest))
    swept({"interleaved 0.1": 3.0})
    sweep = SWEEPS / "made.json"
    entries = json.loads(sweep.read_text())
    sweep.write_text(json.dumps([{**each, "setting": f"{each['setting']} {HOSTILE}"} for each in entries]))
    title = f"title {HOSTILE}"
    shipped = load(SHIPPED).report.title
    report(FOUR, (f"title: {shipped}", f"title: {json.dumps(title)}"), right=dict.fromkeys(FOUR, 12), drawn=True)
    shown = browser.new_page()
    trouble: list[str] = []
    for event in ("console", "pageerror", "dialog"):
        shown.on(event, lambda what: trouble.append(str(what)))
    shown.goto((folder / "artifacts/report/index.html").as_uri())
    assert shown.evaluate("window.hurt") is None
    assert shown.locator("img, script, [onerror]").count() == 0
    assert trouble == []
    text = shown.evaluate("document.body.textContent")
    for what in ("title", "label 1", "token 0", "corpus", "hellaswag"):
        assert f"{what} {HOSTILE}" in " ".join(text.split()), what
    drawn = " ".join(shown.locator("svg").all_text_contents())
    assert "$x$" in " ".join(drawn.split())  # a dollar is no formula
    said = [each.get_attribute("aria-label") for each in shown.locator("svg[role=img]").all()]
    assert any(f"hellaswag {HOSTILE}" in each for each in said)
    assert any(f"corpus {HOSTILE}" in each for each in said)
    shown.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_quiet_and_legible(browser: Any, page: str, scheme: str) -> None:
    shown = browser.new_page(color_scheme=scheme)
    said, asked = [], []
    shown.on("console", lambda message: said.append(message.text))
    shown.on("pageerror", lambda error: said.append(str(error)))
    shown.on("request", lambda request: asked.append(request.url))
    shown.goto(page)
    shown.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert said == []
    assert asked == [page]
    low = [(round(contrast, 2), text) for contrast, text in shown.evaluate(CONTRASTS) if contrast < 4.5]
    assert low == []
    background = [
        int(each) for each in re.findall(r"\d+", shown.evaluate("getComputedStyle(document.body).backgroundColor"))
    ]
    assert (max(background) < 64) == (scheme == "dark")
    shown.close()


def test_text_of_a_plot_can_be_selected(browser: Any, page: str) -> None:
    shown = browser.new_page()
    shown.goto(page)
    selected = shown.evaluate("""
        () => {
          getSelection().selectAllChildren(document.querySelector('figure svg'));
          return getSelection().toString();
        }
    """)
    assert "difference in loss (nats a token)" in selected
    shown.close()


def test_on_a_phone_nothing_but_tables_scrolls_sideways(browser: Any, page: str) -> None:
    shown = browser.new_page(viewport={"width": 390, "height": 844})
    shown.goto(page)
    shown.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert shown.evaluate("document.documentElement.scrollWidth") == 390
    too_wide = shown.evaluate("""
        () => [...document.querySelectorAll('body *')]
          .filter(each => each.getBoundingClientRect().right > 391 && !each.closest('.wide, pre'))
          .map(each => each.outerHTML.slice(0, 80))
    """)
    assert too_wide == []
    columns = shown.evaluate("getComputedStyle(document.querySelector('.written')).gridTemplateColumns")
    assert len(columns.split()) == 1
    shown.close()


def test_every_plot_and_table_says_what_it_is(browser: Any, page: str) -> None:
    shown = browser.new_page()
    shown.goto(page)
    plots = shown.locator("svg[role=img]")
    assert plots.count() == 12
    assert all(len(plots.nth(each).get_attribute("aria-label")) > 30 for each in range(plots.count()))
    assert shown.locator("table:not(:has(thead th[scope]))").count() == 0
    assert shown.locator("tbody tr:not(:has(th[scope=row]))").count() == 0
    levels = [
        int(each)
        for each in shown.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(each => each.tagName[1])")
    ]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    shown.close()
