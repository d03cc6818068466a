"""What a publication changes, in a sentence for the changelog."""

from __future__ import annotations

from collections.abc import Mapping

from builders.errors import DataError
from hfsyn.errors import ExitCode
from hfsyn.hub.repo import HubRepo
from hfsyn.hub.versions import Version, versions_among
from hfsyn.publishing.contents import What
from hfsyn.publishing.preflight import look_at
from hfsyn.runs.finish import manifest_of
from hfsyn.runs.run import Run


def change_since(
    repo: HubRepo, tags: Mapping[str, str], version: Version, run: Run, config_name: str, what: What
) -> str:
    """How a run differs from the newest version that has this configuration.

    Args:
        repo: where it is published.
        tags: the commit of each.
        version: that of the run.
        run, config_name, what: as for `hfsyn.publishing.publication.publish`.

    Raises:
        HfsynError: the Hub does not answer.
    """
    from hfsyn.checks.diff import change_sentence

    for known in reversed(versions_among(tags)):
        commit = tags[known.tag]
        if known == version or config_name not in look_at(repo, commit).published:
            continue
        try:
            return change_sentence(repo, commit, known, run, config_name, what)
        except DataError as error:
            if error.code != ExitCode.USAGE:
                raise
            continue  # of a kind that this hfsyn cannot read: then the one before
    rows = manifest_of(run, what)["rows"]
    return f"First version: {rows} {'captions' if what == 'captions' else 'images'}."
