"""The base model's next-token distribution, sampled once for every model that learns from it."""
