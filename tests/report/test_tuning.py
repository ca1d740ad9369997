"""What sweeps found of the methods' own weights."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cocomix.params import FILE, load
from cocomix.plumbing.errors import UserError
from cocomix.report.tuning import SWEEPS, Trial, Tuning, decisive_outside, read_sweep, tuning
from cocomix.report.wording import tuned_says
from flows.settings import Task, settings, tasks
from tests.report.made_metrics import WIDTHS, write_params

PROJECT = Path(__file__).parents[2]


def entry(
    setting: str, values: dict[str, Any], method: str, seed: int, params: dict[str, Any], loss: float
) -> dict[str, Any]:
    """What a sweep notes of a run, whose loss falls from 8 on the way."""
    score = {"loss": loss, "perplexity": 1.0, "bits_per_byte": 1.0}
    cost = {"ntp": 10.0, "cocomix": 15.0}.get(method, 12.0)
    curve = {"tokens": [1, 2, 3], "flops": [cost, 2 * cost, 3 * cost], "seconds": [1, 2, 3], "loss": [8, 7, loss]}
    known = {"setting": setting, "values": values, "method": method, "seed": seed, "params": params, "code": "c"}
    return known | {
        "pretrain": {"d_model": WIDTHS[method]},
        "evaluate": {"validation": score, "test": score},
        "curve": curve,
    }


def swept(losses: dict[str, float], *grid: str, seeds: tuple[int, ...] = (0,)) -> None:
    """Results of the shipped sweep, as flows/sweep.py names its tasks; `losses` by setting, 9 if it is not there."""
    write_params(["ntp", "cocomix"], [0])
    entries = [
        entry(each.setting.name, dict(each.setting.values), each.method, each.seed, each.params, loss + each.seed / 10)
        for each in asked(grid)
        if each.seed in seeds and (loss := losses.get(each.setting.name, 9.0))
    ]
    SWEEPS.mkdir(parents=True, exist_ok=True)
    (SWEEPS / "made.json").write_text(json.dumps(entries))


@cache
def asked(grid: tuple[str, ...]) -> list[Task]:
    """The tasks of the shipped sweep for two seeds, with the parameters of `swept`: to check them takes seconds."""
    return tasks(settings(PROJECT / "sweeps/weights.yaml", grid), seeds=(0, 1))


def found() -> Tuning:
    made = tuning(load(), WIDTHS, read_sweep(SWEEPS / "made.json"))
    assert made
    return made


def tried(made: Tuning) -> list[tuple[str, float | None]]:
    return [(each.method, each.weight) for each in made.trials]


TRIED = {"kd": [0.1, 0.3, 1.0, 3.0], "pause": [None], "cocomix": [0.1, 0.3, 1.0, 3.0]}
GRID = [(method, weight) for method, weights in TRIED.items() for weight in weights]


def test_each_methods_weights_are_found_among_the_settings_of_the_shipped_sweep(folder: Path) -> None:
    swept({"interleaved 0.1": 4.0, "interleaved 0.3": 4.5, "distillation 0.1": 4.6})
    made = found()
    assert tried(made) == [("ntp", None), *GRID]
    assert [(each.method, each.weight) for each in made.trials if each.lowest] == [("kd", 0.1), ("cocomix", 0.1)]
    assert [(each.method, each.weight) for each in made.trials if each.used] == [
        ("ntp", None),
        ("kd", load().pretrain.kd.kl_weight),
        ("pause", None),
        ("cocomix", load().pretrain.cocomix.concept_weight),
    ]
    says = tuned_says(made)
    assert "The grid of knowledge distillation and CoCoMix is the same." in says
    assert "The lowest loss of CoCoMix is with 0.1, which is not the weight in params.yaml." in says


def test_what_a_method_was_tried_with_besides_its_weight_is_counted_also_when_it_has_been_chosen(folder: Path) -> None:
    swept({}, seeds=(0, 1))
    weights = len(TRIED["cocomix"])
    assert found().others == {"cocomix": 3 * weights}
    assert f"more than the weight were tried too: {3 * weights} of CoCoMix." in tuned_says(found())
    FILE.write_text(FILE.read_text().replace("    mixing: interleave  ", "    mixing: add  "))
    assert found().others == {"cocomix": 3 * weights}
    entries = json.loads((SWEEPS / "made.json").read_text())
    entries = [each for each in entries if each["setting"].startswith(("distillation", "added"))]
    (SWEEPS / "made.json").write_text(json.dumps(entries))
    assert "were tried too" not in tuned_says(found())


def keep(*names: str) -> None:
    """Leave only the runs of these settings in the results."""
    entries = json.loads((SWEEPS / "made.json").read_text())
    (SWEEPS / "made.json").write_text(json.dumps([each for each in entries if each["setting"] in names]))


def test_methods_that_were_tried_with_one_weight_each_have_no_grid_and_none_had_more_chances(folder: Path) -> None:
    swept({})
    keep("distillation 1.0", "interleaved 0.3")
    assert tried(found()) == [("kd", 1.0), ("cocomix", 0.3)]
    assert not found().compares
    assert tuned_says(found()) == ""


def test_grids_of_one_size_gave_nobody_more_chances(folder: Path) -> None:
    swept({})
    keep("distillation 0.1", "distillation 1.0", "interleaved 0.1", "interleaved 0.3")
    assert found().compares
    assert "The grid of knowledge distillation and CoCoMix is not the same." in tuned_says(found())


def test_what_others_were_tried_with_is_still_known_when_another_form_of_cocomix_has_been_chosen(folder: Path) -> None:
    swept({"added 0.1": 4.0})
    FILE.write_text(FILE.read_text().replace("    mixing: interleave  ", "    mixing: add  "))
    assert tried(found()) == [("ntp", None), *GRID]
    best = next(each for each in found().trials if each.method == "cocomix" and each.lowest)
    assert (best.weight, best.loss.mean) == (0.1, 4.0)


def test_runs_of_models_of_another_width_are_left_out(folder: Path) -> None:
    swept({})
    made = tuning(load(), WIDTHS | {"ntp": 216}, read_sweep(SWEEPS / "made.json"))
    assert made
    assert tried(made) == GRID


def test_runs_of_another_version_of_the_parameters_are_left_out(folder: Path) -> None:
    swept({})
    before, entries = found(), json.loads((SWEEPS / "made.json").read_text())
    for lacking in ("evaluate", "pretrain"):
        params = {key: value for key, value in entries[0]["params"].items() if key != lacking}
        entries.append(entries[0] | {"seed": 1, "params": params | {"other": {}}})
    (SWEEPS / "made.json").write_text(json.dumps(entries))
    assert found() == before


def test_of_a_run_that_is_there_twice_the_last_one_counts(folder: Path) -> None:
    swept({})
    entries = json.loads((SWEEPS / "made.json").read_text())
    again = entry("again", {}, "ntp", 0, entries[0]["params"], 3.0)
    (SWEEPS / "made.json").write_text(json.dumps([*entries, again]))
    assert [each.loss.mean for each in found().trials if each.method == "ntp"] == [3.0]


def test_what_was_tried_is_still_known_when_the_best_weights_have_been_written_into_the_parameters(
    folder: Path,
) -> None:
    swept({"interleaved 0.1": 4.0})
    before = found()
    FILE.write_text(re.sub(r"(?m)^(    (?:concept_weight|kl_weight)): [\d.]+", r"\1: 1.0", FILE.read_text()))
    after = found()
    assert [each._replace(used=False) for each in after.trials] == [each._replace(used=False) for each in before.trials]
    assert [(each.method, each.weight) for each in after.trials if each.used and each.weight] == [
        ("kd", 1.0),
        ("cocomix", 1.0),
    ]


def test_losses_are_also_compared_after_the_compute_that_all_have_spent(folder: Path) -> None:
    swept({"next-token prediction": 6.0, "interleaved 0.3": 5.0}, seeds=(0, 1))
    made = found()
    by_name: dict[tuple[str, float | None], Trial] = {(each.method, each.weight): each for each in made.trials}
    assert made.flops == 30
    assert by_name["ntp", None].loss_at_equal == pytest.approx((6.05, 6.0, 6.1))
    assert by_name["cocomix", 0.3].loss == pytest.approx((5.05, 5.0, 5.1))
    assert by_name["cocomix", 0.3].loss_at_equal == (7.0, 7.0, 7.0)
    assert by_name["cocomix", 0.3].seeds == [0, 1]


def test_runs_under_other_parameters_are_left_out(folder: Path) -> None:
    swept({}, "pretrain.training.steps=20")
    assert tuning(load(), WIDTHS, read_sweep(SWEEPS / "made.json")) is None


def test_runs_stay_when_something_besides_the_validation_loss_is_measured_otherwise(folder: Path) -> None:
    swept({})
    before = found()
    text = FILE.read_text()
    for old, new in {
        "tasks: [] ": "tasks: [piqa] ",
        "batch_size: 32 ": "batch_size: 8 ",
        "windows: 3 ": "windows: 2 ",
    }.items():
        assert old in text
        text = text.replace(old, new)
    FILE.write_text(text)
    assert found() == before
    FILE.write_text(text.replace("stride: null ", "stride: 64 "))
    assert tuning(load(), WIDTHS, read_sweep(SWEEPS / "made.json")) is None


def test_weights_are_compared_by_the_seeds_that_all_of_them_have(folder: Path) -> None:
    swept({}, seeds=(0, 1))
    entries = json.loads((SWEEPS / "made.json").read_text())
    (SWEEPS / "made.json").write_text(
        json.dumps([each for each in entries if (each["setting"], each["seed"]) != ("interleaved 1.0", 0)])
    )
    assert {(each.method, tuple(each.seeds)) for each in found().trials if each.method in ("kd", "cocomix")} == {
        ("kd", (0, 1)),
        ("cocomix", (1,)),
    }


def test_grids_and_code_that_differ_are_told(folder: Path) -> None:
    swept({})
    entries = json.loads((SWEEPS / "made.json").read_text())
    entries[0]["code"] = "other"
    (SWEEPS / "made.json").write_text(json.dumps([each for each in entries if each["setting"] != "distillation 1.0"]))
    says = tuned_says(found())
    assert "is not the same: one had more chances." in says
    assert "the same version of the code" in says


def test_a_damaged_file_is_named(folder: Path) -> None:
    path = folder / "other.json"
    path.write_text("{")
    with pytest.raises(UserError, match=r"other\.json:1: not valid JSON"):
        read_sweep(path)
    path.write_bytes(b'["\xff"]')
    with pytest.raises(UserError, match=r"other\.json: not UTF-8"):
        read_sweep(path)
    path.write_text("1")
    with pytest.raises(UserError, match=r"other\.json: must hold a list"):
        read_sweep(path)
    path.write_text('[{"method": "ntp"}]')
    with pytest.raises(UserError, match=r"other\.json: \[0\]: "):
        read_sweep(path)


def test_a_form_is_tuned_by_its_own_section_and_changes_that_of_no_other(folder: Path) -> None:
    swept({}, seeds=(0,))
    entries = json.loads((SWEEPS / "made.json").read_text())
    forms = "forms: {predicted: {mixing: none, concept_weight: 0.1}}"
    FILE.write_text(FILE.read_text().replace("forms: {}", forms))
    params = tasks(settings(None, ["pretrain.forms.predicted.concept_weight=0.1,1.0"]), ["predicted"], [0])
    entries += [
        entry(each.setting.name, dict(each.setting.values), each.method, each.seed, each.params, 5.0 - number)
        for number, each in enumerate(params)
    ]
    (SWEEPS / "made.json").write_text(json.dumps(entries))
    made = found()
    assert tried(made) == [("ntp", None), *GRID, ("predicted", 0.1), ("predicted", 1.0)]
    assert [each.weight for each in made.trials if each.method == "predicted" and each.lowest] == [1.0]
    assert [each.weight for each in made.trials if each.method == "predicted" and each.used] == [0.1]
    assert "The lowest loss of predicted is with 1, which is not the weight in params.yaml." in tuned_says(made)


def test_what_names_and_measures_beside_the_loss_does_not_decide_on_a_run() -> None:
    found: dict[str, str | None] = {"corpus.files.paths": "a", "explain.model.name": "b", "evaluate.tasks": None}
    assert decisive_outside(found) == {"corpus.files.paths": "a"}
