"""The measurement of how a CoCoMix model predicts and uses each concept of a dictionary (`cocomix.predictions`).

over_evaluation      its time divided by that of an evaluation of the same windows
over_whole_windows   its time per concept divided by that of doubling the concept in whole windows: a forward pass of
                     the two in which it is strongest, without the language model head
places_per_position  places at which a concept is doubled, per position of the windows

The shape is GPT-2 124M's with 32,768 concepts, in two windows of 256 tokens. All weights and tokens are random. One
concept is mixed per position, so that there is about one place per position, as for a whole dictionary in 64 windows of
1,024 tokens.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks import measured, medians, report, set_up
from cocomix.base.loading import prepared
from cocomix.evaluation.language_model import token_losses
from cocomix.modeling import CoCoMixConfig, CoCoMixForCausalLM, Scale
from cocomix.plumbing.device import attention, device
from cocomix.predictions.measure import DOUBLED, measure_predictions


class Shape(NamedTuple):
    """Shape of the model, and of the text."""

    d_model: int = 768
    layers: int = 12
    heads: int = 12
    concept_layer: int = 6
    vocab: int = 50257
    concepts: int = 32768
    context: int = 256
    windows: int = 2

    def model(self) -> CoCoMixForCausalLM:
        config = CoCoMixConfig(
            n_embd=self.d_model,
            n_layer=self.layers,
            n_head=self.heads,
            n_positions=self.context,
            vocab_size=self.vocab,
            bos_token_id=0,
            eos_token_id=0,
            num_concepts=self.concepts,
            concept_k=1,
            concept_layer=self.concept_layer,
            attn_implementation=attention(self.context),
        )
        model = CoCoMixForCausalLM(config)
        nn.init.normal_(model.transformer.wte.weight)  # so that positions differ, and predict different concepts
        return prepared(model)

    def ids(self) -> Tensor:
        return torch.randint(self.vocab, (self.windows, self.context), device=device())


def ratios(shape: Shape, repeats: int) -> dict[str, float]:
    model, ids = shape.model(), shape.ids()
    no_labels = torch.full((*ids.shape, 1), -1)

    def measurement() -> None:
        with tempfile.TemporaryDirectory() as folder:
            measure_predictions(model, ids, no_labels, promoted=10, kept=Path(folder))

    works = {
        "measurement": measurement,
        "evaluation": lambda: token_losses(model, ids),
        "whole_windows": lambda: model.base_model(ids[:DOUBLED], use_cache=False, concept_edits=[Scale(0, 2.0)]),
    }
    seconds = measured(medians(works, repeats))
    windows_of = torch.cat([each.unique() for each in model.concepts(ids).indices]).bincount()
    return {
        "over_evaluation": seconds["measurement"] / seconds["evaluation"],
        "over_whole_windows": seconds["measurement"] / int((windows_of > 0).sum()) / seconds["whole_windows"],
        "places_per_position": int(windows_of.clamp(max=DOUBLED).sum()) / ids.numel(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--repeats", type=int, default=3)
    arguments, sys.argv[1:] = parser.parse_known_args()
    torch.manual_seed(0)
    set_up()
    report("predictions", ratios(Shape(), arguments.repeats))
