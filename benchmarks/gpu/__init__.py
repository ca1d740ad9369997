"""All that a machine with a GPU can tell, in the time there is: `python -m benchmarks.gpu --minutes 8 --json`.

It needs the library's core packages alone, and no network. `parts.py` says how the time is shared and what is written.
"""
