"""A small server that speaks the Hugging Face Hub's interface: repositories with revisions, downloads, commits."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_letmein"
LARGE = ".safetensors"
"""Files that are kept beside Git, as the Hub does with weights."""
Files = dict[str, bytes]


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repository:
    """Commits and what they are called; with faults on demand."""

    commits: dict[str, Files] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    error: tuple[int, str] | None = None
    cut: bool = False
    """Whether only half of each large file comes."""
    swapped: bool = False
    """Whether a byte of each large file is another on the way."""
    private: bool = False

    def commit(self, files: Files, *names: str) -> str:
        number = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[number] = files
        for name in ("main", *names):
            self.refs[name] = number
        return number

    def find(self, revision: str) -> str | None:
        number = self.refs.get(revision, revision)
        return number if number in self.commits else None


class Hub:
    """The server's state."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.uploads: Files = {}
        self.requests: list[str] = []

    def add(self, name: str, files: Files, **faults: Any) -> Repository:
        repository = self.repositories[name] = Repository(**faults)
        repository.commit(files)
        return repository


@contextmanager
def serve(hub: Hub) -> Iterator[str]:
    """The server's address while it runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.act()

        def do_GET(self) -> None:
            self.act()

        def do_POST(self) -> None:
            self.act()

        def do_PUT(self) -> None:
            self.act()

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, content: object, status: int = 200, **headers: str) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def fail(self, status: int, code: str) -> None:
            self.answer({"error": code}, status, X_Error_Code=code)

        def act(self) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            size = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(size)
            parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
            if self.command == "POST" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.fail(401, "")
                return
            if parts[0] == "upload":
                hub.uploads[parts[1]] = body
                self.answer({})
            elif parts == ["api", "repos", "create"]:
                request = json.loads(body)
                name = "/".join(part for part in (request.get("organization"), request["name"]) if part)
                known = name in hub.repositories
                hub.repositories.setdefault(
                    name, Repository(private=request.get("visibility") == "private" or bool(request.get("private")))
                )
                self.answer({"url": f"http://{self.headers['Host']}/{name}"}, 409 if known else 200)
            elif parts[:2] == ["api", "validate-yaml"]:
                self.answer({"warnings": [], "errors": []})
            elif parts[:2] == ["api", "models"]:
                self.api("/".join(parts[2:4]), parts[4:], body)
            elif parts[2:3] == ["info"]:
                address = f"http://{self.headers['Host']}/upload/"
                objects = [
                    {**o, "actions": {"upload": {"href": address + o["oid"]}}} for o in json.loads(body)["objects"]
                ]
                self.answer({"transfer": "basic", "objects": objects})
            elif parts[2:3] == ["resolve"]:
                self.download("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
            else:
                self.fail(404, "")

        def open(self, name: str, revision: str) -> tuple[Repository, str] | None:
            repository = hub.repositories.get(name)
            if repository is None:
                self.fail(401, "RepoNotFound")
            elif repository.error:
                self.fail(*repository.error)
            elif (number := repository.find(revision)) is None:
                self.fail(404, "RevisionNotFound")
            else:
                return repository, number
            return None

        def api(self, name: str, rest: list[str], body: bytes) -> None:
            if rest[:1] == ["preupload"]:
                files = json.loads(body)["files"]
                modes = [
                    {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular"} for f in files
                ]
                self.answer({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
                return
            if rest[:1] == ["commit"]:
                repository, files = hub.repositories[name], {}
                for line in map(json.loads, body.splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        files[value["path"]] = hub.uploads[value["oid"]]
                number = repository.commit(files)
                self.answer({"commitUrl": f"http://{self.headers['Host']}/{name}/commit/{number}", "commitOid": number})
                return
            found = self.open(name, rest[1] if len(rest) > 1 else "main")
            if found is None:
                return
            repository, number = found
            files = repository.commits[number]
            if rest[:1] != ["tree"]:
                self.answer({"id": name, "sha": number, "siblings": [{"rfilename": path} for path in files]})
                return
            entries = []
            for path, content in files.items():
                entry = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
                if path.endswith(LARGE):
                    entry["lfs"] = {
                        "oid": hashlib.sha256(content).hexdigest(),
                        "size": len(content),
                        "pointerSize": 134,
                    }
                entries.append(entry)
            self.answer(entries)

        def download(self, name: str, revision: str, path: str) -> None:
            found = self.open(name, revision)
            if found is None:
                return
            repository, number = found
            content = repository.commits[number].get(path)
            if content is None:
                self.fail(404, "EntryNotFound")
                return
            headers = {"X_Repo_Commit": number, "ETag": f'"{git_hash(content)}"'}
            if path.endswith(LARGE):
                headers |= {
                    "X_Linked_Size": str(len(content)),
                    "X_Linked_Etag": f'"{hashlib.sha256(content).hexdigest()}"',
                }
                if repository.cut and self.command == "GET":
                    content = content[: len(content) // 2]
                if repository.swapped:
                    content = content[:-1] + bytes([content[-1] ^ 1])
            self.answer(content, **headers)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
