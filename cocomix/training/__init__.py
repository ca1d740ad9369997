"""Training a language model: one loop, one objective a method."""
