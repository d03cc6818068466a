"""The end of a run: check every shard, then write what was set aside, the card and, last, the manifest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from builders import layout
from builders.layout import load_sidecar, sidecar_of
from hfsyn.cards import facts, render_card
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.runs import Run, incomplete, load_run, rejected_lines
from hfsyn.shards import atomic_text, faults, lock, pending
from hfsyn.sheets import sample_sheet, save_png
from hfsyn.stages import write_plan


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
        manifest = _manifest(run, rejected)
        software = _software_of(run)
        atomic_text(run.folder / layout.CARD, render_card(facts(manifest, software)))
        atomic_text(run.folder / layout.MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return run


def _manifest(run: Run, rejected: Sequence[dict[str, str]]) -> dict[str, Any]:
    """The run's table of contents; free of times and devices, so that equal runs have equal manifests."""
    sidecars = [(shard, load_sidecar(sidecar_of(shard))) for shard in run.data_shards()]
    captions = [load_sidecar(sidecar_of(shard)) for shard in run.caption_shards()]
    counts: Counter[str] = Counter()
    flags: Counter[str] = Counter()
    for _, sidecar in sidecars:
        counts.update(sidecar.counts)
        flags.update(sidecar.flags)
    return {
        "name": run.recipe.name,
        "format": 1,
        "fingerprint": run.fingerprint,
        "recipe": run.recipe.model_dump(),
        "split": run.split,
        "rows": sum(s.rows for _, s in sidecars),
        "bytes": sum(s.bytes for _, s in sidecars),
        "source_rows": run.source_rows,
        "readable_rows": sum(s.rows for s in captions),
        "rejected": dict(sorted(Counter(f"{r['stage']}: {r['reason']}" for r in rejected).items())),
        "flags": dict(sorted(flags.items())),
        "classes": [
            {"wnid": wnid, "name": run.classes[wnid].name, "rows": counts[wnid]}
            for wnid in sorted(counts, key=lambda w: run.classes[w].index)
        ],
        "shards": [
            {"file": f"{layout.DATA}/{shard.name}", "rows": s.rows, "bytes": s.bytes, "sha256": s.sha256}
            for shard, s in sidecars
        ],
    }


def _software_of(run: Run) -> dict[str, list[str]]:
    """Every version of every library, and every device, that made a shard of this run."""
    found: dict[str, set[str]] = {}
    for shard in run.data_shards():
        sidecar = load_sidecar(sidecar_of(shard))
        for name, value in {**sidecar.software, "device": sidecar.device}.items():
            found.setdefault(name, set()).add(value)
    return {name: sorted(values) for name, values in sorted(found.items())}
