import subprocess
import sys

CORE = [
    "cocomix.plumbing.artifact",
    "cocomix.corpus",
    "cocomix.tokens",
    "cocomix.activations",
    "cocomix.sae",
    "cocomix.attribution",
    "cocomix.distribution.build",
    "cocomix.modeling",
    "cocomix.training",
    "cocomix.evaluation",
    "cocomix.steering.autoencoder",
    "cocomix.steering.reading",
    "stages.stage",
]


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_library_needs_none_of_the_pipelines_packages() -> None:
    blocked = "dvc", "prefect", "datasets", "zstandard", "jinja2", "matplotlib", "ruamel"
    run(f"import sys; sys.modules |= dict.fromkeys({blocked!r}); import {', '.join(CORE)}")


def test_the_contracts_are_light() -> None:
    heavy = "torch", "transformers", "numpy", "pyarrow"
    run(f"import sys; sys.modules |= dict.fromkeys({heavy!r}); import stages.stage")
