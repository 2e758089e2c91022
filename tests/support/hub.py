"""A small Hub on 127.0.0.1 for tests: the part of its HTTP API that the official clients call.

`huggingface_hub`, `transformers` and `datasets` run against it unmodified. It keeps repositories,
branches, pull requests and large files in memory, checks tokens as the Hub does, and can be told
to fail. Large files go through LFS, or through Xet where asked (then uploads alone). Clients read which, the
endpoint and the token at import, so give `server.environment(home, token=...)` to a fresh process:

    with HubServer() as server:
        server.add_token("hf_write", user="me")
        subprocess.run([...], env=server.environment(tmp_path / "home", token="hf_write"))
"""

import base64
import hashlib
import json
import mimetypes
import os
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from support.xet import XET_ROUTES, XetRoutes

LARGE_FILE_SUFFIXES = (".safetensors", ".bin", ".parquet", ".arrow", ".npz", ".gz", ".zip")
GIT_ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE_FILE_SUFFIXES).encode()
# What the Hub itself commits to a new Space of the kind "static".
SPACE_FILES = {"README.md": b"---\nsdk: static\n---\n\nCheck out the configuration reference\n"}
SPACE_FILES |= {"index.html": b"<p>Welcome to your static Space!</p>", "style.css": b"p {}"}
ANY_REPO = r"/api/(?P<kind>model|dataset|space)s/(?P<repo>[^/]+/[^/]+)"
ANY_PAGE = r"/(?P<kind>(dataset|space)s/)?(?P<repo>[^/]+/[^/]+)"


@dataclass(frozen=True)
class Blob:
    """The content of one file in one commit; `sha256` is set for files kept as large files."""

    content: bytes
    sha256: str | None = None

    @property
    def oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid


@dataclass
class Commit:
    """One state of a repository; `files` maps each path to its blob."""

    oid: str
    parent: str | None
    title: str
    message: str
    author: str
    files: dict[str, Blob]
    date: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"))


@dataclass
class Repo:
    """The repository of a model, a dataset or a static Space; `refs` maps branches and `refs/pr/N` to commits."""

    kind: str
    name: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def find(self, revision: str) -> Commit | None:
        return self.commits.get(self.refs.get(revision, revision))

    def add_commit(
        self, revision: str, files: dict[str, Blob], title: str, message: str, author: str, parent: str | None
    ) -> Commit:
        seed = f"{self.name} {len(self.commits)} {parent} {title} {sorted(files.items())}"
        commit = Commit(hashlib.sha1(seed.encode()).hexdigest(), parent, title, message, author, files)
        self.commits[commit.oid] = commit
        self.refs[revision] = commit.oid
        return commit

    def history(self, revision: str = "main") -> list[Commit]:
        """The commits of `revision`, newest first; the last is the Hub's own "initial commit"."""
        commits, commit = [], self.find(revision)
        while commit is not None:
            commits.append(commit)
            commit = self.commits.get(commit.parent or "")
        return commits


@dataclass(frozen=True)
class Account:
    """Whose token it is, and its role: "write", "read" or "fineGrained" with its `scopes`."""

    user: str
    role: str
    organizations: tuple[str, ...] = ()
    scopes: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def can_write(self, namespace: str, repo: str | None = None) -> bool:
        if self.role == "fineGrained":
            return any(name in (namespace, repo) and "repo.write" in rights for name, rights in self.scopes)
        return self.role == "write" and namespace in (self.user, *self.organizations)


@dataclass
class Failure:
    methods: tuple[str, ...]
    path: re.Pattern[str]
    status: int | str
    times: int
    after: int
    seconds: float
    content: Any
    headers: dict[str, str]


class Refusal(Exception):
    """An error answer in the Hub's form."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": message}
        self.headers = {"X-Error-Message": message, **headers}
        if code is not None:
            self.headers["X-Error-Code"] = code


class HubServer:
    """The server and all it keeps, open to the test. Use as a context manager."""

    def __init__(self) -> None:
        self.tokens: dict[str, Account] = {}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.large_files: dict[str, bytes] = {}
        self.part_size: int | None = None  # larger files are to be uploaded in parts of so many bytes
        self.parts: dict[tuple[str, int], bytes] = {}
        self.xorbs_sent: dict[str, bytes] = {}
        self.xorbs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.failures: list[Failure] = []
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> "HubServer":
        # A short poll so that leaving the block does not wait half a second.
        serve = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        serve.daemon = True
        serve.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def add_token(
        self,
        token: str,
        user: str = "me",
        role: str = "write",
        organizations: tuple[str, ...] = (),
        scopes: tuple[tuple[str, tuple[str, ...]], ...] = (),
    ) -> str:
        self.tokens[token] = Account(user, role, organizations, scopes)
        return token

    def fail(
        self,
        method: str,
        path: str,
        *,
        status: int | str = 503,
        times: int = 1,
        after: int = 0,
        seconds: float = 1.0,
        content: Any = None,
        **headers: str,
    ) -> Failure:
        """Make `times` requests whose path matches the regular expression fail, once `after` have passed.

        `method` may name several ("GET|HEAD").

        An HTTP `status` is answered without any effect, with `headers` (Retry_After="0") and, as the
        gateways before the Hub do, with a page of HTML where it is 500 or more. Others are:

        - "cut": the connection is reset halfway through the body (of the request, or of the answer
          to a GET);
        - "closed": the same of an answer, but closed in good order, and the client may go on there;
        - "lost_answer": the request takes effect and the connection is closed before the answer;
        - "late_504": the request takes effect, and a gateway has given up on it before;
        - "page": a page of HTML with status 200, as the login pages of networks are;
        - "json": `content` with status 200, in place of what the Hub would answer;
        - "revoke": the token that came with it is no more, for this request and all that follow;
        - "overtaken": somebody else commits to main just before;
        - "overtaken_branch": the same, to the branch that the commit is for;
        - "slow": all goes well, `seconds` later; the client may be gone by then.
        """
        methods = tuple(method.split("|"))
        failure = Failure(methods, re.compile(path), status, times, after, seconds, content, headers)
        self.failures.append(failure)
        return failure

    def add_repo(
        self, name: str, files: dict[str, bytes] | None = None, kind: str = "model", private: bool = False
    ) -> Repo:
        """Create a repository with the initial commit of the Hub and maybe one with `files`."""
        with self.lock:
            repo = self.repos[kind, name] = Repo(kind, name, private)
            attributes = {".gitattributes": Blob(GIT_ATTRIBUTES)}
            if kind == "space":
                attributes |= {path: Blob(content) for path, content in SPACE_FILES.items()}
            first = repo.add_commit("main", attributes, "initial commit", "", "system", None)
            if files:
                blobs = {path: self._blob(path, content) for path, content in files.items()}
                repo.add_commit("main", attributes | blobs, "Add files", "", "system", first.oid)
        return repo

    def add_commit(self, name: str, title: str = "By somebody else", revision: str = "main") -> Commit:
        """A commit to a branch of a model that changes one file, as another person's push would."""
        with self.lock:
            repo = self.repos["model", name]
            head = repo.find(revision)
            files = head.files | {"notes.txt": Blob(head.oid.encode())}
            return repo.add_commit(revision, files, title, "", "somebody", head.oid)

    def repo(self, name: str, kind: str = "model") -> Repo:
        return self.repos[kind, name]

    def space_url(self, name: str) -> str:
        """The page of a static Space, under a host of its own as on the real Hub: browsers take it for this machine."""
        return f"http://{subdomain(name)}.localhost:{self._http.server_port}"

    def environment(self, home: str | Path, token: str | None = None, xet: bool = False) -> dict[str, str]:
        """The variables a client process needs, without any token or cache of this machine."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        kept.pop("HUGGING_FACE_HUB_TOKEN", None)
        variables = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": str(int(not xet)),
            "HF_XET_XORB_COMPRESSION_POLICY": "none",  # Python could not decompress it
            "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        }
        return kept | variables | ({"HF_TOKEN": token} if token is not None else {})

    def _blob(self, path: str, content: bytes) -> Blob:
        if not is_large_file(path, content[:512]):
            return Blob(content)
        sha256 = hashlib.sha256(content).hexdigest()
        self.large_files[sha256] = content
        return Blob(content, sha256)

    def _take_failure(self, method: str, path: str) -> Failure | None:
        with self.lock:
            for failure in self.failures:
                if failure.times > 0 and method in failure.methods and failure.path.search(path):
                    if failure.after > 0:
                        failure.after -= 1
                        continue
                    failure.times -= 1
                    return failure
        return None


def subdomain(space: str) -> str:
    """The name of a Space, as a part of its host."""
    return re.sub(r"[^a-z0-9]+", "-", space.lower())


def is_large_file(path: str, sample: bytes) -> bool:
    """Whether the Hub keeps a file as a large file: by its ending, or because it is binary."""
    return path.endswith(LARGE_FILE_SUFFIXES) or b"\0" in sample


def read_card_metadata(content: str) -> dict[str, Any] | None:
    """The YAML block at the top of a card, None where there is none; raises `yaml.YAMLError`."""
    found = re.match(r"\s*---[ \t]*\n(.*?)\n---[ \t]*(\n|$)", content, re.DOTALL)
    return yaml.safe_load(found[1]) if found else None


def read_card_data(content: bytes) -> dict[str, Any]:
    """What the Hub shows of a card's metadata, whatever was pushed."""
    try:
        return read_card_metadata(content.decode(errors="replace")) or {}
    except yaml.YAMLError:
        return {}


LICENSES = ("apache-2.0", "cc-by-4.0", "mit", "openrail", "other")  # some of the Hub's


COLORS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")


def find_card_errors(metadata: Any, kind: str | None = "model") -> list[str]:
    """What the Hub refuses in a card's metadata (the rules that matter for models and static Spaces)."""
    if not isinstance(metadata, dict):
        return ["metadata must be a mapping"]
    errors = []
    if kind == "space":
        errors += [] if metadata.get("sdk") in ("gradio", "docker", "static") else ['"sdk" must be one of them']
        errors += [f'"{key}" must be a colour' for key in ("colorFrom", "colorTo") if metadata.get(key) not in COLORS]
        if len(metadata.get("short_description", "")) > 60:
            errors.append('"short_description" length must be less than or equal to 60 characters long')
    errors += [
        f'"{key}" must be a string'
        for key in ("license", "pipeline_tag", "library_name")
        if not isinstance(metadata.get(key, ""), str)
    ]
    if metadata.get("license", "mit") not in LICENSES:
        errors.append(f'"license" must be one of [{", ".join(LICENSES)}]')
    errors += [
        f'"{key}" must be a list of strings'
        for key in ("tags", "datasets", "metrics", "models")
        if not all(isinstance(item, str) for item in metadata.get(key) or [])
    ]
    for number, model in enumerate(metadata.get("model-index") or []):
        place = f"model-index[{number}]"
        if not isinstance(model.get("name"), str):
            errors.append(f'"{place}.name" is required')
        for result in model.get("results", []):
            dataset = result.get("dataset", {})
            if not isinstance(result.get("task", {}).get("type"), str):
                errors.append(f'"{place}.results.task.type" is required')
            for key in ("name", "type"):
                if not isinstance(dataset.get(key), str):
                    errors.append(f'"{place}.results.dataset.{key}" is required')
            for key in ("config", "split", "revision"):
                if not isinstance(dataset.get(key, ""), str):
                    errors.append(f'"{place}.results.dataset.{key}" must be a string')
            for metric in result.get("metrics", []):
                if not isinstance(metric.get("type"), str) or metric.get("value") is None:
                    errors.append(f'"{place}.results.metrics" needs type and value')
    return errors


class _Handler(XetRoutes, BaseHTTPRequestHandler):
    """One method a kind of request; `ROUTES` below says which."""

    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *_: object) -> None:
        """Stay quiet: tests read `hub.requests`."""

    def handle_request(self) -> None:
        method, url = self.command, urlsplit(self.path)
        self.hub.requests.append((method, self.path))
        failure = self.hub._take_failure(method, url.path)
        fault = failure and failure.status
        if fault == "cut" and method != "GET":
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            return self._reset()
        self.body = self._read_body()
        self.query = parse_qs(url.query)
        if fault == "slow":
            time.sleep(failure.seconds)
        if fault == "revoke":
            self.hub.tokens.pop(self._token(), None)
        if fault in ("overtaken", "overtaken_branch"):
            repo, place = re.search(r"models/([^/]+/[^/]+)/\w+/([^/]+)", url.path).groups()
            self.hub.add_commit(repo, revision="main" if fault == "overtaken" else unquote(place))
        if fault == "page" or (isinstance(fault, int) and fault >= 500):
            return self._answer_page(200 if fault == "page" else fault, failure.headers)
        if fault == "json":
            return self._answer(200, failure.content, {}, cut="")
        status, content, headers = self._act(method, url.path, failure)
        if fault == "late_504":
            return self._answer_page(504, failure.headers)
        if fault == "lost_answer":
            self.close_connection = True
            return
        try:
            self._answer(status, content, headers, cut=fault if fault in ("cut", "closed") else "")
        except ConnectionError:  # the client did not wait
            self.close_connection = True

    def _act(self, method: str, path: str, failure: Failure | None) -> tuple[int, Any, dict]:
        """Does what is asked; returns status, content and headers of the answer."""
        try:
            if failure and isinstance(failure.status, int):
                headers = {name.replace("_", "-"): value for name, value in failure.headers.items()}
                message = "Something is wrong with this server, on purpose."
                raise Refusal(failure.status, message, **headers)
            account = self._authenticate()
            host = self.headers.get("Host", "").partition(":")[0]
            if host.endswith(".localhost"):
                return self.space_file(host.removesuffix(".localhost"), unquote(path))
            for route_method, pattern, action in ROUTES:
                found = re.fullmatch(pattern, path)
                if found and route_method == method.replace("HEAD", "GET"):
                    groups = {key: unquote(value or "") for key, value in found.groupdict().items()}
                    with self.hub.lock:
                        return action(self, account, **groups)
            raise Refusal(404, f"No such page: {method} {path}")
        except Refusal as refusal:
            return refusal.status, refusal.body, refusal.headers

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    # Reading and answering

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, status: int, content: Any, headers: dict[str, str], cut: str) -> None:
        is_bytes = isinstance(content, bytes)
        data = content if is_bytes else json.dumps(content).encode()
        kind = "application/octet-stream" if is_bytes else "application/json"
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted and "Accept-Ranges" in headers:
            first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
            if first >= len(data):
                status, data = 416, b""
            else:
                headers = headers | {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
                status, data = 206, data[first : last + 1]
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(data))} | headers
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut == "cut":
            self.wfile.flush()
            time.sleep(0.05)  # a reset overtakes what was not yet read
            self._reset()
        self.close_connection = self.close_connection or bool(cut)

    def _answer_page(self, status: int, headers: dict[str, str]) -> None:
        page = b"<html><body>Please come again.</body></html>"
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self._answer(status, page, {"Content-Type": "text/html"} | headers, cut="")

    def _reset(self) -> None:
        """Drop the connection the hard way, with a TCP reset."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        self.rfile.close()
        self.connection.close()

    def finish(self) -> None:
        if not self.rfile.closed:
            super().finish()

    # Rights

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ").removeprefix("xet_")

    def _authenticate(self) -> Account | None:
        token = self._token()
        if token and token not in self.hub.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.hub.tokens.get(token)

    def _find_repo(self, account: Account | None, kind: str, name: str) -> Repo:
        repo = self.hub.repos.get((kind, name))
        namespace = name.split("/")[0]
        hidden = repo is not None and repo.private
        if hidden and account and namespace in (account.user, *account.organizations):
            hidden = False
        if repo is None or hidden:
            status = 401 if account is None else 404
            raise Refusal(status, "Repository not found", "RepoNotFound")
        return repo

    def _find_commit(self, repo: Repo, revision: str) -> Commit:
        commit = repo.find(revision)
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def _check_write(self, account: Account | None, repo: Repo) -> None:
        if account is None:
            raise Refusal(401, "Invalid username or password.")
        if account.role == "read":
            raise Refusal(403, "Forbidden: you must use a write token to upload to a repository.")
        may_push = account.can_write(repo.name.split("/")[0], repo.name)
        if not may_push and "create_pr" not in self.query:
            message = "pass `create_pr=1` as a query parameter to create a Pull Request"
            raise Refusal(403, f"Forbidden: {message}")

    # Users and repositories

    def _page(self, kind: str, repo: str) -> str:
        return f"{self.hub.url}/{'' if kind == 'model' else f'{kind}s/'}{repo}"

    def whoami(self, account: Account | None):
        if account is None:
            raise Refusal(401, "Invalid username or password.")
        token: dict[str, Any] = {"displayName": "test", "role": account.role}
        if account.role == "fineGrained":
            token["fineGrained"] = {
                "global": [],
                "scoped": [
                    {"entity": {"type": "user", "name": name}, "permissions": list(rights)}
                    for name, rights in account.scopes
                ],
            }
        organizations = [{"type": "org", "name": name, "roleInOrg": "write"} for name in account.organizations]
        auth = {"type": "access_token", "accessToken": token}
        return 200, {"type": "user", "name": account.user, "orgs": organizations, "auth": auth}, {}

    def create_repo(self, account: Account | None):
        wanted = json.loads(self.body)
        if account is None:
            raise Refusal(401, "Invalid username or password.")
        kind, namespace = wanted.get("type") or "model", wanted["organization"] or account.user
        name = f"{namespace}/{wanted['name']}"
        if kind == "space" and wanted.get("sdk") != "static":
            raise Refusal(400, '"sdk" is required')
        if not account.can_write(namespace):
            message = f"You don't have the rights to create a {kind} under the namespace"
            raise Refusal(403, f'{message} "{namespace}"')
        url = self._page(kind, name)
        if (kind, name) in self.hub.repos:
            return 409, {"error": f"You already created this {kind} repo", "url": url}, {}
        self.hub.add_repo(name, kind=kind, private=wanted.get("visibility") == "private")
        return 200, {"url": url, "name": name}, {}

    def delete_repo(self, account: Account | None):
        wanted = json.loads(self.body)
        namespace = wanted.get("organization") or (account.user if account else "")
        name, kind = f"{namespace}/{wanted['name']}", wanted.get("type") or "model"
        self._check_write(account, self._find_repo(account, kind, name))
        del self.hub.repos[kind, name]
        return 200, {}, {}

    def repo_info(self, account: Account | None, kind: str, repo: str, revision: str):
        found = self._find_repo(account, kind, repo)
        commit = self._find_commit(found, revision or "main")
        readme = commit.files.get("README.md")
        card = read_card_data(readme.content) if readme else {}
        siblings = [
            {"rfilename": path, "size": len(blob.content), "blobId": blob.oid}
            for path, blob in sorted(commit.files.items())
        ]
        for entry in siblings:
            sha256 = commit.files[entry["rfilename"]].sha256
            if sha256:
                entry["lfs"] = {"sha256": sha256, "size": entry["size"], "pointerSize": 134}
        info = {
            "id": repo,
            "author": repo.split("/")[0],
            "sha": commit.oid,
            "private": found.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "lastModified": commit.date,
            "tags": card.get("tags") or [],
            "cardData": card,
            "siblings": siblings,
        }
        shown = {key: card[key] for key in ("pipeline_tag", "library_name", "sdk") if key in card}
        return 200, info | shown, {}

    def auth_check(self, account: Account | None, kind: str, repo: str, write: str):
        found = self._find_repo(account, kind, repo)
        if write:
            self._check_write(account, found)
        return 200, {}, {}

    def refs(self, account: Account | None, kind: str, repo: str):
        found = self._find_repo(account, kind, repo)
        branches, pull_requests = [], []
        for name, oid in found.refs.items():
            is_pull_request = name.startswith("refs/")
            entry = {
                "name": name.removeprefix("refs/pr/"),
                "ref": name if is_pull_request else f"refs/heads/{name}",
                "targetCommit": oid,
            }
            (pull_requests if is_pull_request else branches).append(entry)
        answer = {"branches": branches, "converts": [], "tags": [], "pullRequests": pull_requests}
        return 200, answer, {}

    def commits(self, account: Account | None, kind: str, repo: str, revision: str):
        found = self._find_repo(account, kind, repo)
        self._find_commit(found, revision)
        listed = [
            {
                "id": commit.oid,
                "title": commit.title,
                "message": commit.message,
                "date": commit.date,
                "authors": [{"user": commit.author}],
            }
            for commit in found.history(revision)
        ]
        return 200, listed, {}

    def create_branch(self, account: Account | None, kind: str, repo: str, branch: str):
        found = self._find_repo(account, kind, repo)
        self._check_write(account, found)
        if branch.startswith("refs/"):
            raise Refusal(400, f"Invalid reference for a branch: {branch}")
        if branch in found.refs:
            raise Refusal(409, f"Reference already exists: {branch}")
        start = json.loads(self.body or b"{}").get("startingPoint", "main")
        found.refs[branch] = self._find_commit(found, start).oid
        return 201, {}, {}

    # Reading files

    def _describe(self, path: str, blob: Blob) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path}
        entry |= {"oid": blob.oid, "size": len(blob.content)}
        if blob.sha256:
            entry["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 134}
        return entry

    def _list_folder(self, commit: Commit, folder: str, recursive: bool) -> list[dict[str, Any]]:
        prefix = f"{folder}/" if folder else ""
        entries: dict[str, dict[str, Any]] = {}
        for path, blob in sorted(commit.files.items()):
            if not path.startswith(prefix):
                continue
            parts = path[len(prefix) :].split("/")
            for depth in range(1, len(parts)):
                parent = prefix + "/".join(parts[:depth])
                if recursive or depth == 1:
                    oid = hashlib.sha1(parent.encode()).hexdigest()
                    entries[parent] = {"type": "directory", "path": parent, "oid": oid, "size": 0}
            if recursive or len(parts) == 1:
                entries[path] = self._describe(path, blob)
        return list(entries.values())

    def tree(self, account: Account | None, kind: str, repo: str, revision: str, folder: str):
        commit = self._find_commit(self._find_repo(account, kind, repo), revision)
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = self._list_folder(commit, folder, recursive)
        if folder and not entries:
            raise Refusal(404, f"{folder} does not exist on {revision!r}", "EntryNotFound")
        return 200, entries, {}

    def resolve(self, account: Account | None, kind: str, repo: str, revision: str, path: str):
        try:
            answer = self._resolve(account, kind[:-2] or "model", repo, revision, path)
        except Refusal as refusal:
            answer = refusal.status, refusal.body, refusal.headers
        # Pages of any origin may read the answers, refusals too.
        return *answer[:2], answer[2] | {"Access-Control-Allow-Origin": "*"}

    def space_file(self, host: str, path: str):
        """A file of a static Space, from its own host."""
        for (kind, name), repo in self.hub.repos.items():
            if kind == "space" and subdomain(name) == host and not repo.private:
                path = path.removeprefix("/") or "index.html"
                blob = repo.find("main").files.get(path)
                if blob is None:
                    break
                return 200, blob.content, {"Content-Type": mimetypes.guess_type(path)[0] or "text/plain"}
        raise Refusal(404, "Sorry, we can't find the page you are looking for.")

    def _resolve(self, account: Account | None, kind: str, repo: str, revision: str, path: str):
        commit = self._find_commit(self._find_repo(account, kind, repo), revision)
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if path not in commit.files:
            raise Refusal(404, "Entry not found", "EntryNotFound", **headers)
        blob = commit.files[path]
        headers["ETag"] = f'"{blob.etag}"'
        if blob.sha256:
            headers |= {"X-Linked-Size": str(len(blob.content)), "X-Linked-Etag": f'"{blob.etag}"'}
        return 200, blob.content, headers

    # Writing files

    def validate_yaml(self, account: Account | None):
        sent = json.loads(self.body)
        try:
            metadata = read_card_metadata(sent["content"])
        except yaml.YAMLError as error:
            return 400, {"errors": [{"message": str(error)}], "warnings": []}, {}
        if metadata is None:
            warning = "empty or missing yaml metadata in repo card"
            return 200, {"errors": [], "warnings": [{"message": warning}]}, {}
        errors = [{"message": message} for message in find_card_errors(metadata, sent.get("repoType"))]
        return (400 if errors else 200), {"errors": errors, "warnings": []}, {}

    def preupload(self, account: Account | None, kind: str, repo: str, revision: str):
        found = self._find_repo(account, kind, repo)
        self._check_write(account, found)
        commit = self._find_commit(found, revision)
        files = []
        for sent in json.loads(self.body)["files"]:
            large = is_large_file(sent["path"], base64.b64decode(sent["sample"]))
            known = commit.files.get(sent["path"])
            files.append(
                {
                    "path": sent["path"],
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": False,
                    "oid": known.etag if known else None,
                }
            )
        return 200, {"files": files}, {}

    def lfs_batch(self, account: Account | None, kind: str, repo: str):
        # Like the Hub: who may open a pull request may store large files.
        self._find_repo(account, kind[:-2] or "model", repo)
        if account is None or account.role == "read":
            raise Refusal(403, "Forbidden: you must use a write token to upload to a repository.")
        objects = []
        for sent in json.loads(self.body)["objects"]:
            entry = {"oid": sent["oid"], "size": sent["size"]}
            if sent["oid"] not in self.hub.large_files:
                upload = self._describe_upload(sent["oid"], sent["size"])
                verify = {"href": f"{self.hub.url}/large-files/{sent['oid']}/verify"}
                entry["actions"] = {"upload": upload, "verify": verify}
            objects.append(entry)
        return 200, {"transfer": "basic", "objects": objects}, {}

    def _describe_upload(self, sha256: str, size: int) -> dict[str, Any]:
        page = f"{self.hub.url}/large-files/{sha256}"
        part_size = self.hub.part_size
        if part_size is None or size <= part_size:
            return {"href": page}
        numbers = range(1, -(-size // part_size) + 1)
        urls = {f"{number:05}": f"{page}/part/{number}" for number in numbers}
        return {"href": f"{page}/complete", "header": {"chunk_size": str(part_size), **urls}}

    def lfs_put_part(self, account: Account | None, sha256: str, number: str):
        self.hub.parts[sha256, int(number)] = self.body
        return 200, {}, {"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'}

    def lfs_complete(self, account: Account | None, sha256: str):
        """Puts the parts together, in the order and with the ETags that the client names."""
        content = b""
        for part in json.loads(self.body)["parts"]:
            found = self.hub.parts.get((sha256, part["partNumber"]), b"")
            if part["etag"] != f'"{hashlib.md5(found).hexdigest()}"':
                raise Refusal(400, f"Part {part['partNumber']} of {sha256} is another.")
            content += found
        self.body = content
        return self.lfs_put(account, sha256)

    def lfs_put(self, account: Account | None, sha256: str):
        if hashlib.sha256(self.body).hexdigest() != sha256:
            raise Refusal(400, f"The content does not have the SHA-256 {sha256}.")
        self.hub.large_files[sha256] = self.body
        return 200, {}, {}

    def lfs_verify(self, account: Account | None, sha256: str):
        size = len(self.hub.large_files.get(sha256, b""))
        if size != json.loads(self.body)["size"]:
            raise Refusal(404, f"No large file {sha256} of this size.")
        return 200, {}, {}

    def commit(self, account: Account | None, kind: str, repo: str, revision: str):
        found = self._find_repo(account, kind, repo)
        self._check_write(account, found)
        parent = self._find_commit(found, revision)
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        header = lines[0]["value"]
        if header.get("parentCommit", parent.oid) != parent.oid:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(parent.files)
        for line in lines[1:]:
            self._apply(line["key"], line["value"], files)
        target, pull_request, page = revision, None, self._page(kind, repo)
        if "create_pr" in self.query:
            number = 1 + sum(name.startswith("refs/pr/") for name in found.refs)
            target, pull_request = f"refs/pr/{number}", f"{page}/discussions/{number}"
        title, description = header["summary"], header.get("description", "")
        commit = found.add_commit(target, files, title, description, account.user, parent.oid)
        answer = {"success": True, "commitOid": commit.oid, "pullRequestUrl": pull_request}
        return 200, answer | {"commitUrl": f"{page}/commit/{commit.oid}"}, {}

    def _apply(self, key: str, value: dict[str, Any], files: dict[str, Blob]) -> None:
        path = value["path"]
        if key == "file":
            files[path] = Blob(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            if value["oid"] not in self.hub.large_files:
                raise Refusal(400, f"The large file of {path} was not uploaded.")
            files[path] = Blob(self.hub.large_files[value["oid"]], value["oid"])
        elif key == "deletedFile" and path in files:
            del files[path]
        elif key == "deletedFolder" and any(name.startswith(path) for name in files):
            for name in [name for name in files if name.startswith(path.rstrip("/") + "/")]:
                del files[name]
        else:
            raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")


ROUTES = [
    *XET_ROUTES,
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/repos/create", _Handler.create_repo),
    ("DELETE", r"/api/repos/delete", _Handler.delete_repo),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("GET", ANY_REPO + r"(/revision/(?P<revision>[^/]+))?", _Handler.repo_info),
    ("GET", ANY_REPO + r"/auth-check(?P<write>/write)?", _Handler.auth_check),
    ("GET", ANY_REPO + r"/refs", _Handler.refs),
    ("GET", ANY_REPO + r"/commits/(?P<revision>[^/]+)", _Handler.commits),
    ("POST", ANY_REPO + r"/branch/(?P<branch>[^/]+)", _Handler.create_branch),
    ("GET", ANY_REPO + r"/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", _Handler.tree),
    ("POST", ANY_REPO + r"/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("POST", ANY_REPO + r"/commit/(?P<revision>[^/]+)", _Handler.commit),
    ("POST", ANY_PAGE + r"\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/large-files/(?P<sha256>\w+)", _Handler.lfs_put),
    ("PUT", r"/large-files/(?P<sha256>\w+)/part/(?P<number>\d+)", _Handler.lfs_put_part),
    ("POST", r"/large-files/(?P<sha256>\w+)/complete", _Handler.lfs_complete),
    ("POST", r"/large-files/(?P<sha256>\w+)/verify", _Handler.lfs_verify),
    (
        "GET",
        r"/(?P<kind>(dataset|space)s/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
        _Handler.resolve,
    ),
]
