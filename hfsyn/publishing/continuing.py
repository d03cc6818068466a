"""Continue on another machine a run whose finished shards are on the Hub: what is there already is not made again.

They are looked for on the branch of unfinished work first, then in what is published.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from builders.errors import DataError
from builders.files import room_beside
from builders.runs import layout
from builders.runs.layout import load_sidecar, sidecar_of
from hfsyn.errors import ExitCode
from hfsyn.hub.repo import HubRepo
from hfsyn.publishing.preflight import look_at
from hfsyn.publishing.working import work_on
from hfsyn.recipes.recipe import Recipe, parse_recipe
from hfsyn.runs.pins import pinned
from hfsyn.runs.plan import write_plan
from hfsyn.runs.run import Run, prepare
from hfsyn.runs.shards import faults, pending


def continue_from(
    recipe: Recipe,
    out: str | Path,
    repo_id: str,
    *,
    config_name: str = layout.DEFAULT_CONFIG,
    token: str | bool | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Run:
    """Prepare a run folder, and bring back the shards of the same recipe that are finished on the Hub.

    Open revisions are those with which the run on the Hub began. What is there of another recipe is left there.

    Args:
        recipe: as for `prepare`.
        out: the run folder; shards that it has are not fetched.
        repo_id: the dataset to which `watch` sent finished shards; it may not be there yet.
        config_name: see `builders.runs.layout.config_prefix`.
        token: as everywhere in huggingface_hub.
        say: told in one line what was brought back, and what could not be used.

    Raises:
        HfsynError: as `prepare`; or the Hub does not answer.
    """
    repo = HubRepo(repo_id, token=token, say=say)
    prefix = layout.config_prefix(config_name)
    places = _places(repo, config_name)
    for place in places[:1]:
        where = f"{prefix}{layout.RECIPE} of {repo.repo_id}"
        recipe = pinned(recipe, parse_recipe(repo.text(f"{prefix}{layout.RECIPE}", place.commit), where))
    run = prepare(recipe, out)
    brought = sum(_bring_back(run, run.caption_shards(), place, repo, prefix, say) for place in places)
    if not pending(run.caption_shards()):
        write_plan(run)
        brought += sum(_bring_back(run, run.data_shards(), place, repo, prefix, say) for place in places)
    if brought:
        say(f"{brought} finished shards were brought back from {repo.repo_id}")
    return run


@dataclass(frozen=True)
class _Place:
    """A commit that may have shards of the run."""

    commit: str
    there: Collection[str]
    """The files of the configuration."""


def _places(repo: HubRepo, config_name: str) -> list[_Place]:
    work = work_on(repo, config_name)
    found = [_Place(work.head, work.tree.keys())] if work.head is not None and work.is_begun else []
    state = look_at(repo)
    if state.head is not None and (published := state.owned(config_name)):
        found.append(_Place(state.head, published))
    return found


def _bring_back(
    run: Run, shards: Sequence[Path], place: _Place, repo: HubRepo, prefix: str, say: Callable[[str], None]
) -> int:
    """Fetch those of `shards` that are missing here and finished there; returns how many."""
    count, there = 0, set(place.there)
    # Beside their place, so that they are moved and not copied.
    with room_beside(run.folder) as temporary:

        def path_of(file: Path) -> str:
            return f"{prefix}{file.relative_to(run.folder).as_posix()}"

        for shard in pending(shards):
            mark = sidecar_of(shard)
            if not {path_of(shard), path_of(mark)} <= there:
                continue
            try:
                fetched_mark = repo.fetch(path_of(mark), place.commit, temporary)
                if load_sidecar(fetched_mark).fingerprint != run.fingerprint:
                    say(f"{repo.repo_id} holds shards of another recipe, which are of no use here")
                    break
                fetched = repo.fetch(path_of(shard), place.commit, temporary)
                wrong = faults(fetched, run.fingerprint)
            except DataError as error:
                if error.code != ExitCode.USAGE:
                    raise  # the Hub does not answer
                wrong = [error.message]
            if wrong:
                say(f"{repo.repo_id}: {wrong[0]}; it is made again")
                continue
            for folder in (shard.parent, mark.parent):
                folder.mkdir(parents=True, exist_ok=True)
            shutil.move(fetched, shard)
            shutil.move(fetched_mark, mark)  # last: it marks the shard as finished
            count += 1
    return count
