"""ESC-50 and ESC-10: environmental sounds of 5 s, in 5 folds (Piczak, ACM Multimedia 2015).

    ESC-50-master/meta/esc50.csv    filename,fold,target,category,esc10,src_file,take
    ESC-50-master/audio/1-100032-A-0.wav

ESC-10 is those rows of ESC-50 whose `esc10` is True; or a folder of its own with esc10.csv (the
same columns without `esc10`) and audio/; or its first release, one folder a class:

    ESC-10-master/001 - Dog bark/1-30226-A.ogg
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from audiossl.data.datasets.dataset import Dataset, table
from audiossl.data.rows import Row, inside

PAGE = "https://github.com/karolpiczak/ESC-50"
CITATION = (
    "K. J. Piczak: ESC: Dataset for Environmental Sound Classification. ACM Multimedia 2015,"
    " https://doi.org/10.1145/2733373.2806390"
)
COLUMNS = ("filename", "fold", "category", "src_file")

_CLASS = re.compile(r"\d{3} - (?P<name>.+)")
_CLIP = re.compile(r"(?P<fold>[1-5])-(?P<source>\d+)-(?P<take>[A-Z])\.ogg")


def read(folder: Path, ten: bool) -> Iterator[Row]:
    """Rows of ESC-50, or of its subset ESC-10."""
    tables = [folder / "meta" / "esc50.csv", folder / "esc50.csv"]
    if ten:
        tables.insert(0, folder / "esc10.csv")
    for path in tables:
        if path.is_file():
            yield from _listed(path, folder / "audio", ten and path.name == "esc50.csv")
            return
    yield from _by_class(folder)


def _listed(path: Path, audio: Path, ten: bool) -> Iterator[Row]:
    for record in table(path, (*COLUMNS, "esc10") if ten else COLUMNS):
        if ten and record["esc10"] != "True":
            continue
        yield Row(
            inside(record["filename"], audio, str(path)),
            labels=(record["category"],),
            fold=record["fold"],
            group=record["src_file"],
            extra={"take": record.get("take", "")},
        )


def _by_class(folder: Path) -> Iterator[Row]:
    for path in sorted(folder.glob("*/*.ogg")):
        kind, clip = _CLASS.fullmatch(path.parent.name), _CLIP.fullmatch(path.name)
        if kind and clip:
            label = kind["name"].lower().replace(" ", "_")
            extra = {"take": clip["take"]}
            yield Row(path, labels=(label,), fold=clip["fold"], group=clip["source"], extra=extra)


DATASETS = (
    Dataset(
        name="esc50",
        title="ESC-50",
        licence="CC BY-NC 3.0",
        citation=CITATION,
        page=PAGE,
        folders=("ESC-50-master", "ESC-50", "esc50"),
        signs=("meta/esc50.csv", "esc50.csv"),
        expected="meta/esc50.csv and audio/*.wav",
        read=partial(read, ten=False),
        counts={str(fold): 400 for fold in range(1, 6)},
        # The md5 of each file as soundata 0.1.3 lists them.
        checksums={
            "meta/esc50.csv": "md5:54a0d0055a10bb7df84ad340a148722e",
            "audio/": "sha256:6a96522abaf1cd3fc0cbbf1791b59d7214cb2895c0195cacb642663458e1d22b",
        },
        note="4 sources are in two folds: 131943 and 134049 (2, 3), 209698 and 234879 (4, 5)",
    ),
    Dataset(
        name="esc10",
        title="ESC-10",
        licence="CC BY 3.0",
        citation=CITATION,
        page=PAGE,
        folders=("ESC-10-master", "ESC-10", "esc10", "ESC-50-master", "ESC-50", "esc50"),
        signs=("esc10.csv", "meta/esc50.csv", "esc50.csv", "001 - Dog bark"),
        expected="meta/esc50.csv (or esc10.csv) and audio/, or folders as `001 - Dog bark/`",
        read=partial(read, ten=True),
        counts={str(fold): 80 for fold in range(1, 6)},
        checksums={"meta/esc50.csv": "md5:54a0d0055a10bb7df84ad340a148722e"},
    ),
)
