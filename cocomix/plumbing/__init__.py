"""How work is done, shown and kept on a machine: imports nothing else of ours, and decides no result."""
