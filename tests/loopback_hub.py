"""A Hub in this process, on loopback, for the real `huggingface_hub` client: repositories, commits, tags, LFS, tokens.

Two servers run: one answers the API, the other hands out LFS blobs, as the real Hub's storage does. They must have
different origins: on a redirect within one origin the client looks for the commit header at the target. Xet transfers
are not spoken, so the client runs with `HF_HUB_DISABLE_XET=1`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

LFS_ENDINGS = (".safetensors", ".pth", ".bin", ".png", ".parquet")
OWNER = "hf_owner"  # may read and write everything
STRANGER = "hf_stranger"  # a valid account without rights


@dataclass
class Repo:
    name: str
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # sha -> path -> content
    refs: dict[str, str] = field(default_factory=dict)  # branch or tag -> sha

    def commit(self, branch: str, change: Callable[[dict[str, bytes]], None]) -> str:
        files = dict(self.commits[self.refs[branch]]) if branch in self.refs else {}
        change(files)
        text = json.dumps(
            [self.name, len(self.commits), sorted((k, hashlib.sha1(v).hexdigest()) for k, v in files.items())]
        )
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha] = files
        self.refs[branch] = sha
        return sha

    def find(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)


@dataclass
class Fault:
    """What happens to the next `times` downloads of a file whose name ends with `name`."""

    kind: Literal["drop", "truncate", "corrupt"]  # cut the connection; announce and send half; flip a bit on the way
    name: str
    times: int = 1


class LoopbackHub:
    """Use as a context manager; pass `endpoint=hub.endpoint` to the client."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything but the servers."""
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}  # LFS contents by sha256
        self.faults: list[Fault] = []
        self.requests: list[str] = []  # "METHOD path" of every request to either port
        self.blob_authorizations: list[str] = []  # tokens that reached the blob port: there should be none
        self.commit_header: str | None = None  # sent instead of the true commit: a hostile server

    def __enter__(self) -> LoopbackHub:
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, blobs)) for blobs in (False, True)]
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.endpoint, self.blob_endpoint = (f"http://127.0.0.1:{s.server_address[1]}" for s in self._servers)
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def put(self, repo: str, files: dict[str, bytes], *, branch: str = "main", private: bool = False) -> str:
        """Commit files without the client."""
        entry = self.repos.setdefault(repo, Repo(repo, private))
        return entry.commit(branch, lambda tree: tree.update(files))

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        entry = self.repos[repo]
        return entry.commits[entry.find(revision) or ""]

    def fault(self, name: str) -> str | None:
        for fault in self.faults:
            if fault.times > 0 and name.endswith(fault.name):
                fault.times -= 1
                return fault.kind
        return None


class _RefusedError(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


def _handler(hub: LoopbackHub, blobs: bool) -> type[BaseHTTPRequestHandler]:
    return type("Handler", (_BlobHandler if blobs else _ApiHandler,), {"hub": hub})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self) -> None:
        raise NotImplementedError

    def handle_any(self) -> None:
        self.url = urlsplit(self.path)
        self.path_only = unquote(self.url.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {self.path_only}")
        try:
            self.answer()
        except _RefusedError as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self.send(refusal.status, b"{}", {k: v for k, v in headers.items() if v})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any  # noqa: N815

    def send(self, status: int, content: bytes, headers: dict[str, str], length: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_json(self, value: Any, status: int = 200) -> None:
        self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send_file(self, name: str, content: bytes, headers: dict[str, str]) -> None:
        """The body of a download, honouring Range and the faults that were ordered."""
        status, total = 200, len(content)
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if start:
            status, content = 206, content[int(start[1]) :]
            headers = headers | {"Content-Range": f"bytes {start[1]}-{total - 1}/{total}"}
        fault = self.hub.fault(name) if self.command == "GET" else None
        if fault == "corrupt":
            content = content[:-1] + bytes([content[-1] ^ 1])
        elif fault == "truncate":
            content = content[: len(content) // 2]
        if fault == "drop":
            half = content[: len(content) // 2]
            self.send(status, half, headers, length=len(content))
            self.wfile.flush()
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.send(status, content, headers)


class _BlobHandler(_Handler):
    def answer(self) -> None:
        if self.headers.get("Authorization") and self.command != "POST":  # the Hub itself answers its `verify`
            self.hub.blob_authorizations.append(self.headers["Authorization"])
        oid = self.path_only.split("/")[1]
        if self.command == "PUT":
            if hashlib.sha256(self.body).hexdigest() != oid:
                raise _RefusedError(400)
            self.hub.blobs[oid] = self.body
            self.send(200, b"", {})
        elif self.command == "POST":  # verify
            self.send(200 if oid in self.hub.blobs else 404, b"", {})
        else:
            name = parse_qs(self.url.query).get("name", [""])[0]
            self.send_file(name, self.hub.blobs[oid], {"Content-Type": "application/octet-stream"})


class _ApiHandler(_Handler):
    @property
    def token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def answer(self) -> None:
        if self.token and self.token not in (OWNER, STRANGER):
            raise _RefusedError(401, message="Invalid credentials in Authorization header")
        routes: list[tuple[str, str, Callable[..., None]]] = [
            ("POST", r"/api/repos/create", self.create),
            ("DELETE", r"/api/repos/delete", self.delete),
            ("POST", r"/api/validate-yaml", lambda: self.send_json({"errors": [], "warnings": []})),
            ("GET", r"/api/whoami-v2", lambda: self.send_json({"name": "org", "type": "user", "orgs": []})),
            ("POST", r"/api/models/([^/]+/[^/]+)/preupload/(.+)", self.preupload),
            ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self.lfs_batch),
            ("POST", r"/api/models/([^/]+/[^/]+)/commit/(.+)", self.commit),
            ("POST", r"/api/models/([^/]+/[^/]+)/tag/(.+)", self.tag),
            ("POST", r"/api/models/([^/]+/[^/]+)/branch/(.+)", self.branch),
            ("GET", r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?(.*)", self.tree),
            ("GET", r"/api/models/([^/]+/[^/]+)/refs", self.refs),
            ("GET", r"/api/models/([^/]+/[^/]+)/revision/(.+)", self.info),
            ("GET", r"/api/models/([^/]+/[^/]+)", self.info),
            ("HEAD|GET", r"/([^/]+/[^/]+)/resolve/([^/]+|refs/[^/]+/[^/]+)/(.+)", self.resolve),
        ]
        for methods, pattern, function in routes:
            match = re.fullmatch(pattern, self.path_only)
            if match and self.command in methods.split("|"):
                return function(*match.groups())
        raise _RefusedError(404, "EntryNotFound")

    def repo(self, name: str, write: bool = False) -> Repo:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self.token != OWNER):
            # Like the Hub: without a token one cannot tell a private repository from none.
            raise _RefusedError(404 if self.token else 401, "RepoNotFound", "Repository not found")
        if repo.gated and self.token != OWNER:
            raise _RefusedError(403 if self.token else 401, "GatedRepo", f"Access to model {name} is restricted")
        if write and self.token != OWNER:
            raise _RefusedError(403 if self.token else 401, message="You have no write access to this repository")
        return repo

    def find(self, repo: Repo, revision: str) -> str:
        sha = repo.find(revision)
        if sha is None:
            raise _RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def create(self) -> None:
        if self.token != OWNER:
            raise _RefusedError(403 if self.token else 401, message="You have no right to create a model here")
        request = json.loads(self.body)
        name = f"{request.get('organization') or 'org'}/{request['name']}"
        known = name in self.hub.repos
        if not known:
            private = request.get("private") or request.get("visibility") == "private"
            self.hub.repos[name] = repo = Repo(name, bool(private))
            repo.commit("main", lambda tree: tree.update({".gitattributes": b"*.safetensors filter=lfs\n"}))
        self.send_json({"url": f"{self.hub.endpoint}/{name}", "name": name}, 409 if known else 200)

    def delete(self) -> None:
        request = json.loads(self.body)
        name = f"{request.get('organization') or 'org'}/{request['name']}"
        self.repo(name, write=True)
        del self.hub.repos[name]
        self.send_json({})

    def preupload(self, name: str, revision: str) -> None:
        tree = self.repo(name, write=True)
        known = tree.commits[self.find(tree, revision)]
        files = []
        for file in json.loads(self.body)["files"]:
            mode = "lfs" if file["path"].endswith(LFS_ENDINGS) else "regular"
            oid = _oid(file["path"], known[file["path"]]) if file["path"] in known else None
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.send_json({"files": files})

    def lfs_batch(self, name: str) -> None:
        self.repo(name, write=True)
        objects = []
        for item in json.loads(self.body)["objects"]:
            entry = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.blobs:
                href = f"{self.hub.blob_endpoint}/{item['oid']}"
                entry["actions"] = {"upload": {"href": href, "header": {}}, "verify": {"href": href, "header": {}}}
            objects.append(entry)
        self.send_json({"transfer": "basic", "objects": objects})

    def commit(self, name: str, branch: str) -> None:
        repo = self.repo(name, write=True)
        self.find(repo, branch)
        lines = [json.loads(line) for line in self.body.decode().splitlines() if line]

        def change(tree: dict[str, bytes]) -> None:
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    tree[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    tree[value["path"]] = self.hub.blobs[value["oid"]]
                elif line["key"] == "deletedFile":
                    del tree[value["path"]]

        sha = repo.commit(branch, change)
        url = f"{self.hub.endpoint}/{name}/commit/{sha}"
        self.send_json({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def tag(self, name: str, revision: str) -> None:
        repo = self.repo(name, write=True)
        repo.refs[json.loads(self.body)["tag"]] = self.find(repo, revision)
        self.send_json({})

    def branch(self, name: str, branch: str) -> None:
        repo = self.repo(name, write=True)
        if branch in repo.refs:
            raise _RefusedError(409, message="Reference already exists")
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        repo.refs[branch] = self.find(repo, start)
        self.send_json({})

    def refs(self, name: str) -> None:
        repo = self.repo(name)
        branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": sha} for n, sha in repo.refs.items()]
        self.send_json({"branches": branches, "tags": [], "converts": []})

    def tree(self, name: str, revision: str, folder: str) -> None:
        repo = self.repo(name)
        files = repo.commits[self.find(repo, revision)]
        entries = []
        for path, content in sorted(files.items()):
            if folder and not path.startswith(f"{folder}/"):
                continue
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _git_oid(content)}
            if path.endswith(LFS_ENDINGS):
                entry["lfs"] = {"oid": _oid(path, content), "size": len(content), "pointerSize": 130}
            entries.append(entry)
        if folder and not entries:
            raise _RefusedError(404, "EntryNotFound")
        self.send_json(entries)

    def info(self, name: str, revision: str = "main") -> None:
        repo = self.repo(name)
        sha = self.find(repo, revision)
        siblings = [{"rfilename": path} for path in sorted(repo.commits[sha])]
        facts = {
            "private": repo.private,
            "gated": repo.gated,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
        }
        self.send_json({"id": name, "modelId": name, "sha": sha, "siblings": siblings, **facts})

    def resolve(self, name: str, revision: str, path: str) -> None:
        repo = self.repo(name)
        sha = self.find(repo, revision)
        commit = {"X-Repo-Commit": self.hub.commit_header or sha}
        content = repo.commits[sha].get(path)
        if content is None:
            headers = {**commit, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return self.send(404, b"", headers)
        oid = _oid(path, content)
        if not path.endswith(LFS_ENDINGS):
            return self.send_file(path, content, {**commit, "ETag": f'"{oid}"'})
        self.hub.blobs.setdefault(oid, content)
        linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
        location = f"{self.hub.blob_endpoint}/{oid}?name={path}"
        self.send(302, b"", {**commit, **linked, "Location": location})


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _oid(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if path.endswith(LFS_ENDINGS) else _git_oid(content)
