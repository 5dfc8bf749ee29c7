"""Options that go together or do not: said before a model is loaded, exit code 2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from audiossl import device
from audiossl.audio.formats import SAMPLE_BYTES, RawFormat
from audiossl.commands.main import cli as command
from audiossl.errors import RecipeError, UsageError
from audiossl.recipe.loading import load


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--channels", "2"], "--channels describes raw input"),
        (["--encoding", "s8"], "--encoding describes raw input"),
        (["--rate", "8000"], "--rate describes raw input"),
        (["--input-format", "raw"], "needs --rate"),
        (["--input-format", "raw", "--rate", "8000", "--encoding", "S24_LE"], "one of u8"),
        (["-0"], "--files-from"),
        (["--name", "x"], "give - as an input"),
        (["--max-duration", "nan"], "not a finite number"),
        (["--max-duration", "0"], "x>0"),
        (["--max-rate", "0"], "x>=1"),
        (["--min-rate", "0"], "x>=1"),
        (["--plot", "x.png", "--resume", "--out", "x.jsonl"], "does not go with --resume"),
        (
            ["--plot", "x.png", "--on-exists", "skip"],
            "does not go with --resume or --on-exists skip",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_has_no_meaning_is_refused(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(command, ["tag", "no.wav", *words])
    shown = done.output + str(done.exception)
    assert says in shown
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("alsa", "ours"),
    [("S16_LE", "s16le"), ("s16_be", "s16be"), ("S24_3LE", "s24le"), ("FLOAT_LE", "f32le"),
     ("MU_LAW", "mulaw"), ("U8", "u8"), *((name, name) for name in SAMPLE_BYTES)],
)  # fmt: skip
def test_encodings_by_the_names_of_arecord(alsa: str, ours: str) -> None:
    assert RawFormat(8000, encoding=alsa).encoding == ours


def test_four_bytes_of_24_bits_are_not_taken_for_three() -> None:
    with pytest.raises(UsageError, match="unknown encoding 's24_le'"):
        RawFormat(8000, encoding="s24_le")


def test_the_lowest_rate_can_be_lowered(cli: Callable, tmp_path: Path) -> None:
    import numpy as np
    import soundfile

    soundfile.write(tmp_path / "slow.wav", np.zeros(100), 50)
    done = cli("tag", tmp_path / "slow.wav")
    assert done.returncode == 4
    assert b"below 100 Hz needs --min-rate" in done.stderr
    assert cli("tag", tmp_path / "slow.wav", "--min-rate", "50").returncode == 0


def test_a_picture_is_not_written_over(cli: Callable, clips: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture, sound = tmp_path / "x.png", clips / "crow.wav"
    picture.write_bytes(b"mine")
    done = cli("tag", sound, "--plot", picture)
    assert (done.returncode, done.stdout) == (6, b"")
    assert picture.read_bytes() == b"mine"
    assert cli("tag", sound, "--plot", picture, "--on-exists", "overwrite").returncode == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    done = cli("tag", sound, "--plot", tmp_path / "no" / "x.png")
    assert (done.returncode, done.stdout) == (6, b"")


def test_devices_that_are_not_here_are_named_in_one_line() -> None:
    for name in ("foo", "mps:7", "cuda:99"):
        with pytest.raises(UsageError, match=rf"--device {name}: not here: there is cpu") as raised:
            device.pick_device(name)
        assert len(str(raised.value)) < 100


def test_recipes_that_are_not_there() -> None:
    with pytest.raises(RecipeError, match=r"no recipe 'no/my\.yaml': no such file"):
        load("no/my.yaml")
    with pytest.raises(RecipeError, match=r"no recipe 'xyzxyz' \(`audiossl recipes ls`"):
        load("xyzxyz")
    with pytest.raises(RecipeError, match="did you mean 'tagger_distill'"):
        load("tagger_distil")
