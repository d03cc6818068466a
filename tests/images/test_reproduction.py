"""An image is made again in the way that its sidecar tells: memory format, compilation, attention kernel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import finished_run, run_folder
from fakes import FakeCaptioner, FakeGenerator

from builders.published import RunFolder, open_reference
from builders.runs import layout
from hfsyn.captions.caption_stage import caption
from hfsyn.checks import reproduce as reproduction
from hfsyn.checks.reproduce import find_row, recorded_tuning, reproduce
from hfsyn.errors import HfsynError
from hfsyn.images.generate_stage import generate
from hfsyn.images.generator import DiffusersGenerator
from hfsyn.images.tuning import Tuning
from hfsyn.runs.finish import finish
from hfsyn.runs.options import WorkOptions

SMALL = ("source.limit_per_class=1", "store.shard_rows=10", "generate.steps=1", "generate.batch_size=2")


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Tuning]:
    """The tunings of the generators that `reproduce` loads."""
    found: list[Tuning] = []

    def load(*args: Any, tuning: Tuning, **options: Any) -> DiffusersGenerator:
        found.append(tuning)
        return DiffusersGenerator(*args, tuning=tuning, **options)

    monkeypatch.setattr(reproduction, "DiffusersGenerator", load)
    return found


def made(tmp_path: Path, options: WorkOptions | None = None) -> tuple[Path, str]:
    """A run of ten images, by the small model or a fake, and the id of one."""
    run = run_folder(tmp_path, *SMALL)
    caption(run, captioner=FakeCaptioner(), quiet=True)
    if options is None:
        generate(run, generator=FakeGenerator(), quiet=True)
    else:
        generate(run, device="cpu", options=options, quiet=True)
    finish(run)
    shard = next(layout.finished_shards(run / layout.DATA))
    return run, pq.read_table(shard, columns=["sample_id"])["sample_id"][3].as_py()


def test_the_generator_is_tuned_as_the_sidecar_says(tmp_path: Path, loaded: list[Tuning]) -> None:
    run, sample = made(tmp_path, WorkOptions(channels_last="on", attention="math"))
    found = reproduce(str(run), sample, out=tmp_path, device="cpu")
    assert loaded == [Tuning(channels_last=True, attention="math")]
    assert found.verdict == "byte-equal"
    assert found.theirs["channels_last"] == found.ours["channels_last"] == "yes"
    assert found.theirs["attention"] == found.ours["attention"] == "math"


def test_what_this_machine_cannot_do_is_left_out_and_said(
    tmp_path: Path, loaded: list[Tuning], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, sample = made(tmp_path, WorkOptions())
    for shard in layout.finished_shards(run / layout.DATA):
        path = layout.sidecar_of(shard)
        options = {"channels_last": "yes", "compile": "yes", "attention": "flash"}
        path.write_text(json.dumps({**json.loads(path.read_text()), "options": options}))

    def refuse(pipe: Any, tuning: Tuning) -> None:
        if tuning.compiled:
            raise HfsynError("--compile: torch cannot compile this model here (no C++ compiler)", "Leave it out.")

    monkeypatch.setattr("hfsyn.images.generator.tune", refuse)
    found = reproduce(str(run), sample, out=tmp_path, device="cpu")
    assert loaded == [Tuning(channels_last=True, compiled=True), Tuning(channels_last=True)]
    lines = " ".join(found.text().split())
    assert "attention flash there, - here" in lines
    assert "compile yes there, - here" in lines
    assert "channels_last yes" in lines
    assert found.verdict != "different"


@pytest.mark.parametrize(
    ("options", "device", "expected"),
    [
        ({}, "cuda:0", Tuning()),  # contiguous, as it was made, though a run there would be channels last
        ({"channels_last": "yes"}, "cpu", Tuning(channels_last=True)),
        ({"compile": "yes", "attention": "cudnn"}, "cuda:1", Tuning(compiled=True, attention="cudnn")),
        ({"attention": "efficient"}, "mps", Tuning()),
        ({"attention": "math"}, "cpu", Tuning(attention="math")),
        ({"attention": "of next year"}, "cuda:0", Tuning()),
    ],
)
def test_a_kernel_that_the_device_lacks_is_left_out(options: dict[str, str], device: str, expected: Tuning) -> None:
    assert recorded_tuning(options, device) == expected


def test_an_error_that_has_nothing_to_do_with_tuning_stays(tmp_path: Path, loaded: list[Tuning]) -> None:
    run, sample = made(tmp_path)
    with pytest.raises(HfsynError, match="nowhere"):
        reproduce(str(run), sample, out=tmp_path, device="cpu", model=str(tmp_path / "nowhere"))
    assert len(loaded) == 1


def test_a_samples_place_in_its_shard_counts_the_lines_that_were_set_aside(tmp_path: Path) -> None:
    """Which batch an image was drawn in goes by its line of the plan, not by its row."""
    run = run_folder(tmp_path, "store.shard_rows=10", "generate.max_retries=0", recipe="shapes-basic")
    caption(run, quiet=True)
    spoilt = FakeGenerator(problem_of=lambda prompt, seed: "nan" if seed % 3 == 0 else None)
    generate(run, generator=spoilt, quiet=True)
    finish(run)
    lines = pq.read_table(run / layout.PLAN).to_pylist()
    places = {line["sample_id"]: number % 10 for number, line in enumerate(lines) if line["seed"] % 3}
    assert 10 < len(places) < len(lines) - 3
    side = open_reference(str(run))
    assert {sample: find_row(side, sample)[2] for sample in places} == places


def test_a_row_is_found_by_looking_into_few_of_many_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished_run(tmp_path / "run", "source.limit_per_class=7", "store.shard_rows=2")
    side = open_reference(str(run))
    entries = side.manifest().shards
    ids = [
        row["sample_id"] for shard in sorted((run / layout.DATA).iterdir()) for row in pq.read_table(shard).to_pylist()
    ]
    looked_at: list[str] = []
    plain = RunFolder.open
    monkeypatch.setattr(RunFolder, "open", lambda self, name: (looked_at.append(name), plain(self, name))[1])
    assert len(entries) == 35
    for number, sample_id in list(enumerate(ids))[::9]:
        looked_at.clear()
        row, _, place = find_row(side, sample_id)
        assert (row["sample_id"], place) == (sample_id, number % 2)
        assert len(looked_at) <= 8
    with pytest.raises(HfsynError, match="has no sample 'n0/no-such'"):
        find_row(side, "n0/no-such")
