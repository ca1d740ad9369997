"""The programs in docs/concepts.md read the files that the stage writes."""

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.activations.conftest import SITE, Setting
from tests.conftest import CONTEXT

DOCS = Path(__file__).parents[2] / "docs/concepts.md"
PROGRAMS = {
    library: code
    for code in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S)
    for library in ("pyarrow", "pandas", "polars", "duckdb")
    if f"import {library}" in code and "artifacts/activations/" in code
}


def in_order(x: np.ndarray) -> np.ndarray:
    return x[np.lexsort(x.T[::-1])]


@pytest.mark.parametrize("library", ["pyarrow", "pandas", "polars", "duckdb"])
def test_the_documented_program_reads_the_vectors(setting: Setting, library: str) -> None:
    pytest.importorskip(library)
    artifact = setting.collect()
    artifact.path.rename("artifacts/activations")
    tables = [pq.read_table(each) for each in sorted(Path("artifacts/activations", SITE).glob("train-*.parquet"))]
    wanted = {
        "pyarrow": [tables[0].slice(0, 100)],  # the first row group
        "pandas": tables[:1],
        "polars": [table.filter(np.equal(table["token"], 7)) for table in tables],
        "duckdb": [table.filter(np.equal(table["token"], 7)) for table in tables],
    }[library]
    expected = np.frombuffer(b"".join(row for table in wanted for row in table["x"].to_pylist()), "<f2")
    found: dict[str, np.ndarray] = {}
    exec(PROGRAMS[library], found)
    assert len(expected) > CONTEXT
    np.testing.assert_array_equal(in_order(found["x"]), in_order(expected.reshape(-1, 32)))
