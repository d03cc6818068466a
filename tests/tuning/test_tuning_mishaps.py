"""`hfsyn tune` where things are small, missing or go wrong: a line that says it, nothing false, nothing lost."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from test_tuning import QUIET, captioned, photographs, small

import hfsyn
from hfsyn.errors import HfsynError
from hfsyn.images.denoising_loss import DenoisingLoss
from hfsyn.recipes.recipe import TunePart, load_recipe
from hfsyn.runs.run import load_run
from hfsyn.tuning import tune
from hfsyn.tuning.cache import Cache
from hfsyn.tuning.examples import FLAT, UNREADABLE, drawn, of_dataset, of_run, prior
from hfsyn.tuning.kept import Album
from hfsyn.tuning.loop import Deck, Tuner
from hfsyn.workers import Worker

FEW = ["tune.steps=2", "tune.batch_size=2", "generate.steps=2"]


def tuner_on(folder: Path, out: Path, *overrides: str) -> tuple[Tuner, DenoisingLoss]:
    """A tuner on a folder of images, with the small generator that comes with hfsyn."""
    recipe = load_recipe("shapes-cip", [f"tune.dataset={folder}", "generate.dtype=float32", *overrides])
    assert recipe.tune is not None
    loss = DenoisingLoss(recipe.generate, "cpu")
    cache = Cache(out / "cache", of_dataset(recipe.tune))
    cache.fill(loss, quiet=True)
    return Tuner(recipe, loss, [Deck(cache, cache.usable()[0], recipe.seed)], out), loss


def test_an_image_that_a_step_shows_several_times_is_shown_differently_each_time(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "cats", ["a cat", "a dog", "a bird"])
    many, _ = tuner_on(folder, tmp_path / "out", "tune.batch_size=12")
    few, _ = tuner_on(folder, tmp_path / "out", "tune.batch_size=3")

    def told(tuner: Tuner, *part: int) -> list[tuple[int, float, float]]:
        return [(one.number, one.share, float(one.noise.sum())) for one in tuner.shown(0, *part)]

    whole = told(many)
    assert len({share for _, share, _ in whole}) == len({noise for _, _, noise in whole}) == 12
    assert whole[:3] == told(few)  # the first time as ever
    assert [whole[0::2], whole[1::2]] == [told(many, rank, 2) for rank in (0, 1)]


def test_each_process_looks_whether_the_images_have_changed_and_the_main_one_alone_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photographs(tmp_path / "cats", ["a cat", "a dog"])
    recipe = load_recipe("shapes-cip", [f"tune.dataset={folder}"])
    assert recipe.tune is not None
    before = of_dataset(recipe.tune)
    (folder / "metadata.jsonl").write_text((folder / "metadata.jsonl").read_text().replace("dog", "bird"))
    after = of_dataset(recipe.tune)
    (tmp_path / "out").mkdir()
    for rank, there in ((1, False), (0, True)):
        monkeypatch.setattr("hfsyn.tuning.tune.current_worker", lambda rank=rank: Worker(rank, 2))
        tune._begin(tmp_path / "out", recipe, before)
        assert (tmp_path / "out" / "inputs.json").exists() == there
    for rank in (0, 1):
        monkeypatch.setattr("hfsyn.tuning.tune.current_worker", lambda rank=rank: Worker(rank, 2))
        with pytest.raises(HfsynError, match="these or their prompts have changed"):
            tune._begin(tmp_path / "out", recipe, after)


def test_a_process_whose_others_have_stopped_says_so_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuner, _ = tuner_on(photographs(tmp_path / "cats", ["a cat", "a dog"]), tmp_path / "out", *FEW)

    def gone(*_: Any) -> Any:
        raise RuntimeError("Connection closed by peer")

    for name in ("tune", "loop"):
        monkeypatch.setattr(f"hfsyn.tuning.{name}.current_worker", lambda: Worker(1, 2))
    monkeypatch.setattr("accelerate.utils.reduce", gone)
    monkeypatch.setattr("accelerate.PartialState", gone)
    tuner._worker = Worker(1, 2)
    for meet in (tuner.step, tune.wait_for_everyone):
        with pytest.raises(HfsynError, match="Another process has stopped") as stopped:
            meet()
        assert stopped.value.code == 4


def test_what_weights_were_tuned_on_is_named_so_that_nothing_else_is_meant(tmp_path: Path) -> None:
    """A folder of one's own is not the variant that is called so, nor is a part of a variant the whole."""
    mine = photographs(tmp_path / "mine" / "shapes", ["a cat"])
    assert of_dataset(TunePart(dataset=str(mine))).reference == "./shapes"
    for split, reference in (("train", "shapes"), ("test", "shapes, split test")):
        run = load_run(captioned(tmp_path, f"source.split={split}", name=split))
        assert of_run(run, TunePart()).reference == reference


def test_too_little_memory_makes_smaller_batches_or_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photographs(tmp_path / "cats", [f"cat {number}" for number in range(9)])
    tuner, loss = tuner_on(folder, tmp_path / "out", *FEW)
    recipe, whole, latents = tuner._recipe, tuner._decks[0].cache, DenoisingLoss.latents
    assert recipe.tune is not None

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB")

    encode = DenoisingLoss.encode
    monkeypatch.setattr(DenoisingLoss, "latents", lambda self, some: latents(self, some) if len(some) < 5 else full())
    monkeypatch.setattr(DenoisingLoss, "encode", lambda self, some: encode(self, some) if len(some) < 5 else full())
    small = Cache(tmp_path / "small", of_dataset(recipe.tune))
    small.fill(loss, quiet=True)
    assert "too little memory for batches of 16; going on with 8" in capsys.readouterr().err
    for mirrored in (False, True):
        numbers = list(range(9))
        assert torch.allclose(small.latents(numbers, [mirrored] * 9), whole.latents(numbers, [mirrored] * 9), atol=1e-5)
    prompts = [example.prompts[0] for example in whole._examples.rows]
    for name, rows in small.conditions(prompts).items():
        assert torch.allclose(rows, whole.conditions(prompts)[name], atol=1e-5)
    asked: list[int] = []
    monkeypatch.setattr("hfsyn.tuning.examples.call_options", lambda *given: asked.append(given[-1]) or {})
    few = recipe.with_fields("generate", batch_size=2)
    assert (len(drawn(loss, few, ["a cat"] * 5, range(5))), asked) == (5, [2, 2, 1])
    monkeypatch.setattr(Tuner, "_losses", full)
    with pytest.raises(HfsynError, match=r"too little memory for a step .*8\.00 GiB.*accumulation-steps 2 or"):
        tuner.step()


def test_black_pictures_of_a_safety_checker_are_neither_learnt_nor_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = [*small("sd-1.5", tmp_path), "generate.safety_checker=true", "generate.max_retries=1"]
    folder = photographs(tmp_path / "cats", ["a cat", "a dog"])
    tuner, loss = tuner_on(
        folder, tmp_path / "out", *FEW, *model, "tune.prior_images=3", 'tune.prior_prompts=["a cat"]'
    )
    recipe, examples = tuner._recipe, tuner._decks[0].cache._examples
    own = prior(recipe, examples)
    assert own is not None
    loss.pipe.safety_checker.concept_embeds_weights.data.fill_(-10)  # which flags everything
    assert own.open(loss)([0, 2]) == [FLAT, FLAT]
    cache = Cache(tmp_path / "prior", own)
    cache.fill(loss, quiet=True)
    assert cache.usable() == ([], {FLAT: 3})
    Album(tmp_path / "out", recipe, tuner, loss, examples.rows[:1]).draw(0)
    low, high = Image.open(tmp_path / "out" / "samples" / "step-00000000-0.png").convert("L").getextrema()
    assert high - low > 4
    assert type(loss.pipe.safety_checker).__name__ == loss.pipe.config["safety_checker"][1]
    # One that was black is drawn again, from another seed.
    asked: list[list[int]] = []

    def second(_: Any, __: Any, prompts: list[str], seeds: list[int]) -> list[Image.Image]:
        asked.append(seeds)
        good = Image.linear_gradient("L")
        return [good if number or len(asked) > 1 else Image.new("RGB", (8, 8)) for number in range(len(prompts))]

    monkeypatch.setattr("hfsyn.tuning.examples.drawn", second)
    assert FLAT not in own.open(loss)([0, 1])
    assert ([len(seeds) for seeds in asked], asked[1][0] in asked[0]) == ([2, 1], False)


def test_text_encoders_that_are_not_trained_stay_and_collect_no_gradients(tmp_path: Path) -> None:
    folder, model = photographs(tmp_path / "cats", ["a cat", "a dog"]), small("sd-3-medium", tmp_path)
    tuner, loss = tuner_on(folder, tmp_path / "out", *FEW, *model, "tune.text_encoder=true")
    tuner.step()
    assert [part.grad for part in loss.pipe.text_encoder_3.parameters() if part.grad is not None] == []
    assert [part.grad for part in loss.pipe.text_encoder.parameters() if part.grad is not None] != []
    loss.rest_to("meta", tuner.working)
    parts = {name: part.device.type for name, part in loss.pipe.components.items() if isinstance(part, torch.nn.Module)}
    staying = ["text_encoder", "text_encoder_2", "text_encoder_3", "transformer"]
    assert [name for name, device in sorted(parts.items()) if device != "meta"] == staying


def test_a_dropped_caption_of_sdxl_is_what_its_guidance_draws_away_from(tmp_path: Path) -> None:
    part = load_recipe("shapes-cip", small("sdxl", tmp_path)).generate
    loss = DenoisingLoss(part, "cpu")
    _, empty, _, pooled = loss.pipe.encode_prompt(["a cat"], device="cpu", do_classifier_free_guidance=True)
    told = loss.encode(["a dog", ""])
    assert torch.equal(told["embeddings"][1:], empty)
    assert torch.equal(told["pooled"][1:], pooled)
    assert min(float(rows[0].abs().max()) for rows in told.values()) > 0
    # With a negative prompt, nothing is drawn away from the empty one.
    assert float(DenoisingLoss(part, "cpu", negative="ugly").encode([""])["embeddings"].abs().max()) > 0


def test_stable_diffusion_3_is_shown_the_noise_that_its_shift_makes_of_a_logit_normal_share(tmp_path: Path) -> None:
    folder, model = photographs(tmp_path / "cats", ["a cat"]), small("sd-3-medium", tmp_path)
    found = {}
    for mean in ("null", "0"):
        tuner, loss = tuner_on(folder, tmp_path / "out", *model, "tune.batch_size=8", f"tune.logit_mean={mean}")
        found[mean] = [one.share for step in range(10) for one in tuner.shown(step)]
    shift = loss.pipe.scheduler.config.shift
    assert shift == 3
    assert found["null"] == pytest.approx([shift * share / (1 + (shift - 1) * share) for share in found["0"]])
    assert tuner_on(folder, tmp_path / "other")[0]._logit_mean == 0  # of a network that predicts noise


@pytest.mark.parametrize(
    ("words", "said", "there"),
    [
        ({"gradient_accumulation_steps": 3}, "cannot be divided among 1 processes and 3 parts", []),
        ({"overrides": [*FEW, "tune.targets=[nope]"]}, "match no layer", ["inputs.json", "tuning.yaml"]),
    ],
)
def test_what_can_be_refused_is_refused_before_anything_is_encoded(
    tmp_path: Path, words: dict[str, Any], said: str, there: list[str]
) -> None:
    folder = photographs(tmp_path / "cats", ["a cat", "a dog"])
    with pytest.raises(HfsynError, match=said):
        hfsyn.tune("shapes-cip", tmp_path / "out", dataset=str(folder), **{"overrides": FEW, **QUIET, **words})
    assert sorted(path.name for path in (tmp_path / "out").glob("*")) == there


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_ends_a_tuning_before_the_weights_are_lost(tmp_path: Path, clip: float) -> None:
    folder = photographs(tmp_path / "cats", ["a cat", "a dog"])
    tuner, _ = tuner_on(folder, tmp_path / "out", *FEW, f"tune.clip_grad={clip}")
    before = {name: weight.detach().clone() for name, weight in tuner.weights.items()}
    next(iter(tuner.weights.values())).register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(HfsynError, match=r"The gradient's norm is (nan|inf) at step 1\. Tune into another --out"):
        tuner.step()
    assert all(torch.equal(weight.detach(), before[name]) for name, weight in tuner.weights.items())


def test_a_tuning_goes_on_if_its_images_and_its_model_have_moved_and_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = photographs(tmp_path / "cats", ["a cat", "a dog"]), tmp_path / "out"
    model = small("sd-1.5", tmp_path)

    def tuned(folder: Path, *more: str) -> dict[str, Any]:
        how = [*model, *FEW, "tune.steps=2", *more]
        return hfsyn.tune("shapes-cip", out, dataset=str(folder), overrides=how, checkpoint_steps=1, **QUIET)

    step = Tuner.step
    monkeypatch.setattr(Tuner, "step", lambda self: step(self) if self.done < 1 else next(iter(())))
    with pytest.raises(StopIteration):
        tuned(folder)
    monkeypatch.undo()
    (tmp_path / "sd-1.5").rename(tmp_path / "moved")
    model[0] = f"generate.model={tmp_path / 'moved'}"
    folder = folder.rename(tmp_path / "elsewhere")
    # With images of one's own, no caption and no prompt of the recipe is used.
    found = tuned(folder, "caption.num_beams=2", "prompt.strategy=basic")
    assert found["steps"] == 2
    assert tuned(folder.rename(tmp_path / "again")) == found
    with pytest.raises(HfsynError, match="these or their prompts have changed"):
        tuned(photographs(tmp_path / "others", ["a fish", "a dog"]))
    with pytest.raises(HfsynError, match=r"prompt\.negative was None there and is 'ugly' now"):
        tuned(tmp_path / "again", "prompt.negative=ugly")


def test_a_tuning_that_was_killed_while_it_drew_samples_draws_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, words = photographs(tmp_path / "cats", ["a cat", "a dog"]), {**QUIET, "samples": 1, "checkpoint_steps": 1}
    draw = Album.draw
    monkeypatch.setattr(Album, "draw", lambda self, step: draw(self, step) if step < 1 else next(iter(())))
    for _ in range(2):
        with pytest.raises(StopIteration):
            hfsyn.tune("shapes-cip", tmp_path / "out", dataset=str(folder), overrides=FEW, **words)
    monkeypatch.undo()
    hfsyn.tune("shapes-cip", tmp_path / "out", dataset=str(folder), overrides=FEW, **words)
    drawn_at = sorted(path.name for path in (tmp_path / "out" / "samples").iterdir())
    assert drawn_at == [f"step-{step:08d}-0.png" for step in range(3)]


def test_a_tuning_whose_weights_are_gone_is_not_done(tmp_path: Path) -> None:
    folder, out = photographs(tmp_path / "cats", ["a cat", "a dog"]), tmp_path / "out"
    found = hfsyn.tune("shapes-cip", out, dataset=str(folder), overrides=FEW, **QUIET)
    (out / found["weights"]).unlink()
    assert hfsyn.tune("shapes-cip", out, dataset=str(folder), overrides=FEW, **QUIET)["sha256"] == found["sha256"]
    assert (out / found["weights"]).is_file()
    # The list of a LoRA for each class is not enough.
    listed = {"star": {"file": "classes/star/x.safetensors", "sha256": ""}}
    (out / "lora_by_class.json").write_text(json.dumps(listed))
    (out / "tuning.json").write_text(json.dumps({"weights": "lora_by_class.json"}))
    assert not tune._is_done(out)
    (out / "classes" / "star").mkdir(parents=True)
    (out / "classes" / "star" / "x.safetensors").touch()
    assert tune._is_done(out)


def test_images_whose_files_are_gone_are_counted_and_a_column_of_paths_is_not_one_of_images(tmp_path: Path) -> None:
    there = {"bytes": (photographs(tmp_path / "cats", ["a cat"]) / "0.png").read_bytes(), "path": None}
    gone = {"bytes": None, "path": str(tmp_path / "gone" / "0.png")}
    images = pa.array([there, gone], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(pa.table({"image": images, "text": ["a cat", "a dog"]}), tmp_path / "two.parquet")
    examples = of_dataset(TunePart(dataset=str(tmp_path / "two.parquet")))
    pictures = examples.open(DenoisingLoss(load_recipe("shapes-cip").generate, "cpu"))([0, 1])
    assert [picture if isinstance(picture, str) else picture[0].size for picture in pictures] == [(32, 32), UNREADABLE]
    (tmp_path / "paths.csv").write_text("image,text\n0.png,a cat\n")
    said = r"has no column of images .* columns are .*\. An image is a file in bytes"
    with pytest.raises(HfsynError, match=said):
        of_dataset(TunePart(dataset=str(tmp_path / "paths.csv")))


def test_a_card_shows_the_pictures_that_are_there(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "cats", ["a cat", "a dog"])
    for samples in (0, 1):
        out = tmp_path / f"samples-{samples}"
        hfsyn.tune("shapes-cip", out, dataset=str(folder), overrides=FEW, **{**QUIET, "samples": samples})
        card = (out / "README.md").read_text()
        assert ("](samples.png)" in card, "](loss.png)" in card) == (bool(samples), True)


def test_a_disk_that_the_cache_would_fill_is_noticed_at_its_first_file_and_checkpoints_go_when_all_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = photographs(tmp_path / "cats", [f"cat {number}" for number in range(5)]), tmp_path / "out"
    monkeypatch.setattr("hfsyn.tuning.cache._ROWS", {"images": 2, "prompts": 2})
    monkeypatch.setattr("hfsyn.tuning.cache.disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(HfsynError, match=r"cache will take .* more, and 100 bytes are free") as refused:
        hfsyn.tune("shapes-cip", out, dataset=str(folder), overrides=FEW, **QUIET)
    assert refused.value.code == 3
    assert [path.name for path in (out / "cache").iterdir()] == ["images-00000.safetensors"]
    first = (out / "cache" / "images-00000.safetensors").stat().st_mtime_ns
    monkeypatch.setattr("hfsyn.tuning.cache.disk_usage", lambda _: SimpleNamespace(free=10**9))
    hfsyn.tune("shapes-cip", out, dataset=str(folder), overrides=FEW, **QUIET)
    assert (out / "cache" / "images-00000.safetensors").stat().st_mtime_ns == first
    assert not (out / "checkpoints").exists()
