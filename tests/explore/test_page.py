"""The page in a real browser."""

import re
import shutil
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from cocomix.explain.atlas import Atlas
from cocomix.explore import export
from cocomix.explore.export import parts_of, write_page
from cocomix.explore.session import Session
from cocomix.predictions.reader import Predictions, PredictionsReader, open_predictions
from tests.explore.serving import serving

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
PATIENCE = 20_000
"""Milliseconds: machines that test may be busy."""

HOSTILE = '</script><img src=x onerror="window.hurt=1"><b>&amp;'

CONTRAST = """() => {
  const pen = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const painted = (...colors) => {
    pen.clearRect(0, 0, 1, 1);
    for (const color of colors) { pen.fillStyle = color; pen.fillRect(0, 0, 1, 1); }
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (rgb) => {
    const linear = (each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = rgb.map((each) => linear(each / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const poor = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let looked = 0;
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !element.checkVisibility({ visibilityProperty: true })) continue;
    const behind = [];
    for (let each = element; each; each = each.parentElement) behind.unshift(getComputedStyle(each).backgroundColor);
    const back = painted(...behind);
    const text = painted(...behind, getComputedStyle(element).color);
    const [dark, light] = [luminance(text), luminance(back)].sort((a, b) => a - b);
    const ratio = (light + 0.05) / (dark + 0.05);
    looked += 1;
    if (ratio < 4.5) poor.push(`${ratio.toFixed(2)} ${element.className} ${texts.currentNode.data.trim()}`);
  }
  return [looked, poor];
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page on which nothing may go wrong, and which may load nothing from elsewhere."""
    context = browser.new_context(
        viewport={"width": 1440, "height": 900}, permissions=["clipboard-read", "clipboard-write"]
    )
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    complaints, asked, opened = [], [], []
    page.on("console", lambda message: complaints.append(message.text))  # but a refusal is an answer
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))
    page.on("framenavigated", lambda frame: opened.append(frame.url))
    yield page
    context.close()
    assert not [each for each in complaints if "status of 400" not in each]
    hosts, own = ({urlsplit(each).netloc for each in urls} for urls in (asked, opened))
    assert hosts <= own | {""}


@pytest.fixture
def opened(session: Session, page: Page) -> Iterator[Page]:
    """The page, where the text `w5 w9 w2` has been read and continued."""
    with serving(session) as address:
        page.route("**/api/about", lambda route: (page.fill("#prompt", "w5 w9 w2"), route.continue_()))
        page.goto(f"http://{address}/")
        expect(page.locator("#tokens .token")).to_have_count(3)
        expect(page.locator("#new-tokens")).to_have_value("24")  # half of what the model reads
        page.fill("#new-tokens", "8")
        page.press("#new-tokens", "Enter")
        expect(page.locator("#shell")).to_contain_text("--tokens 8")
        finished(page)
        yield page
        page.goto("about:blank")  # so that it asks nothing more of a server that is gone


def finished(page: Page) -> None:
    """Wait until all is written. A text that is read again stops a continuation, which then starts anew."""
    expect(page.locator("#original")).not_to_be_empty()
    expect(page.locator("#count")).not_to_have_text("reading …")
    expect(page.locator("#writing")).not_to_have_text(re.compile("writing …|Stopped"))
    expect(page.locator("#stop")).to_be_hidden()


def test_type_click_search_and_steer(opened: Page, session: Session) -> None:
    page = opened
    page.fill("#prompt", "w5 w9 w2 w7")
    expect(page.locator("#count")).to_have_text("4 of 48 tokens")
    page.click("#token-1")
    position = session.read("w5 w9 w2 w7")[1]
    expect(page.locator("#token h2")).to_have_text("w9 position 1")
    expect(page.locator("#token .list >> nth=0 >> b")).to_have_text([str(each.concept) for each in position.predicted])
    strongest = position.predicted[0]
    page.click("#token .list >> nth=0 >> button >> nth=0")
    expect(page.locator("#card h2")).to_contain_text(str(strongest.concept))
    expect(page.locator("#legend")).to_contain_text(f"strength of {strongest.concept}")
    shades = page.locator(".token").evaluate_all("all => all.map((each) => +each.style.getPropertyValue('--share'))")
    assert max(shades) == 1
    assert shades[1] > 0

    page.fill("#search", "w9")
    expect(page.locator("#found b")).to_have_text([str(each.concept) for each in session.search("w9")])
    page.fill("#search", "9")
    page.press("#search", "Enter")
    expect(page.locator("#card h2")).to_have_text(re.compile("^9"))
    strengths = session.strengths("w5 w9 w2 w7", 9)  # also where it is not mixed
    mixed = [9 in {one.concept for one in each.predicted} for each in session.read("w5 w9 w2 w7")]
    for place, (strength, is_mixed) in enumerate(zip(strengths, mixed, strict=True)):
        said = f"strength {max(0.0, strength):.1f}, {'mixed' if is_mixed else 'not mixed'}"
        expect(page.locator(f"#token-{place}")).to_have_attribute("aria-label", re.compile(re.escape(said)))
    page.click("#card button.primary")
    slider = page.locator("#edits input[type=range]")
    expect(slider).to_be_focused()
    slider.fill("10")
    expect(page.locator("#shell")).to_contain_text("--edit 9=10")
    finished(page)
    steered = page.inner_text("#steered")
    assert steered != page.inner_text("#original")
    slider.fill("-10")
    expect(page.locator("#shell")).to_contain_text("--edit 9=-10")
    finished(page)
    assert page.inner_text("#steered") not in (steered, page.inner_text("#original"))

    page.click("#calls summary")
    page.click("[data-copies=python]")
    expect(page.locator("[data-copies=python]")).to_have_text("Copied")
    assert "Set(9, -10.0)" in page.evaluate("navigator.clipboard.readText()")
    page.click("#edits .plain")
    expect(page.locator("#steered")).to_contain_text("No edits")


def test_the_base_models_latents_are_changed_instead_by_choice_and_by_keyboard(opened: Page) -> None:
    page, press = opened, opened.keyboard.press
    ours = page.inner_text("#original")
    page.focus("#token-0")
    for _ in range(100):  # at most so many stops before it
        press("Tab")
        if page.evaluate("document.activeElement.id") == "of":
            break
    press("ArrowDown")
    expect(page.locator("#original-name")).to_have_text("Base model")
    expect(page.locator("#before-selection")).to_be_disabled()
    expect(page.locator("#original")).not_to_have_text(ours)
    finished(page)
    base = page.inner_text("#original")
    page.fill("#edit", "9=5")
    page.press("#edit", "Enter")
    slider = page.locator("#edits input[type=range]")
    slider.focus()
    for _ in range(10):
        press("ArrowRight")
    expect(page.locator("#python")).to_contain_text("with concepts_edited(base, sae, [Set(9, 10.0)]):")
    expect(page.locator("#shell")).to_contain_text("--base --edit 9=10")
    finished(page)
    expect(page.locator("#steered .differs")).not_to_be_empty()
    assert page.inner_text("#original") == base != page.inner_text("#steered")
    page.select_option("#of", "model")
    expect(page.locator("#original")).to_have_text(ours)
    expect(page.locator("#python")).to_contain_text("concept_edits=[Set(9, 10.0)]")
    finished(page)


def test_all_of_it_goes_by_keyboard(opened: Page) -> None:
    page, press = opened, opened.keyboard.press
    page.focus("#prompt")
    press("Tab")
    expect(page.locator("#token-0")).to_be_focused()
    press("ArrowRight")
    expect(page.locator("#token-1")).to_be_focused()
    expect(page.locator("#token-1")).to_have_attribute("aria-selected", "true")
    press("End")
    expect(page.locator("#token-2")).to_be_focused()
    expect(page.locator("#token-2")).to_have_css("outline-style", "solid")
    press("Enter")
    concept = page.locator("#token button >> nth=0")
    expect(concept).to_be_focused()
    number = concept.locator("b").inner_text()
    press("Enter")
    expect(page.locator("#card h2")).to_contain_text(number)
    expect(concept).to_be_focused()
    press("Escape")
    expect(page.locator("#token-2")).to_be_focused()
    press("Tab")
    expect(page.locator("#search")).to_be_focused()
    page.keyboard.type("w9")
    expect(page.locator("#found button")).not_to_have_count(0)
    press("ArrowDown")
    number = page.locator("#found b >> nth=0").inner_text()
    press("Enter")
    expect(page.locator("#card h2")).to_contain_text(number)
    page.locator("#card button.primary").press("Enter")
    expect(page.locator("#edits input[type=range]")).to_be_focused()
    for _ in range(4):
        press("ArrowRight")
    expect(page.locator("#shell")).to_contain_text(f"--edit {number}=7")
    unnamed = page.locator("input, select, textarea, button, [role=listbox], [role=option]").evaluate_all(
        "all => all.filter((each) => !each.labels?.length && !each.ariaLabel && !each.textContent.trim()).length"
    )
    assert unnamed == 0


def test_what_is_wrong_is_said_beside_it_and_goes_when_it_is_mended(opened: Page) -> None:
    page = opened
    page.fill("#prompt", " ")
    expect(page.locator("#reading-error")).to_contain_text("the text is empty")
    page.fill("#prompt", "w1 " * 49)
    expect(page.locator("#reading-error")).to_contain_text("reads at most 48")
    page.fill("#prompt", "w5 w6")
    expect(page.locator("#reading-error")).to_be_empty()
    page.fill("#edit", "99=2")
    page.press("#edit", "Enter")
    expect(page.locator("#steering-error")).to_contain_text("no concept 99; the model has 0 to 39")
    page.fill("#prompt", "w5 w6 w7")  # is written on, which mends nothing
    expect(page.locator("#count")).to_have_text("3 of 48 tokens")
    finished(page)
    expect(page.locator("#steering-error")).to_contain_text("no concept 99; the model has 0 to 39")
    page.fill("#edit", "many")
    page.press("#edit", "Enter")
    expect(page.locator("#steering-error")).to_contain_text("write 412x4")
    page.fill("#edit", "9=2@4:")
    page.press("#edit", "Enter")
    expect(page.locator("#steering-error")).to_be_empty()
    page.fill("#new-tokens", "99")
    page.press("#new-tokens", "Enter")
    expect(page.locator("#steering-error")).to_contain_text("99 new ones; the model reads at most 48")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_is_readable_and_nothing_is_wider_than_a_phone(steering: Path, opened: Page, scheme: str) -> None:
    page = opened
    page.emulate_media(color_scheme=scheme)
    page.fill("#search", str(predicted_most(steering)))
    page.click("#found button")
    expect(page.locator("#card")).to_contain_text("Predicted by the language model")
    page.fill("#edit", "9=10")
    page.press("#edit", "Enter")
    expect(page.locator("#shell")).to_contain_text("9=10")
    finished(page)
    for summary in page.locator("summary").all():
        summary.click()
    page.wait_for_timeout(300)  # colours fade
    looked, poor = page.evaluate(CONTRAST)
    assert looked > 100
    assert not poor
    page.set_viewport_size({"width": 1280, "height": 500})
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    in_front = page.evaluate("document.elementFromPoint(1100, 100).closest('section').id")
    assert in_front == "card"  # and not the tokens, which stick to the top
    page.set_viewport_size({"width": 375, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_a_long_continuation_shows_as_it_comes_and_can_be_stopped(
    session: Session, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(*_: object, say: object, stop: object, **__: object) -> None:
        while not stop.wait(0.05):
            say("more ")

    monkeypatch.setattr(session, "write", endless)
    with serving(session) as address:
        page.goto(f"http://{address}/")
        expect(page.locator("#original")).to_contain_text("more more")
        page.click("#stop")
        expect(page.locator("#writing")).to_have_text("Stopped.")
        written = page.inner_text("#original")
        page.wait_for_timeout(300)
        assert page.inner_text("#original") == written


class Hostile(Atlas):
    """Its corpus tries to become part of the page."""

    @cached_property
    def texts(self) -> list[str]:
        return [HOSTILE] * len(super().texts)

    @cached_property
    def _table(self) -> pa.Table:
        table = super()._table
        place = table.schema.get_field_index("label")
        return table.set_column(place, table.schema.field(place), [[HOSTILE] * len(table)])


class HostilePredictions(PredictionsReader):
    """So does the text that the language model read."""

    def concept(self, concept: int) -> Predictions:
        of = super().concept(concept)
        shown = [[token._replace(text=HOSTILE) for token in each.shown] for each in of.contexts]
        return of._replace(
            promotes=[each._replace(text=HOSTILE) for each in of.promotes],
            contexts=[each._replace(shown=some) for each, some in zip(of.contexts, shown, strict=True)],
        )


def predicted_most(steering: Path) -> int:
    predictions = pq.read_table(steering / "predicted.parquet")["predictions"].to_pylist()
    return predictions.index(max(predictions))


def test_text_of_the_corpus_stays_text(
    steering: Path, session: Session, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    atlas = Hostile()
    predicted = HostilePredictions(pq.read_table(steering / "predicted.parquet"), atlas.texts)
    monkeypatch.setattr(session, "_atlas", atlas)
    monkeypatch.setattr(session, "_predictions", predicted)
    monkeypatch.setattr(session, "_labels", dict.fromkeys(range(40), HOSTILE))
    out = atlas.path.parent / "page.html"
    write_page(atlas, out, predicted)
    with serving(session) as address:
        for url in (f"http://{address}/", out.resolve().as_uri()):
            page.goto(url)
            page.fill("#search", str(predicted_most(steering)))
            page.press("#search", "Enter")
            expect(page.locator("#card h2")).to_contain_text(HOSTILE)
            expect(page.locator("#card .chips code >> nth=0")).to_contain_text("onerror")
            theirs = page.locator("#card section", has_text="Predicted by the language model")
            expect(theirs.locator("code >> nth=0")).to_contain_text("onerror")
            assert page.evaluate("[window.hurt, document.images.length]") == [None, 0]


def test_a_card_shows_what_the_language_model_makes_of_the_concept(
    steering: Path, session: Session, atlas: Atlas, page: Page
) -> None:
    concept = predicted_most(steering)
    told = session.predictions(concept)
    assert told
    out = atlas.path.parent / "atlas.html"
    write_page(atlas, out, open_predictions(steering, atlas))
    with serving(session) as address:
        for url in (f"http://{address}/", out.resolve().as_uri()):
            page.goto(url)
            page.fill("#search", str(concept))
            page.press("#search", "Enter")
            theirs = page.locator("#card section", has_text="Predicted by the language model")
            expect(theirs.locator("code")).to_have_text([each.text for each in told.promotes])
            change = re.compile(r"^\+[\d.]+$")
            expect(theirs.locator("small")).to_have_text([change] * len(told.promotes))
            shares = [
                f"{100 * each:.2g}" for each in (told.predictions / told.positions, told.right / told.predictions)
            ]
            expect(theirs.locator("p")).to_contain_text(f"at {shares[0]}% of positions, {shares[1]}% of them right")
            places = page.locator("#card details", has_text="predicted most strongly")
            places.locator("summary").click()
            expect(places.locator("li")).to_have_count(len(told.contexts))
            first = told.contexts[0]
            expect(places.locator("mark >> nth=0")).to_be_visible()
            expect(places.locator("small >> nth=0")).to_have_text(
                f"{first.strength:.2f} {'right' if first.right else 'wrong'}"
            )
        silent = next(each for each in range(40) if not session.predictions(each).predictions)
        page.fill("#search", str(silent))
        page.press("#search", "Enter")
        expect(page.locator("#card h2")).to_contain_text(str(silent))
        expect(page.locator("#card")).to_contain_text(f"at none of {told.positions} positions")


def test_one_may_search_before_the_page_knows_its_model(session: Session, page: Page) -> None:
    held: list[Route] = []
    with serving(session) as address:
        page.route("**/api/about", lambda route: held.append(route))
        page.goto(f"http://{address}/")
        page.fill("#search", "3")
        page.press("#search", "Enter")
        expect(page.locator("#found b >> nth=0")).to_have_text("3")
        held[0].continue_()
        expect(page.locator("#card h2")).to_contain_text("3")
        finished(page)


def test_the_exported_atlas_opens_from_disk_and_finds_what_the_atlas_finds(
    atlas: Atlas, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cocomix.explore.export.GROUP", 7)
    out = atlas.path.parent / "atlas.html"
    write_page(atlas, out)
    again = atlas.path.parent / "again.html"
    write_page(atlas, again)
    assert again.read_text().replace("again_parts", "atlas_parts") == out.read_text()
    for number in range(6):
        parts = [parts_of(each) / f"{number}.js" for each in (out, again)]
        assert parts[0].read_bytes() == parts[1].read_bytes()
    page.goto(out.resolve().as_uri())
    expect(page.locator("#card h2")).to_have_text(f"0{atlas.label(0)}")
    for wanted in ("w9", "W3 ", "near"):
        page.fill("#search", wanted)
        found = atlas.search(wanted, limit=40)
        expect(page.locator("#found b")).to_have_text([str(each.concept) for each in found])
        expect(page.locator("#found small")).to_have_text([each.why for each in found])
    page.focus("#search")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    card = atlas.concept(found[0].concept)
    expect(page.locator("#card h2")).to_have_text(f"{card.concept}{card.label}")
    page.locator("#card details summary >> nth=0").click()
    expect(page.locator("#card .contexts >> nth=0 >> mark >> nth=0")).to_be_visible()
    page.go_back()
    expect(page.locator("#card h2")).to_have_text(f"0{atlas.label(0)}")


def test_only_the_best_of_many_results_are_shown(
    atlas: Atlas, page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    static = tmp_path / "static"
    shutil.copytree(export.STATIC, static)
    script = static / "atlas.js"
    script.write_text(script.read_text().replace("LIMIT = 100", "LIMIT = 5"))
    monkeypatch.setattr(export, "STATIC", static)
    out = atlas.path.parent / "short.html"
    write_page(atlas, out)
    page.goto(out.resolve().as_uri())
    for wanted in ("near", "w2", "w1"):
        page.fill("#search", wanted)
        found = atlas.search(wanted, limit=40)
        assert len(found) > 5
        expect(page.locator("#found-count")).to_have_text(f"{len(found)} concepts, of which the first 5")
        expect(page.locator("#found b")).to_have_text([str(each.concept) for each in found[:5]])


def test_a_part_is_loaded_when_a_card_of_it_is_opened_by_a_link_too(
    atlas: Atlas, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cocomix.explore.export.GROUP", 7)
    out = atlas.path.parent / "a page #1 <x>.html"
    write_page(atlas, out)
    read: list[str] = []
    page.on("request", lambda request: read.append(urlsplit(request.url).path.rpartition("/")[2]))
    page.goto(f"{out.resolve().as_uri()}#23")
    expect(page.locator("#card h2")).to_have_text(f"23{atlas.label(23)}")
    page.evaluate("location.hash = 27")
    expect(page.locator("#card h2")).to_have_text(f"27{atlas.label(27)}")
    page.evaluate("location.hash = 39")
    expect(page.locator("#card h2")).to_have_text(f"39{atlas.label(39)}")
    assert [each for each in read if each.endswith(".js")] == ["3.js", "5.js"]


def test_a_page_without_its_parts_says_so(atlas: Atlas, browser: Browser) -> None:
    out = atlas.path.parent / "alone.html"
    write_page(atlas, out)
    shutil.rmtree(parts_of(out))
    page = browser.new_page()
    page.goto(out.resolve().as_uri())
    expect(page.locator("#card .error")).to_have_text(
        "alone_parts/0.js cannot be read; the folder belongs beside this page", timeout=PATIENCE
    )
    expect(page.locator("#found button")).to_have_count(40)
    page.close()


def test_a_later_export_leaves_nothing_of_an_earlier_one(atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    out = atlas.path.parent / "twice.html"
    with monkeypatch.context() as patch:
        patch.setattr("cocomix.explore.export.GROUP", 7)
        write_page(atlas, out)
        assert len(list(parts_of(out).iterdir())) == 6
    with monkeypatch.context() as patch:
        patch.setattr(Atlas, "columns", lambda *_: pytest.fail("interrupted"))
        with pytest.raises(pytest.fail.Exception):
            write_page(atlas, out)
    assert not out.exists()
    assert [each.name for each in parts_of(out).iterdir()] == ["0.js"]
