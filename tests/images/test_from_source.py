"""Images that start from the real image behind their prompt: the right one, with the rules of every other run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import parquet_bytes, run_folder
from drawn_tables import rows_of
from fakes import FakeCaptioner, FakeGenerator
from PIL import Image
from tiny_models import sdxl, stable_diffusion

from builders.runs import layout
from builders.sources import open_source
from hfsyn.captions.caption_stage import caption
from hfsyn.checks.reproduce import reproduce
from hfsyn.errors import HfsynError
from hfsyn.images.encoding import fitted
from hfsyn.images.generate_stage import generate
from hfsyn.images.generator import DiffusersGenerator, Generated
from hfsyn.outlook.doctor import doctor
from hfsyn.outlook.forecast import forecast
from hfsyn.recipes.recipe import GeneratePart, load_recipe
from hfsyn.runs.finish import finish
from hfsyn.runs.prepare import prepare
from hfsyn.runs.run import load_run

OVER = ("generate.init=source", "generate.strength=0.5")
IMAGES = [Image.effect_noise((40, 30), 90).convert("RGB"), Image.new("RGB", (20, 40), "blue")]


class Over(FakeGenerator):
    """Draws the real image that it is given, turned by a level that its seed chooses."""

    def start(  # type: ignore[override]
        self, prompts: Sequence[str], seeds: Sequence[int], size: int, *, images: Sequence[Image.Image]
    ) -> Callable[[], list[Generated]]:
        assert 0 < len(prompts) == len(seeds) == len(images) <= size
        self.asked += list(zip(prompts, seeds, strict=True))
        drawn = [np.asarray(image) for image in images]
        return lambda: [
            Generated(pixels, self.problem_of(p, s)) for pixels, p, s in zip(drawn, prompts, seeds, strict=True)
        ]


def captioned(tmp_path: Path, *overrides: str, name: str = "run") -> Path:
    run = run_folder(tmp_path, *OVER, *overrides, name=name)
    caption(run, captioner=FakeCaptioner(), quiet=True)
    return run


def rows(run: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((run / "data").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def pixels(data: bytes) -> list[Any]:
    import io

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).tolist()


def test_each_image_starts_from_the_real_image_that_its_row_names_also_when_it_is_made_again(tmp_path: Path) -> None:
    spoilt: set[int] = set()

    def spoil(prompt: str, seed: int) -> str | None:
        if len(spoilt) < 5 and seed % 3 == 0 and seed not in spoilt:
            spoilt.add(seed)
            return "flat"
        return None

    run = captioned(tmp_path, "prompt.images_per_caption=2")
    generate(run, generator=Over(problem_of=spoil), quiet=True)
    source = open_source("shapes", "train")
    real = {row.source_id: row.image for row in source.read(list(source.index())[:200])}
    found = rows(run)
    assert len(found) == 60
    assert sum(row["retries"] for row in found) == 5
    for row in found:
        assert pixels(row["image"]["bytes"]) == pixels(real[row["source_id"]])


def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    whole = captioned(tmp_path, name="whole")
    generate(whole, generator=Over(), quiet=True)
    parts = captioned(tmp_path, name="parts")
    generate(parts, generator=Over(), quiet=True, shards="1:2")
    generate(parts, generator=Over(), quiet=True)
    assert parquet_bytes(parts) == parquet_bytes(whole)


def test_a_source_that_has_changed_is_refused(tmp_path: Path) -> None:
    for number, (_, image) in enumerate(rows_of(3)):
        path = tmp_path / "photos" / "n01440764" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    run = captioned(tmp_path, "source.variant=imagenette", f"source.path={tmp_path / 'photos'}")
    path.write_bytes(rows_of(5)[4][1])
    with pytest.raises(HfsynError, match="is not the image that was captioned"):
        generate(run, generator=Over(), quiet=True)
    assert not list((run / "data").glob("*.parquet"))


def test_a_stream_of_the_hub_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    recipe = load_recipe("imagenette-cip", [*OVER, "caption.model=builtin", "generate.model=builtin"])
    for ask in (lambda: prepare(recipe, tmp_path / "run"), lambda: forecast(recipe)):
        with pytest.raises(HfsynError, match=r"streamed from the Hub.*hf download frgfm/imagenette .*'full_size/\*'"):
            ask()
    assert not (tmp_path / "run").exists()
    (line,) = [check.line() for check in doctor(recipe) if "streamed" in check.text]
    assert line.startswith("FAILED")


@pytest.mark.parametrize("save", [stable_diffusion, sdxl])
@pytest.mark.parametrize("scheduler", ["default", "euler", "dpm++"])
def test_it_is_what_diffusers_draws(save: Callable[[Path], Path], scheduler: str, tmp_path: Path) -> None:
    model = str(save(tmp_path / "model"))
    fields = {
        "scheduler": scheduler,
        "dtype": "float32",
        "batch_size": 2,
        "steps": 6,
        "init": "source",
        "strength": 0.7,
    }
    generator = DiffusersGenerator(GeneratePart.model_validate({"model": model, **fields}), None, "cpu")
    ours = generator.generate(["a cat", "a dog"], [1, 2], IMAGES)
    pipe = type(generator._image_pipe)(**generator._image_pipe.components)  # with diffusers' own way to the CPU
    out = pipe(
        ["a cat", "a dog"],
        image=[fitted(image, 16, 16) for image in IMAGES],
        strength=0.7,
        num_inference_steps=6,
        guidance_scale=2.0,
        output_type="np",
        generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)],
    )
    theirs = (out.images * 255).round().astype(np.uint8)
    assert np.abs(theirs.astype(int) - np.stack([image.pixels for image in ours])).max() <= 1


def test_strength_is_how_little_of_the_real_image_is_left(tmp_path: Path) -> None:
    model = str(stable_diffusion(tmp_path / "model"))

    def moved(strength: float) -> float:
        part = GeneratePart(model=model, dtype="float32", batch_size=1, steps=20, init="source", strength=strength)
        generator = DiffusersGenerator(part, None, "cpu")
        a, b = (generator.generate(["a cat"], [1], [image])[0].pixels.astype(int) for image in IMAGES)
        return float(np.abs(a - b).mean())

    assert moved(0.1) > moved(0.5) > moved(0.95)
    for steps, strength, words in ((4, 0.2, "is less than one step"), (3, 0.7, "spares none of 3 steps")):
        with pytest.raises(HfsynError, match=words):
            GeneratePart(model=model, dtype="float32", steps=steps, init="source", strength=strength)
    GeneratePart(model=model, steps=10, init="source", strength=0.1)  # one step is enough


def test_the_whole_path_with_the_small_models_and_one_image_made_again(tmp_path: Path) -> None:
    def built(name: str, *overrides: str) -> Path:
        small = ("source.limit_per_class=1", "generate.steps=4", "store.shard_rows=10")
        run = prepare(load_recipe("shapes-cip", [*small, *overrides]), tmp_path / name)
        caption(run, device="cpu", quiet=True)
        generate(run, device="cpu", quiet=True)
        return finish(run).folder

    run, plain = built("run", *OVER), built("plain")
    found = rows(run)
    assert len(found) == 10
    assert {row["image"]["bytes"] for row in found}.isdisjoint(row["image"]["bytes"] for row in rows(plain))
    again = reproduce(str(run), found[3]["sample_id"], out=tmp_path, device="cpu")
    assert again.verdict == "byte-equal"

    card = (run / "README.md").read_text()
    assert "strength 0.5: 50 % of the steps are done" in card
    assert "**Less private than images from prompts alone.** Each image was drawn over the real image" in card
    assert "`--source FOLDER`" in card
    assert "Less private" not in (plain / "README.md").read_text()


def test_one_image_is_made_again_only_over_the_image_that_was_used(tmp_path: Path) -> None:
    for number, (_, image) in enumerate(rows_of(3)):
        path = tmp_path / "photos" / "n01440764" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    run = captioned(tmp_path, "source.variant=imagenette", f"source.path={tmp_path / 'photos'}")
    generate(run, generator=Over(), quiet=True)
    finish(load_run(run))
    sample = "n01440764/2.png#0"
    made = reproduce(str(run), sample, out=tmp_path, generator=Over())
    assert made.verdict == "byte-equal"
    (tmp_path / "photos").rename(tmp_path / "moved")
    with pytest.raises(HfsynError, match=r"starts from the real image n01440764/2.png.*--source FOLDER"):
        reproduce(str(run), sample, out=tmp_path, generator=Over())
    assert (
        reproduce(str(run), sample, out=tmp_path, generator=Over(), source=str(tmp_path / "moved")).verdict
        == "byte-equal"
    )
    (tmp_path / "moved" / "n01440764" / "2.png").write_bytes(rows_of(9)[8][1])
    with pytest.raises(HfsynError, match="is another image than the one that was used"):
        reproduce(str(run), sample, out=tmp_path, generator=Over(), source=str(tmp_path / "moved"))
    assert json.loads((run / layout.MANIFEST).read_text())["recipe"]["generate"]["init"] == "source"
