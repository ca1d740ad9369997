"""Encoding documents: what is spelt like a special token is text, and nothing is added, cut or filled up."""

from collections.abc import Sequence

from tokenizers import Tokenizer

from cocomix.plumbing.errors import UserError


def plain(tokenizer: Tokenizer) -> Tokenizer:
    """`tokenizer`, changed in place for `ids_of`."""
    tokenizer.encode_special_tokens = True  # `<|endoftext|>` in a text is text, and does not end the document
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def ids_of(tokenizer: Tokenizer, texts: Sequence[str], where: str) -> list[list[int]]:
    """The token ids of each text.

    Args:
        tokenizer: a `plain` one.
        where: what the texts are of, for the error.

    Raises:
        UserError: when the tokenizer cannot encode one.
    """
    try:
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    except BaseException as error:
        # Of the library's Rust, such as a pattern that goes back and forth too often, and no Exception.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise UserError(f"the tokenizer cannot encode {where}: {' '.join(str(error).split())}") from None
        raise
