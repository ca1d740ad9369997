"""Comparison of the methods: figures for people, from the metrics of the other stages."""
