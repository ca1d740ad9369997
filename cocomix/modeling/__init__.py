"""The CoCoMix language model. Importing this package registers it with `AutoModelForCausalLM`.

The exported names are the public interface: the transformers model, and the edits of docs/steering.md.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from cocomix.modeling.concept_edits import Ablate, Concepts, Edit, Scale, Set, Swap
from cocomix.modeling.configuration_cocomix import CoCoMixConfig
from cocomix.modeling.modeling_cocomix import CoCoMixCache, CoCoMixForCausalLM, CoCoMixModel, CoCoMixOutput

AutoConfig.register("cocomix", CoCoMixConfig)
AutoModel.register(CoCoMixConfig, CoCoMixModel)
AutoModelForCausalLM.register(CoCoMixConfig, CoCoMixForCausalLM)

# Saved models include the files that define them, so that `trust_remote_code` loads them without this package.
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
