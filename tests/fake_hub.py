"""A Hugging Face Hub on this machine: as much of its HTTP API as pushing and loading take, with faults to order."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from fake_repository import Files, Repository
from huggingface_hub import constants, hf_api

TOKEN = "hf_fake"
WEIGHTS = ".safetensors"  # kept in the large file storage, as there

SENT = re.compile(r"GET /(?:[^/]+/[^/]+/resolve|cdn)/[^/]+/(.+)")


@dataclass
class FakeHub:
    """The state of the server, and what it was asked. url: for HF_ENDPOINT.

    broken: the files whose downloads break off half-way, and without a byte if they ask for the rest.
    refusals: the start of a request such as "POST /api/repos/create" -> the status and message that it gets.
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: Files = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def publish(self, name: str, files: Files | Path) -> Repository:
        """A public repository with these files, or with those of a folder."""
        if isinstance(files, Path):
            files = {str(path.relative_to(files)): path.read_bytes() for path in files.rglob("*") if path.is_file()}
        repository = self.repositories.setdefault(name, Repository())
        repository.commit(files)
        return repository

    @property
    def downloads(self) -> list[str]:
        """The files that were sent since the list of requests was cleared."""
        sent = (SENT.fullmatch(request) for request in self.requests)
        return sorted(match[1] for match in sent if match)


class Refused(Exception):
    """How the Hub says no: a status, its own code for the reason, and a message."""

    def __init__(self, status: int, message: str, code: str = "", commit: str = "", url: str = "") -> None:
        super().__init__(message)
        self.body = {"error": message, "url": url}
        self.status, self.headers = status, {"X-Error-Message": message}
        self.headers |= {"X-Error-Code": code} if code else {}
        self.headers |= {"X-Repo-Commit": commit} if commit else {}


class Handler(BaseHTTPRequestHandler):
    """Requests in the order in which the API is described at https://huggingface.co/docs/hub/api."""

    hub: FakeHub

    def do_GET(self) -> None:
        self._respond()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _respond(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        self.hub.requests.append(request)
        try:
            for start, (status, message) in self.hub.refusals.items():
                if request.startswith(start):
                    raise Refused(status, message)
            if path.startswith("/cdn/"):
                self._large_file(path, body)
            elif "/resolve/" in path:
                self._file(path)
            elif self.command == "HEAD":
                self._send(b"")
            else:
                self._send(json.dumps(self._answer(path, body)).encode())
        except Refused as refused:
            self._send(json.dumps(refused.body).encode(), refused.headers, refused.status)

    def _send(self, content: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    @property
    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _answer(self, path: str, body: bytes) -> Any:
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        if path.startswith("/api/models/"):
            return self._repository(path, body)
        raise Refused(404, f"no {path} here")

    def _create(self, asked: dict[str, Any]) -> Any:
        if not self._known:
            raise Refused(401, "Invalid username or password.")
        name = f"{asked['organization']}/{asked['name']}"
        url = f"{self.hub.url}/{name}"
        if name in self.hub.repositories:
            raise Refused(409, "You already created this model repo", url=url)
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.repositories[name] = Repository(private=bool(private))
        return {"url": url, "name": name}

    def _batch(self, asked: dict[str, Any]) -> Any:
        where = (f"{self._cdn}/{wanted['oid']}" for wanted in asked["objects"])
        actions = [{"actions": {"upload": {"href": address, "header": {}}}} for address in where]
        return {"objects": [{**wanted, **action} for wanted, action in zip(asked["objects"], actions, strict=True)]}

    @property
    def _cdn(self) -> str:
        """Another host, which must not see the token."""
        return self.hub.url.replace("127.0.0.1", "localhost") + "/cdn"

    def _repository(self, path: str, body: bytes) -> Any:
        user, name, *rest = path.removeprefix("/api/models/").split("/")
        repository = self._found(f"{user}/{name}")
        verb, revision, *below = rest or ["revision", "main"]
        commit = self._revision(repository, revision)
        if verb == "preupload":
            return {"files": [self._upload_mode(file["path"]) for file in json.loads(body)["files"]]}
        if verb == "commit":
            digest = repository.commit(dict(self._committed(body)), revision)
            return {"success": True, "commitOid": digest, "commitUrl": f"{self.hub.url}/{user}/{name}/commit/{digest}"}
        files = repository.commits[commit]
        if verb == "tree":
            if below:
                raise Refused(404, f"{'/'.join(below)} does not exist", "EntryNotFound", commit)
            return [self._entry(repository, path, content) for path, content in sorted(files.items())]
        siblings = [{"rfilename": path} for path in sorted(files)]
        return {"id": f"{user}/{name}", "sha": commit, "private": repository.private, "siblings": siblings, "tags": []}

    def _found(self, name: str) -> Repository:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self._known):
            raise Refused(404 if self._known else 401, "Repository not found", "RepoNotFound")
        return repository

    def _revision(self, repository: Repository, revision: str) -> str:
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def _upload_mode(self, path: str) -> dict[str, Any]:
        return {"path": path, "uploadMode": "lfs" if path.endswith(WEIGHTS) else "regular", "shouldIgnore": False}

    def _committed(self, body: bytes) -> Iterator[tuple[str, bytes]]:
        for line in body.splitlines():
            part = json.loads(line)
            if part["key"] == "file":
                yield part["value"]["path"], base64.b64decode(part["value"]["content"])
            if part["key"] == "lfsFile":
                yield part["value"]["path"], self.hub.objects[part["value"]["oid"]]

    def _entry(self, repository: Repository, path: str, content: bytes) -> dict[str, Any]:
        size = repository.size(path, content)
        lfs = {"lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 134}}
        entry = {"type": "file", "path": path, "size": size, "oid": hashlib.sha1(content).hexdigest()}
        return {**entry, **(lfs if path.endswith(WEIGHTS) else {})}

    def _file(self, path: str) -> None:
        name, _, rest = path[1:].partition("/resolve/")
        revision, _, file = rest.partition("/")
        repository = self._found(name)
        if repository.gated:
            raise Refused(403 if self._known else 401, f"Access to model {name} is restricted", "GatedRepo")
        commit = self._revision(repository, revision)
        if file not in repository.commits[commit]:
            raise Refused(404, "Entry not found", "EntryNotFound", commit)
        content = repository.commits[commit][file]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        if file.endswith(WEIGHTS):
            digest = hashlib.sha256(content).hexdigest()
            self.hub.objects[digest] = content
            size = str(repository.size(file, content))
            headers |= {
                "X-Linked-ETag": f'"{digest}"',
                "X-Linked-Size": size,
                "Location": f"{self._cdn}/{digest}/{file}",
            }
            self._send(b"", headers, 302)
        elif self.command == "HEAD":
            self._send(content, {**headers, "Content-Length": str(repository.size(file, content))})
        else:
            self._send_part(file, content, headers)

    def _large_file(self, path: str, body: bytes) -> None:
        if "Authorization" in self.headers:
            raise Refused(400, "the token went to another host")
        digest, _, file = path.removeprefix("/cdn/").partition("/")
        if self.command == "PUT":
            if hashlib.sha256(body).hexdigest() != digest:
                raise Refused(400, "other bytes than were announced")
            self.hub.objects[digest] = body
            self._send(b"")
        else:
            self._send_part(file, self.hub.objects[digest], {})

    def _send_part(self, file: str, content: bytes, headers: dict[str, str]) -> None:
        """The file from where the download goes on, or the half of it before the connection breaks."""
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if first:
            headers = {**headers, "Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"}
        sent = content[first:]
        if file in self.hub.broken:
            headers, sent = {**headers, "Content-Length": str(len(sent))}, sent[: 0 if first else len(sent) // 2]
        self._send(sent, headers, 206 if first else 200)


@contextmanager
def running() -> Iterator[FakeHub]:
    """A server on a free port until the block ends."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(hub: FakeHub, home: Path) -> dict[str, str]:
    """For processes that use this Hub with a cache of their own."""
    online = {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    return {
        **online,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_TOKEN": TOKEN,
        "NO_PROXY": "127.0.0.1,localhost",
    }


def use(hub: FakeHub, home: Path, monkeypatch: pytest.MonkeyPatch, *, token: str = TOKEN) -> None:
    """The same for this process, which has read its environment already."""
    for name, value in environment(hub, home).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # transformers keeps its own, with the address in it
