"""Method and seed of a stage that runs as an item of the matrix in dvc.yaml."""

import re
from typing import get_args

from cocomix.params import Method, Params
from cocomix.plumbing.errors import UserError
from stages.reads import stage_of_dvc


def matrix_item(arguments: list[str], params: Params) -> tuple[Method, int]:
    """Method and seed from the command line, or else from DVC, checked against the parameters.

    DVC names the stage in its environment. In the stage's command, a shell would read unchecked text.

    Raises:
        UserError: when they are not a method and a seed of `pretrain`.
    """
    if not arguments and (stage := stage_of_dvc()):  # such as pretrain@cocomix-0
        method, _, seed = stage.partition("@")[2].rpartition("-")
        arguments = [method, seed]
    if len(arguments) != 2 or arguments[0] not in get_args(Method) or not re.fullmatch("[0-9]{1,19}", arguments[1]):
        raise UserError(
            f"usage: METHOD SEED, with a method of {', '.join(get_args(Method))}; got {' '.join(arguments)!r}"
        )
    method, seed = arguments
    if method not in params.pretrain.methods or int(seed) not in params.pretrain.seeds:
        raise UserError(f"{method} {seed}: not in pretrain.methods and pretrain.seeds of params.yaml")
    return method, int(seed)  # type: ignore[return-value]
