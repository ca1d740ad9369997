"""Attribution: which concepts matter for the next token, as labels of every position."""
