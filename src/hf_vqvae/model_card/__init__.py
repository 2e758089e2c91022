"""A run's records to its model card."""
