"""What a publication came to, or would come to: for people and for JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from hfsyn.hub.versions import Version
from hfsyn.outlook.check import Check


@dataclass(frozen=True)
class Publication:
    """What was published, or with a dry run what would be."""

    repo_id: str
    version: Version
    config_name: str
    commit: str | None
    """The tagged commit; None after a dry run."""
    checks: tuple[Check, ...]
    files: int
    """Of the configuration, the card not counted."""
    bytes: int
    to_send: int
    """Files that were not there yet."""
    to_send_bytes: int
    to_remove: tuple[str, ...]
    """Files of an earlier version that the run does not have; they stay in that version."""
    commits: int
    changelog: str

    @property
    def failed(self) -> list[Check]:
        """Checks that forbid it."""
        return [check for check in self.checks if check.state == "failed"]

    @property
    def address(self) -> str:
        """What others load: ``hf://datasets/USER/NAME@vX.Y.Z``."""
        return f"hf://datasets/{self.repo_id}@{self.version.tag}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        checks = [{"state": check.state, "text": check.text, "hint": check.hint} for check in self.checks]
        fields = {**asdict(self), "version": str(self.version), "checks": checks}
        return fields if self.commit is None else {**fields, "address": self.address}

    def text(self) -> str:
        """A dry run, for people, in lines."""
        there = self.files - self.to_send
        commits = "1 commit" if self.commits == 1 else f"{self.commits} commits"
        return "\n".join(
            [
                *(check.line() for check in self.checks),
                f"files     {self.files} ({self.bytes / 1e6:.1f} MB), of which {there} are there already",
                f"to send   {self.to_send} ({self.to_send_bytes / 1e6:.1f} MB) in {commits}",
                f"to remove {len(self.to_remove)}",
                *(f"          {path}" for path in self.to_remove[:20]),
                *([f"          and {len(self.to_remove) - 20} more"] if self.to_remove[20:] else []),
                f"changelog {self.changelog}",
                f"{'cannot be published' if self.failed else 'nothing was sent'}: {self.address}",
            ]
        )
