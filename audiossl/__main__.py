"""`python -m audiossl` and `torchrun -m audiossl`: the same as the installed command."""

import importlib
import sys

if __name__ == "__main__":
    sys.exit(importlib.import_module("audiossl.commands.main").run())
