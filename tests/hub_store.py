"""What a Hub keeps, in a folder that survives restarts: accounts, repositories with commits and refs, file contents.

`hub_server.py` speaks HTTP in front of it. Nothing here knows about requests, only the status that a refusal has there.

    root/blobs/ab/abcd...     contents by SHA-256, of small files and of large ones
    root/uploaded/TYPE/ID/    empty files named by SHA-256: large contents that this repository was sent
    root/repos/TYPE/ID.json   one repository: settings, refs and every commit with its files

Each file is written beside its place and renamed into it, so that a kill leaves the old state or the new one.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import re
import shutil
import threading
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

RepoType = Literal["model", "dataset", "space"]
Gated = Literal["auto", "manual", False]

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
REGULAR_LIMIT = 10 * 1024**2  # a larger file goes to large file storage, whatever its name

# What a new repository starts with on the Hub. `preupload` decides by it, so a commit that deletes it changes that.
LARGE = """
    *.7z *.arrow *.bin *.bz2 *.ckpt *.gz *.h5 *.lz4 *.model *.msgpack *.npy *.npz *.onnx *.parquet *.pb *.pickle *.pkl
    *.pt *.pth *.rar *.safetensors *.tar.* *.tar *.tgz *.xz *.zip *.zst *tfevents*
    *.flac *.mp3 *.ogg *.wav *.bmp *.gif *.png *.tiff *.jpg *.jpeg *.webp *.mp4 *.webm
"""
GITATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LARGE.split()).encode()


class Refused(Exception):
    """An answer other than success, as the Hub gives it: `code` is what the clients choose their exception by."""

    def __init__(self, status: int, message: str, code: str = "", **body: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, {"error": message, **body}
        self.headers: dict[str, str] = {}


@dataclass
class Token:
    """Who a token speaks for and what it may do: `scoped` is (kind, name, permissions), for fine-grained tokens."""

    user: str
    role: Literal["write", "read", "fineGrained"]
    scoped: list[tuple[str, str, list[str]]] = field(default_factory=list)


@dataclass
class File:
    """One path in one commit: `git` is the id of the git blob, which for a large file is that of its pointer."""

    sha256: str
    size: int
    git: str
    large: bool


@dataclass
class Commit:
    """A state of all files. `files` is never changed once the commit exists."""

    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: dict[str, File]


@dataclass
class Pull:
    """What a pull request is beside its ref: made by a commit it is open, made alone a draft, not to be merged."""

    title: str
    author: str
    date: str
    base: str
    """The commit of main that it began from."""
    status: Literal["draft", "open", "closed", "merged"]
    merged: str | None = None


@dataclass
class Repo:
    """One repository: its settings, its refs (name to commit id) and every commit that it ever had."""

    type: RepoType
    id: str
    private: bool = False
    gated: Gated = False
    access: list[str] = field(default_factory=list)
    created: str = ""
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, str] = field(default_factory=dict)
    requests: dict[str, Pull] = field(default_factory=dict)
    """The pull requests by number; closed and merged ones stay."""
    commits: dict[str, Commit] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]

    def resolve(self, revision: str) -> str:
        """The full commit id of a branch, tag, pull request, or (abbreviated) commit id."""
        for prefix, refs in (("refs/heads/", self.branches), ("refs/tags/", self.tags), ("refs/pr/", self.pulls)):
            if revision.startswith(prefix) and revision.removeprefix(prefix) in refs:
                return refs[revision.removeprefix(prefix)]
        if revision in self.branches:
            return self.branches[revision]
        if revision in self.tags:
            return self.tags[revision]
        if re.fullmatch(r"[0-9a-f]{7,40}", revision):
            found = [oid for oid in self.commits if oid.startswith(revision)]
            if len(found) == 1:
                return found[0]
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def history(self, oid: str) -> list[str]:
        """`oid` and its ancestors, newest first."""
        found: list[str] = []
        current: str | None = oid
        while current is not None:
            found.append(current)
            current = self.commits[current].parent
        return found

    def last_change(self, oid: str, path: str) -> str:
        """The newest commit up to `oid` in which the file or folder at `path` changed."""

        def below(commit: str) -> list[tuple[str, str]]:
            files = self.commits[commit].files
            return sorted(
                (name, file.git) for name, file in files.items() if name == path or name.startswith(path + "/")
            )

        wanted = below(oid)
        for commit in self.history(oid):
            parent = self.commits[commit].parent
            if parent is None or below(parent) != wanted:
                return commit
        return oid

    def tree(self, oid: str, folder: str = "", recursive: bool = False) -> list[dict[str, Any]]:
        """Files and folders below `folder` in order of path, in the shape of the Hub's listing."""
        files, start = self.commits[oid].files, folder + "/" if folder else ""
        inside = {path: file for path, file in files.items() if path.startswith(start)}
        if folder and not inside:
            raise Refused(404, f"{folder} does not exist on {oid}", "EntryNotFound")
        folders: dict[str, list[str]] = {}
        for path, file in inside.items():
            parts = path[len(start) :].split("/")
            for depth in range(1, len(parts)):
                folders.setdefault(start + "/".join(parts[:depth]), []).append(path + file.git)
        entries = [describe(path, file) for path, file in inside.items()]
        entries += [
            {"type": "directory", "oid": sha1("\n".join(sorted(content)).encode()), "size": 0, "path": path}
            for path, content in folders.items()
        ]
        if not recursive:
            entries = [entry for entry in entries if "/" not in entry["path"][len(start) :]]
        return sorted(entries, key=lambda entry: entry["path"])


def sha1(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def git_id(data: bytes) -> str:
    """What `git hash-object` says of `data`."""
    return sha1(b"blob %d\0" % len(data) + data)


def pointer(sha256: str, size: int) -> bytes:
    """The text that git itself keeps in place of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def describe(path: str, file: File) -> dict[str, Any]:
    """A file in the shape of the Hub's listing."""
    entry: dict[str, Any] = {"type": "file", "oid": file.git, "size": file.size, "path": path}
    if file.large:
        entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": len(pointer(file.sha256, file.size))}
    return entry


def content_of(value: Mapping[str, Any]) -> bytes:
    """What a file in a commit contains."""
    if value.get("encoding") == "base64":
        return base64.b64decode(value["content"])
    return str(value["content"]).encode()


def matches(path: str, patterns: Iterable[str]) -> bool:
    """As much of git's patterns as is used here: on the name, or on the whole path where the pattern has a slash."""
    name = path.rsplit("/", 1)[-1]
    for pattern in patterns:
        anchored = pattern.strip("/")
        if fnmatch.fnmatchcase(path if "/" in anchored else name, anchored):
            return True
        if path.startswith(anchored + "/") or f"/{anchored}/" in path:
            return True
    return False


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def write_atomically(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    beside.write_bytes(data)
    beside.replace(path)


DEFAULT_TOKENS = {
    "hf_alice_write": Token("alice", "write"),
    "hf_alice_read": Token("alice", "read"),
    # May write to alice's own repositories and only read those of the organisation.
    "hf_alice_fine": Token(
        "alice",
        "fineGrained",
        [("user", "alice", ["repo.content.read", "repo.write"]), ("org", "lab", ["repo.content.read"])],
    ),
    "hf_bob_write": Token("bob", "write"),
}


class Store:
    """Everything that the Hub knows. Methods raise `Refused`; each is atomic, and one lock orders them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = threading.RLock()
        self.tokens = dict(DEFAULT_TOKENS)
        self.orgs = {"lab": ["alice"]}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.incoming = root / "incoming"
        shutil.rmtree(self.incoming, ignore_errors=True)
        self.incoming.mkdir(parents=True)
        for path in sorted((root / "repos").glob("*/*/*.json")):
            repo = self._read(path)
            self.repos[repo.type, repo.id] = repo

    @staticmethod
    def _read(path: Path) -> Repo:
        state = json.loads(path.read_bytes())
        commits = {
            oid: Commit(**{**commit, "files": {name: File(*file) for name, file in commit["files"].items()}})
            for oid, commit in state.pop("commits").items()
        }
        requests = {number: Pull(**pull) for number, pull in state.pop("requests", {}).items()}
        return Repo(**state, requests=requests, commits=commits)

    def _save(self, repo: Repo) -> None:
        state = {name: value for name, value in vars(repo).items() if name not in ("commits", "requests")}
        state["requests"] = {number: vars(pull) for number, pull in repo.requests.items()}
        state["commits"] = {
            oid: {**vars(commit), "files": {name: list(vars(file).values()) for name, file in commit.files.items()}}
            for oid, commit in repo.commits.items()
        }
        write_atomically(self.root / "repos" / repo.type / f"{repo.id}.json", json.dumps(state).encode())

    # Accounts

    def namespaces(self, user: str) -> list[str]:
        return [user, *(org for org, members in self.orgs.items() if user in members)]

    def may_write(self, token: Token | None, namespace: str, repo: Repo | None = None) -> bool:
        """Whether `token` may create in `namespace`, or change `repo`."""
        if token is None or namespace not in self.namespaces(token.user) or token.role == "read":
            return False
        if token.role == "write":
            return True
        wanted = {("user", namespace), ("org", namespace)}
        if repo is not None:
            wanted.add((repo.type, repo.id))
        return any((kind, name) in wanted and "repo.write" in allowed for kind, name, allowed in token.scoped)

    def may_see(self, token: Token | None, repo: Repo) -> bool:
        return not repo.private or (token is not None and repo.namespace in self.namespaces(token.user))

    def may_read_files(self, token: Token | None, repo: Repo) -> bool:
        """Unlike its name and its listing, the files of a gated repository are for those who were let in."""
        if not repo.gated:
            return True
        return token is not None and (token.user in repo.access or repo.namespace in self.namespaces(token.user))

    def repo(self, kind: str, repo_id: str, token: Token | None, write: bool = False, files: bool = False) -> Repo:
        """The repository, if `token` may do with it what is asked."""
        with self.lock:
            repo = self.repos.get((kind, repo_id))
            if repo is None or not self.may_see(token, repo):
                # Strangers cannot tell a private repository from one that does not exist. The real Hub gives no code
                # with the 401; clients infer it from the address, but only from one that begins with https.
                if token is None:
                    raise Refused(401, "Invalid username or password.", "RepoNotFound")
                raise Refused(404, "Repository not found", "RepoNotFound")
            if write and not self.may_write(token, repo.namespace, repo):
                if token is None:
                    raise Refused(401, "Invalid username or password.")
                raise Refused(403, f"You don't have write access to the {kind} {repo_id} with this token.")
            if files and not self.may_read_files(token, repo):
                tail = "Please log in." if token is None else "Your request to access it has not been accepted."
                raise Refused(
                    401 if token is None else 403, f"Access to {kind} {repo_id} is restricted. {tail}", "GatedRepo"
                )
            return repo

    # Contents

    def blob(self, sha256: str) -> Path:
        return self.root / "blobs" / sha256[:2] / sha256

    def keep(self, data: bytes) -> str:
        """Store `data`, and its SHA-256."""
        sha256 = hashlib.sha256(data).hexdigest()
        if not self.blob(sha256).exists():
            write_atomically(self.blob(sha256), data)
        return sha256

    def _marker(self, repo: Repo, sha256: str) -> Path:
        return self.root / "uploaded" / repo.type / repo.id / sha256

    def has_large(self, repo: Repo, sha256: str) -> bool:
        return self._marker(repo, sha256).exists() and self.blob(sha256).exists()

    def receive(self, repo: Repo, sha256: str, size: int, chunks: Iterable[bytes]) -> int:
        """Take in a large file, if it is what was announced; the number of bytes that came."""
        beside = self.incoming / uuid.uuid4().hex
        digest, count = hashlib.sha256(), 0
        try:
            with beside.open("wb") as sink:
                for chunk in chunks:
                    sink.write(chunk)
                    digest.update(chunk)
                    count += len(chunk)
            if count != size:
                raise Refused(422, f"Uploaded {count} bytes, announced were {size}")
            if digest.hexdigest() != sha256:
                raise Refused(422, "The SHA-256 of what was uploaded is not the announced one")
            self.blob(sha256).parent.mkdir(parents=True, exist_ok=True)
            beside.replace(self.blob(sha256))
        finally:
            beside.unlink(missing_ok=True)
        self.own_large(repo, sha256)
        return count

    def own_large(self, repo: Repo, sha256: str) -> None:
        """Large contents belong to the repository that they were sent to, not to all."""
        marker = self._marker(repo, sha256)
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()

    def read(self, file: File) -> bytes:
        return self.blob(file.sha256).read_bytes()

    # Repositories

    def create(self, kind: RepoType, repo_id: str, private: bool = False) -> Repo:
        with self.lock:
            if (kind, repo_id) in self.repos:
                raise Refused(409, f"You already created this {kind} repo: {repo_id}")
            if not all(NAME.fullmatch(part) for part in repo_id.split("/")) or repo_id.count("/") != 1:
                raise Refused(400, f"Invalid repo name: {repo_id}")
            repo = Repo(kind, repo_id, private, created=now())
            attributes = File(self.keep(GITATTRIBUTES), len(GITATTRIBUTES), git_id(GITATTRIBUTES), False)
            oid = self._add_commit(repo, None, "initial commit", "", repo.namespace, {".gitattributes": attributes})
            repo.branches["main"] = oid
            self._save(repo)
            self.repos[kind, repo_id] = repo
            return repo

    def delete(self, repo: Repo) -> None:
        with self.lock:
            self.repos.pop((repo.type, repo.id), None)
            (self.root / "repos" / repo.type / f"{repo.id}.json").unlink(missing_ok=True)
            shutil.rmtree(self.root / "uploaded" / repo.type / repo.id, ignore_errors=True)

    def set(
        self, repo: Repo, *, private: bool | None = None, gated: Gated | None = None, grant: str | None = None
    ) -> None:
        with self.lock:
            repo.private = repo.private if private is None else private
            repo.gated = repo.gated if gated is None else gated
            if grant is not None and grant not in repo.access:
                repo.access.append(grant)
            self._save(repo)

    @staticmethod
    def _add_commit(
        repo: Repo, parent: str | None, title: str, message: str, author: str, files: dict[str, File]
    ) -> str:
        commit = Commit(parent, title, message, author, now(), files)
        # The nonce makes two commits of the same content in the same millisecond different, as the Hub's are.
        oid = sha1(json.dumps([uuid.uuid4().hex, asdict(commit)]).encode())
        repo.commits[oid] = commit
        return oid

    def is_large(self, repo: Repo, oid: str, path: str, size: int) -> bool:
        """Whether the Hub wants this file in large file storage: by the repository's own patterns, or by size."""
        attributes = repo.commits[oid].files.get(".gitattributes")
        lines = self.read(attributes).decode().splitlines() if attributes else []
        patterns = [line.split()[0] for line in lines if "filter=lfs" in line]
        return size > 0 and (size > REGULAR_LIMIT or matches(path, patterns))

    def commit(
        self,
        repo: Repo,
        revision: str,
        operations: Iterable[tuple[str, Mapping[str, Any]]],
        *,
        title: str,
        message: str = "",
        author: str = "",
        parent: str | None = None,
        pull: bool = False,
    ) -> tuple[str, str | None]:
        """All operations or none, on top of a branch: the new commit, and the number of the pull request if any.

        `operations` are pairs as in the Hub's ndjson. With `parent`, refused unless the branch is still there.
        """
        with self.lock:
            refs, name = repo.branches, revision.removeprefix("refs/heads/")
            if name.startswith("refs/pr/"):
                refs, name = repo.pulls, name.removeprefix("refs/pr/")
                if name in refs and repo.requests[name].status in ("closed", "merged"):
                    raise Refused(403, f"The pull request {name} is {repo.requests[name].status}")
            if name not in refs:
                raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            head = base = refs[name]
            if parent is not None and pull:
                head = base = repo.resolve(parent)
            elif parent is not None and not head.startswith(parent):
                raise Refused(412, "A commit has happened since. Please refresh and try again.")
            files = dict(repo.commits[head].files)
            for key, value in operations:
                self._apply(repo, files, key, value)
            clash = next((path for path in files for above in parents(path) if above in files), None)
            if clash is not None:
                raise Refused(400, f"{clash} is inside a path that is a file")
            oid = self._add_commit(repo, head, title, message, author, files)
            if pull:
                refs, name = repo.pulls, str(len(repo.pulls) + 1)
                repo.requests[name] = Pull(title, author, now(), base, "open")
            refs[name] = oid
            self._save(repo)
            return oid, name if pull else None

    def _apply(self, repo: Repo, files: dict[str, File], key: str, value: Mapping[str, Any]) -> None:
        path = value["path"]
        if key == "deletedFolder":
            path = path.rstrip("/")
            inside = [name for name in files if not path or name.startswith(path + "/")]
            if not inside:
                raise Refused(404, f"A folder with this name doesn't exist: {path}", "EntryNotFound")
            for name in inside:
                del files[name]
            return
        if not path or any(part in ("", ".", "..", ".git") for part in path.split("/")):
            raise Refused(400, f"Invalid path: {path}")
        if key == "deletedFile":
            if files.pop(path, None) is None:
                raise Refused(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        elif key == "file":
            data = content_of(value)
            files[path] = File(self.keep(data), len(data), git_id(data), False)
        elif key == "lfsFile":
            sha256 = value["oid"]
            if not self.has_large(repo, sha256):
                raise Refused(400, f"The content of {path} was never uploaded: {sha256}")
            size = self.blob(sha256).stat().st_size
            if value.get("size", size) != size:
                raise Refused(400, f"{path} has {size} bytes, not {value['size']}")
            files[path] = File(sha256, size, git_id(pointer(sha256, size)), True)
        else:
            raise Refused(400, f"Unknown operation: {key}")

    def open_pull(self, repo: Repo, title: str, author: str) -> str:
        """The number of a new pull request, which is where main is."""
        with self.lock:
            number, base = str(len(repo.pulls) + 1), repo.branches["main"]
            repo.pulls[number] = base
            repo.requests[number] = Pull(title, author, now(), base, "draft")
            self._save(repo)
            return number

    def turn_pull(self, repo: Repo, number: str, status: Literal["open", "closed"]) -> None:
        with self.lock:
            pull = repo.requests[number]
            if pull.status == "merged" or pull.status == status:
                raise Refused(400, f"This pull request is {pull.status}")
            pull.status = status
            self._save(repo)

    def conflicts(self, repo: Repo, number: str) -> list[str]:
        """Files that both main and the pull request changed since it began, each to something else."""
        base, main, mine = (
            repo.commits[oid].files for oid in (repo.requests[number].base, repo.branches["main"], repo.pulls[number])
        )
        return sorted(
            path
            for path in {*base, *main, *mine}
            if len({files.get(path) and files[path].git for files in (base, main, mine)}) == 3
        )

    def merge(self, repo: Repo, number: str, author: str) -> str:
        """One commit on main with what the pull request changed; what main got since it began stays."""
        with self.lock:
            pull = repo.requests[number]
            if pull.status != "open":
                raise Refused(400, f"This pull request is {pull.status}")
            if clashing := self.conflicts(repo, number):
                raise Refused(409, f"The pull request has conflicts in {clashing[0]}")
            head, base, mine = (
                repo.branches["main"],
                repo.commits[pull.base].files,
                repo.commits[repo.pulls[number]].files,
            )
            files = {path: file for path, file in repo.commits[head].files.items() if path in mine or path not in base}
            files |= {path: file for path, file in mine.items() if base.get(path) != file}
            pull.merged = self._add_commit(repo, head, f"{pull.title} (#{number})", "", author, files)
            repo.branches["main"], pull.status = pull.merged, "merged"
            self._save(repo)
            return pull.merged

    def add_ref(self, repo: Repo, kind: Literal["tags", "branches"], name: str, revision: str) -> None:
        with self.lock:
            refs: dict[str, str] = getattr(repo, kind)
            oid = repo.resolve(revision)
            if name in refs:
                raise Refused(409, f"Reference already exists: {name}")
            if not name or re.search(r"[\s~^:?*\[\\]|\.\.|^refs/", name):
                raise Refused(400, f"Invalid reference name: {name}")
            refs[name] = oid
            self._save(repo)

    def drop_ref(self, repo: Repo, kind: Literal["tags", "branches"], name: str) -> None:
        with self.lock:
            if kind == "branches" and name == "main":
                raise Refused(403, "The branch main cannot be deleted")
            if getattr(repo, kind).pop(name, None) is None:
                raise Refused(404, f"Invalid rev id: {name}", "RevisionNotFound")
            self._save(repo)

    def squash(self, repo: Repo, branch: str, title: str, author: str) -> None:
        with self.lock:
            if branch not in repo.branches:
                raise Refused(404, f"Invalid rev id: {branch}", "RevisionNotFound")
            files = repo.commits[repo.branches[branch]].files
            repo.branches[branch] = self._add_commit(repo, None, title, "", author, files)
            self._save(repo)


def parents(path: str) -> list[str]:
    """The folders above `path`."""
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]
