"""The CoCoMix language model. Importing this makes `AutoModelForCausalLM` know it."""

from transformers import AutoConfig, AutoModelForCausalLM

from cocomix.modeling.accounting import flops_per_token, parameters, parameters_of
from cocomix.modeling.configuration_cocomix import CoCoMixConfig
from cocomix.modeling.modeling_cocomix import CoCoMixCache, CoCoMixForCausalLM, CoCoMixModel, CoCoMixOutput
from cocomix.modeling.shapes import Sources, config_of, gpt2_shape, shapes

AutoConfig.register("cocomix", CoCoMixConfig)
AutoModelForCausalLM.register(CoCoMixConfig, CoCoMixForCausalLM)

__all__ = [
    "CoCoMixCache",
    "CoCoMixConfig",
    "CoCoMixForCausalLM",
    "CoCoMixModel",
    "CoCoMixOutput",
    "Sources",
    "config_of",
    "flops_per_token",
    "gpt2_shape",
    "parameters",
    "parameters_of",
    "shapes",
]
