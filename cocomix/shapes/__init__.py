"""The shape of each method's model, and what models and stages need: arithmetic, without a tensor."""
