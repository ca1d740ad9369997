"""Stage `check`: check parameters and external files; it runs first, each time.

It refuses what is known to fail, and records digests of what the parameters name outside the project.
"""

from collections.abc import Mapping
from typing import Any

from cocomix.check import external
from cocomix.check.preflight import preflight
from cocomix.params import Params
from cocomix.plumbing.artifact import Work
from stages.stage import main, produce


def run(params: Params) -> None:
    """Make artifacts/external with external.json; stages that read external files depend on its keys."""
    preflight(params)
    found = external.digests(params)

    def compute(work: Work) -> Mapping[str, Any]:
        with work.write(external.FILE.name) as pending:
            pending.path.write_bytes(external.to_json(found))
        return {}

    inputs = {key: digest for key, digest in found.items() if digest is not None}
    produce("check", external.FILE.parent, inputs, {}, compute)


if __name__ == "__main__":
    main(run)
