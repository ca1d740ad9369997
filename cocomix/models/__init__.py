"""Tools for CoCoMix models that saved models do not include: configurations, parameter and FLOP counts, model card."""
