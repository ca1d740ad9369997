"""Read and change the concepts of a CoCoMix model.

    python -m cocomix concepts "The function returns a list"             # predicted and labelled, token by token
    python -m cocomix generate "The function returns" --edit 412x4       # a continuation, as it comes
    python -m cocomix steer "The function returns" --edit 412x4 77=0     # the original beside the steered one
    python -m cocomix steer "The function returns" --edit 9=2.5 --base   # and the same edits on the base model
    python -m cocomix explore                                            # all of it as a page in the browser

Edits: 412x4 concept 412 times 4; 77=0 without it; 9=2.5 with this strength everywhere; 3~8 exchanged; each at some
positions only with @4: or @4:9 or @4. Run from the project's folder, or name --model and --artifacts.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from transformers.utils import logging

from cocomix.explore.continuation import Sampling, checked_temperature, continuation
from cocomix.explore.edit_syntax import Written, parse_edit
from cocomix.explore.load import default_model, load_extractor, load_labels, load_model
from cocomix.explore.terminal import Stream, meanings, side_by_side, table_of
from cocomix.modeling import CoCoMixConfig
from cocomix.plumbing.artifact import MANIFEST
from cocomix.plumbing.checked import port_number, whole_number
from cocomix.plumbing.distributed import stand_alone
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.streams import mend_streams
from cocomix.steering.autoencoder import concepts_edited, editing
from cocomix.steering.reading import Concept, concepts, encode


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; errors are one line."""
    stand_alone()
    mend_streams()
    options = _parser().parse_args(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        options.command(options, Console(highlight=False, markup=False, emoji=False))
    except UserError as error:
        sys.exit(f"error: {error}")


def show_concepts(options: argparse.Namespace, console: Console) -> None:
    """Show the concepts at each token of a text."""
    if options.top < 1:
        raise UserError("--top must be 1 or more")
    model, tokenizer = load_model(options.model or default_model(options.artifacts))
    labels_at_hand = (options.artifacts / "concepts" / MANIFEST).is_file()
    extractor = load_extractor(options.artifacts, model) if labels_at_hand else None
    positions = concepts(model, options.text, tokenizer, extractor, load_labels(options.artifacts))
    if options.json:
        rows = [
            {**each._asdict(), "predicted": _plain(each.predicted), "labelled": _plain(each.labelled)}
            for each in positions
        ]
        print(json.dumps(rows))
    else:
        console.print(table_of(positions, options.top))


def generate(options: argparse.Namespace, console: Console) -> None:
    """Continue a text, with or without edits."""
    sampling = _sampling(options)
    model, tokenizer = load_model(options.model or default_model(options.artifacts))
    edits = _edits(options, model.config)
    writer, sae = model, None
    if options.base:
        writer, sae, _, own = load_extractor(options.artifacts, model)
        tokenizer = own or tokenizer
    ids = encode(writer, options.text, tokenizer, options.tokens)
    with editing(writer, sae, edits) as edited:
        if options.json:
            text = continuation(writer, tokenizer, ids, sampling, **edited)
            print(json.dumps({"prompt": options.text, "edits": options.edit, "continuation": text}))
        else:
            console.print(Text(options.text, "dim"), end="", soft_wrap=True)
            continuation(writer, tokenizer, ids, sampling, streamer=Stream(tokenizer, console), **edited)


def steer(options: argparse.Namespace, console: Console) -> None:
    """Show continuations without and with edits, from the same random numbers."""
    sampling = _sampling(options)
    model, tokenizer = load_model(options.model or default_model(options.artifacts))
    edits, ids = _edits(options, model.config), encode(model, options.text, tokenizer, options.tokens)
    found = {
        "original": continuation(model, tokenizer, ids, sampling),
        "steered": continuation(model, tokenizer, ids, sampling, concept_edits=edits),
    }
    if options.base:
        base, sae, _, own = load_extractor(options.artifacts, model)
        tokenizer = own or tokenizer
        ids = encode(base, options.text, tokenizer, options.tokens)
        found["base"] = continuation(base, tokenizer, ids, sampling)
        with concepts_edited(base, sae, edits):
            found["base steered"] = continuation(base, tokenizer, ids, sampling)
    if options.json:
        print(json.dumps({"prompt": options.text, "edits": options.edit, "continuations": found}))
    else:
        if known := meanings(edits, load_labels(options.artifacts)):
            console.print(Text(known, "dim"), soft_wrap=True)
        console.print(side_by_side(options.text, found))


def explore(options: argparse.Namespace, console: Console) -> None:
    """Serve a page that shows and edits concepts in the browser, on this machine only."""
    try:
        from cocomix.explore.server import serve
    except ModuleNotFoundError as error:
        raise UserError(f"explore needs {error.name}: pip install 'cocomix[pipeline]'") from None
    from cocomix.explore.session import Session

    session = Session(options.model or default_model(options.artifacts), options.artifacts)
    serve(session, options.port, lambda address: console.print(f"{address} (Ctrl-C ends it)"))


def _sampling(options: argparse.Namespace) -> Sampling:
    if not 1 <= options.tokens <= 10**6:
        raise UserError("--tokens must be from 1 to a million")
    try:
        checked_temperature(options.temperature)
    except ValueError as error:
        raise UserError(f"--temperature {options.temperature:g}: {error}") from None
    if not 0 <= options.seed < 2**63:
        raise UserError("--seed must be from 0 to 2^63 - 1")
    return Sampling(options.tokens, 0.0 if options.greedy else options.temperature, options.seed)


def _edits(options: argparse.Namespace, config: CoCoMixConfig) -> list[Written]:
    if options.before_selection and options.base:
        raise UserError("--before-selection: the base model's edits are of active latents; leave it or --base out")
    if options.edit and config.mixing == "none" and (options.command is steer or not options.base):
        advice = "`generate --base` edits the base model"
        raise UserError(f"--edit: this model mixes no concepts (mixing: none), so edits change nothing; {advice}")
    return [parse_edit(each, config.num_concepts, before_selection=options.before_selection) for each in options.edit]


def _plain(found: Sequence[Concept] | None) -> list[dict[str, Any]] | None:
    return None if found is None else [each._asdict() for each in found]


def _parser() -> argparse.ArgumentParser:
    first, _, rest = (__doc__ or "").partition("\n\n")
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m cocomix", description=first, epilog=rest, formatter_class=raw)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in {"concepts": show_concepts, "generate": generate, "steer": steer, "explore": explore}.items():
        each = commands.add_parser(name, help=command.__doc__, description=command.__doc__)
        each.set_defaults(command=command)
        each.add_argument("--model", type=Path, help="its folder; default: artifacts/models/cocomix-<first seed>")
        each.add_argument("--artifacts", type=Path, default=Path("artifacts"), help="of the pipeline that made it")
        if command is explore:
            each.add_argument("--port", type=port_number, default=0, help="of 127.0.0.1; default: one that is free")
            continue
        each.add_argument("text", help="what the model reads")
        each.add_argument("--json", action="store_true", help="one JSON value instead")
        if command is show_concepts:
            each.add_argument("--top", type=whole_number, default=4, help="predicted concepts to show (default: 4)")
            continue
        each.add_argument(
            "--edit", nargs="+", default=[], metavar="EDIT", help="such as 412x4", required=command is steer
        )
        each.add_argument(
            "--before-selection", action="store_true", help="scale and ablate before the largest are kept"
        )
        each.add_argument("--tokens", type=whole_number, default=40, help="new tokens at most (default: 40)")
        each.add_argument("--temperature", type=float, default=0.8, help="of sampling (default: 0.8)")
        each.add_argument("--greedy", action="store_true", help="the likeliest token each time")
        each.add_argument("--seed", type=whole_number, default=0, help="of sampling (default: 0)")
        which = "also the base model" if command is steer else "the base model instead"
        each.add_argument("--base", action="store_true", help=f"{which}, edited through its autoencoder")
    return parser


if __name__ == "__main__":
    main()
