"""Stage `check`: before anything else, each time.

It refuses what can be known to fail, and notes what the parameters name outside the project, as digests.
"""

from collections.abc import Mapping
from typing import Any

from cocomix.check import external
from cocomix.check.preflight import preflight
from cocomix.params import Params
from cocomix.plumbing.artifact import Work
from stages.stage import main, produce


def run(params: Params) -> None:
    """Make artifacts/external: external.json, which the stages that read such files depend on by key."""
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
