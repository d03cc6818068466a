"""A probe makes images of the plan as the run would, measures the steady state, and leaves nothing behind."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from fakes import FakeCaptioner, FakeGenerator
from PIL import Image

from builders.variants import get_variant
from hfsyn.cli import main
from hfsyn.errors import HfsynError
from hfsyn.images.generator import Generated
from hfsyn.outlook.probe import Pace, Probe, probe
from hfsyn.recipes.recipe import Recipe, load_recipe
from hfsyn.runs.inputs import indexed
from hfsyn.runs.options import WorkOptions
from hfsyn.runs.specs import plan

SMALL = ("caption.batch_size=5", "generate.batch_size=4")


class Timed(FakeGenerator):
    """Sleeps a fixed time a batch, and longer for the first."""

    def __init__(self, seconds: float, first: float = 0.0) -> None:
        super().__init__()
        self.seconds, self.first = seconds, first
        self.batches: list[int] = []

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Generated]:
        time.sleep(self.seconds + (0 if self.batches else self.first))
        self.batches.append(len(prompts))
        return super().generate(prompts, seeds)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def recipe(*overrides: str) -> Recipe:
    return load_recipe("shapes-cip", [*SMALL, *overrides])


def test_the_images_are_those_of_the_plan_in_whole_batches(temporary: Path) -> None:
    generator, captioner = Timed(0.0), FakeCaptioner()
    found = probe(recipe("seed=5"), 6, generator=generator, captioner=captioner)
    # Six in batches of four are two batches; one goes before them and one after.
    assert generator.batches == [4, 4, 4, 4]
    assert (found.images.measured, found.images.warm) == (8, True)
    assert set(captioner.batches) == {5}
    assert len(captioner.batches) == 6  # for sixteen images, in batches of five, and the two beside them
    whole = {spec.seed for spec in plan(recipe("seed=5"), indexed(recipe(), "x"))}
    seeds = [seed for _, seed in generator.asked]
    assert len(set(seeds)) == 16
    assert set(seeds) <= whole
    assert all(prompt.startswith("a photo of ") and "mean" in prompt for prompt, _ in generator.asked)
    assert not list(temporary.glob("hfsyn*"))


def test_the_pace_is_that_of_the_steady_state() -> None:
    slow = probe(recipe(), 16, generator=Timed(0.4, first=3.0), captioner=FakeCaptioner()).images
    assert slow.warm
    assert 0.1 <= slow.seconds < 0.26  # 0.4 s for four; with the first batch it would be 0.26 and more
    fast = probe(recipe(), 16, generator=Timed(0.0), captioner=FakeCaptioner()).images
    assert fast.seconds < slow.seconds / 2


def test_a_batch_size_of_the_run_is_probed_with(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = Timed(0.0)
    found = probe(recipe(), 6, options=WorkOptions(batch_size="6"), generator=generator, captioner=FakeCaptioner())
    assert generator.batches == [6, 6, 6]
    assert found.images.measured == 6


def images_of(folder: Path, wnid: str, count: int) -> None:
    (folder / wnid).mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(folder / wnid / f"{number}.png")


def test_a_source_of_few_classes_gives_what_it_has(tmp_path: Path) -> None:
    wnid = get_variant("imagenette").classes[3].wnid
    images_of(tmp_path / "few", wnid, 9)
    few = load_recipe("imagenette-basic", [f"source.path={tmp_path / 'few'}", "generate.model=builtin", *SMALL[1:]])
    generator = Timed(0.0)
    found = probe(few, 100, generator=generator)
    assert len(generator.asked) == 9
    assert (found.images.measured, found.images.warm) == (4, True)  # of three shards the middle one
    assert (found.captions.measured, found.captions.warm) == (9, False)
    assert "the first batch among them" in found.text()


def test_nothing_is_left_of_a_probe_that_fails(tmp_path: Path, temporary: Path) -> None:
    class Broken(FakeGenerator):
        def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Generated]:
            raise HfsynError("too little memory")

    with pytest.raises(HfsynError, match="too little memory"):
        probe(recipe(), 4, generator=Broken(), captioner=FakeCaptioner())
    assert not list(temporary.glob("hfsyn*"))
    folder = tmp_path / "junk" / get_variant("imagenette").classes[0].wnid
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"no image")
    junk = load_recipe("imagenette-basic", [f"source.path={folder.parent}", "generate.model=builtin"])
    with pytest.raises(HfsynError, match="None of the 1 images"):
        probe(junk, 4, generator=FakeGenerator())
    assert not list(temporary.glob("hfsyn*"))


def test_hours_and_cost_follow_from_the_pace() -> None:
    measured = Probe(Pace(0.5, 32, True, "cpu"), Pace(2.0, 16, True, "cpu"))
    found = measured.projected(7200, 14400, processes=4, price=3.0)
    assert (found.hours, found.cost) == (2.25, 27.0)
    assert "2.2 h in 4 processes" in found.text()
    assert measured.projected(7200, 14400).cost is None


def run_main(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([*arguments])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_plan_probes_with_the_real_small_models(temporary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("plan", "shapes-cip", "--set", "generate.steps=2", "--set", "generate.batch_size=2", "--probe", "1")
    words += ("--set", "generate.init=source", "--set", "generate.strength=0.5")  # which asks for the real images again
    options = ("--device", "cpu", "--price", "2", "--num-processes", "3")
    code, out, _ = run_main(*words, *options, "--json", capsys=capsys)
    found = json.loads(out)["probe"]
    assert code == 0
    assert found["images"]["measured"] == 2
    assert found["images"]["seconds"] > 0
    hours = 5000 * (found["images"]["seconds"] + found["captions"]["seconds"]) / 3 / 3600
    assert found["hours"] == pytest.approx(hours, abs=1e-3)
    assert found["cost"] == pytest.approx(3 * 2 * hours, abs=0.01)
    assert not list(temporary.glob("hfsyn*"))


def test_plan_says_what_was_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    measured = Probe(Pace(0.05, 32, True, "cpu"), Pace(1.5, 16, True, "cpu"))
    monkeypatch.setattr("hfsyn.outlook.probe.probe", lambda recipe, count, **options: measured)
    code, out, _ = run_main("plan", "shapes-cip", "--probe", "16", "--price", "2", capsys=capsys)
    assert code == 0
    assert out.splitlines()[-2:] == [
        "measured      1.50 s per image and 50.0 ms per real one (16 and 32 of them) on cpu",
        "projected     2.2 h in one process, 4.31 USD",
    ]
    for lonely in (["--device", "cpu"], ["--num-processes", "2"], ["--compile"]):
        code, out, err = run_main("plan", "shapes-cip", *lonely, capsys=capsys)
        assert (code, out) == (2, "")
        assert "--probe" in err
