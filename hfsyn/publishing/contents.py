"""What a run publishes: the files of one configuration, by their path in the repository."""

import json
from collections.abc import Iterable
from pathlib import Path

from builders.errors import and_more
from builders.files import sha256_of
from builders.runs import layout
from builders.runs.run_files import finished
from builders.stores.copies import present
from hfsyn.cards.facts import What
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.hub.repo import LocalFile
from hfsyn.progress import Progress
from hfsyn.recipes.recipe import dump_recipe, published_recipe
from hfsyn.runs.finish import manifest_of
from hfsyn.runs.run import Run, check_complete
from hfsyn.runs.shards import faults, is_done

_SOON_READ = 500 * 2**20  # bytes; progress is not shown for less, which takes a second or so to hash

_TABLES = (layout.SOURCE, layout.sidecar_name(layout.SOURCE), layout.PLAN, layout.sidecar_name(layout.PLAN))
_MORE = tuple(file for table in (layout.SCORES_TABLE, layout.SELECTION) for file in (table, layout.sidecar_name(table)))
_TOP = (*_TABLES, *_MORE, layout.REJECTED, layout.MANIFEST, f"{layout.PREVIEW}/{layout.SAMPLES}")


def contents(run: Run, config_name: str, what: What = "data", *, quiet: bool = True) -> dict[str, LocalFile]:
    """Every file of a finished run but its card, checked against the sidecars, in the order in which they are sent.

    The recipe is sent without the paths of this machine. With `what` = ``captions`` they are the captions and their
    recipe, and only these need to be finished. Raises HfsynError if the run is not finished, or does not verify (exit
    code 3).
    """
    folder, code = run.folder, ExitCode.PREFLIGHT
    prefix = layout.config_prefix(config_name)
    manifest = finished(folder)
    if what == "data" and manifest is None:
        hint = f"Run: hfsyn build (again), or: hfsyn finish {folder}"
        raise HfsynError(f"{folder} is not finished.", hint, code=code)
    shards = [*run.caption_shards(), *(run.data_shards() if what == "data" else [])]
    if what == "captions":
        check_complete("caption", shards, run, code)
    wrong = _faults(run, shards, quiet=quiet)
    if manifest is not None and what == "data":
        wrong += _changed(run, manifest)
    if wrong:
        raise HfsynError(
            f"{folder} does not verify: {wrong[0]}{and_more(len(wrong), 1)}.",
            f"Delete what is damaged (of a shard its sidecar in {layout.SIDECARS}/) and {layout.MANIFEST}: "
            "`hfsyn build` creates it again.",
            code=code,
        )
    found = _recipe_file(run, prefix) | _shard_files(run, shards, prefix)
    if what == "captions":
        made = json.dumps(manifest_of(run, "captions"), indent=1, ensure_ascii=False) + "\n"
        return found | {f"{prefix}{layout.MANIFEST}": LocalFile.made(made)}
    return found | _small_files(run, _TOP, prefix)


def _changed(run: Run, manifest: layout.Manifest) -> list[str]:
    mine, stated = manifest_of(run), manifest.raw
    if mine == stated:
        return []
    names = [name for name, sha256 in mine["files"].items() if stated["files"].get(name) != sha256]
    return [f"{name} is not as {layout.MANIFEST} states it" for name in names or ["a sidecar"]]


def _faults(run: Run, shards: list[Path], *, quiet: bool) -> list[str]:
    size = sum(shard.stat().st_size for shard in shards if shard.exists())
    found = []
    with Progress("checking", size, quiet=quiet or size < _SOON_READ, unit="bytes") as bar:
        for shard in shards:
            found += faults(shard, run.fingerprint, here=True)
            bar.add(shard.stat().st_size if shard.exists() else 0)
    return found


def finished_contents(run: Run, config_name: str) -> dict[str, LocalFile]:
    """The finished part of an unfinished run: recipe, indexes, and the shards that have their sidecars."""
    prefix = layout.config_prefix(config_name)
    planned = run.data_shards() if run.planned_rows is not None else []
    shards = [shard for shard in [*run.caption_shards(), *planned] if is_done(shard)]
    return _recipe_file(run, prefix) | _small_files(run, _TABLES, prefix) | _shard_files(run, shards, prefix)


def _recipe_file(run: Run, prefix: str) -> dict[str, LocalFile]:
    return {f"{prefix}{layout.RECIPE}": LocalFile.made(dump_recipe(published_recipe(run.recipe)))}


def _shard_files(run: Run, shards: list[Path], prefix: str) -> dict[str, LocalFile]:
    found = {}
    for shard in shards:
        sidecar = layout.sidecar_of(shard)
        # The sidecar first: on the Hub it is what tells a shard of ours from a file of the same name.
        found[f"{prefix}{sidecar.relative_to(run.folder).as_posix()}"] = LocalFile(sidecar, sha256_of(sidecar))
        name = f"{prefix}{shard.relative_to(run.folder).as_posix()}"
        found[name] = LocalFile(shard, layout.load_sidecar(sidecar).sha256)
    return found


def _small_files(run: Run, names: Iterable[str], prefix: str) -> dict[str, LocalFile]:
    """Those of the files that exist, hashed here."""
    paths = {f"{prefix}{name}": run.folder / name for name in names}
    return {name: LocalFile(path, sha256_of(present(path))) for name, path in paths.items() if path.exists()}


def files_of(manifest: layout.Manifest, config_name: str) -> set[str]:
    """The files that hfsyn wrote for a configuration with this manifest."""
    prefix = layout.config_prefix(config_name)
    shards = [entry.file for entry in (*manifest.shards, *manifest.captions)]
    names = {layout.RECIPE, *_TOP, *shards, *map(layout.sidecar_name, shards)}
    return {f"{prefix}{name}" for name in names}
