"""Tokens: windows of token ids, and the tokenizer that made them."""
