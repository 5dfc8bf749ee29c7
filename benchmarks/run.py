"""The speed benchmarks in turn, and benchmarks/RESULTS.md of what they print: `make bench`.

python benchmarks/run.py [NAME ...]     # only these scripts; the other parts of RESULTS.md stay

Every part of RESULTS.md says when it was measured and on what. A part whose script fails stays.
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
HERE = Path(__file__).parent
PLOT, RESULTS = "tokens.png", HERE / "RESULTS.md"
HEAD = "# Speed\n\nWritten by `make bench`: do not edit.\n"
MARK = "\n## "  # begins a part
PICTURE = f"\n![Time and memory over tokens]({PLOT})\n"


def main() -> int:
    parts, failed = read(), False
    for name in sys.argv[1:] or list(SCRIPTS):
        options = [str(HERE / PLOT) if option == "PLOT" else option for option in SCRIPTS[name]]
        print(f"{MARK}{name}\n", flush=True)
        code, text = run([sys.executable, str(HERE / f"{name}.py"), *options])
        if code == 0:
            picture = PICTURE if "PLOT" in SCRIPTS[name] else ""
            parts[name] = f"Measured on {date.today()}. {text.strip()}\n{picture}"
            write(parts)
        failed = failed or code != 0
    return int(failed)


def read() -> dict[str, str]:
    """The parts there are, by name."""
    if not RESULTS.exists():
        return {}
    text = RESULTS.read_text(encoding="utf-8")
    parts = (part.partition("\n\n") for part in text.split(MARK)[1:])
    return {name: body for name, _, body in parts}


def write(parts: dict[str, str]) -> None:
    """RESULTS.md of the parts, in the order of SCRIPTS."""
    present = [f"{MARK}{name}\n\n{parts[name]}" for name in SCRIPTS if name in parts]
    RESULTS.write_text(HEAD + "".join(present), encoding="utf-8")


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
