"""The end of a run: check every shard, then write what was set aside, the card and, last, the manifest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from builders import layout
from builders.layout import load_sidecar, sidecar_of
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.making.claims import lock
from hfsyn.making.planning import write_plan
from hfsyn.making.recipe import published_recipe
from hfsyn.making.runs import Run, incomplete, load_run, rejected_lines
from hfsyn.making.shards import atomic_text, faults, is_done, pending
from hfsyn.making.sheets import sample_sheet, save_png
from hfsyn.publishing.cards import example_rows, facts, render_card


def finish(run: Run | str | Path) -> Run:
    """Check every shard against its sidecar, then write rejected.jsonl, preview, card and, last, the manifest.

    Raises:
        HfsynError: shards are missing or damaged (exit code 4).
    """
    run = run if isinstance(run, Run) else load_run(run)
    if (run.folder / layout.MANIFEST).exists():
        return run
    write_plan(run)
    with lock(run.folder, "finish"):
        if (run.folder / layout.MANIFEST).exists():
            return run
        shards = run.data_shards()
        if left := pending(shards):
            raise incomplete("generate", len(shards) - len(left), len(shards), run)
        if wrong := [fault for shard in [*run.caption_shards(), *shards] for fault in faults(shard, run.fingerprint)]:
            raise HfsynError(
                f"{run.folder} does not verify: {'; '.join(wrong[:3])}"
                + (f" and {len(wrong) - 3} more." if wrong[3:] else "."),
                "Delete the sidecars of these shards and run `hfsyn build` again: they are made anew.",
                code=ExitCode.PARTIAL,
            )
        for left_over in run.folder.rglob(".*.tmp"):  # of processes that were killed; nobody is at work any more
            left_over.unlink(missing_ok=True)
        rejected = list(rejected_lines(run))
        atomic_text(
            run.folder / layout.REJECTED, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in rejected)
        )
        save_png(sample_sheet(run), run.folder / layout.PREVIEW / "samples.png")
        manifest = manifest_of(run)
        software = software_of(run)
        card = render_card(facts(manifest, software, rows=example_rows(run.folder)))
        atomic_text(run.folder / layout.CARD, card)
        atomic_text(run.folder / layout.MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return run


def manifest_of(run: Run, what: str = "data") -> dict[str, Any]:
    """A run's table of contents; free of times, devices and places, so that equal runs have equal manifests.

    Args:
        run: its shards are all there.
        what: ``data`` is the run's own; ``captions`` is that of its captions where they are published alone.
    """
    shards = run.data_shards() if what == "data" else run.caption_shards()
    counts: Counter[str] = Counter()
    flags: Counter[str] = Counter()
    for shard in shards:
        sidecar = load_sidecar(sidecar_of(shard))
        counts.update(sidecar.counts)
        flags.update(sidecar.flags)
    stages = ("caption", "generate") if what == "data" else ("caption",)
    entries, captions = shard_entries(run, shards), shard_entries(run, run.caption_shards())
    return {
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
        "rejected": dict(sorted(Counter(f"{r['stage']}: {r['reason']}" for r in rejected_lines(run, stages)).items())),
        "flags": dict(sorted(flags.items())),
        "classes": [
            {"wnid": wnid, "name": run.classes[wnid].name, "rows": counts[wnid]}
            for wnid in sorted(counts, key=lambda w: run.classes[w].index)
        ],
        "shards": entries,
        "captions": captions if what == "data" else [],
    }


def shard_entries(run: Run, shards: Sequence[Path]) -> list[dict[str, Any]]:
    """Finished shards as a manifest lists them; see `builders.layout.ShardEntry`."""
    found = []
    for shard in shards:
        sidecar = load_sidecar(sidecar_of(shard))
        name = shard.relative_to(run.folder).as_posix()
        found.append({"file": name, "rows": sidecar.rows, "bytes": sidecar.bytes, "sha256": sidecar.sha256})
    return found


def software_of(run: Run) -> dict[str, list[str]]:
    """Every version of every library, and every device, that made a shard of this run."""
    found: dict[str, set[str]] = {}
    shards = run.caption_shards() + (run.data_shards() if run.planned_rows is not None else [])
    for shard in filter(is_done, shards):
        sidecar = load_sidecar(sidecar_of(shard))
        for name, value in {**sidecar.software, "device": sidecar.device}.items():
            found.setdefault(name, set()).add(value)
    return {name: sorted(values) for name, values in sorted(found.items())}
