import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from cocomix.plumbing.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(25):
    torch.ones(2**23 + 1)  # above 32 MB, filled and freed
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(2**23 + 1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc")
def test_a_large_tensor_takes_the_memory_of_the_one_before() -> None:
    if (unasked := faults("plain")) < 100:
        pytest.skip("this allocator keeps memory anyway")
    assert faults("keep") < unasked / 10
