"""What concepts mean: the atlas of a dictionary."""
