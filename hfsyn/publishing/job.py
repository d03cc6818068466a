"""One publication: what goes where, how it differs from what is there, and its outcome."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from builders.errors import and_more, plural
from builders.hub import page_of
from builders.runs import layout
from hfsyn.cards.facts import What
from hfsyn.hub.repo import HubRepo, LocalFile, commits_for
from hfsyn.hub.versions import Version
from hfsyn.outlook.doctor import Check
from hfsyn.publishing.benchmark import EVAL, eval_text
from hfsyn.publishing.repository import RepoState, look_at
from hfsyn.runs.run import Run


@dataclass(frozen=True)
class Publication:
    """What was published, or with a dry run what would be."""

    repo_id: str
    version: Version
    config_name: str
    commit: str | None  # the tagged commit; None after a dry run
    checks: tuple[Check, ...]
    files: int  # of the configuration, without the card
    bytes: int
    to_send: int  # files that were not there yet
    to_send_bytes: int
    to_remove: tuple[str, ...]  # files of an earlier version that the run does not have; they stay in that version
    commits: int
    changelog: str

    @property
    def failed(self) -> list[Check]:
        """Checks that forbid it."""
        return [check for check in self.checks if check.state == "failed"]

    @property
    def address(self) -> str:
        """Where a browser shows the version."""
        return f"{page_of(self.repo_id)}/tree/{self.version.tag}"

    @property
    def reference(self) -> str:
        """By which recipes and commands take it: ``hf://datasets/USER/NAME@vX.Y.Z``."""
        return f"hf://datasets/{self.repo_id}@{self.version.tag}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        checks = [{"state": check.state, "text": check.text, "hint": check.hint} for check in self.checks]
        fields = {**asdict(self), "version": str(self.version), "checks": checks}
        return fields if self.commit is None else {**fields, "address": self.address, "reference": self.reference}

    def text(self) -> str:
        """A dry run, for people, in lines."""
        there = self.files - self.to_send
        lines = [check.line() for check in self.checks]
        lines += [
            f"files     {self.files} ({self.bytes / 1e6:.1f} MB), of which {there} are there already",
            f"to send   {self.to_send} ({self.to_send_bytes / 1e6:.1f} MB) in {plural(self.commits, 'commit')}",
            f"to remove {len(self.to_remove)}",
        ]
        lines += [f"          {path}" for path in self.to_remove[:20]]
        if self.to_remove[20:]:
            lines.append(f"         {and_more(len(self.to_remove), 20)}")
        lines.append(f"changelog {self.changelog}")
        return "\n".join([*lines, f"{'cannot be published' if self.failed else 'nothing was sent'}: {self.address}"])


@dataclass(frozen=True)
class Job:
    """One publication: what goes where."""

    run: Run
    repo: HubRepo
    version: Version
    config_name: str
    what: What
    files: Mapping[str, LocalFile]
    make_default: bool = False
    licence: str | None = None
    private: bool | None = None  # of a repository that is created now; None is the account's default
    into: bool = False  # whether the repository may hold something else too
    today: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).date().isoformat())
    sentences: dict[tuple[str, ...], str] = field(default_factory=dict)
    """The changelog's sentence by the existing tags: each costs a comparison with the version before."""
    benchmark: bool = False  # whether the repository's eval.yaml offers the configuration
    is_late: bool = False
    """Whether others committed since the preflight, so that flags can no longer answer what that changed."""

    @property
    def title(self) -> str:
        """How the titles of pull requests for the configuration begin."""
        return f"hfsyn: {self.config_name}"

    @cached_property
    def manifest(self) -> layout.Manifest:
        """The manifest that is published."""
        path = f"{layout.config_prefix(self.config_name)}{layout.MANIFEST}"
        return layout.load_manifest(self.files[path].read().decode(), path)

    def missing(self, state: RepoState) -> dict[str, LocalFile]:
        """Files that the repository lacks, or has with other contents."""
        files = {**self.files, EVAL: self._eval_file(state)} if self.benchmark else self.files
        return {path: file for path, file in files.items() if not file.is_at(state.tree.get(path))}

    def _eval_file(self, state: RepoState) -> LocalFile:
        existing = state.read(EVAL) if EVAL in state.tree else None
        return LocalFile.made(eval_text(existing, self.repo.repo_id, self.config_name, self.manifest.split))

    def gone(self, state: RepoState) -> list[str]:
        """Files that hfsyn wrote for this configuration and that the run does not have."""
        return sorted(state.owned(self.config_name) - self.files.keys())

    def is_published_at(self, commit: str) -> bool:
        """Whether a commit has exactly this configuration."""
        state = look_at(self.repo, commit)
        return not self.missing(state) and not self.gone(state)

    def outcome(self, state: RepoState, checks: Sequence[Check], commit: str | None, changelog: str) -> Publication:
        """What it came to, or with no commit what it would come to."""
        missing, gone = self.missing(state), self.gone(state)
        return Publication(
            repo_id=self.repo.repo_id,
            version=self.version,
            config_name=self.config_name,
            commit=commit,
            checks=tuple(checks),
            files=len(self.files),
            bytes=sum(file.size for file in self.files.values()),
            to_send=len(missing),
            to_send_bytes=sum(file.size for file in missing.values()),
            to_remove=tuple(gone),
            commits=commits_for(len(missing) + len(gone)),
            changelog=changelog,
        )
