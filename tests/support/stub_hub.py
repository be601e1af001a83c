"""A model hub on loopback, with the HTTP interface that huggingface_hub uses to list, download and commit."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

from support.stub_uploads import committed, upload_modes

GATED = "GatedRepo"
USER = "me"
"""Who asks: the owner of repositories that are named without one."""
_STATUS = {GATED: 403, "RepoNotFound": 401, "RevisionNotFound": 404, "EntryNotFound": 404}


@dataclass
class Repository:
    """A repository with one commit per revision; ``main`` is the directory ``folder``."""

    folder: Path
    revisions: dict[str, Path] = field(default_factory=dict)
    refuses: dict[str, str | int] = field(default_factory=dict)
    """``"list"`` or ``"file"`` -> the hub's error code, or a bare status, for requests of that kind."""

    def folder_of(self, revision: str) -> Path | None:
        folders = {"main": self.folder, **self.revisions}
        commits = {commit_of(folder): folder for folder in folders.values()}
        return folders.get(revision) or commits.get(revision)


@dataclass
class StubHub:
    """The repositories on the hub by ``owner/name``, the downloaded files, and the tokens that were shown."""

    url: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    downloads: list[str] = field(default_factory=list)
    root: Path | None = None
    """Where new repositories are made."""
    commits: list[list[str]] = field(default_factory=list)
    """The files of each commit that was sent."""
    tokens: set[str | None] = field(default_factory=set)


def commit_of(folder: Path) -> str:
    """Return the commit of a revision, a hash of its path, so that tests can compute it."""
    return hashlib.sha1(str(folder).encode()).hexdigest()


@contextmanager
def serve() -> Iterator[StubHub]:
    """Run an empty hub within the block."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.hub = hub = StubHub(f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that are gone."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_POST(self) -> None:
        hub: StubHub = self.server.hub  # type: ignore[attr-defined]
        hub.tokens.add(self.headers.get("Authorization"))
        chunked = self.headers.get("Transfer-Encoding") == "chunked"
        body = self._chunks() if chunked else self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts == ["api", "validate-yaml"]:
            self._send(b'{"errors": [], "warnings": []}')
        elif parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = "/".join([asked.get("organization") or USER, asked["name"]])
            if name not in hub.repositories:
                assert hub.root is not None
                folder = hub.root / name.replace("/", "--")
                folder.mkdir(parents=True)
                hub.repositories[name] = Repository(folder)
            self._send(json.dumps({"url": f"{hub.url}/{name}"}).encode())
        else:
            self._upload(hub, "/".join(parts[2:4]), parts[4], parts[5], body)

    def _upload(self, hub: StubHub, name: str, kind: str, revision: str, body: bytes) -> None:
        repository = hub.repositories.get(name)
        if kind == "branch" and repository:
            repository.revisions.setdefault(revision, repository.folder)
            self._send(b"{}")
            return
        folder = repository.folder_of(revision) if repository else None
        error = repository.refuses.get("upload") if repository else "RepoNotFound"
        if error or repository is None or folder is None:
            self._refuse(error or "RevisionNotFound")
        elif kind == "preupload":
            self._send(json.dumps(upload_modes(folder, json.loads(body)["files"])).encode())
        else:
            made, files = committed(folder, body)
            hub.commits.append(files)
            if revision == "main":
                repository.folder = made
            else:
                repository.revisions[revision] = made
            commit = commit_of(made)
            answer = {"commitUrl": f"{hub.url}/{name}/commit/{commit}", "commitOid": commit}
            self._send(json.dumps(answer).encode())

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *_arguments: object) -> None:
        pass

    def _answer(self, with_body: bool) -> None:
        self.server.hub.tokens.add(self.headers.get("Authorization"))  # type: ignore[attr-defined]
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[:2] == ["api", "models"]:
            self._describe("/".join(parts[2:4]), *(parts[4:6] or ["revision", "main"]))
        else:
            large = parts[0] == "cdn"
            parts = parts[1:] if large else parts
            if parts[2:3] == ["resolve"]:
                self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]), with_body, large)
            else:
                # the library asks for more than models
                self._refuse(404)

    def _describe(self, name: str, kind: str, revision: str) -> None:
        repository = self.server.hub.repositories.get(name)  # type: ignore[attr-defined]
        folder = repository.folder_of(revision) if repository else None
        error = repository.refuses.get("list") if repository else "RepoNotFound"
        if error or folder is None:
            self._refuse(error or "RevisionNotFound")
            return
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        names = [path.relative_to(folder).as_posix() for path in files]
        if kind == "tree":
            entries = [
                {"type": "file", "path": n, "size": p.stat().st_size, "oid": _etag(p)}
                for n, p in zip(names, files, strict=True)
            ]
            self._send(json.dumps(entries).encode())
        else:
            siblings: list[dict[str, object]] = [{"rfilename": name} for name in names]
            if "blobs" in urlsplit(self.path).query:
                for sibling, path in zip(siblings, files, strict=True):
                    sibling["size"] = path.stat().st_size
            about = {"_id": "1", "id": name, "sha": commit_of(folder), "siblings": siblings}
            self._send(json.dumps(about).encode())

    def _resolve(self, name: str, revision: str, file: str, with_body: bool, large: bool) -> None:
        hub: StubHub = self.server.hub  # type: ignore[attr-defined]
        repository = hub.repositories.get(name)
        folder = repository.folder_of(revision) if repository else None
        error = repository.refuses.get("file") if repository else "RepoNotFound"
        if error or folder is None or not (folder / file).is_file():
            self._refuse(error or ("EntryNotFound" if folder else "RevisionNotFound"))
            return
        if file.endswith(".safetensors") and not large:
            # as large files are: on another host, with what the file is in the first answer
            self.send_response(302)
            port = self.server.server_address[1]
            self.send_header("Location", f"http://localhost:{port}/cdn{self.path}")
            self.send_header("X-Linked-Size", str((folder / file).stat().st_size))
            self.send_header("X-Linked-Etag", f'"{_etag(folder / file)}"')
            self.send_header("X-Repo-Commit", commit_of(folder))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if with_body:
            hub.downloads.append(file)
        self._send_file(folder / file, "" if large else commit_of(folder), with_body)

    def _send_file(self, path: Path, commit: str, with_body: bool) -> None:
        self.send_response(200)
        self.send_header("ETag", f'"{_etag(path)}"')
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(path.stat().st_size))
        self.end_headers()
        if with_body:
            with path.open("rb") as file:
                shutil.copyfileobj(file, self.wfile)

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, error: str | int) -> None:
        self.send_response(error if isinstance(error, int) else _STATUS[error])
        if isinstance(error, str):
            self.send_header("X-Error-Code", error)
        self.send_header("X-Error-Message", f"refused: {error}")
        self.send_header("Content-Length", "0")
        self.end_headers()


def _etag(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
