"""The shape of each method's model, and the resources of models and stages, computed without tensors."""
