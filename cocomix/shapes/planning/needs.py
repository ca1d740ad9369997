"""The needs of a stage, and the measured constants that several estimates use."""

from typing import NamedTuple

LIBRARIES = 500e6
"""Memory of a process after importing torch and transformers."""
PLAIN = 100e6
"""Memory of a process that imports neither torch nor transformers."""
TOKENIZER_BYTES = 65
"""Size of tokenizer.json per entry, measured in the default run."""
FORWARD_TOKENS = 2048
"""Tokens per forward pass of a frozen model, as `cocomix.base.loading.micro_batch` on a CPU."""


class StageNeeds(NamedTuple):
    """Estimated needs of a stage."""

    text: float = 0.0
    """Bytes of text that it processes."""
    flops: float = 0.0
    disk: float = 0.0
    """Bytes of its artifact."""
    scratch: float = 0.0
    """Bytes of its work folder while it runs, besides the artifact: checkpoints, unpacked labels and draws."""
    checkpoints: float = 0.0
    """Bytes of all checkpoints that a training writes, one after another; it waits for each."""
    memory: float = LIBRARIES
    """Bytes of one process, independent of the micro-batch."""
    window_memory: float = 0.0
    """Additional bytes per window of the micro-batch in training."""
