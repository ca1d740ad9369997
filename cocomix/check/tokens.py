"""Checks of parameters against the tokens, made when there are some: before any model is trained."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from cocomix.params import Params
from cocomix.plumbing.errors import UserError

if TYPE_CHECKING:
    from cocomix.tokens.windows import Tokens


def check_validation_windows(params: Params, windows: int, whose: str = "validation's") -> None:
    """Check that the validation split has as many windows as parameters ask for.

    Args:
        windows: number of windows of the validation split.
        whose: what they are, for the error.

    Raises:
        UserError: when it has fewer.
    """
    if params.steer.windows > windows:
        raise UserError(f"steer.windows ({params.steer.windows}) must not exceed {whose} {windows} windows")


def check_dropped_tokens(params: Params, vocabulary: Mapping[str, int], whose: Literal["shared", "own"]) -> None:
    """Check that `activations.drop_tokens` are in the vocabulary of the base model.

    Args:
        vocabulary: the ids of tokens; of a tokenizer that is not the base model's, nothing is checked.
        whose: the value of `base.tokenizer` with which the vocabulary is the base model's.

    Raises:
        UserError: when one is not.
    """
    if params.base.tokenizer != whose:
        return
    from cocomix.activations.shards import ids_to_drop

    ids_to_drop(vocabulary, params.activations)


def check_init_tokenizer(params: Params, config: Mapping[str, Any] | None, tokens: "Tokens") -> None:
    """Check that the model of `pretrain.init` reads the tokens.

    The stage `methods` checks it too. But it runs after the base model and the autoencoder have been trained.

    Args:
        config: `cocomix.check.preflight.init_config`; None: there is nothing to check, or not yet.

    Raises:
        UserError: when it has another tokenizer.
    """
    if config is None:
        return
    init = params.pretrain.init
    from cocomix.tokens.comparison import check_tokenizer, check_vocabulary

    check_vocabulary("pretrain.init.path", str(init.path), config["vocab_size"], tokens)
    check_tokenizer("pretrain.init.path", str(init.path), init.revision, tokens)
