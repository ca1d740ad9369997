"""Encode documents: a special token's spelling is plain text, and ids are neither added, truncated nor padded."""

from collections.abc import Sequence

from tokenizers import Tokenizer

from cocomix.plumbing.errors import UserError


def plain(tokenizer: Tokenizer) -> Tokenizer:
    """Configure `tokenizer`, in place, for `ids_of`."""
    tokenizer.encode_special_tokens = True  # `<|endoftext|>` in a text is text, and does not end the document
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def ids_of(tokenizer: Tokenizer, texts: Sequence[str], where: str) -> list[list[int]]:
    """The token ids of each text.

    Args:
        tokenizer: configured by `plain`.
        where: where the texts are from, for the error.

    Raises:
        UserError: when the tokenizer cannot encode a text.
    """
    try:
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    except BaseException as error:
        # The library's Rust code raises PanicException, which is no Exception: for a pattern that backtracks too often.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise UserError(f"the tokenizer cannot encode {where}: {' '.join(str(error).split())}") from None
        raise
