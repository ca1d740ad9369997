"""Read the token windows of the tokens artifact."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cocomix.corpus.splits import Split
from cocomix.plumbing.artifact import Artifact
from cocomix.plumbing.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class TextOrigin(NamedTuple):
    """Where the text is from."""

    source: str
    """`corpus.source` of params.yaml."""
    dataset: str | None = None
    """Dataset id on the hub, with its config and revision."""
    config: str | None = None
    revision: str | None = None


class Tokens:
    """The tokens artifact: documents end with EOS and are packed into windows of `context` tokens.

    Files: `<split>.npy`, unsigned integers [windows, context]; `<split>.documents.npy`, int64 [documents], where each
    document ends; `<split>.groups.parquet`, for the splits that models are measured on, the group of each document
    (`cocomix.corpus.store.Document`); `tokenizer/`, a Hugging Face folder.

    Document ends cannot be found from the ids: with some tokenizers, the EOS also occurs in text.
    """

    def __init__(self, path: Path = Path("artifacts/tokens")) -> None:
        self.artifact = Artifact(path)
        self.context: int = self.artifact.about["context"]
        self.vocab_size: int = self.artifact.about["vocab_size"]
        self.eos_id: int = self.artifact.about["eos_id"]
        self.origin = TextOrigin(**self.artifact.about["origin"])

    @cache  # noqa: B019  one reader lives as long as its process
    def windows(self, split: Split) -> NDArray[np.unsignedinteger]:
        """Token ids, memory-mapped: [windows, context]."""
        windows = np.load(self.artifact.file(name := f"{split}.npy"), mmap_mode="r")
        if windows.shape != (self.artifact.rows(name), self.context):
            raise UserError(
                f"{self.artifact.path / name}: not the windows that the manifest says; run "
                f"the stage {self.artifact.manifest.stage!r} again"
            )
        return windows

    @cache  # noqa: B019
    def ends(self, split: Split) -> NDArray[np.int64]:
        """End offset of each document, after its EOS, in the ids of the split: ascending, int64 [documents].

        The last documents may end after the last window.
        """
        return np.load(self.artifact.file(f"{split}.documents.npy"), mmap_mode="r")

    def documents(self, split: Split, rows: slice | NDArray[np.integer]) -> NDArray[np.uint32]:
        """The document number of every token of the windows `rows`: [rows, context]."""
        numbers = np.arange(*rows.indices(len(self.windows(split)))) if isinstance(rows, slice) else rows
        places = numbers[:, None] * self.context + np.arange(self.context)
        return np.searchsorted(self.ends(split), places, side="right").astype(np.uint32)

    def groups(self, split: Split) -> list[str]:
        """The group of each document of the validation or test split, by its number."""
        table = pq.read_table(self.artifact.file(f"{split}.groups.parquet"))
        groups: list[str] = table["group"].to_pylist()  # type: ignore[assignment]
        return groups

    def bytes_per_token(self, split: Split) -> float:
        """UTF-8 bytes per token of the split's text, to convert nats per token into bits per byte.

        The EOS of each document counts as a token of zero bytes. The few tokens after the last window are included.
        """
        return float(self.artifact.about["bytes_per_token"][split])

    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """The tokenizer that produced the windows; as there, `<|endoftext|>` in a text is plain text."""
        from transformers import AutoTokenizer  # takes seconds to import; not all readers need it

        for name in self.artifact.names("tokenizer/"):
            self.artifact.file(name)
        tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(self.artifact.path / "tokenizer")
        tokenizer.split_special_tokens = True  # not saved with it
        return tokenizer

    def texts(self) -> list[str]:
        """The text of each token alone, by id, including the space before a word."""
        tokenizer = self.tokenizer()
        is_word_piece = type(tokenizer.backend_tokenizer.decoder).__name__ == "WordPiece"
        special = {*tokenizer.all_special_ids}
        texts = []
        for token in range(self.vocab_size):
            text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
            if is_word_piece:  # it marks the tokens that continue a word
                begins = token not in special and not text.startswith("##")
                text = text.removeprefix("##")
            else:  # SentencePiece marks that space, and drops it when it decodes the start of a text
                begins = str(tokenizer.convert_ids_to_tokens(token)).startswith("\u2581")
            texts.append(f" {text}" if begins and not text.startswith(" ") else text)
        return texts
