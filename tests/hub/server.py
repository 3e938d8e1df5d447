"""A Hub on 127.0.0.1: the HTTP API of huggingface.co as far as the client uses it, with faults to order.

Two servers: one answers the API and `resolve`, and sends downloads of large files on to the other, the blob host, as
the real one does. Everything asked is in `requests`; `faults` are consulted before every answer.
"""

from __future__ import annotations

import base64
import fnmatch
import json
import re
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub.repo import LARGE, Repo

TOKEN = "hf_TestTokenThatMustNeverBeSeen"


@dataclass
class Fault:
    """What happens instead of, or in the middle of, an answer to a path that matches; `times` times (-1: always)."""

    path: str  # fnmatch pattern of the path without query
    status: int = 0  # 0: the true answer
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut_at: int | None = None  # bytes of the body after which the connection is cut
    silent: bool = False  # no answer for as long as the server is there
    damage: bool = False  # one byte of the body is wrong
    no_ranges: bool = False
    slow: float = 0.0  # seconds before each piece of the body
    stated: int = 0  # bytes that Content-Length is wrong by; the connection is closed after the body
    method: str = "*"
    times: int = 1


@dataclass(frozen=True)
class Asked:
    host: str  # "hub" | "blobs"
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    sent: int


class Hub:
    """`with Hub() as hub: hub.add(...)`; `hub.url` is what HF_ENDPOINT is set to."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.faults: list[Fault] = []
        self.answered: list[Asked] = []
        self.answering = 0
        self.idle = threading.Condition()
        self.closing = threading.Event()
        self.uploads: dict[str, bytes] = {}  # large files by sha256
        self.commits: list[dict[str, Any]] = []
        self.allowed: set[str] = set()  # gated repositories that TOKEN may read
        self.lock = threading.Lock()
        self._servers = [_Server(self, "hub"), _Server(self, "blobs")]
        self.url, self.blobs = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def __enter__(self) -> Hub:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add(
        self, repo: str, files: Path | Mapping[str, bytes], kind: str = "model", gated: bool = False, **facts: Any
    ) -> Repo:
        """Serves the files of a folder, or of a mapping, as one commit."""
        if isinstance(files, Path):
            paths = (path for path in sorted(files.rglob("*")) if path.is_file())
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in paths}
        private = facts.pop("private", False)
        made = self.repos[kind, repo] = Repo(repo, kind, dict(files), gated, private, facts)
        return made

    def fail(self, path: str, **fault: Any) -> None:
        self.faults.append(Fault(path, **fault))

    @property
    def requests(self) -> list[Asked]:
        """All that were answered: a client may have its answer before the server has written down that it gave it."""
        with self.idle:
            self.idle.wait_for(lambda: not self.answering)
            return list(self.answered)

    def asked(self, pattern: str, method: str = "*") -> list[Asked]:
        """The requests whose path matches."""
        return [r for r in self.requests if fnmatch.fnmatch(r.path, pattern) and fnmatch.fnmatch(r.method, method)]

    def fault_for(self, path: str, method: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fnmatch.fnmatch(path, fault.path) and fnmatch.fnmatch(method, fault.method):
                    fault.times -= 1
                    return fault
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, hub: Hub, role: str) -> None:
        self.hub, self.role = hub, role
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self) -> None:
        hub, parts = self.server.hub, urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        self._sent, self._fault = 0, hub.fault_for(path, self.command)
        if self._fault and self._fault.silent:
            hub.closing.wait()
            return
        with hub.idle:
            hub.answering += 1
        try:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self._fault and self._fault.status:
                self._answer(self._fault.status, self._fault.body, self._fault.headers)
            elif self.server.role == "blobs":
                self._blob(path, query, body)
            else:
                self._route(path, query, body)
        finally:
            headers = {k.lower(): v for k, v in self.headers.items()}
            with hub.idle:
                hub.answered.append(Asked(self.server.role, self.command, path, query, headers, self._sent))
                hub.answering -= 1
                hub.idle.notify_all()

    # -- answers -------------------------------------------------------------------------------------------------------

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str] = {}) -> None:
        self.send_response(status)
        stated = self._fault.stated if self._fault else 0
        self.close_connection = self.close_connection or stated != 0
        for name, value in {"Content-Length": str(max(len(body) + stated, 0)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self._write(body)

    def _write(self, body: bytes) -> None:
        fault = self._fault
        if fault and fault.damage and body:
            body = body[:-1] + bytes([body[-1] ^ 1])
        if fault and fault.cut_at is not None and fault.cut_at < len(body):
            self.wfile.write(body[: fault.cut_at])
            self.wfile.flush()
            self._sent += fault.cut_at
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        pieces = [body] if not (fault and fault.slow) else [body[i : i + 2000] for i in range(0, len(body), 2000)]
        for piece in pieces:
            time.sleep(fault.slow if fault else 0)
            self.wfile.write(piece)
        self._sent += len(body)

    def _json(self, value: Any, status: int = 200, headers: Mapping[str, str] = {}) -> None:
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._json({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})

    def _bytes(self, data: bytes, headers: Mapping[str, str]) -> None:
        """A file, or the range of it that was asked for."""
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None or (self._fault and self._fault.no_ranges):
            self._answer(200, data, {"Accept-Ranges": "bytes", **headers})
            return
        first = int(wanted[1])
        last = min(int(wanted[2] or len(data) - 1), len(data) - 1)
        if first >= len(data):
            self._answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        span = {"Content-Range": f"bytes {first}-{last}/{len(data)}", "Accept-Ranges": "bytes"}
        self._answer(206, data[first : last + 1], {**headers, **span})

    # -- the API -------------------------------------------------------------------------------------------------------

    @property
    def _token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _route(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        if self._token not in (None, TOKEN):
            self._json({"error": "Invalid credentials"}, 401, {"X-Error-Message": INVALID})
        elif path == "/":
            self._answer(200, b"a Hub")
        elif path == "/api/whoami-v2":
            self._whoami()
        elif match := re.fullmatch(r"/api/(model|dataset)s", path):
            self._list(match[1], query)
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/([a-z-]+)(?:/([^/]+)(?:/(.*))?)?)?", path):
            self._api(*match.groups(), query=query, body=body)
        elif match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve("dataset" if match[1] else "model", match[2], match[3], match[4])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._lfs_batch(json.loads(body))
        else:
            self._json({"error": f"no such path {path}"}, 404)

    def _repo(self, kind: str, name: str, revision: str | None) -> Repo | None:
        """The repository, or None when the refusal has been sent."""
        repo = self.server.hub.repos.get((kind, name))
        if repo is None or (repo.private and self._token is None):
            self._refuse(401 if self._token is None else 404, "RepoNotFound", "Repository not found")
            return None
        if revision not in (None, "main", repo.commit, *repo.past, *repo.facts.get("branches", ())):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repo.at(revision)

    def _whoami(self) -> None:
        if self._token is None:
            self._json({"error": "Invalid username or password."}, 401)
        else:
            token = {"displayName": "test", "role": "write"}
            self._json({"type": "user", "name": "me", "orgs": [], "auth": {"accessToken": token}})

    def _list(self, kind: str, query: dict[str, list[str]]) -> None:
        one = {name: values[0] for name, values in query.items()}
        found = [r for (k, _), r in self.server.hub.repos.items() if k == kind]
        found = [r for r in found if one.get("search", "").lower() in r.id.lower()]
        if "pipeline_tag" in one:
            found = [r for r in found if r.facts.get("pipeline_tag") == one["pipeline_tag"]]
        if "sort" in one:
            found.sort(key=lambda r: r.info(False)[one["sort"]], reverse=True)
        start, limit = int(one.get("cursor", 0)), int(one.get("limit", 1000))
        page = found[start : start + min(limit, 3)]  # pages of three, so that the next page is asked for
        headers = {}
        if start + 3 < len(found):
            rest = "&".join(f"{k}={v}" for k, v in one.items() if k != "cursor")
            headers["Link"] = f'<{self.server.hub.url}{urlsplit(self.path).path}?{rest}&cursor={start + 3}>; rel="next"'
        self._json([r.info(False) for r in page], headers=headers)

    def _api(
        self, kind: str, name: str, what: str | None, revision: str | None, rest: str | None, *, query: Any, body: bytes
    ) -> None:
        repo = self._repo(kind, name, None if what in ("preupload", "commit") else revision)
        if repo is None:
            return
        if what in (None, "revision"):
            self._json(repo.info("blobs" in query))
        elif what == "tree":
            self._json(self._tree(repo, rest or "", query.get("recursive", ["False"])[0].lower() in ("true", "1")))
        elif what == "paths-info":
            paths = json.loads(body)["paths"] if body[:1] == b"{" else parse_qs(body.decode())["paths"]
            self._json(self._paths_info(repo, paths))
        elif what == "auth-check":
            if repo.gated and name not in self.server.hub.allowed:
                self._refuse(401 if self._token is None else 403, "GatedRepo", f"Access to {name} is restricted")
            else:
                self._json({})
        elif what == "preupload":
            modes = [self._mode(repo, file) for file in json.loads(body)["files"]]
            self._json({"files": modes})
        elif what == "commit":
            self._commit(repo, body)
        else:
            self._json({"error": f"no such call {what}"}, 404)

    def _tree(self, repo: Repo, under: str, recursive: bool) -> list[dict[str, Any]]:
        prefix = f"{under}/" if under else ""
        inside = [path for path in sorted(repo.files) if path.startswith(prefix)]
        folders = {prefix + path[len(prefix) :].split("/")[0] for path in inside if "/" in path[len(prefix) :]}
        files = [path for path in inside if recursive or "/" not in path[len(prefix) :]]
        entries = [{"type": "directory", "path": f, "size": 0, "oid": "0" * 40} for f in sorted(folders)]
        return entries + [repo.entry(path) for path in files]

    def _paths_info(self, repo: Repo, paths: Iterable[str]) -> list[dict[str, Any]]:
        entries = []
        for path in paths:
            if path in repo.files:
                entries.append(repo.entry(path))
            elif any(name.startswith(f"{path}/") for name in repo.files):
                entries.append({"type": "directory", "path": path, "size": 0, "oid": "0" * 40})
        return entries

    def _resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        repo = self._repo(kind, name, revision)
        if repo is None:
            return
        if repo.gated and name not in self.server.hub.allowed:
            self._refuse(401 if self._token is None else 403, "GatedRepo", f"Access to {name} is restricted")
        elif path not in repo.files:
            self._refuse(404, "EntryNotFound", "Entry not found")
        else:
            data = repo.files[path]
            headers = {"X-Repo-Commit": repo.commit, "ETag": f'"{repo.etag(path)}"'}
            if len(data) < LARGE:
                self._bytes(data, headers)
                return
            where = f"{self.server.hub.blobs}/{kind}/{name}/{path}?commit={repo.commit}&X-Amz-Signature=secret"
            linked = {"X-Linked-ETag": f'"{repo.etag(path)}"', "X-Linked-Size": str(len(data)), "Location": where}
            self._answer(302, b"", {**headers, **linked})

    def _blob(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        if self.command == "PUT":
            self.server.hub.uploads[path.rpartition("/")[2]] = body
            self._answer(200, b"")
            return
        kind, name, file = re.fullmatch(r"/(model|dataset)/([^/]+/[^/]+)/(.+)", path).groups()  # type: ignore[union-attr]
        repo = self.server.hub.repos[kind, name].at(query["commit"][0])
        self._bytes(repo.files[file], {"ETag": f'"{repo.etag(file)}"'})

    # -- writing -------------------------------------------------------------------------------------------------------

    def _create(self, asked: dict[str, Any]) -> None:
        if self._token is None:
            self._json({"error": "Invalid username or password."}, 401)
            return
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        url = f"{self.server.hub.url}/{name}"
        if ("model", name) in self.server.hub.repos:
            self._json({"error": "You already created this model repo", "url": url}, 409)
            return
        self.server.hub.add(name, {}, private=asked.get("visibility") == "private" or bool(asked.get("private")))
        self._json({"url": url, "id": name})

    def _mode(self, repo: Repo, file: dict[str, Any]) -> dict[str, Any]:
        mode = "lfs" if file["size"] >= LARGE else "regular"
        oid = repo.entry(file["path"])["oid"] if file["path"] in repo.files else None
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def _lfs_batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for each in asked["objects"]:
            entry = {"oid": each["oid"], "size": each["size"]}
            if each["oid"] not in self.server.hub.uploads:
                entry["actions"] = {"upload": {"href": f"{self.server.hub.blobs}/put/{each['oid']}", "header": {}}}
            objects.append(entry)
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, repo: Repo, body: bytes) -> None:
        lines = [json.loads(line) for line in body.decode().splitlines() if line.strip()]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repo.files[value["path"]] = self.server.hub.uploads[value["oid"]]
        self.server.hub.commits.append({"repo": repo.id, "lines": [line["key"] for line in lines]})
        url = f"{self.server.hub.url}/{repo.id}/commit/{repo.commit}"
        self._json({"commitOid": repo.commit, "commitUrl": url, "hookOutput": ""})


INVALID = "Invalid credentials in Authorization header"
