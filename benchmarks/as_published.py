"""CoCoMix's training step as the released code formulates it, in our own words: the reference of `student_step`.

The mathematics is the project's own (`concept_head: released`); a test compares loss, gradients and labels. The
computation differs:

- Concepts are selected by a boolean mask over the whole dictionary, and compressed by a dense matrix product.
- The concept loss is one cross-entropy over the dictionary for each of a position's labels.
- All blocks compute both positions of a token, though the language model head reads one.
- GELU is the library's default of eight elementwise kernels.
- Labels are computed in every step by a base model in fp32 whose weights are trainable. That is a full forward and
  backward pass, whose weight gradients accumulate and are never used. The autoencoder's codes and the attribution are
  dense over the dictionary, keep a graph for a backward pass that never happens, and live until the step ends.
- AdamW decays all weights.

Left out, in its favour: key-value tensors kept in training, logits cast to fp32, the base model's attention without a
fused kernel, and logging.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2LMHeadModel
from transformers.masking_utils import create_causal_mask
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from cocomix.modeling import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.sae.autoencoder import SparseAutoencoder


class StudentOutput(NamedTuple):
    """Output of a forward pass."""

    logits: Tensor
    """[batch, context, vocab]."""
    concept_logits: Tensor
    """[batch, context, num_concepts]."""


class PublishedStudent(nn.Module):
    """The language model; its weights have the names of `CoCoMixModel`."""

    def __init__(self, config: CoCoMixConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(GPT2Block(config, layer_idx=i) for i in range(config.n_layer))
        self.mixer = _DenseHead(config)
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)

    @classmethod
    def of(cls, model: CoCoMixForCausalLM) -> "PublishedStudent":
        """A model that computes the same function as `model`, with a copy of its weights."""
        config = CoCoMixConfig(**model.config.to_diff_dict() | {"activation_function": "gelu_new"})
        config._attn_implementation = model.config._attn_implementation
        student = cls(config)
        weights = model.transformer.state_dict()
        weights["mixer.compress.weight"] = weights["mixer.compress.weight"].T
        student.load_state_dict(weights)
        return student.to(model.device)

    def forward(self, windows: Tensor) -> StudentOutput:
        """Compute logits; windows: token ids, int64 [batch, context]."""
        hidden = self.wte(windows) + self.wpe.weight[: windows.shape[1]]
        hidden = self._through(hidden, self.h[: self.config.concept_layer])
        vector, concept_logits = self.mixer(hidden)
        hidden = torch.stack([hidden, vector.to(hidden.dtype)], dim=2).flatten(1, 2)
        hidden = self.ln_f(self._through(hidden, self.h[self.config.concept_layer :]))
        return StudentOutput(F.linear(hidden[:, 1::2], self.wte.weight), concept_logits)

    def _through(self, hidden: Tensor, blocks: nn.ModuleList) -> Tensor:
        mask = create_causal_mask(self.config, hidden, attention_mask=None, past_key_values=None)
        for block in blocks:
            hidden = block(hidden, None, mask)
        return hidden


class _DenseHead(nn.Module):
    def __init__(self, config: CoCoMixConfig) -> None:
        super().__init__()
        self.k = config.concept_k
        self.predictor = nn.Linear(config.n_embd, config.num_concepts)
        self.compress = nn.Linear(config.num_concepts, config.n_embd, bias=False)
        self.pre_bias = nn.Parameter(torch.zeros(config.n_embd))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = hidden.mean(-1, keepdim=True), hidden.std(-1, keepdim=True) + 1e-5
        logits = self.predictor((hidden - mean) / std - self.pre_bias)
        kept = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, logits.topk(self.k).indices, True)
        return (self.compress(kept * logits) + self.pre_bias) * std + mean, logits


def student_loss(output: StudentOutput, windows: Tensor, labels: Tensor, concept_weight: float) -> Tensor:
    """Mean next-token loss plus `concept_weight` times the mean concept loss.

    Args:
        windows: token ids, int64 [batch, context].
        labels: int64 [batch, context, k_attr], all valid: positions with fewer positive scores are trained on too.
    """
    tokens = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), windows[:, 1:].flatten())
    z = output.concept_logits.flatten(0, 1)
    each = [F.cross_entropy(z, wanted) for wanted in labels.flatten(0, 1).unbind(-1)]
    return tokens + concept_weight * torch.stack(each).mean()


class PublishedTeacher(nn.Module):
    """Labels the windows of a step.

    Args:
        base: the base model (teacher) with trainable weights.
        sae: the autoencoder of its residual stream after `layer` blocks, with trainable weights.
    """

    def __init__(self, base: GPT2LMHeadModel, sae: SparseAutoencoder, layer: int, k_attr: int) -> None:
        super().__init__()
        self.base, self.sae, self.layer, self.k_attr = base, sae, layer, k_attr

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Labels, int64 [batch, context, k_attr], and the attribution scores of which they are the top k_attr.

        Args:
            windows: token ids, int64 [batch, context].
        """
        residual: list[Tensor] = []

        def keep(_block: nn.Module, _inputs: Any, output: Any) -> None:
            residual.append(output[0] if isinstance(output, tuple) else output)
            residual[0].retain_grad()

        handle = self.base.transformer.h[self.layer - 1].register_forward_hook(keep)
        logits = self.base(windows, use_cache=False).logits
        handle.remove()
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), windows[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        gradient = residual[0].grad
        assert gradient is not None
        attribution = self._codes(residual[0]) * (gradient @ self.sae.decoder.T)
        return attribution.topk(self.k_attr).indices, attribution

    def _codes(self, residual: Tensor) -> Tensor:
        """Dense latents: [batch, context, latents]."""
        mean, std = residual.mean(-1, keepdim=True), residual.std(-1, keepdim=True) + 1e-5
        centered = (residual - mean) / std - self.sae.pre_bias
        top = F.linear(centered, self.sae.encoder, self.sae.latent_bias).topk(self.sae.config.k)
        shape = (*residual.shape[:-1], self.sae.config.latents)
        return top.values.new_zeros(shape).scatter(-1, top.indices, top.values.relu())
