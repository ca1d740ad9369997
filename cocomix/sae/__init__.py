"""The TopK sparse autoencoder: its parts, its training, its quality."""
