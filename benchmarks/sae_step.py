"""The training step of the autoencoder, against specialised libraries.

d128, d768          our tokens per CPU second (on a GPU, per second) divided by the fastest library's, at 128 x 4096 and
                    768 x 32768
fvu_over_peer       held-out fraction of variance unexplained after the same tokens divided by the lowest of the
                    libraries, at 128 x 4096
d768_fvu_over_peer  the same at 768 x 32768, after a few steps only

All train with k = 32 on the same activations in the same order, with Adam, the same learning rate, and the warm-up and
decay that each has. `make peers` installs each library in its own environment in .peers; missing ones are left out.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import report
from benchmarks.peers.driver import Setting
from cocomix.plumbing.errors import UserError

ROOT = Path(__file__).parents[1]
PEERS = ("sparsify", "dictionary-learning", "sae-lens")
HELD_OUT = 8192
SETTINGS = {
    "d128": Setting(128, 4096, k=32, batch_size=2048, steps=100, learning_rate=1e-3, warmup_steps=5, decay_steps=20),
    "d768": Setting(768, 32768, k=32, batch_size=2048, steps=24, learning_rate=1e-3, warmup_steps=1, decay_steps=5),
}


class Trained(NamedTuple):
    """Result of training with a library."""

    tokens_per_second: float
    fvu: float


def activations(rows: int, d_model: int) -> Tensor:
    """Synthetic activations, sparse sums of 16 directions plus a low-rank part and a mean: [rows, d_model] float32."""
    generator = torch.Generator().manual_seed(0)
    directions = F.normalize(torch.randn(16 * d_model, d_model, generator=generator), dim=1)
    # Some directions are far more frequent than others.
    chosen = (torch.rand(rows, 16, generator=generator).square() * len(directions)).long()
    weights = torch.empty(rows, 16).exponential_(generator=generator)
    ground = torch.randn(rows, 8, generator=generator) @ torch.randn(8, d_model, generator=generator)
    x = F.embedding_bag(chosen, directions, per_sample_weights=weights, mode="sum")
    x = x + 0.2 * ground / d_model**0.5 + torch.randn(d_model, generator=generator) / d_model**0.5
    return x / x.std()


def run(name: str, python: str, folder: Path) -> Trained:
    """Train with a library in its own interpreter."""
    script = ROOT / f"benchmarks/peers/with_{name.replace('-', '_')}.py"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if not torch.cuda.is_available():
        environment["SPARSIFY_DISABLE_TRITON"] = "1"
    done = subprocess.run([python, str(script), str(folder)], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise UserError(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    result = json.loads(done.stdout.splitlines()[-1])
    batch_size: int = json.loads((folder / "setting.json").read_text())["batch_size"]
    return Trained(batch_size / statistics.median(result["seconds"]), result["fvu"])


def compare(name: str, setting: Setting, libraries: dict[str, str]) -> dict[str, Trained]:
    """Train with each library, given as interpreters by name, on the same activations."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        train = setting.steps * setting.batch_size
        x = activations(train + HELD_OUT, setting.d_model).numpy()
        np.save(folder / "train.npy", x[:train])
        np.save(folder / "held_out.npy", x[train:])
        (folder / "setting.json").write_text(json.dumps(setting._asdict()))
        trained = {}
        for each, python in libraries.items():
            trained[each] = run(each, python, folder)
            rate, fvu = trained[each]
            print(f"{name} {each:20} {rate:10,.0f} tokens/s  fvu {fvu:.4f}", file=sys.stderr, flush=True)
    return trained


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--only", choices=SETTINGS)
    arguments, sys.argv[1:] = parser.parse_known_args()
    libraries = {"cocomix": sys.executable}
    for peer in PEERS:
        python = ROOT / ".peers" / peer / "bin/python"
        if python.exists():
            libraries[peer] = str(python)
        else:
            print(f"{peer}: left out, for {python} is not there (make peers)", file=sys.stderr)
    if len(libraries) == 1:
        sys.exit("error: no library to compare with: make peers")
    ratios = {}
    for name, setting in SETTINGS.items():
        if arguments.only in (None, name):
            trained = compare(name, setting, libraries)
            ours = trained.pop("cocomix")
            ratios[name] = ours.tokens_per_second / max(each.tokens_per_second for each in trained.values())
            key = "fvu_over_peer" if name == "d128" else f"{name}_fvu_over_peer"
            ratios[key] = ours.fvu / min(each.fvu for each in trained.values())
    report("sae_step", ratios)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
