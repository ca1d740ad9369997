"""Interfaces for people: concepts and continuations at a terminal and on a local page; the atlas as one HTML file."""
