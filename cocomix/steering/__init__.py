"""Read the concepts that a model predicts, and edit them."""
