"""Publishing a run, and watching it meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hfsyn.errors import HfsynError

if TYPE_CHECKING:
    from hfsyn.cards.facts import What
    from hfsyn.publishing.job import Publication
    from hfsyn.runs.run import Run


def publish(
    run: Run | str | Path,
    repo_id: str,
    version: str,
    *,
    config_name: str = "default",
    what: What = "data",
    private: bool | None = None,
    into: bool = False,
    set_default: bool = False,
    license: str | None = None,  # noqa: A002  # as in a card, and as the command's option
    benchmark: bool = False,
    watch: bool = False,
    dry_run: bool = False,
    token: str | bool | None = None,
    quiet: bool = False,
) -> Publication:
    """Publish a finished run as a version of a dataset on the Hub. Running it again continues.

    Data, card, a reading back from the Hub, then the tag.

    Args:
        run: the run folder.
        repo_id: ``USER/NAME``, or a name under the token's own account.
        version: ``MAJOR.MINOR.PATCH``; the tag is ``vMAJOR.MINOR.PATCH``.
        config_name: several configurations may live in one repository, each published on its own.
        what: ``data``, or ``captions`` alone, keyed by source id.
        private: for a repository that is created now; None is the account's default.
        into: publish beside what a repository of other origin holds.
        set_default: let ``load_dataset(repo_id)`` take this configuration; the first published one is the default
            until then.
        license: the dataset's licence, by the Hub's name for it; None is what is known of the source's.
        benchmark: offer the configuration as a task of the repository's ``eval.yaml``, on which classifiers are tested.
        watch: publish finished shards while the run is at work, then the rest.
        dry_run: look at everything that can be wrong, and send nothing.
        token: as everywhere in huggingface_hub; None takes HF_TOKEN or the stored one.
        quiet: no lines on the error stream.

    Raises:
        HfsynError: exit code 2 for a version that is not one or is taken, 3 for what forbids it, 4 if the Hub did not
            answer in time (the same command continues).
    """
    from hfsyn.publishing import publication, watching

    how = {"config_name": config_name, "what": what, "private": private, "into": into, "token": token, "quiet": quiet}
    how |= {"make_default": set_default, "licence": license, "benchmark": benchmark}
    if not watch:
        return publication.publish(run, repo_id, version, dry_run=dry_run, **how)  # type: ignore[arg-type]
    if dry_run:
        raise HfsynError("--dry-run sends nothing, and --watch sends all the time.", "Choose one.")
    return watching.watch(run, repo_id, version, **how)  # type: ignore[arg-type]
