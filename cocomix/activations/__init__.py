"""The activation store: written once by the base model, read in random order by the autoencoder."""
