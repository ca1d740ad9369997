"""Training of language models: one loop for all methods, one objective per method."""
