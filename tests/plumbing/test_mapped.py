import re
import sys
from pathlib import Path

import numpy as np
import pytest

from cocomix.plumbing.mapped import read_at_random


def is_read_at_random(path: Path) -> bool:
    """Whether the kernel has noted for all mappings of a file that they are read at random."""
    maps = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    flags = [re.search(r"VmFlags:(.*)", each) for each in maps if str(path) in each]
    assert flags
    return all(each is not None and "rr" in each[1].split() for each in flags)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux shows what it has noted")
def test_the_kernel_is_told_once_that_a_mapped_array_is_read_at_random(tmp_path: Path) -> None:
    path = tmp_path / "array.npy"
    np.save(path, np.arange(5000).reshape(50, 100))
    array = np.load(path, mmap_mode="r")
    assert not is_read_at_random(path)
    read_at_random(array)
    assert is_read_at_random(path)
    assert (array[[3, 7]] == np.arange(5000).reshape(50, 100)[[3, 7]]).all()


def test_an_array_in_memory_stays_as_it_is() -> None:
    array = np.arange(3)
    read_at_random(array)
    assert array.tolist() == [0, 1, 2]
