"""CoCoMix: language model pretraining with continuous concepts (arXiv 2502.08524)."""
