"""The corpus: documents from the installed packages, from files or from the hub, cleaned, de-duplicated and split."""

from cocomix.corpus.build import Summary, build, fingerprint

__all__ = ["Summary", "build", "fingerprint"]
