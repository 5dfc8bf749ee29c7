"""A Hugging Face Hub on 127.0.0.1 for the tests: its routes, its headers, and its bad days.

    with HubServer() as hub:
        commit = hub.publish("org/model", {"config.json": b"{}", "model.safetensors": weights})
        subprocess.run(command, env={**os.environ, **hub.environment(cache)})

Weights are served as Git LFS does it: a redirect to another host name (`localhost` instead of
`127.0.0.1`), which must never see the token. What goes wrong is set by the fields of `Faults`; what
was asked is in `requests`. Written from the Hub's public HTTP interface; standard library only.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

LARGE = (".safetensors", ".bin", ".pt", ".ckpt", ".npz")  # stored by Git LFS
ROUTE = re.compile(
    r"/(?P<api>api/models/)?(?P<repo>[^/]+/[^/]+?)"
    r"(?:/(?P<verb>revision|tree|resolve|paths-info|cdn)/(?P<revision>[^/]+)(?:/(?P<file>.+))?)?"
)
CHUNK = 64 * 1024


@dataclass
class Faults:
    """What goes wrong. Files are named without their folder.

    `cut`: bytes after which the connection ends, one entry a request (None: whole).
    `flip`: how many requests for the file get one wrong bit.
    `status`: answers given first, by a piece of the path.
    `short`: files whose last bytes are missing, with lengths that agree with each other.
    `ranges`: whether part of a file can be asked for. `pause`: seconds before each 64 kB.
    `gated`: repositories whose files are refused (403). `token`: what private ones ask for.
    `away`: another host to which the first request is redirected.
    `no_digests`: the list of files comes without them.
    """

    cut: dict[str, list[int | None]] = field(default_factory=dict)
    flip: dict[str, int] = field(default_factory=dict)
    status: dict[str, list[int]] = field(default_factory=dict)
    short: set[str] = field(default_factory=set)
    ranges: bool = True
    pause: float = 0.0
    gated: set[str] = field(default_factory=set)
    token: str | None = None
    away: str | None = None
    no_digests: bool = False


@dataclass(frozen=True)
class Request:
    method: str
    host: str
    path: str
    range: str | None
    authorization: str | None


class HubServer:
    """Repositories by `owner/name`, each with all its commits."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.branches: dict[str, dict[str, str]] = {}
        self.tags: dict[str, list[str]] = {}
        self.faults = Faults()
        self.requests: list[Request] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("H", (Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.cdn = f"http://localhost:{self.port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reset(self) -> None:
        """A good day again, and no request seen."""
        self.faults = Faults()
        self.requests.clear()

    def publish(
        self, repo: str, files: dict[str, bytes], branch: str = "main", licence: str = ""
    ) -> str:
        """A new commit of `repo` that holds exactly `files`; `branch` moves there."""
        content = {name: git_blob(data) for name, data in sorted(files.items())}
        commit = hashlib.sha1(json.dumps([repo, content]).encode()).hexdigest()
        self.commits.setdefault(repo, {})[commit] = dict(files)
        self.branches.setdefault(repo, {})[branch] = commit
        self.tags[repo] = [f"license:{licence}"] if licence else []
        return commit

    def publish_folder(self, repo: str, folder: Path, licence: str = "") -> str:
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        return self.publish(repo, files, licence=licence)

    def environment(self, cache: Path, **more: str) -> dict[str, str]:
        """Variables with which a child process uses this server and nothing else."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache / "hf"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "10",
            "HF_HUB_ETAG_TIMEOUT": "10",
            "NO_PROXY": "127.0.0.1,localhost",
            "AUDIOSSL_CACHE": str(cache / "audiossl"),
            **more,
        }

    def downloads(self, name: str = ".safetensors") -> list[Request]:
        """Requests for the content of files whose path ends in `name`."""
        return [
            request
            for request in self.requests
            if request.method == "GET"
            and request.path.endswith(name)
            and "/api/" not in request.path
        ]


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """One connection of a client, also of one that takes this server for its proxy."""

    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, format: str, *args: Any) -> None:
        return

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        asked = json.loads(body) if body.startswith("{") else urllib.parse.parse_qs(body)
        self.answer(asked.get("paths"))

    def do_GET(self) -> None:
        self.answer(None)

    def answer(self, paths: list[str] | None) -> None:
        url = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(url.path)
        if path == "/api/agent-harnesses":
            self.send(200, {})
            return
        host = self.headers.get("Host", "")
        asked = self.headers.get("Range"), self.headers.get("Authorization")
        self.hub.requests.append(Request(self.command, host, path, *asked))
        faults = self.hub.faults
        for piece, codes in faults.status.items():
            if piece in path and codes:
                self.send(codes.pop(0), {"error": "on purpose"}, {"Retry-After": "0"})
                return
        match = ROUTE.fullmatch(path)
        if match is None:
            self.refuse(404, "RepoNotFound", "Repository Not Found")
        elif match["api"] and faults.away and not host.startswith(faults.away):
            self.send(307, {}, {"Location": f"http://{faults.away}:{self.hub.port}{self.path}"})
        else:
            self.route(match, paths)

    def route(self, match: re.Match[str], paths: list[str] | None) -> None:
        repo, verb, revision = match["repo"], match["verb"], match["revision"] or "main"
        faults, commits = self.hub.faults, self.hub.commits.get(repo)
        if verb == "cdn":
            self.send_large(repo, revision, match["file"])
            return
        allowed = not faults.token or self.headers.get("Authorization") == f"Bearer {faults.token}"
        if commits is None or not allowed:
            self.refuse(401, "RepoNotFound", "Invalid username or password.")
            return
        commit = self.hub.branches[repo].get(revision, revision)
        if commit not in commits:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif match["api"] and verb in (None, "revision"):
            self.send(200, self.model_info(repo, commit))
        elif match["api"]:
            entries = [entry(name, data) for name, data in commits[commit].items()]
            self.send(200, [item for item in entries if paths is None or item["path"] in paths])
        elif repo in faults.gated:
            self.refuse(403, "GatedRepo", "Access to model is restricted")
        else:
            self.resolve(repo, commit, match["file"])

    def model_info(self, repo: str, commit: str) -> dict[str, Any]:
        siblings = []
        for name, data in sorted(self.hub.commits[repo][commit].items()):
            sibling: dict[str, Any] = {"rfilename": name}
            if not self.hub.faults.no_digests:
                item = entry(name, data)
                sibling |= {"size": len(data), "blobId": item["oid"]}
                if "lfs" in item:
                    lfs = item["lfs"]
                    sibling["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": 134}
            siblings.append(sibling)
        return {
            "_id": "0",
            "id": repo,
            "modelId": repo,
            "sha": commit,
            "private": False,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": self.hub.tags[repo],
            "lastModified": "2026-01-01T00:00:00.000Z",
            "createdAt": "2026-01-01T00:00:00.000Z",
            "siblings": siblings,
        }

    def resolve(self, repo: str, commit: str, name: str) -> None:
        data = self.hub.commits[repo][commit].get(name)
        if data is None:
            headers = {"X-Repo-Commit": commit}
            self.refuse(404, "EntryNotFound", "Entry not found", headers)
        elif name.endswith(LARGE):
            digest = hashlib.sha256(data).hexdigest()
            host = self.hub.cdn if "127.0.0.1" in self.headers["Host"] else "http://cdn.test"
            headers = {
                "X-Linked-Size": str(len(data)),
                "X-Linked-ETag": f'"{digest}"',
                "X-Repo-Commit": commit,
                "Location": f"{host}/{repo}/cdn/{commit}/{urllib.parse.quote(name)}",
            }
            self.send(302, {}, headers)
        else:
            self.send_file(name, data, {"ETag": f'"{git_blob(data)}"', "X-Repo-Commit": commit})

    def send_large(self, repo: str, commit: str, name: str) -> None:
        data = self.hub.commits[repo][commit][name]
        self.send_file(name, data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"'})

    def send_file(self, name: str, data: bytes, headers: dict[str, str]) -> None:
        faults, whole = self.hub.faults, self.command == "GET"
        name = name.rsplit("/", 1)[-1]
        if whole and faults.flip.get(name, 0):
            faults.flip[name] -= 1
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        if name in faults.short:
            data = data[:-5]
        start, code = 0, 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted and faults.ranges:
            start, code = int(wanted[1]), 206
            if start >= len(data):
                self.send(416, {}, {"Content-Range": f"bytes */{len(data)}"})
                return
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.send_response(code)
        headers |= {"Content-Length": str(len(data) - start), "Accept-Ranges": "bytes"}
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if whole:
            cuts = faults.cut.get(name) or [None]
            self.send_body(data[start:], cuts.pop(0))

    def send_body(self, body: bytes, cut: int | None) -> None:
        for place in range(0, len(body[:cut]), CHUNK):
            if self.hub.faults.pause:
                time.sleep(self.hub.faults.pause)
            self.wfile.write(body[:cut][place : place + CHUNK])
        if cut is not None and cut < len(body):
            self.close_connection = True

    def refuse(
        self, code: int, error: str, message: str, headers: dict[str, str] | None = None
    ) -> None:
        told = {"X-Error-Code": error, "X-Error-Message": message}
        self.send(code, {"error": message}, {**told, **(headers or {})})

    def send(self, code: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        about = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        for key, value in {**about, **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def entry(name: str, data: bytes) -> dict[str, Any]:
    """A file as the Hub's tree lists it."""
    found: dict[str, Any] = {
        "type": "file",
        "path": name,
        "size": len(data),
        "oid": git_blob(data),
    }
    if name.endswith(LARGE):
        digest = hashlib.sha256(data).hexdigest()
        found["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 134}
    return found
