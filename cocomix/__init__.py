"""CoCoMix: language model pretraining with continuous concepts (arXiv 2502.08524).

`import cocomix` imports nothing heavy. `import cocomix.modeling` registers the model with transformers'
`AutoModelForCausalLM`.
"""
