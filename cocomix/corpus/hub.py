"""Documents from a dataset of the Hugging Face hub, streamed instead of downloaded first."""

from collections.abc import Iterator

from cocomix.corpus.fields import field_of, names_of, unknown
from cocomix.corpus.store import Document
from cocomix.params import HubParams
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.progress import progress


def read_hub(params: HubParams, skip: int = 0) -> Iterator[Document]:
    """Yield the first `limit` documents of the dataset, or all, without the first `skip`.

    Raises:
        UserError: when the dataset cannot be reached or has no such configuration, split or text field.
    """
    import datasets  # takes seconds to import, and is an optional dependency

    name = f"{params.dataset}@{params.revision}"
    with progress("corpus", params.limit, "documents", done=skip) as bar:
        try:
            rows = datasets.load_dataset(
                params.dataset, params.config, split=params.split, revision=params.revision, streaming=True
            )
            rows = rows if params.limit is None else rows.take(params.limit)
            for number, row in enumerate(rows.skip(skip) if skip else rows, skip):
                try:
                    text = field_of(row, params.text_field)
                except KeyError:
                    known = f"(corpus.hub.text_field); {unknown(params.text_field, names_of(row))}"
                    raise UserError(f"{name}: no field {params.text_field!r} {known}") from None
                if not isinstance(text, str | None):
                    kind = type(text).__name__
                    raise UserError(f"{name} row {number}: {params.text_field!r} holds {kind}, not text")
                place = f"{name}:{params.split}:{number}"
                yield Document(place, place, text or "")
                bar.advance(1)
        except (UserError, MemoryError):
            raise
        except Exception as error:  # of several libraries: for network errors, unknown names and splits, damaged data
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{name}: cannot be read: {reason}; corpus.source may also be files") from None
