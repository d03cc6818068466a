"""How far a run is: read from the sidecars alone, whatever stands in them, and without heavy libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, finished_run, run_folder

from builders.errors import DataError
from builders.runs.layout import load_sidecar, sidecar_of
from hfsyn.runs.run import load_run
from hfsyn.runs.status import StageStatus, status


def test_figures_are_sums_over_the_sidecars(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    shards = load_run(run).data_shards()
    # Text that looks like the end of the counts, counts that are empty, and a sidecar that another tool wrote.
    odd = [{"id": 'x"\n "counts": {\n', "wnid": "n1", "reason": '\n },\n "rows": 99,\n "counts": {}'}]
    changes = [{"rejected": odd, "seconds": 2.5}, {"counts": {}, "seconds": 1.0}, {"seconds": 0.25}]
    for shard, change in zip(shards, changes, strict=False):
        path = sidecar_of(shard)
        path.write_text(replace(load_sidecar(path), **change).dump(), encoding="utf-8")
    other = sidecar_of(shards[2])
    other.write_text(json.dumps(json.loads(other.read_text(encoding="utf-8"))), encoding="utf-8")
    found = status(run).stages[1]
    whole = [load_sidecar(sidecar_of(shard)) for shard in shards]
    assert found == StageStatus(
        "generate", 4, 4, sum(s.rows for s in whole), 1, round(sum(s.seconds for s in whole), 3)
    )
    assert status(run).finished


def test_a_shard_without_its_file_or_its_sidecar_is_not_done(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    shards = load_run(run).data_shards()
    shards[0].unlink()
    sidecar_of(shards[1]).unlink()
    assert status(run).stages[1].shards_done == len(shards) - 2
    sidecar_of(shards[2]).write_text('{"stage": "generate"}', encoding="utf-8")
    with pytest.raises(DataError, match="not a sidecar"):
        status(run)


def test_asking_loads_nothing_heavy(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    heavy = ("torch", "datasets", "transformers", "diffusers", "huggingface_hub", "PIL")
    code = (
        f"import sys; sys.argv = ['hfsyn', 'status', {str(run)!r}]\n"
        "from hfsyn.cli import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('loaded:', *[m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-2:] == ["unfinished", "loaded:"]
