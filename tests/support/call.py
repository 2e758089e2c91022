"""Call a function of a test file: `python call.py FILE FUNCTION ARGUMENT...`, with arguments as strings."""

import importlib
import sys
from pathlib import Path

if __name__ == "__main__":
    file, name, *arguments = sys.argv[1:]
    sys.path[:0] = [str(Path(file).parent), str(Path(__file__).parents[1])]
    getattr(importlib.import_module(Path(file).stem), name)(*arguments)
