"""Stage `evaluate`: measure one finished language model: `python -m stages.evaluate METHOD SEED`."""

import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from cocomix.artifact import Artifact, write_atomically
from cocomix.attribution.labels import ConceptLabels
from cocomix.device import attention
from cocomix.evaluation import score_concepts, score_language_model
from cocomix.modeling import CoCoMixForCausalLM
from cocomix.params import Method, Params
from cocomix.runtime import runtime
from cocomix.tokens import Split, Tokens
from cocomix.training import WindowData
from stages.pretrain import matrix_item
from stages.stage import ARTIFACTS, main, to_json

SPLITS: tuple[Split, ...] = ("validation", "test")


def run(params: Params, method: Method, seed: int) -> None:
    """Write metrics/evaluate/<method>-<seed>.json."""
    name = f"{method}-{seed}"
    tokens = Tokens(ARTIFACTS / "tokens")
    folder = Artifact(ARTIFACTS / "models" / name).verified()
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention(tokens.context)
    )
    batch_size = params.evaluate.batch_size
    metrics: dict[str, Any] = {"method": method, "seed": seed}
    for split in SPLITS:
        score = score_language_model(
            model, tokens.windows(split), tokens.bytes_per_token(split), batch_size, f"{name}: {split}"
        )
        metrics[split] = asdict(score)
    metrics["concepts"] = None
    if isinstance(model, CoCoMixForCausalLM) and model.config.predicts == "concepts":
        with tempfile.TemporaryDirectory() as unpacked:
            target = Path(unpacked) / "labels.npy"
            labels = ConceptLabels(Artifact(ARTIFACTS / "concepts")).unpack("validation", target)
            data = WindowData(tokens.windows("validation"), labels)
            metrics["concepts"] = asdict(score_concepts(model, data, batch_size, f"{name}: concepts"))
    if runtime().rank == 0:
        write_atomically(Path("metrics/evaluate") / f"{name}.json", to_json(metrics))


if __name__ == "__main__":
    main(lambda params: run(params, *matrix_item(sys.argv[1:], params)), shared=True)
