"""Tokens: windows of token ids, and the tokenizer that made them."""

from cocomix.tokens.windows import Origin, Split, Tokens

__all__ = ["Origin", "Split", "Tokens"]
