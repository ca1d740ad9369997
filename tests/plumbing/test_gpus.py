import pytest

from cocomix.plumbing.gpus import GPUS, gpu_named


@pytest.mark.parametrize(
    ("name", "gpu"), [("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H100 PCIe", "H100 PCIe"), ("a100", "A100")]
)
def test_a_gpu_is_known_by_its_drivers_name(name: str, gpu: str) -> None:
    assert gpu_named(name) == GPUS[gpu]
    assert gpu_named("Voodoo") is None
