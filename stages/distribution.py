"""Stage `distribution`: draw tokens from the base model's distribution at each training and validation position."""

if __name__ == "__main__":
    from stages.stage import share_work

    share_work()

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cocomix.params import Params
from cocomix.plumbing.artifact import Artifact, Work
from cocomix.plumbing.runtime import runtime
from cocomix.tokens.windows import Tokens
from stages.stage import ARTIFACTS, main, produce, to_json


def run(params: Params) -> None:
    """Make artifacts/distribution, without files if `distribution.draws` is null; the processes share the work."""
    base, tokens = Artifact(ARTIFACTS / "base"), Tokens(ARTIFACTS / "tokens")
    section = params.distribution

    def compute(work: Work) -> Mapping[str, Any]:
        metrics = {} if section.draws is None else _draw(work, base, tokens, params)
        if runtime().rank == 0:
            (work.side / "metrics.json").write_bytes(to_json(metrics))
        return {
            "draws": section.draws,
            "temperature": section.temperature,
            "context": tokens.context,
            "vocab_size": tokens.vocab_size,
        }

    produce(
        "distribution",
        ARTIFACTS / "distribution",
        {"base": base, "tokens": tokens.artifact},
        section.model_dump(),
        compute,
        {"metrics.json": Path("metrics/distribution.json")},
    )


def _draw(work: Work, base: Artifact, tokens: Tokens, params: Params) -> dict[str, Any]:
    """Make the files, and return their summary."""
    from cocomix.base.loading import load_base  # takes seconds to import; without draws, it is not needed
    from cocomix.distribution.build import make_draws
    from cocomix.distribution.draws import PackedDraws, id_type, read_draws
    from cocomix.distribution.summary import summarise

    make_draws(work, load_base(base, tokens.context), tokens, params.distribution)
    train = {name: record for name, record in work.records().items() if name.startswith("train-")}

    def drawn() -> Iterator[PackedDraws]:
        for name in train:
            yield from read_draws(work.files / name, tokens.context, id_type(tokens.vocab_size))

    return asdict(summarise(drawn(), sum(each.bytes for each in train.values())))


if __name__ == "__main__":
    main(run)
