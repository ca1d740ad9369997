"""Attribution: which concepts matter for the next token, as labels for every position."""
