"""Method and seed of a stage that runs as an item of the matrix in dvc.yaml."""

import re

from cocomix.params import Params
from cocomix.plumbing.errors import UserError, suggestion
from stages.reads import stage_of_dvc


def matrix_item(arguments: list[str], params: Params) -> tuple[str, int]:
    """Method and seed from the command line, or else from DVC, checked against the parameters.

    DVC names the stage in its environment. In the stage's command, a shell would read unchecked text.

    Raises:
        UserError: when they are not a method and a seed of `pretrain`.
    """
    if not arguments and (stage := stage_of_dvc()):  # such as pretrain@cocomix-0
        method, _, seed = stage.partition("@")[2].rpartition("-")
        arguments = [method, seed]
    listed = params.pretrain.methods
    if len(arguments) != 2 or not re.fullmatch("[0-9]{1,19}", arguments[1]):
        raise UserError(f"usage: METHOD SEED, with a method of {', '.join(listed)}; got {' '.join(arguments)!r}")
    method, seed = arguments
    if method not in listed:
        raise UserError(f"{method}: not in pretrain.methods of params.yaml; {suggestion(method, listed)}")
    if int(seed) not in params.pretrain.seeds:
        raise UserError(f"{method} {seed}: not in pretrain.seeds of params.yaml")
    return method, int(seed)
