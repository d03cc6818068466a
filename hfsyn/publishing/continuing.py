"""Continue on another machine a run whose finished shards are on the Hub: what is there already is not made again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from builders import layout
from builders.errors import DataError
from builders.files import room_beside
from builders.layout import load_sidecar, sidecar_of
from hfsyn.errors import ExitCode
from hfsyn.making.pins import pinned
from hfsyn.making.planning import write_plan
from hfsyn.making.recipe import Recipe, parse_recipe
from hfsyn.making.runs import Run, prepare
from hfsyn.making.shards import faults, pending
from hfsyn.publishing.hub import HubRepo
from hfsyn.publishing.preflight import RepoState, look_at


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
        config_name: see `builders.layout.config_prefix`.
        token: as everywhere in huggingface_hub.
        say: told in one line what was brought back, and what could not be used.

    Raises:
        HfsynError: as `prepare`; or the Hub does not answer.
    """
    repo = HubRepo(repo_id, token=token, say=say)
    state = look_at(repo)
    prefix = layout.config_prefix(config_name)
    ours = state.owned(config_name)
    if state.head is not None and f"{prefix}{layout.RECIPE}" in ours:
        path = f"{prefix}{layout.RECIPE}"
        recipe = pinned(recipe, parse_recipe(repo.text(path, state.head), f"{path} of {repo.repo_id}"))
    run = prepare(recipe, out)
    there = {path.removeprefix(prefix) for path in ours}
    brought = _bring_back(run, run.caption_shards(), there, repo, state, prefix, say)
    if not pending(run.caption_shards()):
        write_plan(run)
        brought += _bring_back(run, run.data_shards(), there, repo, state, prefix, say)
    if brought:
        say(f"{brought} finished shards were brought back from {repo.repo_id}")
    return run


def _bring_back(
    run: Run,
    shards: Sequence[Path],
    there: set[str],
    repo: HubRepo,
    state: RepoState,
    prefix: str,
    say: Callable[[str], None],
) -> int:
    """Fetch those of `shards` that are missing here and finished there; returns how many."""
    count = 0
    # Beside their place, so that they are moved and not copied.
    with room_beside(run.folder) as temporary:

        def fetch(path: Path) -> Path:
            name = path.relative_to(run.folder).as_posix()
            repo.call(
                f"fetch {name} of {repo.repo_id}", repo.api.hf_hub_download, repo.repo_id, f"{prefix}{name}",
                repo_type="dataset", revision=state.head, local_dir=temporary,
            )  # fmt: skip
            return temporary / f"{prefix}{name}"

        for shard in pending(shards):
            mark = sidecar_of(shard)
            if not {path.relative_to(run.folder).as_posix() for path in (shard, mark)} <= there:
                continue
            try:
                fetched_mark = fetch(mark)
                if load_sidecar(fetched_mark).fingerprint != run.fingerprint:
                    say(f"{repo.repo_id} holds shards of another recipe, which are of no use here")
                    break
                fetched = fetch(shard)
                wrong = faults(fetched, run.fingerprint)
            except DataError as error:
                if error.code != ExitCode.USAGE:
                    raise  # the Hub does not answer
                wrong = [error.message]
            if wrong:
                say(f"{repo.repo_id}: {wrong[0]}; it is made again")
                continue
            for place in (shard.parent, mark.parent):
                place.mkdir(parents=True, exist_ok=True)
            shutil.move(fetched, shard)
            shutil.move(fetched_mark, mark)  # last: it marks the shard as finished
            count += 1
    return count
