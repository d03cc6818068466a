"""The pull requests of this account in a repository: for what is too much for one commit."""

from __future__ import annotations

from dataclasses import dataclass

from builders.hub.answers import HeadMovedError, status_of
from hfsyn.hub.repo import HubRepo


@dataclass(frozen=True, slots=True)
class Pull:
    """A pull request of this account's that is neither merged nor closed."""

    number: int
    title: str

    @property
    def ref(self) -> str:
        """The revision that its commits are on."""
        return f"refs/pr/{self.number}"


class Pulls:
    """Those of one repository."""

    def __init__(self, repo: HubRepo) -> None:
        self._repo = repo

    def of(self, title: str) -> list[Pull]:
        """This account's own pull requests that are not closed and whose titles begin so; oldest first.

        Others' are passed over: whoever may read the repository can open one of any title.
        """
        from huggingface_hub.errors import HfHubHTTPError

        def ask() -> list[Pull]:
            try:
                found = list(
                    self._repo.api.get_repo_discussions(
                        self._repo.repo_id,
                        author=str(self._repo.whoami()["name"]),
                        discussion_type="pull_request",
                        repo_type=self._repo.repo_type,
                    )
                )
            except HfHubHTTPError as error:
                if status_of(error)[0] in (403, 404, 410):  # the repository's owner has switched them off
                    return []
                raise
            me = self._repo.whoami()["name"]
            mine = [
                one for one in found if one.is_pull_request and one.status in ("open", "draft") and one.author == me
            ]
            return sorted(
                (Pull(one.num, one.title) for one in mine if one.title.startswith(title)), key=lambda pull: pull.number
            )

        return self._repo.call(f"list the pull requests of {self._repo.repo_id}", ask)

    def open(self, title: str, description: str) -> Pull:
        """Begin a pull request, as a draft, where main is now."""
        made = self._repo.call(
            f"open a pull request of {self._repo.repo_id}",
            self._repo.api.create_pull_request,
            self._repo.repo_id,
            title,
            description=description,
            repo_type=self._repo.repo_type,
        )
        return Pull(int(made.num), title)

    def merge(self, pull: Pull) -> str:
        """Merge a pull request; the commit of main that came of it. What others committed to main meanwhile stays.

        Raises:
            HeadMovedError: it cannot be merged, since main has changed in the same files.
        """
        from huggingface_hub.errors import HfHubHTTPError

        options = {"repo_id": self._repo.repo_id, "discussion_num": pull.number, "repo_type": self._repo.repo_type}

        def send() -> None:
            about = self._repo.api.get_discussion_details(**options)
            if about.status == "merged":  # by an earlier try whose answer was lost
                return
            if about.conflicting_files or about.status == "closed":
                raise HeadMovedError(pull.ref)
            if about.status == "draft":
                self._repo.api.change_discussion_status(**options, new_status="open")
            try:
                self._repo.api.merge_pull_request(**options)
            except HfHubHTTPError as error:
                about = self._repo.api.get_discussion_details(**options)
                if about.status != "merged":
                    raise (HeadMovedError(pull.ref) if about.conflicting_files else error) from None

        self._repo.call(f"merge the pull request {pull.number} of {self._repo.repo_id}", send)
        about = self._repo.call(f"read {self._repo.repo_id}", self._repo.api.get_discussion_details, **options)
        return str(about.merge_commit_oid or self._repo.head())

    def close(self, pull: Pull) -> None:
        """Close a pull request, if it is open."""
        from huggingface_hub.errors import HfHubHTTPError

        options = {"repo_id": self._repo.repo_id, "discussion_num": pull.number, "repo_type": self._repo.repo_type}

        def send() -> None:
            try:
                self._repo.api.change_discussion_status(**options, new_status="closed")
            except HfHubHTTPError:
                if self._repo.api.get_discussion_details(**options).status not in ("closed", "merged"):
                    raise

        self._repo.call(f"close the pull request {pull.number} of {self._repo.repo_id}", send)
