"""The Hub for publishing: its limits, what a token can do, and one repository whose calls are safe to repeat.

A request may have succeeded even if its response was lost; `builders.hub` says what is retried.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from builders.hub import HeadMovedError, Patience, asked, check_token, is_offline, page_of, patiently, status_of
from builders.stores.copies import borrowed, present
from hfsyn.errors import ExitCode, HfsynError

T = TypeVar("T")

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
MOST_FILES = 100_000  # in a repository; the Hub's recommendation
MOST_ENTRIES = 10_000  # in a folder; a hard limit of the Hub
LARGEST_FILE = 20 * 10**9  # bytes; the Hub's recommendation (50 GB is its hard limit)
LARGEST_SHARD = 500 * 2**20  # bytes; the most that the Hub's own tools write and its Dataset Viewer handles well
FILES_A_COMMIT = 1000  # the most the Hub's own client puts in one commit (the Hub accepts 25,000, within a minute)

CALL_TIMEOUT = 60.0  # seconds of silence before a connection counts as lost. By default the client waits forever
_ROUNDS = 5  # how often a commit is tried if the branch moves meanwhile
_SENT_AT_ONCE, _BYTES_AT_ONCE = 100, 256 * 2**20
"""Maximum files and bytes per request; progress is shown between requests."""


def commits_for(files: int) -> int:
    """Commits needed for this many files and the card; more than one go in a pull request."""
    return -(-(files + 1) // FILES_A_COMMIT)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository at one commit, as the Hub lists it."""

    size: int
    sha256: str | None  # large files only, which the Hub stores by content
    blob: str  # Git's own hash, for the others


@dataclass(frozen=True)
class LocalFile:
    """A file to publish: on disk or in memory."""

    content: Path | bytes
    sha256: str

    @classmethod
    def made(cls, text: str) -> LocalFile:
        """From a text."""
        data = text.encode()
        return cls(data, hashlib.sha256(data).hexdigest())

    def read(self) -> bytes:
        """The whole content."""
        return self.content if isinstance(self.content, bytes) else present(self.content).read_bytes()

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def is_at(self, remote: RemoteFile | None) -> bool:
        """Whether the Hub has exactly this content."""
        if remote is None or remote.size != self.size:
            return False
        if remote.sha256 is not None:
            return remote.sha256 == self.sha256
        data = self.read()
        return remote.blob == hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class HubRepo:
    """One repository, ``USER/NAME``, of type ``dataset``, ``model`` or ``space``; `say` gets a line for each pause."""

    def __init__(
        self,
        repo_id: str,
        *,
        repo_type: str = "dataset",
        token: str | bool | None = None,
        say: Callable[[str], None] = lambda line: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.repo_id, self.repo_type = repo_id, repo_type
        self.token = check_token(token)
        self.say, self._sleep = say, sleep
        self._waiting: dict[tuple[str, str], Any] = {}
        """The client's operations for files sent but not yet committed, by path and SHA-256."""

    def complete_id(self) -> None:
        """Prefix the repository's name with the token's account if needed."""
        if "/" not in self.repo_id:
            self.repo_id = f"{self.account['name']}/{self.repo_id}"

    @cached_property
    def api(self) -> Any:
        """The client. From its first use on, connections time out and progress bars are off."""
        from huggingface_hub import HfApi
        from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

        _limit_silence()
        disable_progress_bars()
        return HfApi(token=self.token, library_name="hfsyn")

    def call(self, what: str, function: Callable[..., T], *args: Any, **options: Any) -> T:
        """Call the client, retrying temporary failures within a bound; `what` is for messages: "commit to user/name".

        Raises HfsynError if it cannot be done (exit code 3), or not now (exit code 4: rerun to continue).
        """
        page = page_of(self.repo_id, self.repo_type)
        patience = Patience(self.repo_id, what, page=page, token=self.token, say=self.say, sleep=self._sleep)
        return patiently(lambda: function(*args, **options), patience)

    def ask(self, what: str, method: str, *args: Any, **options: Any) -> Any:
        """`call` a client method on this repository."""
        return self.call(what, getattr(self.api, method), self.repo_id, *args, repo_type=self.repo_type, **options)

    def need_token(self) -> None:
        """Fail early if nothing can be sent.

        Raises HfsynError if there is no token, or offline mode is on (exit code 3).
        """
        from huggingface_hub import get_token

        code = ExitCode.PREFLIGHT
        if is_offline():
            problem = f"Nothing can be sent to {self.repo_id} while HF_HUB_OFFLINE is set."
            raise HfsynError(problem, "Unset it.", code=code)
        if not (self.token or get_token()):
            problem = f"There is no token; nothing can be written to {self.repo_id} without one."
            raise HfsynError(problem, "Log in with a write token: hf auth login, or set HF_TOKEN.", code=code)

    @cached_property
    def account(self) -> dict[str, Any]:
        """The token's account, as `whoami` describes it.

        Raises HfsynError if there is no token, or the Hub rejects it (exit code 3).
        """
        return dict(self.call("identify this token", self.api.whoami))

    def may(self, doing: str, repo_id: str, repo_type: str, **how: bool) -> bool | None:
        """Whether this account may read (``write=True``: write) a repository; None if the Hub cannot tell."""
        try:
            return self.call(doing, asked, lambda: self.api.auth_check(repo_id, repo_type=repo_type, **how)) or None
        except HfsynError as error:
            if error.code != ExitCode.PREFLIGHT:
                raise
            return False

    def head(self, revision: str = "main") -> str | None:
        """The commit of a revision; None if the repository or revision does not exist."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        def ask() -> str | None:
            try:
                return str(self.api.repo_info(self.repo_id, revision=revision, repo_type=self.repo_type).sha)
            except (RepositoryNotFoundError, RevisionNotFoundError) as error:
                if status_of(error)[0] == 401:
                    raise
                return None

        return self.call(f"read {self.repo_id}", ask)

    def tree(self, commit: str) -> dict[str, RemoteFile]:
        """All files at a commit, by path, without contents."""

        def ask() -> dict[str, RemoteFile]:
            entries = self.api.list_repo_tree(self.repo_id, recursive=True, revision=commit, repo_type=self.repo_type)
            return {
                entry.path: RemoteFile(entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)
                for entry in entries
                if hasattr(entry, "blob_id")
            }

        return self.call(f"list the files of {self.repo_id}", ask)

    def text(self, path: str, commit: str) -> str:
        """A small text file at a commit, line endings kept."""
        what = f"{path} of {self.repo_id}"
        try:
            return Path(self.ask(f"read {what}", "hf_hub_download", path, revision=commit)).read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            problem = f"{what} is not UTF-8, and rewriting it would damage it."
            raise HfsynError(problem, "Save it as UTF-8, or remove it.", code=ExitCode.PREFLIGHT) from None

    def fetch(self, path: str, commit: str, folder: Path) -> Path:
        """Download a file into a folder, not the cache."""
        what = f"fetch {path} of {self.repo_id}"
        return Path(self.ask(what, "hf_hub_download", path, revision=commit, local_dir=folder))

    def tags(self) -> dict[str, str]:
        """The commit of each tag."""
        refs = self.ask(f"list the versions of {self.repo_id}", "list_repo_refs")
        return {ref.name: str(ref.target_commit) for ref in refs.tags}

    def do(self, what: str, send: Callable[[], object], is_done: Callable[[int], bool]) -> None:
        """Make a change via `call`; `is_done` tells from an error's status whether an earlier try made it."""
        from huggingface_hub.errors import HfHubHTTPError

        def attempt() -> None:
            try:
                send()
            except HfHubHTTPError as error:
                if not is_done(status_of(error)[0]):
                    raise

        self.call(what, attempt)

    def create(self, *, private: bool | None) -> None:
        """Create the repository if it is missing; a Space is one of static files."""
        sdk = {"space_sdk": "static"} if self.repo_type == "space" else {}
        self.do(
            f"create {self.repo_id}",
            lambda: self.api.create_repo(self.repo_id, repo_type=self.repo_type, private=private, **sdk),
            lambda status: status == 409 and self.head() is not None,  # it exists, rather than being created
        )

    def send(self, files: Mapping[str, LocalFile], *, sent: Callable[[int], None] = lambda size: None) -> None:
        """Upload contents ahead, so that their commit is quick; what the Hub has is not sent again.

        `sent` is called with the size of each portion once it has arrived.
        """
        from huggingface_hub import CommitOperationAdd

        for portion in portions(files, _SENT_AT_ONCE, _BYTES_AT_ONCE):
            with ExitStack() as here:
                for name, file in portion.items():
                    key = name, file.sha256
                    if isinstance(file.content, Path) and not getattr(self._waiting.get(key), "_is_uploaded", False):
                        here.enter_context(borrowed(file.content, file.sha256))
                    if key not in self._waiting:
                        content = file.content if isinstance(file.content, bytes) else str(file.content)
                        added = CommitOperationAdd(name, content)
                        added.upload_info.sha256 = bytes.fromhex(file.sha256)  # known: saves the client a second read
                        self._waiting[key] = added
                # The operation itself marks what has arrived, so neither the commit nor a retry sends it again.
                operations = [self._waiting[name, file.sha256] for name, file in portion.items()]
                self.ask(f"send files to {self.repo_id}", "preupload_lfs_files", operations, free_memory=False)
            sent(sum(file.size for file in portion.values()))

    def commit(
        self, add: Mapping[str, LocalFile], delete: Sequence[str], *, parent: str, message: str, revision: str = "main"
    ) -> str:
        """One commit on top of `parent`, the last known head of a branch or pull request.

        `add` are new and changed files by path, of which the Hub's own contents are not sent again; `delete` are paths,
        a folder's with a slash at the end. Raises HeadMovedError if the head has moved on from `parent`.
        """
        from huggingface_hub import CommitOperationDelete
        from huggingface_hub.errors import HfHubHTTPError

        self.send(add)
        keys = [(name, file.sha256) for name, file in add.items()]

        def send() -> str:
            operations = [*(self._waiting[key] for key in keys), *(CommitOperationDelete(path) for path in delete)]
            try:
                found = self.api.create_commit(
                    self.repo_id,
                    operations,
                    commit_message=message,
                    repo_type=self.repo_type,
                    revision=revision,
                    parent_commit=parent,
                )
            except HfHubHTTPError as error:
                if status_of(error)[0] == 412:
                    raise HeadMovedError(parent) from error
                raise
            return str(found.oid)

        commit = self.call(f"commit to {self.repo_id}", send)
        for key in keys:
            del self._waiting[key]
        return commit

    def bring(self, files: Mapping[str, LocalFile], message: str, *, folders: Sequence[str] = ()) -> str:
        """The commit of main that has the files; those that are there are not sent. `folders`, with a slash at the end,
        have no others then. Raises HfsynError if others keep committing (exit code 4).
        """
        for _ in range(_ROUNDS):
            head = self.head()
            if head is None:
                break
            there = self.tree(head)
            missing = {name: file for name, file in files.items() if not file.is_at(there.get(name))}
            gone = [name for name in there if name.startswith(tuple(folders)) and name not in files] if folders else []
            if not (missing or gone):
                return head
            with suppress(HeadMovedError):  # another commit came first: look again
                return self.commit(missing, gone, parent=head, message=message)
        said = f"{self.repo_id} was removed, or others kept committing to it."
        raise HfsynError(said, "Run the same command again.", code=ExitCode.PARTIAL)

    def branch(self, name: str, start: str) -> None:
        """Create a branch at a commit, unless it exists."""
        self.ask(f"create branch {name} in {self.repo_id}", "create_branch", branch=name, revision=start, exist_ok=True)

    def drop_branch(self, name: str) -> None:
        """Delete a branch if it exists."""
        self.do(
            f"delete branch {name} in {self.repo_id}",
            lambda: self.api.delete_branch(self.repo_id, branch=name, repo_type=self.repo_type),
            lambda status: status in (403, 404) and self.head(name) is None,
        )

    def tag(self, name: str, commit: str, message: str) -> None:
        """Tag a commit, unless it already has this tag. Raises HfsynError if another commit has the tag."""
        where = {"tag": name, "revision": commit, "repo_type": self.repo_type}

        def is_done(status: int) -> bool:
            standing = self.head(name) if status == 409 else None
            if standing not in (None, commit):
                raise taken(self.repo_id, name, str(standing)) from None
            return standing is not None

        what = f"tag {self.repo_id} as {name}"
        self.do(what, lambda: self.api.create_tag(self.repo_id, tag_message=message, **where), is_done)


def check_repo_id(repo_id: str) -> str:
    """Refuse a name that is not USER/NAME."""
    if not REPO_ID.fullmatch(repo_id):
        raise HfsynError(f"{repo_id!r} is not a name on the Hub.", "One looks like USER/NAME.")
    return repo_id


def check_push(repo_id: str) -> None:
    """Refuse a name that is not USER/NAME, and a missing token (exit code 3), before any work is done."""
    HubRepo(check_repo_id(repo_id), repo_type="model").need_token()


def _limit_silence() -> None:
    """Make the client's connections time out: by default they wait forever for a silent Hub."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    def factory() -> Any:
        client = _http.default_client_factory()
        client.timeout = CALL_TIMEOUT
        return client

    if getattr(_http, "_GLOBAL_CLIENT_FACTORY", None) is _http.default_client_factory:
        set_client_factory(factory)


def taken(repo_id: str, tag: str, commit: str) -> HfsynError:
    """The error if another publisher was faster."""
    said = f"Version {tag} of {repo_id} has since been taken (commit {commit[:12]})."
    return HfsynError(said, "Publish as another version.")


def portions(
    files: Mapping[str, LocalFile], most: int, most_bytes: int, free: tuple[str, ...] = ()
) -> Iterator[dict[str, LocalFile]]:
    """Files in portions of limited number and size; the bytes of those with the endings `free` do not count."""
    portion: dict[str, LocalFile] = {}
    total = 0
    for name, file in files.items():
        size = 0 if name.endswith(free) else file.size
        if portion and (len(portion) == most or total + size > most_bytes):
            yield portion
            portion, total = {}, 0
        portion[name] = file
        total += size
    if portion:
        yield portion
