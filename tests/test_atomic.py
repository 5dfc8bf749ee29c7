"""atomic.py: whole files or none; full disks in all their words."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiossl.atomic import atomic_write, special
from audiossl.audio import writing
from audiossl.errors import InputError, OutputError

MEBIBYTE = 1 << 20


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    with atomic_write(target) as file:
        file.write(b"a,b\n")
        file.flush()
        assert not target.exists()
    assert target.read_bytes() == b"a,b\n"
    assert names(tmp_path) == ["out.csv"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, InputError])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "out.csv"
    target.write_bytes(b"before")

    def write() -> None:
        with atomic_write(target) as file:
            file.write(b"half of ")
            raise error("stop")

    with pytest.raises(error, match="stop"):
        write()
    assert target.read_bytes() == b"before"
    assert names(tmp_path) == ["out.csv"]


def test_killed_in_the_middle(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"before")
    code = (
        "import os, signal, sys; from audiossl.atomic import atomic_write\n"
        "with atomic_write(sys.argv[1]) as file:\n"
        "    file.write(bytes(10**6)); file.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    result = subprocess.run([sys.executable, "-c", code, tmp_path / "out"], check=False)
    assert result.returncode == -9
    assert (tmp_path / "out").read_bytes() == b"before"


def test_permissions(tmp_path: Path) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    old.touch(0o640)
    before = os.umask(0o027)
    try:
        for path in (new, old):
            with atomic_write(path):
                pass
    finally:
        os.umask(before)
    assert stat.S_IMODE(new.stat().st_mode) == 0o640
    assert stat.S_IMODE(old.stat().st_mode) == 0o640


def test_links_are_followed_and_devices_written_to(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    with atomic_write(tmp_path / "link") as file:
        file.write(b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"x"
    with atomic_write(os.devnull) as file:
        file.write(b"x")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_a_pipe_without_a_name_is_written_to() -> None:
    read, write = os.pipe()
    with open(read, "rb") as reader, open(write, "wb"):
        with atomic_write(f"/dev/fd/{write}") as file:
            file.write(b"x")
        assert reader.read(1) == b"x"


def test_what_is_no_regular_file_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("pipe")
    found = {name: special(tmp_path / name) for name in ("pipe", "link", "file", ".", "none")}
    assert found == {"pipe": True, "link": True, "file": False, ".": False, "none": False}
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    reasons = {
        tmp_path / "folder": "it is a folder",
        tmp_path / "missing" / "x": "No such file or directory",
        tmp_path / "file" / "x": "Not a directory",
        tmp_path / ("n" * 300): "File name too long",
        Path("/proc/x"): "No such file or directory",
    }
    for path, reason in reasons.items():
        with pytest.raises(OutputError, match=reason) as caught, atomic_write(path):
            pass
        assert f"cannot write {path}: " in str(caught.value)
        assert caught.value.exit_code == 6


def test_a_name_as_long_as_names_can_be(tmp_path: Path) -> None:
    with atomic_write(tmp_path / ("n" * 251 + ".csv")) as file:
        file.write(b"x")


def test_an_error_about_another_file_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "x"):
        open(tmp_path / "nothing")  # noqa: SIM115
    with pytest.raises(BrokenPipeError), atomic_write(tmp_path / "x"):
        raise BrokenPipeError(32, "Broken pipe")
    assert names(tmp_path) == []


# --- full disks: five libraries, five ways to say it

BIG = np.zeros(2 * MEBIBYTE, np.float32)  # 8 MiB


def by_write(path: Path) -> None:
    with atomic_write(path) as file:
        file.write(BIG.tobytes())


def by_numpy(path: Path) -> None:
    with atomic_write(path) as file:
        np.save(file, BIG)


def by_soundfile(path: Path) -> None:
    with atomic_write(path) as file:
        soundfile.write(file.name, BIG, 16000, format="WAV", subtype="FLOAT")


def by_safetensors(path: Path) -> None:
    from safetensors.numpy import save_file

    with atomic_write(path) as file:
        save_file({"x": BIG}, file.name)


def by_torch(path: Path) -> None:
    import torch

    with atomic_write(path) as file:
        torch.save(torch.zeros(2 * MEBIBYTE), file)


def by_audio(path: Path) -> None:

    writing.write(path.with_suffix(".wav"), BIG, 16000)


WRITERS = [by_write, by_numpy, by_soundfile, by_safetensors, by_torch, by_audio]
Writer = Callable[[Path], None]


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("disk")
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small disk needs root and `mount`")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("write", WRITERS)
def test_full_disk(small_disk: Path, write: Writer) -> None:
    keep = small_disk / "x"
    for path in (keep, keep.with_suffix(".wav")):
        path.write_bytes(b"before")
    with pytest.raises(OutputError) as caught:
        write(keep)
    message = str(caught.value)
    assert message.startswith(f"cannot write {keep}")
    assert "the disk is full: more than " in message
    assert MEBIBYTE < int(message.split()[-2]) <= 2 * MEBIBYTE  # "... 2093056 free"
    assert names(small_disk) == ["x", "x.wav"]
    assert keep.read_bytes() == b"before"


def test_full_disk_with_a_known_need(small_disk: Path) -> None:
    with (
        pytest.raises(OutputError, match="disk is full: 8388608 bytes needed"),
        atomic_write(small_disk / "y", needed=BIG.nbytes) as file,
    ):
        file.write(BIG.tobytes())


def test_a_bug_on_a_disk_with_room_stays_a_bug(small_disk: Path) -> None:
    with pytest.raises(RuntimeError, match="bug"), atomic_write(small_disk / "z"):
        raise RuntimeError("bug")


@pytest.mark.parametrize("write", WRITERS)
def test_limit_on_the_size_of_a_file(tmp_path: Path, write: Writer) -> None:
    """Where no disk can be mounted, RLIMIT_FSIZE stands for a full one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MEBIBYTE, before[1]))
    try:
        with pytest.raises(OutputError, match=r"beyond the limit on a file's size \(ulimit -f\)"):
            write(tmp_path / "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_device_that_is_full() -> None:
    with pytest.raises(OutputError, match="cannot write /dev/full: the disk is full"):
        by_write(Path("/dev/full"))
