"""The CoCoMix language model. Importing this package registers it with `AutoModelForCausalLM`.

The exported names are the public interface: the transformers model, and the edits of docs/steering.md.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from cocomix.modeling.backbone_gpt2 import CoCoMixModel
from cocomix.modeling.backbone_llama import CoCoMixLlamaModel
from cocomix.modeling.body import CoCoMixBody, CoCoMixCache, CoCoMixOutput
from cocomix.modeling.concept_edits import Ablate, Concepts, Edit, Scale, Set, Swap
from cocomix.modeling.configuration_cocomix import (
    AnyCoCoMixConfig,
    CoCoMixConfig,
    CoCoMixLlamaConfig,
    ConceptFields,
)
from cocomix.modeling.modeling_cocomix import CoCoMixForCausalLM, CoCoMixLanguageModel, CoCoMixLlamaForCausalLM

for _config, _model, _language_model in (
    (CoCoMixConfig, CoCoMixModel, CoCoMixForCausalLM),
    (CoCoMixLlamaConfig, CoCoMixLlamaModel, CoCoMixLlamaForCausalLM),
):
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _model)
    AutoModelForCausalLM.register(_config, _language_model)
    # Saved models include the files that define them, so that `trust_remote_code` loads them without this package.
    _config.register_for_auto_class()
    _language_model.register_for_auto_class("AutoModelForCausalLM")

__all__ = [
    "Ablate",
    "AnyCoCoMixConfig",
    "CoCoMixBody",
    "CoCoMixCache",
    "CoCoMixConfig",
    "CoCoMixForCausalLM",
    "CoCoMixLanguageModel",
    "CoCoMixLlamaConfig",
    "CoCoMixLlamaForCausalLM",
    "CoCoMixLlamaModel",
    "CoCoMixModel",
    "CoCoMixOutput",
    "ConceptFields",
    "Concepts",
    "Edit",
    "Scale",
    "Set",
    "Swap",
]
