"""One of several processes that score the same requests: writes what it found, and how many passes it made."""

import os
import sys
from pathlib import Path

from cocomix.evaluation.downstream_likelihood import Request, log_likelihoods
from cocomix.plumbing import distributed
from cocomix.plumbing.runtime import runtime
from tests.evaluation.downstream_project import CONTEXT, gpt2

REQUESTS = [Request((1 + n, 2, 3), (4 + n, 5)) for n in range(12)]

if __name__ == "__main__":
    distributed.join()
    model, passes = gpt2(), []
    model.lm_head.register_forward_hook(lambda *_: passes.append(1))
    found = log_likelihoods(model, REQUESTS, CONTEXT, 8, "test")
    Path(sys.argv[1], str(runtime().rank)).write_text(f"{found}\n{len(passes)}")
    os._exit(0)  # see `distributed.join`
