"""Reading the concepts that a model predicts, and changing them."""
