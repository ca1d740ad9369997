"""CoCoMix: language model pretraining with continuous concepts (arXiv 2502.08524).

`import cocomix` is light. `import cocomix.modeling` makes transformers' `AutoModelForCausalLM` know the model.
"""
