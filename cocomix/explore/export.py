"""Export the atlas as one HTML page that opens from disk: search and cards, without a server.

    python -m cocomix.explore.export atlas.html

The page holds the cards in compressed groups, and unpacks a group when one of its cards is opened. It loads nothing
from the network. Its content security policy allows only its own script, and corpus text is never parsed as HTML.
"""

import argparse
import base64
import gzip
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from cocomix.explain.atlas import Atlas
from cocomix.explore.as_json import plain
from cocomix.plumbing.artifact import write_atomically
from cocomix.plumbing.distributed import stand_alone
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.progress import progress
from cocomix.predictions.reader import PredictionsReader, open_predictions

STATIC = Path(__file__).with_name("static")
GROUP = 64
"""Number of concepts in a compressed group."""


def main() -> None:
    """Run the command; errors are one line."""
    stand_alone()
    parser = argparse.ArgumentParser("python -m cocomix.explore.export", description=__doc__)
    parser.add_argument("out", type=Path, help="the page to write, such as atlas.html")
    parser.add_argument("--atlas", type=Path, default=Path("artifacts/atlas"), help="default: artifacts/atlas")
    parser.add_argument(
        "--steering",
        type=Path,
        default=Path("artifacts/steering"),
        help="what the first CoCoMix model makes of concepts, if it is there; default: artifacts/steering",
    )
    options = parser.parse_args()
    try:
        atlas = Atlas(options.atlas)
        write_page(atlas, options.out, open_predictions(options.steering, atlas))
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB")


def write_page(atlas: Atlas, out: Path, predicted: PredictionsReader | None = None) -> None:
    """Write the page atomically; the same atlas gives the same bytes.

    Args:
        predicted: a language model's predictions of the concepts.

    Raises:
        UserError: when `out` cannot be written.
    """
    # A page opened from disk may not import modules, so both scripts are inlined as one.
    script = "".join((STATIC / name).read_text(encoding="utf-8") for name in ("cards.js", "atlas.js"))
    style = (STATIC / "style.css").read_text(encoding="utf-8")
    index, groups = [], []
    with progress("export", len(atlas), "concepts") as bar:
        for start in range(0, len(atlas), GROUP):
            numbers = range(start, min(start + GROUP, len(atlas)))
            cards = [atlas.concept(each) for each in numbers]
            beside = [predicted.concept(each) if predicted else None for each in numbers]
            index += [
                {
                    "label": card.label,
                    "fires_on": [[each.text, each.share] for each in card.fires_on],
                    "promotes": [each.text for each in card.promotes],
                }
                for card in cards
            ]
            both = zip(plain(cards), plain(beside), strict=True)
            groups.append(_packed([{**card, "predicted": some} for card, some in both]))
            bar.advance(len(cards))
    html = (STATIC / "atlas.html").read_text(encoding="utf-8")
    parts = {
        "{{style}}": style,
        "{{script}}": script,
        "{{policy}}": f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:",
        "{{group}}": str(GROUP),
        "{{index}}": _packed(index),
        "{{groups}}": "\n".join(f'<script type="text/plain" class="group">{each}</script>' for each in groups),
    }
    for name, content in parts.items():
        html = html.replace(name, content)
    try:
        write_atomically(out, html.encode())
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}") from None


def _packed(value: Any) -> str:
    """Compressed JSON in base64, which has no special characters of HTML."""
    return base64.b64encode(gzip.compress(json.dumps(value).encode(), mtime=0)).decode()


def _hash(text: str) -> str:
    """Hash of a script or a style in the format of a content security policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


if __name__ == "__main__":
    main()
