"""Sparse autoencoders: architectures, training, quality, and other libraries' formats."""
