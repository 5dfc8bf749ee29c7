"""Models from the Hub, against a loopback Hub: good days, bad days, hands that reach too far."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import evil
import numpy as np
import pytest
import soundfile
import torch
from hubserver import HubServer
from safetensors.torch import load_file, save_file

from audiossl.model import Model, save_model
from audiossl.model_config import ModelConfig

COMMAND = Path(sys.executable).parent / "audiossl"
WEIGHTS = "model.safetensors"
CONFIG: dict[str, Any] = {
    "name": "toy",
    "task": "tag",
    "architecture": {"name": "dscnn", "widths": [8, 8], "strides": [1, 2], "stem": 8, "dim": 4096},
    "frontend": {"name": "logmel", "rate": 16000, "mels": 16, "n_fft": 512, "hop": 160},
    "head": {"name": "linear", "labels": [f"class {i}" for i in range(40)]},
    "licence": "MIT",
}
Files = dict[str, bytes]


@pytest.fixture(scope="session")
def server() -> Iterator[HubServer]:
    with HubServer() as running:
        yield running


@pytest.fixture
def hub(server: HubServer) -> HubServer:
    server.reset()
    return server


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A model in this program's own layout; its weights take 0.8 MB."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("toy")
    save_model(Model(ModelConfig(**CONFIG)), folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Client:
    """Child processes that know one Hub and one cache."""

    def __init__(self, hub: HubServer, cache: Path) -> None:
        self.hub, self.cache = hub, cache

    def environment(self, **env: str) -> dict[str, str]:
        agents = ("CLAUDE", "AGENT", "CODEX", "CURSOR")  # the client asks who runs it
        kept = {k: v for k, v in os.environ.items() if not any(word in k for word in agents)}
        return {**kept, **self.hub.environment(self.cache, **env)}

    def run(
        self, *args: str | Path, env: dict[str, str] | None = None, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, *args],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=self.environment(**env or {}),
            **more,
        )

    def start(self, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [COMMAND, *args],
            env=self.environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def pull(self, name: str, **more: Any) -> subprocess.CompletedProcess[str]:
        return self.run("models", "pull", name, **more)

    def pulled(self, name: str, **more: Any) -> Path:
        """The folder of a pull that must go well."""
        done = self.pull(name, **more)
        assert done.returncode == 0, done.stderr
        return Path(done.stdout.rstrip("\n"))

    def attempts(self, names: list[str]) -> dict[str, list[Any]]:
        """Exit code and message of getting each, in one process."""
        code = (
            "import json, sys\n"
            "from audiossl import hub\n"
            "from audiossl.errors import AudiosslError\n"
            "found = {}\n"
            "for name in sys.argv[1:]:\n"
            "    try: found[name] = [0, str(hub.resolve(name))]\n"
            "    except AudiosslError as error: found[name] = [error.exit_code, str(error)]\n"
            "print(json.dumps(found))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *names],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=self.environment(),
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @property
    def left(self) -> list[str]:
        """Every file in the cache, but for the locks."""
        files = (path for path in self.cache.rglob("*") if path.is_file())
        names = (str(path.relative_to(self.cache)) for path in files)
        return sorted(name for name in names if ".locks" not in name and not name.startswith("hf/"))


@pytest.fixture
def client(hub: HubServer, tmp_path: Path) -> Client:
    return Client(hub, tmp_path / "cache")


def one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The message of a run that failed as it should."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("audiossl: error: "), done.stderr
    assert all("downloading commit" in line for line in lines[:-1]), done.stderr
    return lines[-1]


# Good days


def test_pull_puts_a_checked_folder_in_the_cache(
    client: Client, hub: HubServer, toy: Files
) -> None:
    commit = hub.publish("org/toy", {**toy, "notes.txt": b"hello"}, licence="mit")
    done = client.pull("hf:org/toy")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(commit) == 2  # before the download, and in the closing line
    folder = Path(done.stdout.rstrip("\n"))
    assert folder == client.cache / "audiossl" / "hub" / "org--toy" / commit
    assert {name: (folder / name).read_bytes() for name in toy} == toy
    assert client.left == [
        f"audiossl/hub/org--toy/{commit}/{name}"
        for name in ("config.json", WEIGHTS, "notes.txt", "receipt.json")
    ] + ["audiossl/hub/org--toy/pins.json"]
    receipt = json.loads((folder / "receipt.json").read_text())
    assert receipt["commit"] == commit
    assert receipt["layout"] == "audiossl"
    assert set(receipt["files"]) == {"config.json", WEIGHTS, "notes.txt"}
    assert "sha256" in receipt["downloaded"][WEIGHTS]
    assert "sha1" in receipt["downloaded"]["config.json"]


def test_a_model_of_the_hub_tags_and_then_needs_no_hub(
    client: Client, hub: HubServer, toy: Files, tmp_path: Path
) -> None:
    commit = hub.publish("org/toy", toy)
    soundfile.write(tmp_path / "x.wav", np.zeros(16000), 16000)
    arguments = ("tag", tmp_path / "x.wav", "--model", "hf:org/toy", "--threshold", "0")
    first = client.run(*arguments)
    assert first.returncode == 0, first.stderr
    assert commit in first.stderr
    asked = len(hub.requests)
    again = client.run(*arguments)
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert len(hub.requests) == asked


def test_a_branch_stays_with_its_commit_until_the_next_pull(
    client: Client, hub: HubServer, toy: Files
) -> None:
    first = hub.publish("org/toy", toy)
    assert client.pulled("hf:org/toy").name == first
    second = hub.publish("org/toy", {**toy, "notes.txt": b"new"})
    path = client.run("models", "path", "hf:org/toy")
    assert path.stdout.rstrip("\n").endswith(first)
    assert client.pulled("hf:org/toy").name == second
    found = client.attempts(["hf:org/toy", "hf:org/toy@main", f"hf:org/toy@{first[:10]}"])
    assert [Path(text).name for _code, text in found.values()] == [second, second, first]


def test_tags_branches_and_commits(client: Client, hub: HubServer, toy: Files) -> None:
    tagged = hub.publish("org/toy", {**toy, "v.txt": b"1"}, branch="v1.0")
    odd = hub.publish("org/toy", {**toy, "v.txt": b"2"}, branch="refs%2Fpr%2F1")
    main = hub.publish("org/toy", toy)
    names = ["hf:org/toy@v1.0", "hf:org/toy", f"hf:org/toy@{odd}"]
    found = client.attempts(names)
    assert [Path(text).name for _code, text in found.values()] == [tagged, main, odd]
    hub.requests.clear()
    assert client.attempts([*names, f"hf:org/toy@{main}"])
    assert hub.requests == []


def test_only_safetensors_json_and_text_are_asked_for(
    client: Client, hub: HubServer, toy: Files
) -> None:
    others = {
        "pytorch_model.bin": b"x",
        "training_args.bin": b"x",
        "model.py": b"import os",
        "other.safetensors": b"x" * 1000,
        "sub/config.json": b"{}",
        ".hidden.json": b"{}",
        "../../../up.json": b"{}",
        "/etc/up.json": b"{}",
        "README.md": b"# toy",
    }
    hub.publish("org/toy", {**toy, **others})
    folder = client.pulled("hf:org/toy")
    assert sorted(path.name for path in folder.iterdir()) == [*sorted(toy), "receipt.json"]
    asked = {request.path.split("/")[-1] for request in hub.requests if "/api/" not in request.path}
    assert asked == set(toy)
    assert not list(client.cache.parent.rglob("up.json"))


def test_quiet_pull_says_nothing(client: Client, hub: HubServer, toy: Files) -> None:
    hub.publish("org/toy", toy)
    done = client.run("models", "pull", "-q", "hf:org/toy")
    assert (done.returncode, done.stderr) == (0, "")


def test_pull_mends_a_damaged_copy(client: Client, hub: HubServer, toy: Files) -> None:
    commit = hub.publish("org/toy", toy)
    weights = client.pulled("hf:org/toy") / WEIGHTS
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    damaged = client.run("models", "verify", "hf:org/toy")
    assert damaged.returncode == 5
    assert f"run `audiossl models pull hf:org/toy@{commit}`" in damaged.stderr
    client.pulled("hf:org/toy")
    assert client.run("models", "verify").returncode == 0
    assert weights.read_bytes() == toy[WEIGHTS]


# What cannot be had


def test_each_refusal_is_one_line_that_says_what_to_do(
    client: Client, hub: HubServer, toy: Files
) -> None:
    hub.publish("org/toy", toy)
    hub.publish("org/gated", toy)
    hub.faults.gated = {"org/gated"}
    hub.publish("org/empty", {"README.md": b"# nothing"})
    hub.publish("org/pickle", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    hub.publish("org/naked", {"config.json": b"{}"})
    hub.publish("org/other", {"config.json": b'{"model_type": "bert"}', WEIGHTS: evil.GOOD})
    wrong = json.loads(toy["config.json"]) | {"colour": "red"}
    hub.publish("org/wrong", {**toy, "config.json": json.dumps(wrong).encode()})
    swapped = json.loads(toy["config.json"]) | {"sha256": "0" * 64}
    hub.publish("org/swapped", {**toy, "config.json": json.dumps(swapped).encode()})
    expected = {
        "hf:org/none": "no such model on 127.0.0.1",
        "hf:org/toy@v9": "no revision 'v9'",
        f"hf:org/toy@{'a' * 40}": "no revision",
        "hf:org/gated": "accept its terms at",
        "hf:org/empty": "it has no config.json",
        "hf:org/pickle": "audiossl models convert FILE --out FOLDER",
        "hf:org/naked": "has no model.safetensors",
        "hf:org/other": "no known layout",
        "hf:org/wrong": "unknown key 'colour'",
        "hf:org/swapped": "not the weights of this config.json",
    }
    found = client.attempts(list(expected))
    for name, says in expected.items():
        code, message = found[name]
        assert code == 5, name
        assert says in message, message
        assert name in message, message
        assert "\n" not in message
        assert ".new-" not in message
    assert client.left == []


def test_a_list_without_digests_is_not_trusted(client: Client, hub: HubServer, toy: Files) -> None:
    hub.publish("org/toy", toy)
    hub.faults.no_digests = True
    assert "config.json" in one_line(client.pull("hf:org/toy"), 5)


def test_private_models_need_the_token(client: Client, hub: HubServer, toy: Files) -> None:
    hub.publish("org/toy", toy)
    hub.faults.token = "hf_right"
    assert "set HF_TOKEN" in one_line(client.pull("hf:org/toy"), 5)
    one_line(client.pull("hf:org/toy", env={"HF_TOKEN": "hf_wrong"}), 5)
    client.pulled("hf:org/toy", env={"HF_TOKEN": "hf_right"})


def test_the_token_goes_to_the_hub_and_to_no_other_host(
    client: Client, hub: HubServer, toy: Files
) -> None:
    hub.publish("org/toy", toy)
    client.pulled("hf:org/toy", env={"HF_TOKEN": "hf_secret"})
    sent = {request.host.split(":")[0]: request.authorization for request in hub.requests}
    assert sent == {"127.0.0.1": "Bearer hf_secret", "localhost": None}


def test_a_redirect_to_another_host_does_not_take_the_token_along(
    client: Client, hub: HubServer, toy: Files
) -> None:
    hub.publish("org/toy", toy)
    hub.faults.away = "localhost"
    client.pull("hf:org/toy", env={"HF_TOKEN": "hf_secret"})
    away = [request for request in hub.requests if request.host.startswith("localhost")]
    assert away
    assert all(request.authorization is None for request in away)


def test_nothing_is_asked_when_offline(client: Client, hub: HubServer, toy: Files) -> None:
    hub.publish("org/toy", toy)
    for variable in ("AUDIOSSL_OFFLINE", "HF_HUB_OFFLINE"):
        said = one_line(client.pull("hf:org/toy", env={variable: "1"}), 5)
        assert f"{variable} forbids" in said
    assert hub.requests == []


def test_a_hub_that_is_not_there(client: Client) -> None:
    for endpoint in ("http://127.0.0.1:1", "no-such-scheme"):
        said = one_line(client.pull("hf:org/toy", env={"HF_ENDPOINT": endpoint}), 5)
        assert "HF_ENDPOINT" in said


def test_proxies_are_used(client: Client, hub: HubServer, toy: Files) -> None:
    """The server takes the part of the proxy: the Hub's own name leads nowhere."""
    hub.publish("org/toy", toy)
    through = {"HF_ENDPOINT": "http://hub.test", "HTTP_PROXY": hub.url, "NO_PROXY": ""}
    client.pulled("hf:org/toy", env={**through, "http_proxy": hub.url, "no_proxy": ""})
    assert {request.host for request in hub.requests} == {"hub.test", "cdn.test"}


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
    assert f"{name} arrived damaged twice" in said
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
    code = "from audiossl import hub; print(hub.resolve('hf:org/toy'))"
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
    for _ in range(200):
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
    process.communicate(timeout=30)
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
    _out, err = process.communicate(timeout=30)
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


# Hands that reach too far


@pytest.mark.parametrize("kind", ["evil", "malformed"])
def test_nothing_evil_comes_in(
    client: Client, hub: HubServer, toy: Files, tmp_path: Path, kind: str
) -> None:
    canary = tmp_path / "canary"
    if kind == "evil":
        repos = evil_repositories(tmp_path / "evil", canary, toy)
    else:
        repos = {
            f"org/bad{index}": {**toy, WEIGHTS: data}
            for index, data in enumerate(evil.malformed().values())
        }
    for repo, files in repos.items():
        hub.publish(repo, files)
    found = client.attempts([f"hf:{repo}" for repo in repos])
    assert {name: code for name, (code, _message) in found.items() if code != 5} == {}
    assert all("\n" not in message for _code, message in found.values())
    assert not canary.exists()
    assert client.left == []


def evil_repositories(folder: Path, canary: Path, toy: Files) -> dict[str, Files]:
    """Each evil file under its own name, and as the weights of a good model."""
    repos: dict[str, Files] = {}
    for kind, path in evil.files(folder, canary).items():
        inside = [path] if path.is_file() else sorted(path.iterdir())
        files = {part.name: part.read_bytes() for part in inside}
        plain = kind.replace("_", "-")
        if path.is_file():
            repos[f"org/{plain}-weights"] = {**toy, WEIGHTS: path.read_bytes()}
            files = {"config.json": toy["config.json"], **files}
        repos[f"org/{plain}"] = files
    code = json.loads(toy["config.json"]) | {"auto_map": {"AutoModel": "evil.Evil"}}
    repos["org/own-auto-map"] = {**toy, "config.json": json.dumps(code).encode()}
    return repos


# Published checkpoints


def get_transformers() -> Any:
    if importlib.util.find_spec("torchaudio"):  # transformers imports it, unguarded, where it is
        importlib.import_module("audiossl._torchaudio")
    # ImportError: it is there, and asks for a newer huggingface_hub than the one under test
    return pytest.importorskip("transformers", exc_type=ImportError)


def ast_folder(
    folder: Path, rename: Callable[[str], str] | None = None, classes: int | None = 527
) -> Any:
    """A small random AST as `transformers` saves it, and the model itself."""
    transformers = get_transformers()
    torch.manual_seed(3)
    names = {"num_labels": classes} if classes else {}
    config = transformers.ASTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        max_length=256,
        **names,
    )
    kind = transformers.ASTForAudioClassification if classes else transformers.ASTModel
    model = kind(config).eval()
    for value in model.parameters():  # zeros and ones would hide what is swapped
        torch.nn.init.normal_(value, std=0.05)
    model.save_pretrained(folder)
    transformers.ASTFeatureExtractor(max_length=256).save_pretrained(folder)
    if rename:
        renamed = {rename(name): value for name, value in load_file(folder / WEIGHTS).items()}
        save_file(renamed, folder / WEIGHTS, metadata={"format": "pt"})
    return model


def version_5(name: str) -> str:
    """Names that transformers 5 gives the parameters in memory."""
    for old, new in (
        ("encoder.layer.", "layers."),
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
    ):
        name = name.replace(old, new)
    return name


def version_4(name: str) -> str:
    """Names of transformers 4."""
    for new, old in (
        (".layers.", ".encoder.layer."),
        ("attention.q_proj", "attention.attention.query"),
        ("attention.k_proj", "attention.attention.key"),
        ("attention.v_proj", "attention.attention.value"),
        ("attention.o_proj", "attention.output.dense"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
    ):
        name = name.replace(new, old)
    return name


def sound() -> np.ndarray:
    """Two seconds at 16 kHz: a tone that rises over noise."""
    rng = np.random.default_rng(0)
    time_axis = np.arange(32000) / 16000
    wave = 0.3 * np.sin(2 * np.pi * (300 + 400 * time_axis) * time_axis)
    return (wave + 0.05 * rng.standard_normal(32000)).astype(np.float32)


def reference(model: Any, folder: Path, wave: np.ndarray) -> Any:
    """What transformers itself makes of `wave`, from the folder before it was published."""
    features = get_transformers().ASTFeatureExtractor.from_pretrained(folder)(
        wave, sampling_rate=16000, return_tensors="pt"
    )
    with torch.inference_mode():
        return model(**features)


def get_in_child(client: Client, name: str, wave: np.ndarray, tmp_path: Path) -> np.ndarray:
    """`audiossl.load(name)` on `wave` where the Hub is the server: (classes,) or (dim,)."""
    np.save(tmp_path / "wave.npy", wave)
    code = (
        "import sys, numpy, torch, audiossl\n"
        "model = audiossl.load(sys.argv[1])\n"
        "wave = torch.from_numpy(numpy.load(sys.argv[2]))[None]\n"
        "with torch.inference_mode(): out = model(wave) if model.head else model.embed(wave)\n"
        "numpy.save(sys.argv[3], out[0].numpy())\n"
    )
    paths = [str(tmp_path / "wave.npy"), str(tmp_path / "out.npy")]
    done = subprocess.run(
        [sys.executable, "-c", code, name, *paths],
        env=client.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return np.load(tmp_path / "out.npy")


@pytest.mark.parametrize("rename", [version_4, version_5])
def test_ast_from_the_hub_gives_the_logits_of_transformers(
    client: Client, hub: HubServer, tmp_path: Path, rename: Callable[[str], str]
) -> None:
    saved = tmp_path / "saved"
    model = ast_folder(saved, rename)
    stored = load_file(saved / WEIGHTS)
    assert any("q_proj" in name for name in stored) == (rename is version_5)
    commit = hub.publish_folder("org/ast", saved, licence="bsd-3-clause")
    expected = reference(model, saved, sound()).logits[0].numpy()
    found = get_in_child(client, "hf:org/ast", sound(), tmp_path)
    assert found.shape == (527,)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert expected.std() > 1e-2  # or the comparison would mean little
    if rename is version_4:
        check_what_is_said_of_ast(client, commit, tmp_path)


def check_what_is_said_of_ast(client: Client, commit: str, tmp_path: Path) -> None:
    facts = json.loads(client.run("models", "show", "hf:org/ast").stdout)
    assert (facts["commit"], facts["rate"], len(facts["labels"])) == (commit, 16000, 527)
    assert facts["licence"] == "bsd-3-clause"
    assert facts["source"].endswith("/org/ast")
    soundfile.write(tmp_path / "x.wav", sound(), 16000)
    arguments = ("--model", "hf:org/ast", "--threshold", "0", "--top-k", "527")
    done = client.run("tag", tmp_path / "x.wav", *arguments, env={"AUDIOSSL_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    (record,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(record["labels"]) == 527
    assert record["model"] == "org/ast"


def test_ast_without_a_head_embeds(client: Client, hub: HubServer, tmp_path: Path) -> None:
    model = ast_folder(tmp_path / "saved", classes=None)
    hub.publish_folder("org/ast-encoder", tmp_path / "saved")
    expected = reference(model, tmp_path / "saved", sound()).pooler_output[0].numpy()
    found = get_in_child(client, "hf:org/ast-encoder", sound(), tmp_path)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_weights_in_several_files(client: Client, hub: HubServer, tmp_path: Path) -> None:
    model = ast_folder(tmp_path / "saved")
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / "shards" / name).write_bytes((tmp_path / "saved" / name).read_bytes())
    parts = [path.name for path in (tmp_path / "shards").glob("model-*.safetensors")]
    assert len(parts) > 1
    hub.publish_folder("org/shards", tmp_path / "shards")
    expected = reference(model, tmp_path / "saved", sound()).logits[0].numpy()
    found = get_in_child(client, "hf:org/shards", sound(), tmp_path)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
