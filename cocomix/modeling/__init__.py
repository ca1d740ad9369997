"""The CoCoMix language model. Importing this makes `AutoModelForCausalLM` know it.

The names here are the public interface: the model as transformers has it, and the edits of docs/steering.md.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from cocomix.modeling.concept_edits import Ablate, Concepts, Edit, Scale, Set, Swap
from cocomix.modeling.configuration_cocomix import CoCoMixConfig
from cocomix.modeling.modeling_cocomix import CoCoMixCache, CoCoMixForCausalLM, CoCoMixModel, CoCoMixOutput

AutoConfig.register("cocomix", CoCoMixConfig)
AutoModel.register(CoCoMixConfig, CoCoMixModel)
AutoModelForCausalLM.register(CoCoMixConfig, CoCoMixForCausalLM)

# Saved models carry the files that define them, for `trust_remote_code` to load where this package is not.
CoCoMixConfig.register_for_auto_class()
CoCoMixForCausalLM.register_for_auto_class("AutoModelForCausalLM")

__all__ = [
    "Ablate",
    "CoCoMixCache",
    "CoCoMixConfig",
    "CoCoMixForCausalLM",
    "CoCoMixModel",
    "CoCoMixOutput",
    "Concepts",
    "Edit",
    "Scale",
    "Set",
    "Swap",
]
