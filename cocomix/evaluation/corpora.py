"""Additional evaluation corpora: text files, packed into windows like the training corpus."""

import hashlib
import json

import numpy as np
from numpy.typing import NDArray

from cocomix.evaluation.corpus_files import digest_of_corpus_files, read_batches
from cocomix.evaluation.text import EvaluationText, token_bytes
from cocomix.params import EvaluationCorpusParams
from cocomix.plumbing.errors import UserError
from cocomix.tokens.encoding import ids_of, plain
from cocomix.tokens.windows import Tokens


def corpus_digest(name: str, params: EvaluationCorpusParams, tokens: Tokens) -> str:
    """Digest of all that `read_corpus` depends on besides its code: the files, the parameters and the tokenizer.

    Raises:
        UserError: when a path matches no file, or a file of an unsupported kind.
    """
    files = digest_of_corpus_files(name, params)
    tokenizer = [tokens.artifact.manifest.files[each].sha256 for each in tokens.artifact.names("tokenizer/")]
    state = [files, params.model_dump(), tokenizer, tokens.context]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def read_corpus(name: str, params: EvaluationCorpusParams, tokens: Tokens) -> EvaluationText:
    """Read the corpus `name` into memory.

    Raises:
        UserError: when a file cannot be read, or the text fills no window.
    """
    tokenizer = tokens.tokenizer()
    encoder, dtype = plain(tokenizer.backend_tokenizer), tokens.windows("validation").dtype
    parts, groups, size = list[NDArray[np.unsignedinteger]](), list[str](), 0
    for batch in read_batches(name, params):
        texts = [document.text for document in batch]
        for found in ids_of(encoder, texts, f"a document of evaluate.corpora.{name}"):
            parts.append(np.array([*found, tokens.eos_id], dtype))
        groups += [document.group for document in batch]
        size += sum(len(text.encode()) for text in texts)
    ids = np.concatenate([np.empty(0, dtype), *parts])
    windows = len(ids) // tokens.context
    if not windows:
        within = f" in whole documents up to megabytes ({params.megabytes})" if params.megabytes else ""
        raise UserError(
            f"evaluate.corpora.{name}: has {len(ids)} tokens{within}, too few for one window of "
            f"tokenize.context ({tokens.context})"
        )
    windowed = ids[: windows * tokens.context].reshape(windows, tokens.context)
    ends = np.cumsum([part.size for part in parts])
    return EvaluationText(windowed, ends, *token_bytes(tokenizer, size / len(ids)), groups)
