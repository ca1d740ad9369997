"""A page on this machine to read, look up and steer a model's concepts; the atlas as a page of its own."""
