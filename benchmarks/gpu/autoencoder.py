"""Part `autoencoder`: its training step, against `eai-sparsify` where that is installed (`benchmarks.sae_step`)."""

import importlib.util
import sys
from functools import partial

from benchmarks.gpu.parts import Measurement
from benchmarks.gpu.setting import Setting, Sizes
from benchmarks.peers.driver import Setting as Run
from benchmarks.sae_step import ROOT, compare


def measurements(setting: Setting) -> dict[str, Measurement]:
    return {"step": partial(step, setting.sizes)}


def step(sizes: Sizes) -> dict[str, object]:
    """Activations a second and the share of variance unexplained, by library, and the ratio of the rates."""
    run = Run(
        d_model=sizes.teacher_blocks[0],
        latents=sizes.latents,
        k=sizes.k,
        batch_size=sizes.sae_batch,
        steps=sizes.sae_steps,
        learning_rate=1e-3,
        warmup_steps=1,
        decay_steps=max(1, sizes.sae_steps // 5),
    )
    libraries = {"cocomix": sys.executable}
    beside = ROOT / ".peers/sparsify/bin/python"
    if importlib.util.find_spec("sparsify"):
        libraries["sparsify"] = sys.executable
    elif beside.exists():
        libraries["sparsify"] = str(beside)
    trained = compare("step", run, libraries)
    found: dict[str, object] = {name: each._asdict() for name, each in trained.items()}
    if "sparsify" in trained:
        found["rate_over_sparsify"] = trained["cocomix"].tokens_per_second / trained["sparsify"].tokens_per_second
    return found
