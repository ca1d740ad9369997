"""Execution, storage and progress of work on a machine: imports no other package of ours and affects no result."""
