"""Downloads on bad days: cut lines, wrong bits, busy Hubs, kills, full disks, closed folders."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hubclient import COMMAND, WEIGHTS, Client, Files, one_line
from hubserver import HubServer

pytest_plugins = ("hubclient",)

# Bad days


def test_a_line_that_is_cut_is_taken_up_again(client: Client, hub: HubServer, toy: Files) -> None:
    hub.publish("org/toy", toy)
    hub.faults.cut = {WEIGHTS: [300_000], "config.json": [10]}
    folder = client.pulled("hf:org/toy")
    assert (folder / WEIGHTS).read_bytes() == toy[WEIGHTS]
    assert len(hub.downloads()) == 2


def test_a_line_that_is_cut_where_no_part_can_be_asked_for(
    client: Client, hub: HubServer, toy: Files
) -> None:
    hub.publish("org/toy", toy)
    hub.faults.cut, hub.faults.ranges = {WEIGHTS: [300_000]}, False
    assert (client.pulled("hf:org/toy") / WEIGHTS).read_bytes() == toy[WEIGHTS]


def test_a_line_that_is_always_cut(client: Client, hub: HubServer, toy: Files) -> None:
    hub.publish("org/toy", toy)
    hub.faults.cut = {WEIGHTS: [0] * 20}
    assert "check the network" in one_line(client.pull("hf:org/toy"), 5)
    assert client.left == []


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_one_flipped_bit_on_the_way(client: Client, hub: HubServer, toy: Files, name: str) -> None:
    hub.publish("org/toy", toy)
    hub.faults.flip = {name: 1}
    folder = client.pulled("hf:org/toy")
    assert {name: (folder / name).read_bytes() for name in toy} == toy
    hub.faults.flip = {name: 99}
    assert client.run("models", "rm", "hf:org/toy").returncode == 0
    said = one_line(client.pull("hf:org/toy"), 5)
    assert f"{name} arrived damaged" in said
    assert client.left == ["audiossl/hub/org--toy/pins.json"]


def test_a_short_file(client: Client, hub: HubServer, toy: Files) -> None:
    hub.publish("org/toy", toy)
    hub.faults.short = {WEIGHTS}
    one_line(client.pull("hf:org/toy"), 5)
    assert client.left == []


def test_a_busy_hub_is_asked_again(client: Client, hub: HubServer, toy: Files) -> None:
    hub.publish("org/toy", toy)
    hub.faults.status = {
        "/api/models": [503, 429],
        f"resolve/{hub.branches['org/toy']['main']}/config.json": [503, 503],
        "/cdn/": [429],
    }
    client.pulled("hf:org/toy")
    assert not any(hub.faults.status.values())


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (500, "answers with an error (500)"),
        (429, "too many requests"),
        (403, "refuses access (403)"),
        (200, "is not the Hub's"),
    ],
)
def test_a_hub_that_stays_bad(
    client: Client, hub: HubServer, toy: Files, status: int, says: str
) -> None:
    hub.publish("org/toy", toy)
    hub.faults.status = {"/api/models": [status] * 9}
    assert says in one_line(client.pull("hf:org/toy"), 5)


# Many at once, and sudden ends


def test_eight_processes_make_one_download(client: Client, hub: HubServer, toy: Files) -> None:
    hub.publish("org/toy", toy)
    hub.faults.pause = 0.02
    code = "from audiossl.hub import find as hub; print(hub.resolve('hf:org/toy'))"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=client.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    said = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0] * 8, said
    (folder,) = {out for out, _err in said}
    assert (Path(folder.rstrip("\n")) / WEIGHTS).read_bytes() == toy[WEIGHTS]
    assert len(hub.downloads()) == 1
    assert len([request for request in hub.requests if "/api/models" in request.path]) == 1


def wait_for_download(hub: HubServer, client: Client) -> None:
    for _ in range(1200):
        if hub.downloads() and any("incomplete" in name for name in client.left):
            return
        time.sleep(0.05)
    pytest.fail(f"no download began: {client.left}")


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_download_leaves_no_model_and_the_next_one_cleans_up(
    client: Client, hub: HubServer, toy: Files, ending: signal.Signals
) -> None:
    commit = hub.publish("org/toy", toy)
    hub.faults.pause = 0.2
    process = client.start("models", "pull", "hf:org/toy")
    wait_for_download(hub, client)
    process.send_signal(ending)
    process.communicate(timeout=120)
    expected = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[ending]
    assert process.returncode == expected
    assert not (client.cache / "audiossl/hub/org--toy" / commit).exists()
    if ending != signal.SIGKILL:
        assert client.left == []
    hub.faults.pause = 0
    assert client.pulled("hf:org/toy").name == commit
    assert len(client.left) == 4  # config, weights, receipt, pins: nothing of the first try


# No room, no right to write


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))


def test_a_disk_that_fills_up_in_mid_download(client: Client, hub: HubServer, toy: Files) -> None:
    """As a limit on the size of files: the system's answer comes in the middle of a write."""
    hub.publish("org/toy", toy)
    said = one_line(client.pull("hf:org/toy", preexec_fn=limit_file_size), 6)
    assert "AUDIOSSL_CACHE" in said
    assert client.left == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no right to mount: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk(client: Client, hub: HubServer, toy: Files, small_disk: Path) -> None:
    commit = hub.publish("org/toy", toy)
    (small_disk / "filler").write_bytes(bytes(600_000))
    client.cache = small_disk
    said = one_line(client.pull("hf:org/toy"), 6)
    assert "MB free" in said
    assert "AUDIOSSL_CACHE" in said
    (small_disk / "filler").unlink()
    hub.faults.pause = 0.2
    process = client.start("models", "pull", "hf:org/toy")
    wait_for_download(hub, client)
    fill(small_disk / "filler")
    _out, err = process.communicate(timeout=120)
    assert process.returncode == 6, err
    assert err.splitlines()[-1].startswith("audiossl: error: hf:org/toy: no room in")
    assert not (small_disk / "audiossl/hub/org--toy" / commit).exists()
    assert client.left == ["filler"]


def fill(path: Path) -> None:
    """Write until the disk takes no more."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_cache_that_cannot_be_written_serves_what_it_has(
    client: Client, hub: HubServer, toy: Files, request: pytest.FixtureRequest
) -> None:
    hub.publish("org/toy", toy)
    hub.publish("org/more", toy)
    root = os.geteuid() == 0  # permissions do not bind root: a disk that is read-only does
    if root:
        client.cache = request.getfixturevalue("small_disk") / "cache"
    folder = client.pulled("hf:org/toy")
    with read_only(client.cache, root):
        path = client.run("models", "path", "hf:org/toy")
        assert path.stdout == f"{folder}\n", path.stderr
        assert client.run("models", "verify").returncode == 0
        for arguments in (("pull", "hf:org/more"), ("rm", "hf:org/toy")):
            said = one_line(client.run("models", *arguments), 6)
            assert "Read-only file system" in said or "Permission denied" in said
            assert "AUDIOSSL_CACHE" in said


@contextlib.contextmanager
def read_only(folder: Path, disk: bool) -> Iterator[None]:
    """`folder`, or with `disk` the file system it is in, cannot be written."""
    if disk:
        subprocess.run(["mount", "-o", "remount,ro", folder.parent], check=True)
        yield
        return
    places = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for place in places:
        place.chmod(0o555)
    yield
    for place in places:
        place.chmod(0o755)


def test_a_cache_in_a_place_that_cannot_be(
    client: Client, hub: HubServer, toy: Files, tmp_path: Path
) -> None:
    hub.publish("org/toy", toy)
    (tmp_path / "file").write_text("in the way")
    cache = {"AUDIOSSL_CACHE": str(tmp_path / "file" / "cache")}
    assert "AUDIOSSL_CACHE" in one_line(client.pull("hf:org/toy", env=cache), 6)
    assert client.run("models", "ls", env=cache).returncode == 0


def test_without_home(client: Client, hub: HubServer, toy: Files) -> None:
    """Neither HOME nor any other hint: the cache named by AUDIOSSL_CACHE is enough."""
    hub.publish("org/toy", toy)
    env = client.environment()
    for name in ("HOME", "HF_HOME", "XDG_CACHE_HOME", "USER", "LOGNAME"):
        env.pop(name, None)
    done = subprocess.run(
        [COMMAND, "models", "pull", "hf:org/toy"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
