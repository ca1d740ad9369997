"""Sparse autoencoders: their parts, their architectures, their training, their quality."""
