"""Push a finished run or a model to the Hub."""
