"""Export the atlas as a page that opens from disk, without a server: search and cards.

    python -m cocomix.explore.export atlas.html

The page holds what a search needs. The cards are in the folder `atlas_parts` beside it, in compressed parts, and the
page loads a part when one of its cards is opened. It loads nothing from the network. Its content security policy allows
only its own script and the scripts that this one loads, and corpus text is never parsed as HTML.
"""

import argparse
import base64
import gzip
import hashlib
import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from cocomix.explain.atlas import Atlas
from cocomix.explain.search import Lists
from cocomix.plumbing.artifact import write_atomically
from cocomix.plumbing.as_json import plain
from cocomix.plumbing.distributed import stand_alone
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.progress import progress
from cocomix.predictions.reader import PredictionsReader, open_predictions

STATIC = Path(__file__).with_name("static")
GROUP = 256
"""Number of concepts in a part."""


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
    for path, files in ((options.out, [options.out]), (parts_of(options.out), parts_of(options.out).iterdir())):
        print(f"{path}: {sum(each.stat().st_size for each in files) / 1e3:,.0f} kB")


def parts_of(out: Path) -> Path:
    """The folder with the parts of a page."""
    return out.with_name(f"{out.stem}_parts")


def write_page(atlas: Atlas, out: Path, predicted: PredictionsReader | None = None) -> None:
    """Write the page and its parts; the same atlas gives the same bytes.

    An earlier export is removed first, and the page is written last: it never shows parts of another atlas.

    Args:
        predicted: a language model's predictions of the concepts.

    Raises:
        UserError: when `out` cannot be written.
    """
    try:
        out.unlink(missing_ok=True)
        _write_parts(atlas, parts_of(out), predicted)
        write_atomically(out, _page(atlas, parts_of(out).name).encode())
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}") from None


def _write_parts(atlas: Atlas, folder: Path, predicted: PredictionsReader | None) -> None:
    for old in folder.glob("[0-9]*.js"):
        old.unlink()
    with progress("export", len(atlas), "concepts") as bar:
        for number, start in enumerate(range(0, len(atlas), GROUP)):
            rows = atlas.stored_rows(start, start + GROUP)
            for row in rows:
                row["predicted"] = plain(predicted.concept(row["concept"])) if predicted else None
            content = f'part({number}, "{_packed(_json(rows))}");\n'
            write_atomically(folder / f"{number}.js", content.encode())
            bar.advance(len(rows))


def _page(atlas: Atlas, parts: str) -> str:
    # A page opened from disk may not import modules, so both scripts are inlined as one.
    script = "".join((STATIC / name).read_text(encoding="utf-8") for name in ("cards.js", "atlas.js"))
    style = (STATIC / "style.css").read_text(encoding="utf-8")
    table = atlas.columns("label", "fires_on", "fires_on_share", "promotes")
    columns = {
        "label": _json(table["label"].to_pylist()),
        "text": _json(atlas.texts),
        "fires_on": Lists(table["fires_on"]).padded(-1).astype("<i4").tobytes(),
        "fires_on_share": Lists(table["fires_on_share"]).padded(np.nan).astype("<f4").tobytes(),
        "promotes": Lists(table["promotes"]).padded(-1).astype("<i4").tobytes(),
    }
    content = {
        "{{style}}": style,
        "{{script}}": script,
        "{{policy}}": f"default-src 'none'; script-src '{_hash(script)}' 'strict-dynamic'; "
        f"style-src '{_hash(style)}'; img-src data:",
        "{{parts}}": quote(parts),
        "{{group}}": str(GROUP),
        "{{columns}}": "\n".join(
            f'<script type="text/plain" id="{name}">{_packed(column)}</script>' for name, column in columns.items()
        ),
    }
    html = (STATIC / "atlas.html").read_text(encoding="utf-8")
    for name, each in content.items():
        html = html.replace(name, each)
    return html


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _packed(content: bytes) -> str:
    """Compressed, in base64, which has no special characters of HTML and JavaScript."""
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()


def _hash(text: str) -> str:
    """Hash of a script or a style in the format of a content security policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


if __name__ == "__main__":
    main()
