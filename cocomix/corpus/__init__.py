"""The corpus: documents from the installed packages, from files or from the hub, cleaned, de-duplicated and split."""
