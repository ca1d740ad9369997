"""Checks before any work: parameters against the files and packages of this machine."""
