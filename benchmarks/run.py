"""All speed benchmarks in turn, and benchmarks/RESULTS.md of what they print: `make bench`.

python benchmarks/run.py [NAME ...]     # only these scripts; RESULTS.md is then left as it is
"""

from __future__ import annotations

import subprocess
import sys
from datetime import date
from pathlib import Path

SCRIPTS: dict[str, tuple[str, ...]] = {
    "startup": (),
    "frontend": (),
    "decode": (),
    "tagging": (),
    "throughput": (),
    "int8": (),
    "selective_scan": ("--plot", "PLOT"),
    "training": (),
}
PLOT = "tokens.png"


def main() -> int:
    here = Path(__file__).parent
    names = sys.argv[1:] or list(SCRIPTS)
    parts, failed = [], False
    for name in names:
        options = [str(here / PLOT) if option == "PLOT" else option for option in SCRIPTS[name]]
        title = f"\n## {name}\n\n"
        print(title, flush=True)
        code, text = run([sys.executable, str(here / f"{name}.py"), *options])
        parts.append(title + text)
        failed = failed or code != 0
    if not failed and names == list(SCRIPTS):
        head = f"# Speed\n\nWritten by `make bench` on {date.today()}: do not edit.\n"
        picture = f"\n![Time and memory over tokens]({PLOT})\n"
        (here / "RESULTS.md").write_text(head + "".join(parts) + picture, encoding="utf-8")
    return int(failed)


def run(command: list[str]) -> tuple[int, str]:
    """Exit code and stdout, which is shown while it comes."""
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return process.returncode, "".join(lines)


if __name__ == "__main__":
    sys.exit(main())
