"""Concepts and continuations for people: at a terminal, on a page of this machine; the atlas as a page of its own."""
