"""Train the two stages under Accelerate, resumable."""
