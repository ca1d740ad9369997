"""Tokens: windows of token ids, and the tokenizer that produced them."""
