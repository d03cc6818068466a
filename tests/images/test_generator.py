"""Images from real pipeline classes with tiny random weights: what an image depends on, and what is refused."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from hfsyn.errors import HfsynError
from hfsyn.images.generator import DiffusersGenerator, problem_of
from hfsyn.images.latents import fetch
from hfsyn.models.finding import locate
from hfsyn.recipes.parts import Scheduler
from hfsyn.recipes.recipe import GeneratePart

PROMPTS = ["a goldfish", "a dog, in the grass", "a goldfish", "a church"]
SEEDS = [7, 2**63 - 1, 9, 0]
FAMILIES = ("stable_diffusion", "sdxl", "sd3", "builtin")
Folders = Callable[[str], str]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The saved tiny pipeline of a family, written when it is first asked for."""
    root = tmp_path_factory.mktemp("generators")
    more = {"flagging": {"flags": True}, "passing": {"flags": False}}

    def folder(family: str) -> str:
        if family == "builtin":
            return family
        path = root / family
        if not path.is_dir():
            getattr(tiny_models, "stable_diffusion" if family in more else family)(path, **more.get(family, {}))
        return str(path)

    return folder


def part(folder: str, **options: Any) -> GeneratePart:
    small = {"steps": 2, "batch_size": 4, "dtype": "float32", "guidance_scale": 2.5}
    return GeneratePart(model=folder, **{**small, **options})


def generator(folder: str, negative: str | None = None, **options: Any) -> DiffusersGenerator:
    return DiffusersGenerator(part(folder, **options), negative, "cpu")


def pixels(one: DiffusersGenerator, prompts: Sequence[str] = PROMPTS, seeds: Sequence[int] = SEEDS) -> np.ndarray:
    return np.stack([image.pixels for image in one.generate(prompts, seeds)]).astype(int)


# --- the same pixels as the library's own call ------------------------------------------------------------------------


@cache
def plain(model: str) -> Any:
    from diffusers import AutoPipelineForText2Image

    # SD3 was saved without its third encoder, and the library wants to be told.
    lean = {"text_encoder_3": None, "tokenizer_3": None} if model.endswith("sd3") else {}
    folder = Path(locate("builtin", "generator")) if model == "builtin" else model
    return AutoPipelineForText2Image.from_pretrained(folder, dtype=torch.float32, **lean)


def by_hand(recipe: GeneratePart, negative: str | None) -> np.ndarray:
    """One plain call of the pipeline with its prompts, its own conversion to images included."""
    pipe = plain(recipe.model)
    size = {k: getattr(recipe, k) for k in ("width", "height") if getattr(recipe, k)}
    images = pipe(
        prompt=PROMPTS,
        negative_prompt=None if negative is None else [negative] * 4,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in SEEDS],
        num_inference_steps=recipe.steps,
        guidance_scale=recipe.guidance_scale,
        **size,
    ).images
    return np.stack([np.asarray(image) for image in images]).astype(int)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("options", "negative"),
    [
        ({}, None),
        ({}, "a blurred photo"),
        ({"guidance_scale": 1.0}, None),
        ({"guidance_scale": 0.0, "width": 32, "height": 16}, None),
    ],
)
def test_pixels_are_bitwise_those_of_a_plain_call(
    folders: Folders, family: str, options: dict[str, Any], negative: str | None
) -> None:
    recipe = part(folders(family), **options)
    ours = pixels(DiffusersGenerator(recipe, negative, "cpu"))
    assert (ours == by_hand(recipe, negative)).all()
    assert len({image.tobytes() for image in ours}) == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_guidance_and_negatives_make_a_difference(folders: Folders, family: str) -> None:
    whole = pixels(generator(folders(family)))
    assert (pixels(generator(folders(family), guidance_scale=6.0)) != whole).any()
    assert (pixels(generator(folders(family), negative="a blurred photo")) != whole).any()
    assert (pixels(generator(folders(family)), prompts=["zebra", *PROMPTS[1:]])[0] != whole[0]).any()
    for scale in (1.0, 0.0):
        problem = refusal(folders(family), "a blurred photo", guidance_scale=scale)
        assert "prompt.negative is 'a blurred photo' and decides nothing" in problem.message


def test_sdxl_takes_no_negative_prompt_for_zeros_and_an_empty_one_for_a_text(folders: Folders) -> None:
    empty = pixels(generator(folders("sdxl"), negative=""))
    assert (empty == by_hand(part(folders("sdxl")), "")).all()
    assert (empty != pixels(generator(folders("sdxl")))).any()


# --- what an image depends on: prompt, seed and recipe ----------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_does_not_depend_on_its_companions(folders: Folders, family: str) -> None:
    one = generator(folders(family))
    first = pixels(one)
    assert (pixels(one) == first).all(), "again"
    assert (pixels(one, PROMPTS[::-1], SEEDS[::-1])[::-1] == first).all(), "in another order"
    for i in (0, 1):
        assert (pixels(one, PROMPTS[i : i + 1], SEEDS[i : i + 1])[0] == first[i]).all(), "alone"
        others, noise = ["something else entirely"] * 3, [1, 2, 3]
        mixed = pixels(one, [*others[:i], PROMPTS[i], *others[i:]], [*noise[:i], SEEDS[i], *noise[i:]])
        assert (mixed[i] == first[i]).all(), "among strangers"


@pytest.mark.parametrize("scheduler", ["euler-ancestral", "lcm"])
def test_samplers_that_draw_noise_at_each_step_draw_it_by_the_sample(folders: Folders, scheduler: str) -> None:
    one = generator(folders("stable_diffusion"), scheduler=scheduler)
    first = pixels(one)
    assert (pixels(one, PROMPTS[::-1], SEEDS[::-1])[::-1] == first).all()
    assert (pixels(one, PROMPTS[2:3], SEEDS[2:3])[0] == first[2]).all()


@contextmanager
def noise_of(one: DiffusersGenerator) -> Iterator[list[torch.Tensor]]:
    """The latents that each call starts from."""
    pipe, seen = one._pipe, []
    original = pipe.prepare_latents

    def spy(*args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(original(*args, **kwargs))
        return seen[-1]

    pipe.prepare_latents = spy
    yield seen
    pipe.prepare_latents = original


@pytest.mark.parametrize("family", FAMILIES)
def test_the_noise_is_what_the_seed_draws_on_the_cpu(folders: Folders, family: str) -> None:
    for batch_size in (4, 7):
        one = generator(folders(family), batch_size=batch_size)
        with noise_of(one) as seen:
            one.generate(PROMPTS, SEEDS)
        scale = getattr(one._pipe.scheduler, "init_noise_sigma", 1.0)
        for latents, seed in zip(seen[0], SEEDS, strict=False):
            drawn = torch.randn((1, *latents.shape), generator=torch.Generator("cpu").manual_seed(seed))[0]
            assert torch.equal(latents, drawn * scale)


def test_another_batch_size_changes_at_most_one_grey_level() -> None:
    prompts = [f"a photo of {shape}" for shape in ("star", "circle", "ring", "cross", "heart", "square")]
    options = {"steps": 12, "guidance_scale": 2.0}
    sixteen = pixels(generator("builtin", batch_size=16, **options), prompts, range(6))
    for size in (1, 5):
        one = generator("builtin", batch_size=size, **options)
        other = np.concatenate(
            [pixels(one, prompts[i : i + size], range(i, min(i + size, 6))) for i in range(0, 6, size)]
        )
        assert np.abs(other - sixteen).max() <= 1


# --- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_images_are_rgb_bytes(folders: Folders, family: str, dtype: str) -> None:
    side = 32 if family == "builtin" else tiny_models.SIDE
    for image in generator(folders(family), dtype=dtype).generate(PROMPTS[:3], SEEDS[:3]):
        assert image.problem is None
        assert image.pixels.dtype == np.uint8
        assert image.pixels.shape == (side, side, 3)
        assert image.pixels.max() - image.pixels.min() > 50


@pytest.mark.parametrize("family", ["stable_diffusion", "sdxl", "sd3"])
def test_sizes(folders: Folders, family: str) -> None:
    sizes = [(48, 24), (24, None), (None, 40)]
    shapes = [pixels(generator(folders(family), width=w, height=h, steps=1)).shape for w, h in sizes]
    assert shapes == [(4, 24, 48, 3), (4, 16, 24, 3), (4, 40, 16, 3)]


@pytest.mark.parametrize("name", get_args(Scheduler))
def test_every_scheduler_draws_with_the_checkpoints_own_noise_schedule(folders: Folders, name: str) -> None:
    one = generator(folders("stable_diffusion"), scheduler=name, steps=4)
    assert all(image.problem is None for image in one.generate(PROMPTS, SEEDS))
    own = generator(folders("stable_diffusion"))._pipe.scheduler.config
    for field in ("beta_start", "beta_end", "beta_schedule", "prediction_type"):
        assert one._pipe.scheduler.config[field] == own[field]


def test_schedulers_differ() -> None:
    images = {
        name: pixels(generator("builtin", scheduler=name, steps=5, batch_size=1), ["star"], [1]).tobytes()
        for name in get_args(Scheduler)
        if name not in ("dpm++", "euler-trailing")  # the built-in model's own, and its own spacing
    }
    assert len(set(images.values())) == len(images)


# --- what must not be kept ------------------------------------------------------------------------------------------


def poisoned(folder: str, target: Path, name: str, value: float) -> str:
    """A copy whose autoencoder has one parameter filled with `value`."""
    copy = shutil.copytree(folder, target)
    weights = next((copy / "vae").glob("*.safetensors"))
    tensors = load_file(weights)
    tensors[name] = torch.full_like(tensors[name], value)
    save_file(tensors, weights, metadata={"format": "pt"})
    return str(copy)


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("family", ["stable_diffusion", "sd3", "passing"])
def test_nan_images_are_told_and_infinite_ones(folders: Folders, family: str, value: str) -> None:
    one = generator(folders(family))
    torch.nn.init.constant_(one._pipe.vae.decoder.conv_out.bias, float(value))
    images = one.generate(PROMPTS, SEEDS)
    assert [image.problem for image in images] == ["nan"] * 4
    assert all(image.pixels.dtype == np.uint8 for image in images)


@pytest.mark.parametrize("family", ["stable_diffusion", "sd3", "passing"])
def test_flat_images_are_told(folders: Folders, family: str) -> None:
    one = generator(folders(family))
    torch.nn.init.zeros_(one._pipe.vae.decoder.conv_out.weight)
    assert [image.problem for image in one.generate(PROMPTS, SEEDS)] == ["flat"] * 4


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("decoder.conv_out.bias", float("nan"), "draws nothing but NaN values in float32. The checkpoint is damaged"),
        ("decoder.conv_out.weight", 0.0, "draws images of one colour alone"),
    ],
)
def test_a_decoder_that_paints_nothing_is_refused_before_anything_is_drawn(
    folders: Folders, tmp_path: Path, name: str, value: float, words: str
) -> None:
    assert words in str(refusal(poisoned(folders("stable_diffusion"), tmp_path / "copy", name, value)))


def test_one_bad_image_does_not_spoil_the_others(folders: Folders) -> None:
    one = generator(folders("stable_diffusion"))
    whole = pixels(one)
    decode = one._pipe.vae.decode

    def spoil(*args: Any, **kwargs: Any) -> Any:
        (image,) = decode(*args, **kwargs)
        image[1, 0, 0, 0] = float("nan")
        return (image,)

    one._pipe.vae.decode = spoil
    images = one.generate(PROMPTS, SEEDS)
    assert [image.problem for image in images] == [None, "nan", None, None]
    assert all((images[i].pixels == whole[i]).all() for i in (0, 2, 3))


def test_safety_checker_hits_are_told(folders: Folders) -> None:
    assert [i.problem for i in generator(folders("flagging")).generate(PROMPTS[:3], SEEDS[:3])] == ["safety"] * 3
    assert [i.problem for i in generator(folders("passing")).generate(PROMPTS, SEEDS)] == [None] * 4


def test_the_safety_checker_is_off_when_the_recipe_says_so_and_not_even_loaded(
    folders: Folders, tmp_path: Path
) -> None:
    copy = shutil.copytree(folders("flagging"), tmp_path / "copy")
    (copy / "safety_checker" / "model.safetensors").write_bytes(b"broken")
    images = generator(str(copy), safety_checker=False).generate(PROMPTS, SEEDS)
    assert [image.problem for image in images] == [None] * 4
    assert (np.stack([i.pixels for i in images]) == pixels(generator(folders("stable_diffusion")))).all()
    with pytest.raises(HfsynError, match="cannot be loaded as a generator"):
        generator(str(copy))


@pytest.mark.parametrize(
    ("span", "state", "problem"),
    [
        (0, {"finite": False, "flagged": True}, "safety"),
        (255, {"finite": False, "flagged": False}, "nan"),
        (3, {"finite": True, "flagged": False}, "flat"),
        (4, {"finite": True, "flagged": False}, None),
    ],
)
def test_problem_of(span: int, state: dict[str, bool], problem: str | None) -> None:
    assert problem_of(span, **state) == problem


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_levels_are_those_of_the_library_and_the_span_is_that_of_the_levels(dtype: torch.dtype) -> None:
    from diffusers.image_processor import VaeImageProcessor

    images = (torch.randn((5, 3, 24, 16), generator=torch.Generator().manual_seed(0)) * 0.8).to(dtype)
    images[1] = images[1] * 0.01 + torch.tensor([-0.5, 0.1, 0.9]).view(3, 1, 1).to(dtype)
    images[2, 1, 3, 4] = float("nan")
    images[3, 0, 0, 0] = float("inf")
    found = fetch(images, 4, signed=True)()
    assert found.finite.tolist() == [True, True, False, False]
    for i in (0, 1):
        theirs = np.asarray(VaeImageProcessor().postprocess(images[i : i + 1], output_type="pil")[0])
        assert (found.pixels[i] == theirs).all()
        flat = theirs.reshape(-1, 3).astype(int)
        assert found.span[i] == (flat.max(0) - flat.min(0)).max()
    assert found.span[1] < 20 < found.span[0]
    again = fetch(images * 0.5 + 0.5, 4, signed=False)()
    assert (again.pixels == found.pixels).all()


# --- tokens ---------------------------------------------------------------------------------------------------------


def test_tokens_are_counted_with_both_ends_and_before_the_cut(folders: Folders) -> None:
    for family, limit in {"stable_diffusion": 77, "sdxl": 77, "sd3": 77}.items():
        one = generator(folders(family))
        assert one.max_tokens == limit
        # A letter is a token of the tiny vocabulary; two mark the ends.
        assert one.count_tokens(["", "a", "ab, c", "x" * 75, "x" * 76, "x" * 500]) == [2, 3, 6, 77, 78, 502]


def test_a_prompt_is_counted_once_and_what_is_known_is_bounded(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hfsyn.images.tokens._KNOWN", 3)
    one = generator(folders("stable_diffusion"))
    texts: list[str] = []
    call = one._tokens._tokenizer.__class__.__call__

    def spy(self: Any, text: Any = None, **options: Any) -> Any:
        texts.extend(text)
        return call(self, text, **options)

    monkeypatch.setattr(type(one._tokens._tokenizer), "__call__", spy)
    assert one.count_tokens(["a", "bb", "a"]) == one.count_tokens(["a", "bb", "a"]) == [3, 4, 3]
    assert texts == ["a", "bb"]
    assert one.count_tokens(["c", "dd", "eee", "a"]) == [3, 4, 5, 3]
    assert not one._tokens._lengths


def test_the_builtin_generators_limit_is_its_text_encoders(folders: Folders) -> None:
    one = generator("builtin")
    assert one.max_tokens == one._pipe.text_encoder.config.max_position_embeddings
    assert one.count_tokens(["a photo of star", "a " * 100]) == [6, 102]


def test_words_beyond_the_limit_do_not_count(folders: Folders) -> None:
    one = generator(folders("stable_diffusion"))
    cut = pixels(one, ["x " * 75 + "y " * k for k in (0, 1, 200, 7)], [3] * 4)
    assert (cut == cut[0]).all()
    assert (pixels(one, ["x " * 74 + "y"], [3])[0] != cut[0]).any()


@pytest.mark.parametrize("family", ["stable_diffusion", "sdxl", "sd3", "flagging"])
def test_loading_and_drawing_say_nothing(folders: Folders, family: str, capfd: pytest.CaptureFixture[str]) -> None:
    folder = folders(family)
    capfd.readouterr()
    one = generator(folder)
    one.generate(["x" * 300] * 4, SEEDS)
    one.count_tokens(["x" * 300])
    assert capfd.readouterr() == ("", "")


def test_the_libraries_own_announcements_are_silent(folders: Folders) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        generator(folders("sdxl"), dtype="float16").generate(PROMPTS, SEEDS)  # its decoder is made float32 for a while
    assert not [warning for warning in caught if issubclass(warning.category, FutureWarning)]


# --- what is refused, in one line -----------------------------------------------------------------------------------


def refusal(folder: str, negative: str | None = None, **options: Any) -> HfsynError:
    with pytest.raises(HfsynError) as caught:
        generator(folder, negative, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert caught.value.hint
    return caught.value


def test_a_captioner_is_no_generator() -> None:
    assert "is not a generator: it holds a captioner" in refusal(locate("builtin", "captioner")).message


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_damaged_weights_are_refused(folders: Folders, tmp_path: Path, name: str, damage: str) -> None:
    copy = shutil.copytree(folders("stable_diffusion"), tmp_path / "copy")
    weights = next((copy / name).glob("*.safetensors"))
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-1000])
    else:
        weights.unlink()
    words = "cannot be loaded as a generator" if damage == "cut" else f"has no loadable weights of its {name}"
    assert f"{copy} {words}" in refusal(str(copy)).message


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder"])
def test_incomplete_weights_are_refused(folders: Folders, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(folders("stable_diffusion"), tmp_path / "copy")
    weights = next((copy / name).glob("*.safetensors"))
    tensors = load_file(weights)
    del tensors[next(key for key in sorted(tensors) if key.endswith("weight"))]
    save_file(tensors, weights, metadata={"format": "pt"})
    assert f"has no weights for 1 parameters of its {name}, such as" in refusal(str(copy)).message


def test_a_pipeline_that_draws_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline", "_diffusers_version": "0"}))
    assert "is a DDPMPipeline, which does not draw from text alone" in refusal(str(tmp_path)).message


def test_a_diffusion_scheduler_is_refused_where_the_model_matches_flows(folders: Folders) -> None:
    problem = refusal(folders("sd3"), scheduler="ddim")
    assert "generate.scheduler is 'ddim'" in problem.message
    assert "Set generate.scheduler to default." in problem.hint


def test_steps_that_a_scheduler_refuses_are_refused_before_anything_is_drawn(folders: Folders) -> None:
    assert "generate.steps is 60" in refusal(folders("stable_diffusion"), scheduler="lcm", steps=60).message


def test_a_size_that_a_pipeline_refuses_is_said_in_one_line(folders: Folders) -> None:
    # A recipe's own check would stop this one; pipelines with larger patches refuse multiples of 8 as well.
    odd = part(folders("stable_diffusion")).model_copy(update={"width": 17})
    one = DiffusersGenerator(part(folders("stable_diffusion")), None, "cpu")
    one._size = {"width": 17, "height": 16}
    with pytest.raises(HfsynError, match=r"refuses the recipe: .*divisible by 8"):
        one.generate(PROMPTS, SEEDS)
    with pytest.raises(HfsynError, match=r"refuses the recipe: .*divisible by 8"):
        DiffusersGenerator(odd, None, "cpu")  # and before anything is drawn at that size


@pytest.mark.parametrize("count", [0, 5])
def test_more_than_a_batch_is_a_mistake_of_the_caller(folders: Folders, count: int) -> None:
    with pytest.raises(ValueError, match="for a batch of 4"):
        generator(folders("stable_diffusion")).generate(["a"] * count, [0] * count)
