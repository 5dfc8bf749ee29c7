"""All speed benchmarks in turn: `make bench`. Options go to the scripts that know them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPTS = ("startup", "frontend", "decode", "tagging")


def main() -> int:
    here = Path(__file__).parent
    codes = []
    for name in SCRIPTS:
        print(f"\n## {name}\n", flush=True)
        codes.append(subprocess.run([sys.executable, here / f"{name}.py"], check=False).returncode)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
