import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cocomix.artifact import Artifact
from cocomix.errors import UserError
from cocomix.params import load
from stages.report import run
from tests.report.made_metrics import falling, write_params, write_pipeline, write_run

SHIPPED = Path(__file__).parents[2] / "params.yaml"
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks that elements nest, and collects ids, references and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.references: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names[tag] += 1
        for name, value in attrs:
            if name == "id":
                self.ids[value or ""] += 1
            self.references |= set(re.findall(r"url\(#([^)]+)\)", value or ""))
            if name == "href":
                self.references.add((value or "").removeprefix("#"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def report(ends: dict[str, list[float]]) -> tuple[str, str]:
    """Page and summary of runs whose validation losses fall from 6 to `ends`, by method, a run a seed."""
    seeds = list(range(len(next(iter(ends.values())))))
    write_params(list(ends), seeds, SHIPPED)
    write_pipeline()
    for method, losses in ends.items():
        for seed, loss in enumerate(losses):
            write_run(method, seed, falling(6.0, loss))
    run(load())
    artifact = Artifact(Path("artifacts/report"))
    return artifact.file("index.html").read_text(), artifact.file("summary.txt").read_text()


def test_the_page_stands_alone_and_is_well_formed(folder: Path) -> None:
    html, _ = report({"ntp": [4.0, 4.1], "cocomix": [3.0, 3.1]})
    page = Page(html)
    assert "//" not in re.sub(r"/\*.*?\*/", "", html)  # no address of any scheme
    assert not page.names.keys() & {"script", "link", "img", "iframe"}
    assert page.names["svg"] == 2
    assert max(page.ids.values()) == 1
    assert page.references <= page.ids.keys()


def test_the_answer_with_what_it_costs_comes_first(folder: Path) -> None:
    html, summary = report({"ntp": [4.0], "cocomix": [3.0]})
    for text in (" ".join(Page(html).text.split()), " ".join(summary.split())):
        assert "after 7.00 k of 10.0 k tokens, 30% fewer." in text
        assert "1.50 times the training FLOPs" in text
        assert "1.05 times the compute" in text
        assert "This is one seed" in text
    assert html.index("30% fewer") < html.index("<svg")


def test_nothing_is_bold_in_the_results(folder: Path) -> None:
    html, _ = report({"ntp": [4.0], "cocomix": [3.0]})
    assert not Page(html).names.keys() & {"b", "strong"}


def test_a_method_that_falls_short_is_said_to(folder: Path) -> None:
    html, summary = report({"ntp": [4.0], "cocomix": [4.5]})
    assert "did not come down to the final validation loss of next-token prediction" in " ".join(summary.split())
    assert "0.500 nats higher" in html
    assert "not reached" in summary


def test_several_seeds_show_their_spread(folder: Path) -> None:
    html, summary = report({"ntp": [4.0, 4.2], "cocomix": [3.0, 3.2]})
    assert "4.100 (4.000 to 4.200)" in summary
    assert "4.000 to 4.200" in html
    assert "means of 2 seeds" in " ".join(summary.split())


def test_one_method_alone_is_reported_without_a_comparison(folder: Path) -> None:
    html, summary = report({"ntp": [4.0]})
    assert "nothing to compare it with" in html
    assert "fewer" not in summary


def test_dvc_gets_the_same_numbers(folder: Path) -> None:
    report({"ntp": [4.0], "cocomix": [3.0]})
    numbers = json.loads(Path("metrics/report.json").read_text())
    assert numbers["ntp"]["validation_loss"]["mean"] == 4.0
    assert numbers["cocomix"]["down_to_baseline"]["tokens_saved"]["mean"] == pytest.approx(0.3)


def test_the_same_metrics_give_the_same_bytes(folder: Path) -> None:
    first = report({"ntp": [4.0], "cocomix": [3.0]})
    shutil.rmtree("artifacts")
    assert report({"ntp": [4.0], "cocomix": [3.0]}) == first


def test_runs_of_methods_that_are_no_longer_asked_for_are_left_out(folder: Path) -> None:
    report({"ntp": [4.0], "cocomix": [3.0]})
    html, _ = report({"ntp": [4.0]})
    assert "Predicted by CoCoMix" not in html


def test_a_title_is_text_and_not_markup(folder: Path) -> None:
    report({"ntp": [4.0]})
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(re.sub(r"(?m)^  title: .*$", "  title: A < B & <script>", text))
    run(load())
    assert "script" not in Page(Path("artifacts/report/index.html").read_text()).names


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("metrics/sae.json", None, r"^metrics/sae\.json: no such file; run the stage that writes it$"),
        ("metrics/sae.json", "{", r"^metrics/sae\.json:1: not valid JSON"),
        ("metrics/sae.json", "{}", r"^metrics/sae\.json: fvu: missing"),
        ("plots/pretrain/ntp-0.csv", None, r"^plots/pretrain/ntp-0\.csv: no such file"),
        ("plots/pretrain/ntp-0.csv", "step,tokens\n1,2\n", r"^plots/pretrain/ntp-0\.csv: not a learning curve"),
        (
            "plots/pretrain/ntp-0.csv",
            "step,tokens,flops,validation_loss\n",
            r"^plots/pretrain/ntp-0\.csv: holds no point",
        ),
    ],
)
def test_a_file_that_is_missing_or_damaged_is_named(folder: Path, path: str, content: str | None, message: str) -> None:
    report({"ntp": [4.0]})
    Path(path).unlink()
    if content is not None:
        Path(path).write_text(content)
    with pytest.raises(UserError, match=message):
        run(load())


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
@pytest.mark.slow
def test_a_real_browser_shows_the_page_without_a_complaint(folder: Path) -> None:
    report({"ntp": [4.0, 4.1], "cocomix": [3.0, 3.1]})
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder / 'profile'}"]
    page = (folder / "artifacts/report/index.html").as_uri()
    command = ["chromium", *flags, "--enable-logging=stderr", "--virtual-time-budget=2000", "--dump-dom", page]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "CONSOLE" not in shown.stderr
    assert "Learning curves" in shown.stdout
