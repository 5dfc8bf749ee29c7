"""Speech Commands: one-second recordings of single words (Warden, arXiv 1804.03209).

    speech_commands_v0.02/yes/0a7c2a8d_nohash_0.wav    word, speaker, recording
    speech_commands_v0.02/validation_list.txt, testing_list.txt    yes/0a7c2a8d_nohash_0.wav
    speech_commands_v0.02/_background_noise_/running_tap.wav ...

Version 1 has 30 words, version 2 has 35. Without the two lists the split comes from the hash that
made them (`which_set` in the set's README): all recordings of a speaker are on one side. A copy may
also be speech_commands.csv (filename,category,speaker) and audio/.

The form with 12 classes, `..._12`: ten commands, all other words as `_unknown_`, and `_silence_`:
the noise in windows of 1 s, half overlapping, of running_tap.wav for validation and of the others
for training, as TensorFlow Datasets has it. Its test set is the archive of its own that the authors
give (speech_commands_test_set_v0.02/ beside or in the folder); where that is not there, the words
of testing_list.txt, then without silence.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from audiossl.data.datasets.dataset import Dataset, table
from audiossl.data.rows import Row, inside
from audiossl.errors import InputError, UsageError

COMMANDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
OTHERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
    "bed", "bird", "cat", "dog", "happy", "house", "marvin", "sheila", "tree", "wow",
)  # fmt: skip
ADDED = ("backward", "follow", "forward", "learn", "visual")  # by version 2
WORDS = {1: (*COMMANDS, *OTHERS), 2: (*COMMANDS, *OTHERS, *ADDED)}

NOISE, SILENCE, UNKNOWN = "_background_noise_", "_silence_", "_unknown_"
VALID_NOISE = "running_tap.wav"
WINDOW, HOP = 1.0, 0.5  # seconds, of the noise
LISTS = {"valid": "validation_list.txt", "test": "testing_list.txt"}
COPY = "speech_commands.csv"

MAX_WAVS = 2**27 - 1  # the constants of which_set
VALID_PERCENT, TEST_PERCENT = 10.0, 10.0

_SPEAKER = re.compile(r"(?P<speaker>[^_/]+)_nohash_\d+(\.wav)+")


def read(folder: Path, version: int, twelve: bool) -> Iterator[Row]:
    """Rows of words, or of the 12 classes."""
    words = _copied(folder) if (folder / COPY).is_file() else _recorded(folder, version)
    if not twelve:
        yield from words
        return
    tests = _test_set(folder, version)
    for row in words:
        if row.split != "test" or tests is None:
            yield _of_twelve(row)
    if (folder / NOISE).is_dir():
        yield from _noise(folder / NOISE)
    if tests is not None:
        yield from _tests(tests)


def which_set(name: str) -> str:
    """The split of a recording, from its speaker alone (the set's README, `which_set`)."""
    speaker = re.sub(r"_nohash_.*$", "", Path(name).name)
    number = int(hashlib.sha1(speaker.encode("utf-8", "surrogateescape")).hexdigest(), 16)
    percentage = (number % (MAX_WAVS + 1)) * (100.0 / MAX_WAVS)
    if percentage < VALID_PERCENT:
        return "valid"
    return "test" if percentage < VALID_PERCENT + TEST_PERCENT else "train"


def _recorded(folder: Path, version: int) -> Iterator[Row]:
    words = sorted(place.name for place in folder.iterdir() if _is_word(place))
    if other := sorted(set(words) - set(WORDS[version])):
        raise UsageError(f"{folder}: {other[0]!r} is no word of version {version}")
    if lacking := sorted(set(WORDS[version]) - set(words)):
        message = f"{folder}: no folder {lacking[0]!r}: not version {version}, or not all of it"
        raise UsageError(message)
    listed = _listed(folder)
    has_lists = bool(listed)
    for word in words:
        for path in sorted((folder / word).glob("*.wav")):
            name = f"{word}/{path.name}"
            split = listed.pop(name, "train") if has_lists else which_set(name)
            yield Row(path, labels=(word,), group=_speaker(path), split=split)
    for name, split in listed.items():  # files that are not there: whoever called says so
        path = inside(name, folder, f"{folder}: its lists")
        yield Row(path, labels=(path.parent.name,), group=_speaker(path), split=split)


def _is_word(place: Path) -> bool:
    return place.is_dir() and not place.name.startswith(("_", ".", "speech_commands_test_set"))


def _listed(folder: Path) -> dict[str, str]:
    """The split of each recording that the two lists name; empty without the lists."""
    paths = {split: folder / name for split, name in LISTS.items()}
    there = [path for path in paths.values() if path.is_file()]
    if not there:
        return {}
    if len(there) == 1:
        lacking = next(path for path in paths.values() if path not in there)
        raise UsageError(f"{lacking}: missing, but {there[0].name} is there")
    found: dict[str, str] = {}
    for split, path in paths.items():
        for line in path.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            if line.strip():
                found[line.strip()] = split
    return found


def _copied(folder: Path) -> Iterator[Row]:
    path, audio = folder / COPY, folder / "audio"
    for record in table(path, ("filename", "category", "speaker")):
        name = record["filename"]
        yield Row(
            inside(name, audio, str(path)),
            labels=(record["category"],),
            group=record["speaker"],
            split=which_set(name),
        )


def _speaker(path: Path) -> str:
    found = _SPEAKER.fullmatch(path.name)
    if found is None:
        raise UsageError(f"{path}: expected a name such as 0a7c2a8d_nohash_0.wav")
    return found["speaker"]


def _of_twelve(row: Row) -> Row:
    word = row.labels[0]
    label = word if word in COMMANDS else UNKNOWN
    return replace(row, labels=(label,), extra={"word": word})


def _noise(folder: Path) -> Iterator[Row]:
    from audiossl.audio import reading as audio

    for path in sorted(folder.glob("*.wav")):
        try:
            seconds = audio.info(path).seconds or 0.0
        except InputError as error:
            raise UsageError(f"{path}: {error.message}") from error
        split = "valid" if path.name == VALID_NOISE else "train"
        start = 0.0
        while start + WINDOW < seconds:
            yield Row(path, start, start + WINDOW, (SILENCE,), group=path.stem, split=split)
            start += HOP


def _test_set(folder: Path, version: int) -> Path | None:
    name = f"speech_commands_test_set_v0.0{version}"
    places = (folder / name, folder.parent / name)
    return next((place for place in places if place.is_dir()), None)


def _tests(folder: Path) -> Iterator[Row]:
    """The archive of its own; its `_silence_` and `_unknown_` are folders like the words."""
    for label in (*COMMANDS, SILENCE, UNKNOWN):
        for path in sorted((folder / label).glob("*.wav")):
            speaker = _SPEAKER.fullmatch(path.name)
            group = speaker["speaker"] if speaker else ""
            yield Row(path, labels=(label,), group=group, split="test")


def _dataset(version: int, twelve: bool) -> Dataset:
    counts = {
        1: {"train": 51_088, "valid": 6_798, "test": 6_835},
        2: {"train": 84_843, "valid": 9_981, "test": 11_005},
    }
    # As torchaudio and TensorFlow Datasets record them.
    checksums = {
        1: {
            "speech_commands_v0.01.tar.gz": (
                "sha256:743935421bb51cccdb6bdd152e04c5c70274e935c82119ad7faeec31780d811d"
            ),
        },
        2: {
            "speech_commands_v0.02.tar.gz": (
                "sha256:af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58"
            ),
            "speech_commands_test_set_v0.02.tar.gz": (
                "sha256:cc2a00c1147c2254e9be3fa0f779d8c17421dc349b86366567a8edfa9acd51df"
            ),
        },
    }
    release = f"speech_commands_v0.0{version}"
    return Dataset(
        name=f"speech_commands_v{version}{'_12' if twelve else ''}",
        title=f"Speech Commands v0.0{version}{', 12 classes' if twelve else ''}",
        licence="CC BY 4.0",
        citation=(
            "P. Warden: Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition. 2018,"
            " https://arxiv.org/abs/1804.03209"
        ),
        page="https://arxiv.org/abs/1804.03209",
        folders=(release, f"SpeechCommands/{release}", "speech_commands"),
        signs=(COPY, "yes") if version == 1 else (ADDED[0],),
        expected=f"a folder a word, validation_list.txt, testing_list.txt, {NOISE}",
        read=partial(read, version=version, twelve=twelve),
        counts={} if twelve else counts[version],
        checksums=checksums[version],
    )


DATASETS = tuple(_dataset(version, twelve) for version in (1, 2) for twelve in (False, True))
