"""Dataset rows to batches, and to codes."""
