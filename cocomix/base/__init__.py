"""The base model: any causal language model whose blocks are one list. Its parts, requirements and cost."""
