"""The meaning of concepts: the atlas of a dictionary."""
