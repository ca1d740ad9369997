"""A stage that reads one of each kind, and changes a file while it works: `python -m toy_reads FILE=>OLD=>NEW`."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cocomix.check.external import outside
from cocomix.params import Params
from cocomix.plumbing.artifact import Artifact, Work, digest_of
from stages.stage import main, produce, share_work

OUT = Path("artifacts/toy_reads")


def run(params: Params) -> None:
    given = Artifact(Path("artifacts/input"))
    template = digest_of(Path("page.jinja"))

    def compute(work: Work) -> Mapping[str, Any]:
        with work.write("page") as pending:
            pending.path.write_text(Path("page.jinja").read_text() + given.file("text").read_text())
        for path, old, new in (each.split("=>") for each in sys.argv[1:]):
            text = Path(path).read_text()
            assert old in text
            Path(path).write_text(text.replace(old, new, 1))
        return {}

    inputs: dict[str, Artifact | str] = {"input": given, "template": template, **outside("base.pretrained", params)}
    produce("toy_reads", OUT, inputs, params.sae.model_dump(), compute)


if __name__ == "__main__":
    if "RANK" in os.environ:
        share_work()
    main(run)
