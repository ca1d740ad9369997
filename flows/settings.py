"""Settings of a sweep: differences from params.yaml, and the models to train under each."""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from cocomix.params import FILE, Method, Params, reads_distribution
from cocomix.plumbing.checked import mapping, merge, parse, read_yaml
from cocomix.plumbing.dialect import load_yaml
from cocomix.plumbing.errors import UserError
from cocomix.report.tuning import decisive
from cocomix.report.wording import listing
from flows.overrides import nested, under
from flows.preset import sections, with_values


class Setting(NamedTuple):
    """A named set of values that differ from params.yaml."""

    name: str
    values: Mapping[str, Any]
    """Nested as in params.yaml."""


class Task(NamedTuple):
    """A model to train and evaluate under a setting."""

    setting: Setting
    method: str
    seed: int
    content: bytes
    """Content of params.yaml."""
    params: dict[str, Any]
    """The parameters that can affect the result: see `decisive`."""
    read: dict[str, Any]
    """Those of them that this method may depend on, without the sections of other methods."""
    outside: dict[str, str | None] | None = None
    """The present digests of what `params` name outside the project: see `decisive_outside`; None: not known."""

    @property
    def title(self) -> str:
        """Name of the task in logs and in the UI."""
        return " ".join(filter(None, [self.setting.name, self.method, f"seed {self.seed}"]))


def settings(file: Path | None, grid: Sequence[str]) -> list[Setting]:
    """The settings of a file, or none, combined with all points of a grid.

    Args:
        grid: `key=value,value` items with dotted keys; values are YAML and may be lists.

    Raises:
        UserError: when the file or a value cannot be read.
    """
    found = [Setting("", {})]
    if file:
        found = [
            Setting("" if name is None else str(name), {} if values is None else values)
            for name, values in read_yaml(file).items()
        ]
        if not all(each.name.strip() for each in found):
            raise UserError(f"{file}: a setting has no name")
        if wrong := next((each.name for each in found if not isinstance(each.values, Mapping)), None):
            raise UserError(f"{file}: {wrong}: must be a section of 'key: value', as in {FILE}")
    axes = list[tuple[str, Any]]()
    for axis in grid:
        key, equals, text = axis.partition("=")
        values = load_yaml(f"[{text}]", axis, lines=False) if key and equals else None
        if not values:
            raise UserError(f"{axis}: must be key=value,value, such as pretrain.cocomix.concept_weight=0.1,0.3")
        axes.append((key, values[0]))
        found = [_with(each, key, value) for each in found for value in values]
    nested(axes)
    if unclear := next((each.name for each in found if not each.name.isprintable()), None):
        raise UserError(f"setting {unclear}: the name must be one line of printable characters")
    names = [each.name for each in found]
    if twice := next((each for each in names if names.count(each) > 1), None):
        raise UserError(f"setting {twice}: is given twice")
    return found


def tasks(chosen: Sequence[Setting], methods: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[Task]:
    """All models to train, with validated parameters.

    Args:
        methods: empty: those of the setting or of params.yaml.
        seeds: empty: those of the setting or of params.yaml.

    Raises:
        UserError: when a setting is not valid.
    """
    shipped, found = sections(FILE), []
    for setting in chosen:
        items = {name: list(each) for name, each in (("methods", methods), ("seeds", seeds)) if each}
        source = f"setting {setting.name or '(params.yaml)'}"
        content = with_values(shipped, [setting.values, {"pretrain": items}], source)
        params = parse(Params, mapping(content, source), source)
        found += [
            Task(setting, method, seed, content, decisive(params), _read(params, method))
            for method in params.pretrain.methods
            for seed in params.pretrain.seeds
        ]
    return found


def _read(params: Params, method: str) -> dict[str, Any]:
    """See `Task`."""
    pretrain = params.pretrain
    found, others = decisive(params), {*get_args(Method), "forms"}
    if pretrain.kind(method) in ("ntp", "kd", "mtp") and pretrain.match != "width":
        others.remove("cocomix")  # it decides the width
    if not reads_distribution(pretrain.section(method)):
        del found["distribution"]
    own = {key: value for key, value in found["pretrain"].items() if key not in others}
    return {**found, "pretrain": own, "method": pretrain.section(method).model_dump(mode="json")}


def alike(asked: Sequence[Task]) -> list[str]:
    """A line for each method that reads nothing in which some of the settings differ."""
    groups: dict[tuple[str, str], dict[str, None]] = {}
    for task in asked:
        same = groups.setdefault((task.method, json.dumps(task.read, sort_keys=True)), {})
        same[task.setting.name or str(FILE)] = None
    return [
        f"{method} reads nothing in which {listing(names)} differ: equal models"
        for (method, _), names in groups.items()
        if len(names) > 1
    ]


def _with(setting: Setting, key: str, value: object) -> Setting:
    values = copy.deepcopy(dict(setting.values))
    merge(values, under(key, value))
    return Setting(", ".join(filter(None, [setting.name, f"{key}={value}"])), values)
