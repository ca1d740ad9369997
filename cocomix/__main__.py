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
import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cocomix.explore.start import address_of, default_model, listening
from cocomix.plumbing.checked import port_number, whole_number
from cocomix.plumbing.distributed import stand_alone
from cocomix.plumbing.errors import UserError, install
from cocomix.plumbing.progress import say
from cocomix.plumbing.streams import mend_streams

COMMANDS = {
    "concepts": "Show the concepts at each token of a text.",
    "generate": "Continue a text, with or without edits.",
    "steer": "Show continuations without and with edits, from the same random numbers.",
    "explore": "Serve a page that shows and edits concepts in the browser, on this machine only.",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; errors are one line."""
    stand_alone()
    mend_streams()
    options = _parser().parse_args(arguments)
    try:
        options.model = options.model or default_model(options.artifacts)
        if options.command == "explore":
            _explore(options)
        else:
            _run(options)
    except UserError as error:
        sys.exit(f"error: {error}")


def _run(options: argparse.Namespace) -> None:
    """Run a command at the terminal."""
    with _loading(options.model):
        from rich.console import Console

        from cocomix.explore.commands import generate, show_concepts, steer

    command = {"concepts": show_concepts, "generate": generate, "steer": steer}[options.command]
    command(options, Console(highlight=False, markup=False, emoji=False))


def _explore(options: argparse.Namespace) -> None:
    """Open the port, load the models, and serve until Ctrl-C; a browser that comes early waits."""
    with listening(options.port) as opened, suppress(KeyboardInterrupt):
        print(f"{address_of(opened)} (Ctrl-C ends it)", flush=True)
        with _loading(options.model):
            try:
                from cocomix.explore.server import serve
            except ModuleNotFoundError as error:
                raise UserError(f"explore needs {error.name}: {install('pipeline')}") from None
            from cocomix.explore.session import Session

            session = Session(options.model, options.artifacts)
        say("ready")
        serve(session, opened)


@contextmanager
def _loading(model: Path) -> Iterator[None]:
    """A context for what takes seconds, which it announces; transformers says nothing of its own.

    Garbage collection is off, and afterwards leaves out what was loaded: it would look through millions of objects,
    also at the end of the program, and none of them is garbage.
    """
    say(f"loading {model} ...")
    gc.disable()
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _parser() -> argparse.ArgumentParser:
    first, _, rest = (__doc__ or "").partition("\n\n")
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m cocomix", description=first, epilog=rest, formatter_class=raw)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, what in COMMANDS.items():
        each = commands.add_parser(name, help=what, description=what)
        each.set_defaults(command=name)
        each.add_argument("--model", type=Path, help="its folder; default: artifacts/models/cocomix-<first seed>")
        each.add_argument("--artifacts", type=Path, default=Path("artifacts"), help="of the pipeline that made it")
        if name == "explore":
            each.add_argument("--port", type=port_number, default=0, help="of 127.0.0.1; default: one that is free")
            continue
        each.add_argument("text", help="what the model reads")
        each.add_argument("--json", action="store_true", help="one JSON value instead")
        if name == "concepts":
            each.add_argument("--top", type=whole_number, default=4, help="predicted concepts of a token (default: 4)")
            continue
        each.add_argument(
            "--edit", nargs="+", default=[], metavar="EDIT", help="such as 412x4", required=name == "steer"
        )
        each.add_argument(
            "--before-selection", action="store_true", help="scale and ablate before the largest are kept"
        )
        half = "new tokens at most (default: 40, or half of what the model reads if that is less)"
        each.add_argument("--tokens", type=whole_number, help=half)
        each.add_argument("--temperature", type=float, default=0.8, help="of sampling (default: 0.8)")
        each.add_argument("--greedy", action="store_true", help="the likeliest token each time")
        each.add_argument("--seed", type=whole_number, default=0, help="of sampling (default: 0)")
        which = "also the base model" if name == "steer" else "the base model instead"
        each.add_argument("--base", action="store_true", help=f"{which}, edited through its autoencoder")
    return parser


if __name__ == "__main__":
    main()
