"""`python -m tests.cluster code|nodes|elastic FOLDER [MODE]`: one of them in a namespace; prints what came of it.

The folder's path must be short, as Ray's sockets lie below it.
"""

import importlib
import json
import sys
from pathlib import Path

from tests.chaos import namespace

if __name__ == "__main__":
    name, folder, *mode = sys.argv[1:]
    try:
        print(json.dumps(importlib.import_module(f"tests.cluster.{name}").main(Path(folder), *mode)), flush=True)
    finally:
        namespace.end_all()
