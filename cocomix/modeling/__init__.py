"""The CoCoMix language model. Importing this makes `AutoModelForCausalLM` know it."""

from transformers import AutoConfig, AutoModelForCausalLM

from cocomix.modeling.accounting import flops_per_token, parameters
from cocomix.modeling.configuration_cocomix import CoCoMixConfig
from cocomix.modeling.modeling_cocomix import CoCoMixCache, CoCoMixForCausalLM, CoCoMixModel, CoCoMixOutput
from cocomix.modeling.shapes import cocomix_config, gpt2_config

AutoConfig.register("cocomix", CoCoMixConfig)
AutoModelForCausalLM.register(CoCoMixConfig, CoCoMixForCausalLM)

__all__ = [
    "CoCoMixCache",
    "CoCoMixConfig",
    "CoCoMixForCausalLM",
    "CoCoMixModel",
    "CoCoMixOutput",
    "cocomix_config",
    "flops_per_token",
    "gpt2_config",
    "parameters",
]
