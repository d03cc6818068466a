"""The end of a run: check every shard, then write what was set aside, the card and, last, the manifest."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from builders.errors import DataError, and_more
from builders.files import atomic_text, digest_of, remove_abandoned
from builders.runs import layout
from builders.runs.layout import load_sidecar, sidecar_of
from builders.runs.run_files import finished
from builders.stores.copies import present
from hfsyn.cards.card import render_card
from hfsyn.cards.facts import example_rows, facts
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.recipes.recipe import dump_recipe, published_recipe
from hfsyn.runs.claims import lock, working_in
from hfsyn.runs.leases import clear_claims
from hfsyn.runs.run import REFUSES, Run, check_complete, load_run, rejected_lines, unreadable_classes, unused_weights
from hfsyn.runs.scores import scores_of
from hfsyn.runs.selection_rule import selection_of
from hfsyn.runs.shards import faults, sidecars
from hfsyn.runs.sheets import sample_sheet, save_png
from hfsyn.runs.stage import write_plan


def finish(run: Run | str | Path) -> Run:
    """Check every shard against its sidecar, then write rejected.jsonl, preview, card and, last, the manifest.

    Args:
        run: the run folder.

    Raises:
        HfsynError: shards are missing or damaged (exit code 4).
    """
    run = run if isinstance(run, Run) else load_run(run)
    if is_whole(run):
        return run
    with working_in(run.folder, run.mark), lock(run.folder, "finish"):
        if is_whole(run):
            return run
        write_plan(run)
        shards = run.data_shards()
        check_complete("generate", shards, run)
        if wrong := [fault for shard in [*run.caption_shards(), *shards] for fault in faults(shard, run.fingerprint)]:
            raise HfsynError(
                f"{run.folder} does not verify: {'; '.join(wrong[:3])}{and_more(len(wrong), 3)}.",
                f"Delete the sidecars of these shards, in {run.folder / layout.SIDECARS}, and run `hfsyn build` again: "
                "they are created again.",
                code=ExitCode.PARTIAL,
            )
        remove_abandoned(run.folder.rglob(".*.tmp"))  # of processes that were killed
        atomic_text(run.folder / layout.REJECTED, rejected_text(run))
        save_png(sample_sheet(run), run.folder / layout.PREVIEW / layout.SAMPLES)
        _seal(run)
    clear_claims(run.folder)
    return run


def _seal(run: Run) -> None:
    """Write the card and, last, the manifest."""
    manifest = manifest_of(run)
    card = render_card(facts(manifest, software_of(run), rows=example_rows(run.folder)))
    atomic_text(run.folder / layout.CARD, card)
    atomic_text(run.folder / layout.MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def reseal(folder: Path) -> None:
    """Write the card and the manifest of a finished run again, after something was added to it that they state."""
    run = load_run(folder)
    with lock(run.folder, "finish"):
        _seal(run)


def manifest_of(run: Run, what: str = "data") -> dict[str, Any]:
    """The table of contents of a run whose shards are all there, or (``captions``) of its captions if they are
    published alone; free of times, devices and places, so that equal runs have equal manifests.
    """
    shards = run.data_shards() if what == "data" else run.caption_shards()
    read, made = sidecars(run.caption_shards()), sidecars(shards)
    counts, flags = Counter[str](), Counter[str]()
    for sidecar in made:
        counts.update(sidecar.counts)
        flags.update(sidecar.flags)
    stages = ("caption", "generate") if what == "data" else ("caption",)
    entries, captions = shard_entries(run, shards), shard_entries(run, run.caption_shards())
    fields = {
        "name": run.recipe.name,
        "format": layout.FORMAT,
        "what": what,
        "fingerprint": run.fingerprint,
        "recipe": published_recipe(run.recipe).model_dump(),
        "split": run.split,
        "rows": sum(entry["rows"] for entry in entries),
        "bytes": sum(entry["bytes"] for entry in entries),
        "source_rows": run.source_rows,
        "readable_rows": sum(entry["rows"] for entry in captions),
        "rejected": dict(sorted(Counter(map(_kind, rejected_lines(run, stages))).items())),
        "unused_weights": unused_weights([*read, *made]),
        "flags": dict(sorted(flags.items())),
        "classes": [
            {"wnid": wnid, "name": run.classes[wnid].name, "rows": counts[wnid]}
            for wnid in sorted(counts, key=lambda w: run.classes[w].index)
        ],
        "shards": entries,
        "captions": captions if what == "data" else [],
        "left_out": run.left_out,
        "unreadable_classes": unreadable_classes(run, rejected_lines(run, ("caption",))),
        "files": _hashes(run, what),
    }
    return layout.sealed(fields | (_of_scores(run) if what == "data" else {}))


def _of_scores(run: Run) -> dict[str, Any]:
    """What a manifest says of scores and of the selection by them, if there are any."""
    scores, selection = scores_of(run.folder), selection_of(run.folder)
    return ({"judges": scores.judges} if scores else {}) | ({"selection": selection} if selection else {})


def _kind(line: dict[str, str]) -> str:
    """The reason by which a rejected line is counted; a model's own words may hold numbers of that image alone."""
    reason = line["reason"]
    return f"{line['stage']}: {re.sub(r'[0-9]+([.,][0-9]+)*', 'N', reason) if reason.startswith(REFUSES) else reason}"


def _hashes(run: Run, what: str) -> dict[str, str]:
    """SHA-256 of the small files, of the recipe as it is published: without the places of this machine."""
    found = {layout.RECIPE: hashlib.sha256(dump_recipe(published_recipe(run.recipe)).encode()).hexdigest()}
    if what == "data":
        found |= {name: run.table(name).sha256 for name in (layout.SOURCE, layout.PLAN)}
        found[layout.REJECTED] = hashlib.sha256(rejected_text(run).encode()).hexdigest()
        there = {layout.SCORES_TABLE: scores_of(run.folder), layout.SELECTION: selection_of(run.folder)}
        found |= {name: digest_of(present(run.folder / name)) for name, marker in there.items() if marker}
    return found


def rejected_text(run: Run) -> str:
    """What rejected.jsonl holds."""
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in rejected_lines(run))


def is_whole(run: Run) -> bool:
    """Whether a run is finished, and nothing of it has been lost or made differently since."""
    try:
        manifest = finished(run.folder)
    except DataError:
        manifest = None
    if manifest is None:
        return False
    stated = [asdict(entry) for entry in (*manifest.captions, *manifest.shards)]
    return stated == [*shard_entries(run, run.caption_shards()), *shard_entries(run, run.data_shards())]


def shard_entries(run: Run, shards: Sequence[Path]) -> list[dict[str, Any]]:
    """Finished shards as a manifest lists them; see `builders.runs.layout.ShardEntry`."""
    found = ((shard.relative_to(run.folder).as_posix(), load_sidecar(sidecar_of(shard))) for shard in shards)
    return [{"file": name, "rows": one.rows, "bytes": one.bytes, "sha256": one.sha256} for name, one in found]


def software_of(run: Run) -> dict[str, list[str]]:
    """Every version of every library, and every device, that made a shard of this run."""
    found: dict[str, set[str]] = {}
    shards = run.caption_shards() + (run.data_shards() if run.planned_rows is not None else [])
    for sidecar in sidecars(shards):
        for name, value in {**sidecar.software, "device": sidecar.device}.items():
            found.setdefault(name, set()).add(value)
    return {name: sorted(values) for name, values in sorted(found.items())}
