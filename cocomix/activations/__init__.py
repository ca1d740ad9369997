"""The activation store: the base model's activations, written once, read in random order to train autoencoders."""
