"""The base model (teacher), any causal language model whose blocks form one list: its parts, requirements and cost."""
