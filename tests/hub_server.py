"""A Hub on loopback: its HTTP protocol in front of a folder, for the real clients, unpatched, through `HF_ENDPOINT`.

By hand, so that the whole tool can be tried against it:

    python tests/hub_server.py --root /tmp/hub

In tests, where clients run in processes of their own because they read the endpoint when they are imported:

    with Hub(tmp_path / "hub") as hub:
        hub.faults.add(503, method="POST", path="/commit/", times=1)
        subprocess.run([...], env=hub.env(home=tmp_path / "home"))
        assert hub.files("dataset", "alice/shapes", "v1.0.0")["README.md"].startswith(b"---")

Paths that begin with `/_` are not the Hub's: they set faults and read the log from another process, and are never
failed or counted themselves.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import parse_qs, unquote, urlsplit

import hub_buckets  # noqa: F401  # its routes
from hub_routes import CHUNK, ROUTES, Request, Response, route
from hub_store import Commit, Gated, Refused, RepoType, Store
from hub_xet import Xet

Kind = int | str


@dataclass
class Fault:
    """One thing that goes wrong, with the requests that match. `kind` is an HTTP status or one of

    - `timeout`: nothing is done and nothing answered; after `seconds` the connection is closed
    - `cut-before`: nothing is done and the connection is closed at once
    - `cut-after`: the request is carried out; then (after `seconds`) the connection is closed, having sent nothing, or
      with `keep` that share of the body
    - `delay`: the request is carried out after `seconds`
    """

    kind: Kind
    method: str | None = None
    path: str = ""
    times: int | None = 1
    after: int = 0
    seconds: float | None = None
    retry_after: int | None = None
    keep: float | None = None
    seen: int = 0
    hits: int = 0

    def matches(self, method: str, path: str) -> bool:
        return (self.method is None or self.method == method) and re.search(self.path, path) is not None


class Faults:
    """The faults that are set. A request gets the first that is due; each counts all requests that it matches."""

    KINDS = ("timeout", "cut-before", "cut-after", "delay")

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(
        self,
        kind: Kind,
        method: str | None = None,
        path: str = "",
        times: int | None = 1,
        after: int = 0,
        seconds: float | None = None,
        retry_after: int | None = None,
        keep: float | None = None,
    ) -> Fault:
        """Fail the next `times` requests (None: all) whose path has the regex `path`, once `after` of them passed."""
        if not (isinstance(kind, int) or kind in self.KINDS):
            raise ValueError(f"{kind!r} is neither an HTTP status nor one of {', '.join(self.KINDS)}")
        re.compile(path)
        fault = Fault(kind, method, path, times, after, seconds, retry_after, keep)
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def due(self, method: str, path: str) -> Fault | None:
        with self._lock:
            found = None
            for fault in self._faults:
                if not fault.matches(method, path):
                    continue
                fault.seen += 1
                if found is None and fault.seen > fault.after and (fault.times is None or fault.hits < fault.times):
                    fault.hits += 1
                    found = fault
            return found


@dataclass
class Entry:
    """One request in the log. `status` is 0 where nothing was done, `fault` the kind of the fault that it met."""

    method: str
    path: str
    status: int = 0
    received: int = 0
    sent: int = 0
    fault: Kind | None = None
    client: str = ""
    """What the client calls itself in the header X-Client, where several are told apart."""


@dataclass
class Counters:
    """`lfs_bytes` counts contents that were taken into large file storage, `commits` those made over HTTP."""

    lfs_bytes: int = 0
    lfs_files: int = 0
    commits: int = 0
    largest_commit: int = 0


# For tests in other processes; not the Hub's


@route("POST|DELETE", "/_faults")
def set_faults(hub: Hub, request: Request) -> Response:
    if request.method == "DELETE":
        hub.faults.clear()
        return Response()
    try:
        return Response(body=asdict(hub.faults.add(**request.json())))
    except (TypeError, ValueError, re.error) as error:
        raise Refused(400, str(error)) from error


@route("GET|DELETE", "/_log")
def show_log(hub: Hub, request: Request) -> Response:
    body = {"log": [asdict(entry) for entry in list(hub.log)], "counters": asdict(hub.counters)}
    if request.method == "DELETE":
        hub.reset()
    return Response(body=body)


@route("GET", "/api/agent-harnesses")
def agent_harnesses(hub: Hub, request: Request) -> Response:
    """What every client asks for once a day, before anything else. Neither logged nor failed, since it would make the
    number of a request depend on the state of the client's cache.
    """
    return Response(body={"standardEnvVars": [], "harnesses": {}})


class Cut(Exception):
    """The connection is to be closed, whatever was sent."""


class Handler(BaseHTTPRequestHandler):
    """Reads a request, lets the routes answer it, sends the answer; faults and the log are applied here."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, *_: Any) -> None:
        """Nothing on standard error: the log is `hub.log`."""

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def chunks(self) -> Iterator[bytes]:
        """What is left of the request's body, of announced length or in chunks."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while not self._body_ended:
                size = int(self.rfile.readline().split(b";")[0], 16)
                data = self.rfile.read(size)
                self.rfile.readline()
                self._body_ended = size == 0
                self.entry.received += len(data)
                if data:
                    yield data
            return
        while self._left > 0:
            data = self.rfile.read(min(CHUNK, self._left))
            if not data:
                raise Cut
            self._left -= len(data)
            self.entry.received += len(data)
            yield data

    def answer(self) -> None:
        hub = self.server.hub
        self._body_ended, self._left = False, int(self.headers.get("Content-Length", 0))
        self.entry = Entry(self.command, self.path, client=self.headers.get("X-Client", ""))
        fault = None
        if not self.path.startswith(("/_", "/api/agent-harnesses")):
            if hub.before is not None:
                hub.before(self.entry)
            hub.log.append(self.entry)
            fault = hub.faults.due(self.command, self.path)
        try:
            self._answer(hub, fault)
        except (Cut, ConnectionError):
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, hub: Hub, fault: Fault | None) -> None:
        response = None
        if fault is not None:
            self.entry.fault = fault.kind
            if fault.kind in ("timeout", "delay"):
                hub.closing.wait(12 if fault.seconds is None else fault.seconds)
            if fault.kind in ("timeout", "cut-before"):
                raise Cut
            if isinstance(fault.kind, int):
                headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
                response = Response(fault.kind, {"error": f"A fault that was asked for: {fault.kind}"}, headers)
        response = response or self.carried_out(hub)
        for _ in self.chunks():  # what is left of the body, since the next request follows it
            pass
        if fault is not None and fault.kind == "cut-after":
            hub.closing.wait(fault.seconds or 0)
            self.entry.status = response.status
            if fault.keep is None:
                raise Cut
            self.send(response, int(response.length * fault.keep))
            raise Cut
        self.send(response, response.length)

    def carried_out(self, hub: Hub) -> Response:
        url = urlsplit(self.path)
        base = f"http://{self.headers.get('Host', hub.url.removeprefix('http://'))}"
        query = parse_qs(url.query, keep_blank_values=True)
        request = Request(self.command, url.path, query, self.headers, base, self.chunks)
        try:
            if authorization := self.headers.get("Authorization"):
                request.token = hub.store.tokens.get(authorization.removeprefix("Bearer "))
                if request.token is None:
                    raise Refused(401, "Invalid credentials in Authorization header")
            for method, pattern, function in ROUTES:
                if method == self.command and (found := pattern.fullmatch(url.path)):
                    return function(hub, request, *(part and unquote(part) for part in found.groups()))
            is_repo = re.match("/api/(models|datasets|spaces)/|.*/resolve/", url.path)
            raise Refused(404, "Not found", "RepoNotFound" if is_repo else "")
        except (Cut, ConnectionError):
            raise
        except Exception as error:
            if not isinstance(error, Refused):
                traceback.print_exc()
            refused = error if isinstance(error, Refused) else Refused(500, f"{type(error).__name__}: {error}")
            headers = {**refused.headers, "X-Error-Message": refused.message.splitlines()[0]}
            if refused.code:
                headers["X-Error-Code"] = refused.code
            return Response(refused.status, refused.body, headers)

    def send(self, response: Response, limit: int) -> None:
        self.entry.status = response.status
        self.send_response(response.status)
        for name, value in {**response.headers, "Content-Length": str(response.length)}.items():
            self.send_header(name, value.encode("latin-1", "replace").decode("latin-1"))
        self.send_header("X-Request-Id", f"request-{time.monotonic_ns():x}")
        self.end_headers()
        if self.command == "HEAD":
            return
        for chunk in response.chunks(limit):
            self.entry.sent += len(chunk)
            self.wfile.write(chunk)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, hub: Hub, port: int) -> None:
        self.hub = hub
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), Handler)

    def handle_error(self, *_: Any) -> None:
        """Clients that hang up are part of the game; anything else is a mistake of the server."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*_)


class Hub:
    """A running Hub: `with Hub(root) as hub`. The methods bypass HTTP; `faults` and `log` are about HTTP.

    `page_size` is how many entries a listing gives at once; `lfs_part_size` makes larger uploads come in several parts.
    With `xet`, clients send contents by way of Xet, as they do to the real Hub, and may upload a folder in several
    commits; only one client process at a time can. Without it, they are told not to.
    """

    def __init__(
        self,
        root: Path | str,
        port: int = 0,
        page_size: int = 1000,
        lfs_part_size: int | None = None,
        xet: bool = False,
    ) -> None:
        self.store = Store(Path(root))
        self.xet = Xet(Path(root) / "xet") if xet else None
        self.page_size, self.lfs_part_size = page_size, lfs_part_size
        self.faults = Faults()
        self.before: Callable[[Entry], None] | None = None
        """Called with each request before it is carried out."""
        self.closing = threading.Event()
        self._counting = threading.Lock()
        self.reset()
        self._server = Server(self, port)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def reset(self) -> None:
        """Empty the log and the counters."""
        self.log: list[Entry] = []
        self.counters = Counters()

    def count(self, lfs_bytes: int = 0, lfs_files: int = 0, commits: int = 0, largest_commit: int = 0) -> None:
        with self._counting:
            self.counters.lfs_bytes += lfs_bytes
            self.counters.lfs_files += lfs_files
            self.counters.commits += commits
            self.counters.largest_commit = max(self.counters.largest_commit, largest_commit)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._server.connections):  # idle ones, which clients keep
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def env(self, token: str | None = "hf_alice_write", home: Path | str = "") -> dict[str, str]:
        """The whole environment of a client process. Nothing of the caller's Hub settings leaks into it."""
        home = Path(home) if home else self.store.root.parent / "home"
        home.mkdir(parents=True, exist_ok=True)
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS_")) and not name.lower().endswith("_proxy")
        }
        found = {
            **kept,
            "HOME": str(home),
            "HF_HOME": str(home / "hf"),
            "HF_ENDPOINT": self.url,
            "HF_HUB_DISABLE_XET": "0" if self.xet else "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "1",
        }
        if token is not None:
            found["HF_TOKEN"] = token
        return found

    def add_repo(
        self,
        kind: RepoType,
        repo_id: str,
        files: Mapping[str, bytes] | None = None,
        private: bool = False,
        gated: Gated | Literal[True] = False,
        owner: str | None = None,
    ) -> str:
        """A repository with `files` in one commit, whose id is returned."""
        repo = self.store.create(kind, repo_id if "/" in repo_id else f"{owner or 'alice'}/{repo_id}", private)
        self.store.set(repo, gated="auto" if gated is True else gated)
        return self.add_commit(kind, repo.id, files or {}) if files else repo.branches["main"]

    def add_commit(self, kind: RepoType, repo_id: str, files: Mapping[str, bytes | None], branch: str = "main") -> str:
        """One more commit, as if by somebody else; None deletes."""
        repo = self.store.repos[kind, repo_id]
        operations: list[tuple[str, dict[str, Any]]] = []
        for path, data in files.items():
            if data is None:
                operations.append(("deletedFile", {"path": path}))
            elif self.store.is_large(repo, repo.branches[branch], path, len(data)):
                sha256 = self.store.keep(data)
                self.store.own_large(repo, sha256)
                operations.append(("lfsFile", {"path": path, "oid": sha256}))
            else:
                operations.append(("file", {"path": path, "content": base64.b64encode(data), "encoding": "base64"}))
        return self.store.commit(repo, branch, operations, title="add files", author=repo.namespace)[0]

    def add_tag(self, kind: RepoType, repo_id: str, tag: str, revision: str = "main") -> None:
        self.store.add_ref(self.store.repos[kind, repo_id], "tags", tag, revision)

    def files(self, kind: RepoType, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Every file at `revision` with its content, `.gitattributes` included."""
        repo = self.store.repos[kind, repo_id]
        return {path: self.store.read(file) for path, file in repo.commits[repo.resolve(revision)].files.items()}

    def refs(self, kind: RepoType, repo_id: str) -> dict[str, str]:
        """Full names of branches, tags and pull requests to commit ids."""
        repo = self.store.repos[kind, repo_id]
        groups = (("refs/heads/", repo.branches), ("refs/tags/", repo.tags), ("refs/pr/", repo.pulls))
        return {prefix + name: oid for prefix, names in groups for name, oid in names.items()}

    def head(self, kind: RepoType, repo_id: str, branch: str = "main") -> str:
        """The commit id that `branch` is at."""
        return self.store.repos[kind, repo_id].branches[branch]

    def history(self, kind: RepoType, repo_id: str, revision: str = "main") -> list[Commit]:
        """The commits up to `revision`, newest first."""
        repo = self.store.repos[kind, repo_id]
        return [repo.commits[oid] for oid in repo.history(repo.resolve(revision))]


def main() -> None:
    parser = argparse.ArgumentParser(description="A Hub on this machine, for trying things without the real one.")
    parser.add_argument("--root", type=Path, required=True, help="the folder that keeps everything")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--xet", action="store_true", help="uploads by way of Xet; one client at a time")
    arguments = parser.parse_args()
    # The reader of these lines may answer with Ctrl-C before the last one is out.
    with suppress(KeyboardInterrupt), Hub(arguments.root, arguments.port, xet=arguments.xet) as hub:
        print(f"A Hub on {hub.url}, kept in {arguments.root}. In another terminal:\n")
        print(f"export HF_ENDPOINT={hub.url} HF_TOKEN=hf_alice_write HF_HUB_DISABLE_XET={int(not arguments.xet)}")
        print(f"export HF_HOME={(arguments.root / 'client').resolve()}  # keeps your own cache and login out of it\n")
        print(f"Tokens: {', '.join(hub.store.tokens)}. Ctrl-C ends it.", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
