"""Tokens: windows of token ids, and the tokenizer that made them."""

from cocomix.tokens.windows import Split, Tokens

__all__ = ["Split", "Tokens"]
