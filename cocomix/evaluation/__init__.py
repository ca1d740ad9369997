"""Measuring finished models."""
