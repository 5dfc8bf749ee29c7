"""Models from the Hub: what comes, stays, and is refused. Bad days: test_download_faults.py."""

from __future__ import annotations

import json
from pathlib import Path

import evil
import numpy as np
import pytest
import soundfile
from hubclient import WEIGHTS, Client, Files, one_line
from hubserver import HubServer

pytest_plugins = ("hubclient",)

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
        "receipt.json": b"{}",
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
