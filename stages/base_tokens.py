"""Stage `base_tokens`: the corpus as windows of the base model's own tokens, aligned with those of the students.

With `base.tokenizer: shared`, the artifact has no files.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cocomix.check.external import outside
from cocomix.check.preflight import init_config
from cocomix.check.tokens import check_dropped_tokens, check_init_tokenizer, check_validation_windows
from cocomix.corpus.splits import LABELLED
from cocomix.params import Params
from cocomix.plumbing.artifact import Artifact, Work
from cocomix.plumbing.runtime import runtime
from cocomix.tokens.windows import Tokens
from stages.stage import ARTIFACTS, main, produce, to_json


def run(params: Params) -> None:
    """Make artifacts/base_tokens."""
    section, own = params.base, params.base.tokenizer == "own"
    tokens = Tokens(ARTIFACTS / "tokens")
    inputs: dict[str, Artifact | str] = {"tokens": tokens.artifact}
    if own:
        inputs |= {"corpus": Artifact(ARTIFACTS / "corpus"), **outside("base.pretrained", params)}

    def compute(work: Work) -> Mapping[str, Any]:
        check_init_tokenizer(params, init_config(params), tokens)
        metrics, about = _encode(work, tokens, params) if own else ({}, {})
        if runtime().rank == 0:
            (work.side / "metrics.json").write_bytes(to_json(metrics))
        return {"tokenizer": section.tokenizer, **about}

    used = section.model_dump(include={"tokenizer", *(("pretrained", "revision", "context") if own else ())})
    side = {"metrics.json": Path("metrics/base_tokens.json")}
    produce("base_tokens", ARTIFACTS / "base_tokens", inputs, used, compute, side)


def _encode(work: Work, tokens: Tokens, params: Params) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the windows and the alignment; the metrics, and the facts for the manifest."""
    from cocomix.tokens.alignment import write_places  # with a shared tokenizer, the stage need not wait for it
    from cocomix.tokens.pack import pack_corpus
    from cocomix.tokens.tokenizer import load_pretrained

    section, corpus = params.base, Artifact(ARTIFACTS / "corpus")
    tokenizer = load_pretrained(str(section.pretrained), section.revision, "base.pretrained")
    work.confirm_inputs()
    check_dropped_tokens(params, tokenizer.get_vocab(), "own")
    context = section.context or tokens.context
    packed = pack_corpus(work, corpus, tokenizer, context, "base.context")
    whose = f"of base.context ({context}), validation's"
    check_validation_windows(params, packed.metrics["validation"]["windows"], whose)
    texts = {split: corpus.file(f"{split}.parquet") for split in LABELLED}
    write_places(work, texts, tokens, packed.shards, context)
    return packed.metrics, packed.about


if __name__ == "__main__":
    main(run, by_torchrun=True)
