import csv
import json
import re
import subprocess
import sys
from collections import Counter
from contextlib import chdir
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from cocomix.params import FILE, load
from cocomix.plumbing.artifact import Artifact
from cocomix.plumbing.errors import UserError
from cocomix.report.drawing import Drawing, _inline, looks
from cocomix.report.figures import _dots
from cocomix.statistics import Interval
from stages.report import run
from tests.report.made_metrics import falling, write_params, write_pipeline, write_run, write_steering
from tests.report.test_tuning import keep, swept

SHIPPED = Path(__file__).parents[2] / "params.yaml"
FOUR = {"ntp": [4.0, 4.1], "kd": [3.5, 3.6], "pause": [4.2, 4.3], "cocomix": [3.0, 3.1]}
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
            if name == "href" and (value or "").startswith("#"):
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


def write_runs(ends: dict[str, list[float]], *changes: tuple[str, str], right: dict[str, int] | None = None) -> None:
    """Write what the report reads of runs whose validation losses fall from 6 to `ends`, by method, a run a seed.

    Args:
        right: answers in a task, of `DOCUMENTS`, by method; none: there are no tasks.
        changes: lines of params.yaml, and what to write in their place.
    """
    seeds = list(range(len(next(iter(ends.values())))))
    write_params(list(ends), seeds)
    text = FILE.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    FILE.write_text(text)
    write_pipeline()
    for method, losses in ends.items():
        for seed, loss in enumerate(losses):
            write_run(method, seed, falling(6.0, loss), right and right[method])


def make(*, drawn: bool = False) -> None:
    """Run the stage. Its figures stay empty if they are not to be `drawn`, which takes most of its time."""

    def leave_empty(figure: Drawing, name: str, title: str) -> None:
        figure.svg = _inline('<svg viewBox="0 0 1 1"/>', name, title)

    with pytest.MonkeyPatch.context() as patch:
        if not drawn:
            patch.setattr(Drawing, "_finish", leave_empty)
        run(load())


def report(
    ends: dict[str, list[float]],
    *changes: tuple[str, str],
    right: dict[str, int] | None = None,
    drawn: bool = False,
) -> tuple[str, str]:
    """Page and summary of the runs of `write_runs`."""
    write_runs(ends, *changes, right=right)
    make(drawn=drawn)
    artifact = Artifact(Path("artifacts/report"))
    return artifact.file("index.html").read_text(), artifact.file("summary.txt").read_text()


class Shown(NamedTuple):
    """A report that several tests read."""

    html: str
    summary: str
    numbers: dict[str, Any]
    """metrics/compare.json."""


def shown(
    folder: Path, ends: dict[str, list[float]], right: dict[str, int] | None = None, *, drawn: bool = False
) -> Shown:
    with chdir(folder):
        return Shown(*report(ends, right=right, drawn=drawn), json.loads(Path("metrics/compare.json").read_text()))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """The report of two methods, a seed each."""
    return shown(tmp_path_factory.mktemp("plain"), {"ntp": [4.0], "cocomix": [3.0]}, drawn=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """The report of the baseline alone."""
    return shown(tmp_path_factory.mktemp("alone"), {"ntp": [4.0]})


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """The report of four methods, two seeds each."""
    return shown(tmp_path_factory.mktemp("four"), FOUR, drawn=True)


@pytest.fixture(scope="module")
def with_tasks(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """The report of four methods that answer tasks."""
    return shown(tmp_path_factory.mktemp("with_tasks"), FOUR, {"ntp": 12, "kd": 12, "pause": 10, "cocomix": 36})


def test_the_page_stands_alone_and_is_well_formed(folder: Path) -> None:
    html, _ = report({"ntp": [4.0, 4.1], "cocomix": [3.0, 3.1]}, drawn=True)
    page = Page(html)
    addresses = re.findall(r"[^\s\"'(]*//[^\s\"')]*", re.sub(r"/\*.*?\*/", "", html))
    assert addresses == ["https://arxiv.org/abs/2502.08524"]  # a link, which loads nothing
    assert not page.names.keys() & {"script", "link", "img", "iframe"}
    assert html.count('<svg role="img"') == 11
    assert max(page.ids.values()) == 1
    assert page.references <= page.ids.keys()


def test_the_answer_with_what_it_costs_comes_first(plain: Shown) -> None:
    html, summary, _ = plain
    for text in (" ".join(Page(html).text.split()), " ".join(summary.split())):
        assert "after 7.00 k of 10.0 k tokens, 30% fewer." in text
        assert "1.50 times the training FLOPs" in text
        assert "1.05 times the compute" in text
        assert "This is one seed" in text
    assert html.index("30% fewer") < html.index("<svg")


@pytest.mark.parametrize("losses", [{"ntp": [4.0], "cocomix": [3.0]}, {"ntp": [4.0, 4.1], "cocomix": [3.0, 3.1]}])
def test_no_sentence_stands_twice(folder: Path, losses: dict[str, list[float]]) -> None:
    html, _ = report(losses)
    blocks = re.findall(r"<(p|li|dd|figcaption)\b[^>]*>(.*?)</\1>", html, re.DOTALL)
    texts = [" ".join(re.sub("<.*?>", "", block).split()) for _, block in blocks]
    sentences = Counter(each for text in texts for each in re.split(r"(?<=\.) ", text))
    assert {each for each, times in sentences.items() if times > 1 and each.count(" ") > 3} == set()


def test_the_parameter_that_left_out_text_is_named(plain: Shown) -> None:
    text = " ".join(Page(plain.html).text.split())
    assert "; corpus.installed_docs.megabytes left out the rest of the text" in text


@pytest.mark.parametrize("dropped", [{}, {"contaminated documents": 41, "near-duplicates": 1234}])
def test_contaminated_documents_are_counted(folder: Path, plain: Shown, dropped: dict[str, int]) -> None:
    assert "Contamination" not in plain.html
    write_runs({"ntp": [4.0], "cocomix": [3.0]})
    content = json.loads((path := Path("metrics/corpus.json")).read_text())
    found = {
        "tasks.hellaswag": {"documents": 40, "texts": 5000, "long_texts": 1200},
        "corpora.books": {"documents": 0, "texts": 7, "long_texts": 7},
    }
    path.write_text(json.dumps(content | {"dropped": dropped, "contaminated": found}))
    make()
    html = Path("artifacts/report/index.html").read_text()
    assert rows(html, "Task or corpus")["tasks.hellaswag"] == ["40", "1,200", "5,000"]
    assert rows(html, "Task or corpus")["corpora.books"] == ["0", "7", "7"]
    text = " ".join(Page(html).text.split())
    assert ("left out of the corpus: 41 in all" in text) == ("1,234 near-duplicates" in text) == bool(dropped)
    assert ("They were only counted" in text) != bool(dropped)


@pytest.mark.parametrize(
    ("losses", "bold"),
    [
        ({"ntp": [4.0, 4.1, 4.05], "cocomix": [3.0, 3.1, 3.05]}, ["21.13", "21.13"]),
        ({"ntp": [4.0, 4.2, 4.1], "cocomix": [4.1, 3.9, 4.2]}, []),
        ({"ntp": [4.0], "cocomix": [3.0]}, []),
    ],
    ids=["clear", "within chance", "one seed"],
)
def test_bold_is_what_the_interval_supports(folder: Path, losses: dict[str, list[float]], bold: list[str]) -> None:
    html, _ = report(losses)
    assert re.findall(r"<strong>(.*?)</strong>", html) == bold


def test_the_final_gap_is_of_the_split_that_chose_nothing(folder: Path, plain: Shown) -> None:
    assert "on the validation split;" not in " ".join(plain.summary.split())
    write_runs({"ntp": [4.0], "cocomix": [3.0]})
    for method, loss in (("ntp", 4.5129), ("cocomix", 4.5434)):
        path = Path(f"metrics/evaluate/{method}-0.json")
        content = json.loads(path.read_text())
        content["test"]["loss"] = loss
        path.write_text(json.dumps(content))
    swept({})
    make()
    for name in ("index.html", "summary.txt"):
        text = " ".join(Path("artifacts/report", name).read_text().split())
        assert "test loss is 4.543 against 4.513, 0.0305 nats higher" in text
        assert "reached the final validation loss of next-token prediction after 7.00" in text
        assert "Loss weights were compared on the validation split; the final losses are of the test split." in text


def test_a_method_that_falls_short_is_said_to(folder: Path) -> None:
    html, summary = report({"ntp": [4.0], "cocomix": [4.5]})
    assert "did not reach the final validation loss of next-token prediction" in " ".join(summary.split())
    assert "0.5000 nats higher" in html
    assert "not reached" in summary


def test_nothing_is_said_to_be_saved_where_only_some_seeds_got_there(folder: Path) -> None:
    line_to_dot = "stroke: var(--muted); stroke-width: 0.6"
    html, _ = report({"ntp": [4.0, 4.0, 4.0], "cocomix": [3.0, 3.0, 3.0]}, drawn=True)
    assert html.count(line_to_dot) == 3
    html, summary = report({"ntp": [4.0, 4.0, 4.0], "cocomix": [1.0, 4.5, 4.8]}, drawn=True)  # their mean is below 4
    assert line_to_dot not in html
    for text in (" ".join(Page(html).text.split()), " ".join(summary.split())):
        assert "CoCoMix reached the final validation loss of next-token prediction in only 1 of 3 seeds." in text
        assert "fewer" not in text
    assert summary.splitlines()[2].endswith("  in 1 of 3 seeds")
    assert rows(html, "Method", "efficiency")["CoCoMix"] == ["not in every seed in 10.0 k tokens", "1 of 3"]
    assert "A dot marks" not in html


def test_nothing_is_said_to_be_saved_where_the_first_evaluation_came_too_late(folder: Path) -> None:
    write_runs({"ntp": [4.0], "cocomix": [3.0]})
    for path in Path("plots/pretrain").glob("*.csv"):
        header, *_, last = path.read_text().splitlines()
        path.write_text(f"{header}\n{last}\n")
    make()
    html, summary = (Path("artifacts/report", name).read_text() for name in ("index.html", "summary.txt"))
    for text in (" ".join(Page(html).text.split()), " ".join(summary.split())):
        assert "before its first evaluation, so the number of tokens was not measured. CoCoMix needs" in text
        assert "fewer" not in text
    assert summary.splitlines()[2].endswith("  before the first evaluation")
    assert rows(html, "Method", "efficiency")["CoCoMix"] == ["before the first evaluation", "1 of 1"]


def test_one_method_is_not_said_to_be_compared(folder: Path) -> None:
    html, _ = report({"cocomix": [3.0]})
    text = " ".join(Page(html).text.split())
    assert "This is one seed. " in text
    assert "all models" not in text
    assert "times the training of CoCoMix" in text


def test_costs_are_shares_of_the_baseline_wherever_it_is_listed(folder: Path) -> None:
    html, _ = report({"cocomix": [3.0], "ntp": [4.0]})
    assert "a share of the training compute of next-token prediction, 100 GFLOP" in " ".join(Page(html).text.split())


@pytest.mark.filterwarnings("error")  # matplotlib warns where there is no room
@pytest.mark.parametrize("name", ["validation", "c4_en_validation_shards_0_to_15_2024-06", "w" * 40])
def test_rows_of_figures_have_room_for_long_names(name: str) -> None:
    methods = ["ntp", "kd", "pause", "cocomix"]
    found = {method: [Interval(0.1, 0.0, 0.2), None, Interval(0.1, 0.0, 0.2)] for method in methods}
    with _dots("rows", "Rows", [name, "test", name], found, looks([])) as made:
        pass
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', made.svg)[1])  # type: ignore[index]
    axes = re.search(r'id="rows-patch_2">\s*<path d="M ([\d.]+) [\d.]+ \s*L ([\d.]+)', made.svg)
    assert axes
    assert float(axes[2]) - float(axes[1]) > 0.45 * width


def test_a_method_that_is_better_than_the_one_it_is_about_is_named_first_of_all(folder: Path) -> None:
    html, summary = report({"ntp": [4.0], "kd": [3.2], "cocomix": [3.5]})
    for text in (" ".join(Page(html).text.split()), " ".join(summary.split())):
        assert "The lowest test loss of all is that of knowledge distillation, 3.200. Knowledge distillation" in text


def test_what_was_made_for_a_method_is_what_it_learns_from(folder: Path, plain: Shown) -> None:
    assert "including the base model, the autoencoder and the labels. After" in " ".join(plain.summary.split())
    _, summary = report({"ntp": [4.0], "cocomix": [3.0]}, ("predicts: concepts ", "predicts: hidden "))
    assert "including the base model. After" in " ".join(summary.split())


def test_several_seeds_show_their_spread(folder: Path) -> None:
    html, summary = report({"ntp": [4.0, 4.2], "cocomix": [3.0, 3.2]})
    assert "4.100 (4.000 to 4.200)" in summary
    assert "4.000 to 4.200" in html
    assert "means of 2 seeds: ranges are from the lowest to the highest, intervals" in " ".join(summary.split())


def test_what_intervals_have_for_their_sample_is_counted_in_groups(plain: Shown) -> None:
    groups = "25 groups of validation, 25 groups of test; resampled 2,000 times; "
    assert f"in pairs ({groups}Student's t widens the intervals, as the groups are few)" in " ".join(plain.html.split())
    assert plain.numbers["methods"]["ntp"]["corpora"]["test"]["groups"] == 25


def test_a_saving_has_an_interval_over_seeds_and_none_with_one(folder: Path, plain: Shown) -> None:
    html, _ = report({"ntp": [4.0, 4.0, 4.0], "cocomix": [3.0, 3.2, 3.4]})
    spent = json.loads(Path("metrics/compare.json").read_text())["methods"]["cocomix"]["down_to_baseline"]["spent"]
    cells = rows(html, "Method", "efficiency")["CoCoMix"]
    for cell, name, form in ((1, "tokens_saved", ".0%"), (2, "flops_ratio", ".2f")):
        low, high = (format(spent[name]["interval"][each], form) for each in ("low", "high"))
        assert cells[cell].endswith(f" 95%: {low} to {high}")
        assert (
            spent[name]["interval"]["low"] < spent[name]["low"] < spent[name]["high"] < spent[name]["interval"]["high"]
        )
    assert "by Student's t over the seeds." in html
    assert rows(plain.html, "Method", "efficiency")["CoCoMix"][1] == "30%"


def test_one_method_alone_is_reported_without_a_comparison(alone: Shown) -> None:
    html, summary, _ = alone
    assert "nothing to compare it with" in html
    assert "fewer" not in summary


def test_four_methods_are_compared_and_the_one_that_it_is_about_comes_first(four: Shown) -> None:
    html, summary, _ = four
    page = Page(html)
    for text in (" ".join(page.text.split()), " ".join(summary.split())):
        positions = [text.index(f"{each} reached") for each in ("CoCoMix", "Knowledge distillation")]
        assert positions == sorted(positions)
        assert "Pause tokens did not reach" in text
        assert "distillation includes the base model's forward pass" in text
        widths = "next-token prediction (208, in 13 heads) and knowledge distillation (208, in 13 heads)"
        assert f"{widths} have the hidden width" in text
        assert "matches the stored parameters of CoCoMix (192, in 6 heads)" in text
    assert html.count('class="headline"') == 1


def test_the_lowest_loss_is_set_against_every_other_method(folder: Path, plain: Shown) -> None:
    ends = {"ntp": [4.0, 4.1, 4.2], "kd": [3.5, 3.6, 3.9], "pause": [4.2, 4.3, 4.4], "cocomix": [3.0, 3.1, 3.2]}
    html, _ = report(ends)
    text = " ".join(Page(html).text.split()).replace("\N{MINUS SIGN}", "-")
    gaps = r"-0.567 \(-0.8.. to -0.2..\) from knowledge distillation, -1.200 \(-1.200 to -1.200\) from pause tokens."
    for corpus in ("validation", "test"):
        assert re.search(f"The lowest loss on {corpus} is that of CoCoMix: {gaps}", text)
    methods = json.loads(Path("metrics/compare.json").read_text())["methods"]
    verdicts = {method: each["corpora"]["test"]["verdict"] for method, each in methods.items()}
    assert verdicts["cocomix"]["differences"]["kd"]["mean"] == pytest.approx(-1.7 / 3)
    assert verdicts["cocomix"]["differences"]["ntp"] == verdicts["cocomix"]["difference"]
    assert verdicts["kd"]["differences"] == {}
    assert "The lowest loss on" not in plain.html


def test_each_method_has_its_own_colour_and_dashes_whatever_the_order(folder: Path, four: Shown) -> None:
    def lines(html: str) -> set[tuple[str, str]]:
        found = re.findall(r'stroke="var\(--(\w+)\)" stroke-width="3" stroke-dasharray="([^"]*)"', html)
        curves = re.findall(r'class="swatch".*?</svg>(?:Next|Know|Pause|CoCo)', html)
        assert len(curves) == len(found)
        return set(found)

    forwards = lines(four.html)
    assert lines(report(dict(reversed(FOUR.items())))[0]) == forwards
    assert len({color for color, _ in forwards}) == len({dashes for _, dashes in forwards}) == 4


def test_every_colour_of_a_curve_is_one_that_the_page_knows_in_light_and_dark(four: Shown) -> None:
    html = four.html
    for name in set(re.findall(r"var\(--([\w-]+)\)", html)):
        if name not in ("text", "plain"):  # fonts
            assert html.count(f"--{name}: #") == 2
    assert not re.search(r"#(0[1-9]|1[0-3])\1\1", html)


def test_without_the_baseline_the_methods_are_still_ranked(folder: Path) -> None:
    html, summary = report({"pause": [4.2], "cocomix": [3.0]})
    for text in (" ".join(Page(html).text.split()), " ".join(summary.split())):
        assert "CoCoMix ended at a test loss of 3.000, pause tokens at 4.200." in text
        assert "Next-token prediction, with which they would be compared, was not trained." in text
    assert "nothing to compare it with" not in html
    assert "tokens to reach NTP's final loss" not in summary
    assert "not reached" not in summary


def test_a_variant_of_cocomix_is_called_one(folder: Path, plain: Shown) -> None:
    changes = [("mixing: interleave ", "mixing: add "), ("predicts: concepts ", "predicts: hidden ")]
    html, summary = report({"ntp": [4.0], "cocomix": [3.0]}, *changes)
    for text in (" ".join(Page(html).text.split()), " ".join(summary.split())):
        assert "a variant of CoCoMix: it predicts the base model's hidden state (l2 distance); the prediction" in text
        assert "forward pass to the regressed layer" in text
    assert "a variant of CoCoMix" not in plain.html


FORMS = "forms: {predicted: {mixing: none}, control: {predicts: nothing, kd: {kl_weight: 1.0}}}"


def test_a_form_is_a_method_of_its_own_with_its_name_its_look_and_its_cost(folder: Path) -> None:
    ends = {"ntp": [4.0, 4.1], "predicted": [3.9, 3.8], "control": [3.7, 3.6], "cocomix": [3.0, 3.1]}
    html, summary = report(ends, ("forms: {}", FORMS), drawn=True)
    page = Page(html)
    assert max(page.ids.values()) == 1
    assert list(rows(html, "Perplexity"))[1:] == ["Next-token prediction", "predicted", "control", "CoCoMix"]
    for text in (" ".join(page.text.split()), " ".join(summary.split())):
        places = [text.index(f"{name} reached") for name in ("CoCoMix", 'form "predicted"', 'form "control"')]
        assert places == sorted(places)
        assert 'The form "predicted" is CoCoMix with mixing: none.' in text
        assert 'The form "control" is CoCoMix with predicts: nothing, kd.kl_wei' in text
        assert "compute of predicted and CoCoMix excludes the cost of the concept labels" in text
        assert "compute of control includes the base model's forward pass." in text
        assert "a variant of CoCoMix" not in text
    methods = json.loads(Path("metrics/compare.json").read_text())["methods"]
    assert list(methods) == list(ends)
    costs = {name: each["supervision"]["flops"] for name, each in methods.items()}
    assert costs["ntp"] == 0 < costs["control"] < costs["predicted"] == costs["cocomix"]
    weights = {name: cells[2] for name, cells in rows(html, "Method", "models").items()}
    assert (weights["predicted"], weights["control"], weights["CoCoMix"]) == ("0.3", "none", "0.3")
    assert "How predicted predicts and uses them" in page.text
    for number in (1, 2):
        assert f"stroke: var(--form-{number})" in html
        assert html.count(f"--form-{number}: #") == 2


def test_what_a_form_learns_from_is_paid_without_cocomix_too(folder: Path) -> None:
    html, summary = report({"ntp": [4.0], "predicted": [3.9]}, ("forms: {}", "forms: {predicted: {mixing: none}}"))
    text = " ".join(summary.split())
    assert 'The form "predicted" reached the final validation loss of next-token prediction' in text
    assert "matches the stored parameters of CoCoMix of width 192, not trained here" in text
    assert 'id="supervision"' in html


def test_steering_is_told_of_each_form_that_is_steered(folder: Path) -> None:
    write_runs({"ntp": [4.0], "added": [3.9], "cocomix": [3.0]}, ("forms: {}", "forms: {added: {mixing: add}}"))
    write_steering(["added_set", "added_scale", "cocomix_set", "cocomix_scale", "base_set"])
    make()
    page = Page(Path("artifacts/report/index.html").read_text())
    text = " ".join(page.text.split())
    for start in (
        "In added, with its strength set to",
        "In CoCoMix, with its strength set to",
        "In the base model, through its autoencoder, with its latent set to",
    ):
        assert start in text
    assert "added, strength set" in text
    assert "added, prediction multiplied" in text
    assert max(page.ids.values()) == 1


def test_weights_and_start_are_said_beside_the_papers(folder: Path) -> None:
    html, summary = report({"kd": [4.0], "cocomix": [3.0]}, ("kl_weight: 1.0", "kl_weight: 0.5"))
    for text in (" ".join(Page(html).text.split()), " ".join(summary.split())):
        assert "CoCoMix weighs its concept loss by 0.3 (paper: 0.1). Its head starts tied (released code: " in text
        assert "weighs the divergence by 0.5 (paper: 0.1)" in text
    constant = "schedule: {shape: constant, until: 1.0} # of kl_weight"
    _, summary = report({"kd": [4.0], "cocomix": [3.0]}, (constant, constant.replace("constant", "linear")))
    assert "by 1, which changes over the steps (paper: 0.1)" in " ".join(summary.split())
    html, _ = report({"ntp": [4.0], "cocomix": [3.0]}, ("concept_init: tied", "concept_init: normal"))
    assert "a variant of CoCoMix" not in html
    assert "starts tied" not in html


@pytest.mark.parametrize(
    ("match", "says"),
    [
        ("width", "The hidden states of all models are 208 wide, in 13 heads"),
        ("stored", "Models of next-token prediction (208, in 13 heads) have the hidden width"),
        ("active", "matches the active parameters of CoCoMix (192, in 6 heads)."),
        ("flops", "matches the training FLOPs per token of"),
    ],
)
def test_what_the_methods_have_in_common_is_said(folder: Path, match: str, says: str) -> None:
    html, _ = report({"ntp": [4.0], "cocomix": [3.0]}, ("match: stored", f"match: {match}"))
    assert says in " ".join(Page(html).text.split())


def test_models_that_go_on_from_a_pretrained_one_are_said_to(folder: Path) -> None:
    changes = [("match: stored", "match: width"), ("source: scratch ", "source: pretrained ")]
    html, summary = report(
        {"ntp": [4.0], "cocomix": [3.0]},
        *changes,
        ("path: null                # hub id or folder of the model", "path: gpt2"),
    )
    said = "All go on from the pretrained model gpt2. The hidden states of all models are"
    assert said in " ".join(Page(html).text.split())
    assert said in " ".join(summary.split())
    assert "of the shape of gpt2; " in " ".join(Page(html).text.split())


RISES, FALLS = "the loss may well rise", "Where the loss falls, the model uses its concepts"


@pytest.mark.parametrize(
    ("changes", "labels", "follows"),
    [
        (
            [],
            "most lower the base model's loss on the text that follows (attribution.sign is that of the paper's",
            RISES,
        ),
        (
            [("sign: released", "sign: helpful")],
            "would most raise the base model's loss on the text that follows.",
            FALLS,
        ),
        ([("scope: sequence", "scope: next_token")], "most lower the base model's loss on the next token", RISES),
        (
            [("score: gradient", "score: activation")],
            "labels of a position are those that are most active",
            "uses its concepts if the loss is lower than with other text's labels",
        ),
    ],
)
def test_what_labels_are_is_said_and_what_follows_when_a_model_is_told_them(
    folder: Path, changes: list[tuple[str, str]], labels: str, follows: str
) -> None:
    html, _ = report({"ntp": [4.0], "cocomix": [3.0]}, *changes)
    text = " ".join(Page(html).text.split())
    assert labels in text
    assert follows in text
    assert [each for each in (RISES, FALLS) if each in text] == [each for each in (RISES, FALLS) if each == follows]
    assert "cross-entropy 5.200 nats, where the frequencies of labels alone would give 6.030;" in text  # 8.7 bits
    assert "Its loss is 3.850 when the labels of each position are put among its concepts, 4.300 when" in text


def test_dvc_gets_the_same_numbers(plain: Shown) -> None:
    methods = plain.numbers["methods"]
    assert methods["ntp"]["corpora"]["validation"]["loss"]["mean"] == 4.0
    assert methods["cocomix"]["down_to_baseline"]["spent"]["tokens_saved"]["mean"] == pytest.approx(0.3)
    assert methods["cocomix"]["corpora"]["test"]["verdict"]["difference"]["high"] < -0.9


def test_the_same_metrics_give_the_same_bytes(folder: Path, plain: Shown) -> None:
    assert report({"ntp": [4.0], "cocomix": [3.0]}, drawn=True) == plain[:2]


def test_runs_of_methods_that_are_no_longer_asked_for_are_left_out(folder: Path, plain: Shown) -> None:
    write_runs({"ntp": [4.0], "cocomix": [3.0]})
    assert "How CoCoMix predicts and uses them" in plain.html
    html, _ = report({"ntp": [4.0]})
    assert "How CoCoMix predicts and uses them" not in html


def test_a_title_is_text_and_not_markup(folder: Path) -> None:
    write_runs({"ntp": [4.0]})
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(re.sub(r"(?m)^  title: .*$", "  title: A < B & <script>", text))
    make()
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
    write_runs({"ntp": [4.0]})
    Path(path).unlink()
    if content is not None:
        Path(path).write_text(content)
    with pytest.raises(UserError, match=message):
        make()


def rows(html: str, title: str, section: str = "") -> dict[str, list[str]]:
    """The rows of the table whose first column is called `title`: their cells' text, by the first of them.

    Args:
        section: the id of a heading before it.
    """
    html = html[html.index(f'id="{section}"') :] if section else html
    table = next(each for each in re.findall(r"<table.*?</table>", html, re.DOTALL) if f">{title}</th>" in each)
    cells = [re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL) for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)]
    texts = [[" ".join(re.sub("<[^>]*>", " ", each).split()) for each in row] for row in cells]
    return {row[0]: row[1:] for row in texts}


def test_the_table_has_tasks_beside_texts_with_intervals_of_the_difference(with_tasks: Shown) -> None:
    html = with_tasks.html
    table = rows(html, "Method")
    assert table["Method"] == ["Validation", "Test", "lambada openai", "hellaswag", "piqa", "mean"]
    assert table["Next-token prediction"] == ["57.47", "57.47", "57.5", "30.0", "15.0", "22.5"]
    validation, _, lambada, hellaswag, piqa, mean = table["CoCoMix"]
    assert validation == "21.14 \N{MINUS SIGN}1.000 \N{MINUS SIGN}1.000 to \N{MINUS SIGN}1.000"
    assert lambada.startswith("21.1 \N{MINUS SIGN}1.000")
    assert hellaswag.startswith("90.0 +60.00 +")
    assert piqa.startswith("45.0 +30.00 +")
    assert mean == "67.5"
    assert re.findall(r"<strong>(.*?)</strong>", html) == ["21.14", "21.14", "21.1", "90.0", "45.0"]
    assert html.count('<svg role="img"') == 12
    assert "hellaswag: Next-token prediction 30.0%" in html


def test_the_log_likelihood_of_right_answers_and_its_margin_have_intervals_too(folder: Path) -> None:
    html, _ = report({"ntp": [4.0], "cocomix": [3.0]}, right={"ntp": 12, "cocomix": 36})
    table = rows(html, "Log-likelihood")
    assert table["Log-likelihood"] == ["hellaswag", "margin", "piqa", "margin", "lambada openai"]
    assert table["Next-token prediction"] == ["-1.700", "0.150", "-1.850", "0.075", "-4.000"]
    likelihood, margin, *_, lambada = table["CoCoMix"]
    assert likelihood == "-1.100 +0.6000 +0.6000 to +0.6000"
    assert margin == "0.450 +0.3000 +0.3000 to +0.3000"
    assert lambada.startswith("-3.000 +1.0000 ")
    task = json.loads(Path("metrics/compare.json").read_text())["methods"]["cocomix"]["tasks"]["hellaswag"]
    assert task["log_likelihood"]["value"]["mean"] == pytest.approx(-1.1)
    assert task["margin"]["difference"]["low"] == pytest.approx(0.3)
    assert task["metrics"] == pytest.approx({"acc_norm": 0.9, "brier": 0.1})


def test_a_metric_that_is_no_share_is_shown_as_it_is_and_enters_no_mean_figure_or_comparison(folder: Path) -> None:
    write_runs({"ntp": [4.0, 4.1], "cocomix": [3.0, 3.1]}, right={"ntp": 12, "cocomix": 36})
    for method, value in (("ntp", 20.04), ("cocomix", 30.0)):
        for path in Path("metrics/evaluate").glob(f"{method}-*.json"):
            content = json.loads(path.read_text())
            figure = {"value": value, "standard_error": None}
            content["tasks"]["piqa"] |= {"metric": "bleu", "metrics": {"bleu": figure}}
            path.write_text(json.dumps(content))
    make()
    html = Path("artifacts/report/index.html").read_text()
    table = rows(html, "Method")
    assert table["Method"] == ["Validation", "Test", "lambada openai", "hellaswag", "piqa, bleu"]
    assert [table[each][-1] for each in ("Next-token prediction", "CoCoMix")] == ["20.04", "30"]
    assert re.findall(r"Accuracy in tasks\. [^<\"]*", html) == [
        "Accuracy in tasks. hellaswag: Next-token prediction 30.0%, CoCoMix 90.0%."
    ]
    tasks = json.loads(Path("metrics/compare.json").read_text())["methods"]["cocomix"]["tasks"]
    assert tasks["piqa"]["verdict"] == {"difference": None, "differences": {}, "best": False}
    assert tasks["hellaswag"]["verdict"]["best"]


def test_what_a_figure_is_of_is_said(folder: Path) -> None:
    html, _ = report(
        {"ntp": [4.0]}, ("stride: null", "stride: 64"), ("task_limit: null", "task_limit: 40"), right={"ntp": 12}
    )
    text = " ".join(Page(html).text.split())
    assert "of text that is read in windows 64 tokens apart" in text
    assert "so that their beginning is not read: 7 of lambada openai." in text
    assert "zero-shot, on the first 40 documents of each." in text


def test_losses_are_compared_by_equal_compute_with_and_without_what_is_learned_from(folder: Path) -> None:
    html, _ = report({"ntp": [4.0], "cocomix": [3.0]}, ("label_runs: 1 ", "label_runs: 10 "))
    table = rows(html, "Method", "equal")
    assert table["Next-token prediction"][:2] == ["4.000", "10.0 k"]
    # CoCoMix pays 1.5 times as much a token: after 6667 of 10000 it is 17/27 of the way from 6 to 3.
    assert table["CoCoMix"][:2] == [f"{6 - 3 * 17 / 27:.3f}", "6.67 k"]
    cocomix = json.loads(Path("metrics/compare.json").read_text())["methods"]["cocomix"]
    assert cocomix["at_equal_compute"]["flops"] == 1e11
    tokens = (1e11 - cocomix["supervision"]["flops"]) / 1.5e7
    assert table["CoCoMix"][2:] == [f"{6 - 3 * (tokens - 1000) / 9000:.3f}", f"{tokens / 1000:.2f} k"]
    html, _ = report({"pause": [3.9], "ntp": [4.0]})
    assert "Loss, supervision counted" not in html
    for method in ("pause", "ntp"):  # evaluated at the end alone, when the other one has spent more than ntp in all
        path = Path(f"plots/pretrain/{method}-0.csv")
        header, *points = path.read_text().splitlines()
        path.write_text(f"{header}\n{points[-1]}\n")
    make()
    table = rows(Path("artifacts/report/index.html").read_text(), "Method", "equal")
    assert (table["Pause tokens"], table["Next-token prediction"]) == (["not yet evaluated"], ["4.000", "10.0 k"])


def test_a_method_whose_supervision_alone_costs_as_much_is_said_to_be_one(folder: Path) -> None:
    write_runs({"ntp": [4.0], "cocomix": [3.0]})
    path = Path("metrics/base.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"flops": 1e12}))
    make()
    table = rows(Path("artifacts/report/index.html").read_text(), "Method", "equal")
    assert table["CoCoMix"][2:] == ["supervision alone costs as much"]
    assert table["Next-token prediction"][2:] == ["4.000", "10.0 k"]


def test_size_and_training_of_the_models_are_said_beside_the_base_models(folder: Path) -> None:
    html, _ = report({"ntp": [4.0], "cocomix": [3.0]})
    text, pretrain = " ".join(Page(html).text.split()), load().pretrain
    training = f"{pretrain.training.steps:,} steps of {pretrain.training.batch_size} windows of 128 tokens"
    assert f"{pretrain.model.n_layer} blocks; {training}" in text
    assert "1.33 k parameters, where the models that are compared have 2.59 M;" in text.replace(
        "\N{NO-BREAK SPACE}", " "
    )
    settings = re.search(r"<pre [^>]*>(pretrain:.*?)</pre>", html, re.DOTALL)
    assert settings
    assert yaml.safe_load(settings[1]) == {"pretrain": pretrain.model_dump(mode="json")}


def test_what_sweeps_found_is_shown_or_how_to_find_it(folder: Path, plain: Shown) -> None:
    assert "python -m flows.sweep sweeps/weights.yaml</code> tries one grid" in plain.html
    write_runs({"ntp": [4.0], "cocomix": [3.0]})
    swept({"interleaved 0.1": 3.9, "interleaved 0.3": 4.0})
    make()
    html = Path("artifacts/report/index.html").read_text()
    Page(html)
    table = re.findall(r"<tr>.*?</tr>", html[html.index('id="tuned"') :], re.DOTALL)
    told = [" ".join(re.sub("<[^>]*>", " ", row).split()) for row in table[:9]]
    assert "CoCoMix 0.1 3.900 7.000 0 lowest" in told
    assert "CoCoMix 0.3 4.000 7.000 0 as in params.yaml" in told
    assert "tries one grid" not in html
    assert json.loads(Path("metrics/compare.json").read_text())["tuning"]["trials"]["kd"]["0.3"]["loss"]["mean"] == 9.0
    assert "Loss weights were compared" in html
    keep("distillation 1.0", "interleaved 0.3")
    make()
    html = Path("artifacts/report/index.html").read_text()
    assert "tries one grid" not in html
    assert "Loss weights were compared" not in html


def test_the_supervision_is_priced_by_stage_and_shared_by_the_runs_that_use_it(folder: Path, plain: Shown) -> None:
    html = plain.html
    assert list(rows(html, "Stage")) == ["Stage", "base", "activations", "sae", "attribution"]
    assert "Time is that of the training steps; of the supervision it is that of whole stages" in html
    alone = plain.numbers["methods"]["cocomix"]
    html, _ = report({"ntp": [4.0], "cocomix": [3.0]}, ("label_runs: 1 ", "label_runs: 4 "))
    shared = json.loads(Path("metrics/compare.json").read_text())["methods"]["cocomix"]
    assert shared["supervision"]["flops"] == pytest.approx(alone["supervision"]["flops"] / 4)
    with_all, with_part = (
        each["down_to_baseline"]["spent"]["flops_ratio_with_supervision"]["mean"] - 1.05 for each in (alone, shared)
    )
    assert with_all == pytest.approx(alone["supervision"]["flops"] / 1e11)  # of ntp's training
    assert with_part == pytest.approx(with_all / 4)
    assert "4 runs share it" in html


def test_draws_that_distillation_reads_are_described_and_priced(folder: Path) -> None:
    html, _ = report({"ntp": [4.0], "kd": [3.0]})
    assert "Sampled distribution" not in html
    assert list(rows(html, "Stage")) == ["Stage", "base"]
    html, summary = report(
        {"ntp": [4.0], "kd": [3.0]}, ("draws: null", "draws: 50"), ("source: online", "source: cached")
    )
    assert "50 tokens drawn from the base model's distribution at each position, 33.3 different ones" in html
    assert list(rows(html, "Stage")) == ["Stage", "base", "distribution"]
    text = " ".join(summary.split())
    assert "including the base model and the sampled distribution. After" in text
    assert "of knowledge distillation excludes the cost of the sampled distribution unless stated." in text


def test_a_method_without_supervision_has_no_supervision_cost(folder: Path) -> None:
    html, _ = report({"ntp": [4.0], "pause": [3.9]})
    assert "supervision costs" not in html


def test_examples_show_text_and_labels_of_concepts_as_text(plain: Shown) -> None:
    html = plain.html
    text = " ".join(Page(html).text.split())
    assert "Start of <middle> end." in text
    assert "names of months 1 Predicted" in text
    assert "names of months 1, 75% <b> 2, 25%" in text
    assert "<mark> &lt;middle&gt;</mark>" in html


def test_what_models_write_and_what_labels_tell_is_shown_as_text(plain: Shown) -> None:
    html = plain.html
    text = " ".join(Page(html).text.split())
    assert "Start of … Next-token prediction <middle> end CoCoMix <middle>. " in text
    best, typical = (
        text.index("The best labels <b> 2, AUC 0.95, at 2% of positions"),
        text.index("names of months 1, AUC"),
    )
    assert best < typical
    assert "Start<mark> &lt;middle&gt;</mark> end." in html


def test_the_page_says_when_where_and_with_what_it_was_made_and_what_differs(folder: Path) -> None:
    html, _ = report({"ntp": [4.0]}, ("  k: 32 ", "  k: 16 "), ("shown: 10", "shown: 9"))
    assert rows(html, "Parameter")["sae.k"] == ["16", "32"]
    assert rows(html, "Parameter")["explain.shown"] == ["9", "10"]
    assert "<dt>Commit</dt>" not in html
    for name, commit, date in (("sae", "123", "2026-01-02"), ("base", "456", "2026-01-01")):
        made = {"commit": commit, "date": date, "machine": "a GPU", "versions": "Python 3"}
        usage = {"seconds": 1.0, "peak_memory": 1, "bytes": 1, "processes": 1, "made": made}
        path = Path(f"metrics/{name}.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"usage": usage}))
    make()
    text = " ".join(Page(Path("artifacts/report/index.html").read_text()).text.split())
    assert "Commit123; 456 Date2026-01-01 to 2026-01-02 (UTC) Machinea GPU VersionsPython 3" in text


def test_a_base_model_and_an_autoencoder_from_elsewhere_have_no_curves(folder: Path, alone: Shown) -> None:
    assert "The training of the base model" in alone.html
    assert "The training of the autoencoder" in alone.html
    write_runs({"ntp": [4.0]})
    for name, columns in (("base", "tokens,validation_loss"), ("sae", "tokens,fvu")):
        Path(f"plots/{name}.csv").write_text(f"{columns}\n")
    make()
    html = Path("artifacts/report/index.html").read_text()
    assert "The training of the base model" not in html
    assert "The training of the autoencoder" not in html


def test_stages_say_what_they_took_or_that_nobody_knows(folder: Path) -> None:
    write_runs({"ntp": [4.0]})
    path = Path("metrics/sae.json")
    usage = {"seconds": 61.0, "startup_seconds": 8.0, "peak_memory": 900_000_000, "bytes": 1_100_000, "processes": 2}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"usage": usage}))
    make()
    stages = rows(Path("artifacts/report/index.html").read_text(), "Stage")
    assert stages["sae"] == ["1", "8 s", "61 s", "1.10 MB", "900 MB", "2"]
    assert stages["pretrain"] == ["1", "not recorded"]


def test_every_number_of_the_page_is_in_a_file_too(with_tasks: Shown) -> None:
    numbers = with_tasks.numbers
    parts = {"pipeline", "methods", "tuning", "supervision", "steering", "stages"}
    assert set(numbers) == {*parts, "artifact", "plots", "usage"}
    assert numbers["pipeline"]["sae"]["fvu"] == 0.041
    assert numbers["pipeline"]["tokens"]["train"]["tokens"] == 30030
    cocomix = numbers["methods"]["cocomix"]
    assert cocomix["mean_accuracy"] == pytest.approx(0.675)
    assert cocomix["tasks"]["hellaswag"]["value"]["mean"] == 0.9
    assert cocomix["concepts"]["mixing"]["zeroed"] == 4.5
    assert cocomix["corpora"]["validation"]["loss"] == {"mean": 3.05, "low": 3.0, "high": 3.1}


def test_dvc_compares_few_numbers_and_no_times(folder: Path) -> None:
    report({"ntp": [4.0, 4.1], "kd": [4.2, 4.2], "cocomix": [3.0, 3.1]})
    found = json.loads(Path("metrics/headline.json").read_text())
    saved = found["cocomix"].pop("saved_tokens")
    assert found == {
        "base": {"validation_loss": 4.49},
        "sae": {"fvu": 0.041},
        "ntp": {"validation_loss": 4.05, "test_loss": 4.05},
        "kd": {"validation_loss": 4.2, "test_loss": 4.2, "saved_tokens": None},
        "cocomix": {"validation_loss": 3.05, "test_loss": 3.05},
    }
    compared = json.loads(Path("metrics/compare.json").read_text())["methods"]["cocomix"]["down_to_baseline"]
    assert saved == pytest.approx(compared["spent"]["tokens_saved"]["mean"], abs=1e-4)


def test_one_table_has_all_learning_curves(folder: Path) -> None:
    report({"ntp": [4.0, 4.1], "cocomix": [3.0, 3.1]})
    with Path("plots/curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(each["method"], each["seed"]) for each in rows} == {
        ("ntp", "0"),
        ("ntp", "1"),
        ("cocomix", "0"),
        ("cocomix", "1"),
    }
    (curve,) = [each for each in rows if each["method"] == "ntp" and each["seed"] == "1"][-1:]
    assert float(curve["validation_loss"]) == 4.1


def test_the_stage_needs_no_torch() -> None:
    asked = "import sys, stages.report; sys.exit(' '.join(sys.modules.keys() & {'torch', 'transformers'}) or 0)"
    done = subprocess.run([sys.executable, "-c", asked], cwd=SHIPPED.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_steering_is_told_with_its_control_and_its_cost(plain: Shown) -> None:
    html = plain.html
    text = " ".join(Page(html).text.split())
    assert "With its strength set to 10 at every position, a concept's tokens become 3 times as likely" in text
    assert "(95% interval 3 to 3; other concepts' tokens 1 times)" in text
    assert "Distinct pairs: the share of different pairs among the pairs of tokens in a row" in text
    table = rows(html, "Edit")
    assert table["CoCoMix, strength set, \N{MINUS SIGN}10"][:3] == ["50%", "50%", "0.33 0.33 to 0.33"]
    numbers = plain.numbers["steering"]
    assert numbers["base_set"]["10"]["loss"]["mean"] == pytest.approx(0.2)


def test_a_page_without_models_to_steer_says_nothing_of_it(folder: Path) -> None:
    write_runs({"ntp": [4.0]})
    write_steering([])
    make()
    assert "changing them" not in Path("artifacts/report/index.html").read_text()
    assert json.loads(Path("metrics/compare.json").read_text())["steering"] == {}
