"""The comparison of the methods: figures for people, from the metrics that the other stages wrote."""
