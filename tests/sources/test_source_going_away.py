"""A source that goes away during a run: nothing is passed off as a bad image, and the same command goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import run_folder
from drawn_tables import rows_of
from fakes import FakeCaptioner

from builders.errors import DataError
from builders.runs.layout import load_sidecar, sidecar_of
from builders.sources.new_class_map import new_variant
from hfsyn.captions.caption_stage import caption
from hfsyn.runs.run import load_run


def test_a_folder_that_is_away_for_a_while_costs_no_image(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for number, (name, image) in enumerate(rows_of(20)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"{number}.png").write_bytes(image)
    bad = sorted(path for path in folder.rglob("*.png"))[0]
    bad.unlink()
    bad.symlink_to("nowhere")
    new_variant("mine", str(folder), out=tmp_path / "mine.yaml")
    run = load_run(run_folder(tmp_path, f"source.variant={tmp_path / 'mine.yaml'}", "store.shard_rows=4"))
    lost = sorted(folder.iterdir())[-1]
    lost.rename(tmp_path / "away")

    with pytest.raises(DataError, match="cannot be read: No such file or directory") as error:
        caption(run, captioner=FakeCaptioner(), quiet=True)
    assert error.value.code == 4
    done = [sidecar_of(shard).exists() for shard in run.caption_shards()]
    assert not done[-1]

    (tmp_path / "away").rename(lost)
    caption(run, captioner=FakeCaptioner(), quiet=True)
    sidecars = [load_sidecar(sidecar_of(shard)) for shard in run.caption_shards()]
    assert sum(sidecar.rows for sidecar in sidecars) == 19
    rejected = [row for sidecar in sidecars for row in sidecar.rejected]
    assert [row["reason"] for row in rejected] == ["cannot be read: the link leads to no file"]
