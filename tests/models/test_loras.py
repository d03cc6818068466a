"""LoRA weights: fused as diffusers does it, pinned by commit or content, refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_client import Client
from hub_server import Hub
from tiny_models import sdxl, stable_diffusion

from hfsyn.errors import HfsynError
from hfsyn.images.generator import DiffusersGenerator
from hfsyn.models.loras import FILE, pin_lora
from hfsyn.recipes.recipe import GeneratePart, fingerprint, load_recipe, published_recipe

PROMPTS, SEEDS = ["a photo of goldfish", "a dog"], [1, 2]


def save_lora(model: Path, folder: Path, seed: int = 0, name: str = FILE) -> Path:
    """Weights for the attention of a Stable Diffusion, as `save_lora_weights` writes them."""
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe = StableDiffusionPipeline.from_pretrained(model)
    pipe.unet.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in pipe.unet.named_parameters():
            if "lora_" in key:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    StableDiffusionPipeline.save_lora_weights(
        folder, unet_lora_layers=get_peft_model_state_dict(pipe.unet), weight_name=name
    )
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def lora(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lora(model, tmp_path_factory.mktemp("lora"))


def part(model: Path, **fields: Any) -> GeneratePart:
    return GeneratePart(model=str(model), dtype="float32", batch_size=2, steps=3, **fields)


def drawn(recipe: GeneratePart) -> np.ndarray:
    return np.stack([image.pixels for image in DiffusersGenerator(recipe, None, "cpu").generate(PROMPTS, SEEDS)])


def largest(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b).max())


def refused(call: Callable[[], Any], words: str) -> HfsynError:
    with pytest.raises(HfsynError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value


def test_a_lora_changes_images_as_much_as_its_scale_says(model: Path, lora: Path) -> None:
    plain, whole = drawn(part(model)), drawn(part(model, lora=str(lora)))
    assert largest(plain, whole) > 20
    assert largest(plain, drawn(part(model, lora=str(lora), lora_scale=0.0))) == 0
    half = drawn(part(model, lora=str(lora), lora_scale=0.5))
    assert 0 < np.abs(half.astype(int) - plain).mean() < np.abs(whole.astype(int) - plain).mean()
    assert largest(whole, drawn(part(model, lora=str(lora / FILE)))) == 0  # a file, or the folder that holds it


def test_it_is_what_diffusers_makes_of_it(model: Path, lora: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(model)
    pipe.load_lora_weights(str(lora))
    pipe.set_progress_bar_config(disable=True)
    out = pipe(
        PROMPTS,
        num_inference_steps=3,
        guidance_scale=2.0,
        output_type="np",
        cross_attention_kwargs={"scale": 0.7},
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
    )
    theirs = (out.images * 255).round().astype(np.uint8)
    assert largest(theirs, drawn(part(model, lora=str(lora), lora_scale=0.7))) <= 2  # fused, or added at each layer


def test_a_local_lora_is_pinned_by_its_content(model: Path, lora: Path, tmp_path: Path) -> None:
    pinned = pin_lora(part(model, lora=str(lora)))
    assert str(pinned.lora_revision).startswith("sha256:")
    assert pin_lora(pinned) == pinned
    save_lora(model, tmp_path / "other", seed=1)
    changed = pinned.model_copy(update={"lora": str(tmp_path / "other")})
    for call in (lambda: pin_lora(changed), lambda: drawn(changed)):
        refused(call, "is not the LoRA that the recipe means")
    base = load_recipe("shapes-cip", [f"generate.lora={lora}", f"generate.lora_revision={pinned.lora_revision}"])
    elsewhere = load_recipe(
        "shapes-cip", ["generate.lora=x/y.safetensors", f"generate.lora_revision={pinned.lora_revision}"]
    )
    assert fingerprint(base) == fingerprint(elsewhere) != fingerprint(load_recipe("shapes-cip"))
    assert published_recipe(base).generate.lora == f"./{lora.name}"
    assert fingerprint(published_recipe(base)) == fingerprint(base)


def test_what_is_no_lora_for_this_model_is_refused(model: Path, lora: Path, tmp_path: Path) -> None:
    refused(lambda: drawn(part(model, lora=str(tmp_path / "none"))), "There is no LoRA at")
    refused(lambda: drawn(part(model, lora=str(lora), lora_file="other.safetensors")), "is not a file of LoRA weights")
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "weights.bin").write_bytes(b"a pickle")
    refused(lambda: drawn(part(model, lora=str(tmp_path / "w" / "weights.bin"))), "is not a file of LoRA weights")
    refused(lambda: pin_lora(part(model, lora_file="a.safetensors")), "and no generate.lora")
    xl = sdxl(tmp_path / "xl")
    refused(lambda: drawn(part(xl, lora=str(lora))), "cannot be put into|holds no LoRA weights")
    (tmp_path / "w" / FILE).write_bytes(b"damaged")
    refused(lambda: drawn(part(model, lora=str(tmp_path / "w"))), "cannot be put into")


def test_a_publication_says_that_others_have_not_the_lora(lora: Path, tmp_path: Path) -> None:
    from conftest import run_folder

    from hfsyn.publishing.preflight import terms_checks
    from hfsyn.runs.run import load_run

    run = load_run(run_folder(tmp_path, f"generate.lora={lora}"))
    assert str(run.recipe.generate.lora_revision).startswith("sha256:")
    checks = list(terms_checks(run, None))  # type: ignore[arg-type]  # nothing of this recipe is on the Hub
    assert [check.text for check in checks if check.state == "warning"] == [
        f"The LoRA {lora} is a local file: others cannot make these images again."
    ]


def test_another_model_or_another_lora_forgets_what_belonged_to_the_old_one() -> None:
    base = load_recipe(
        "shapes-cip", ["generate.lora=a/b", "generate.lora_file=c.safetensors", "generate.lora_revision=v1"]
    )
    assert base.generate.lora_revision == "v1"
    assert load_recipe(base, ["generate.model=d/e"]).generate.lora is None
    other = load_recipe(base, ["generate.lora=f/g"]).generate
    assert (other.lora, other.lora_file, other.lora_revision) == ("f/g", None, None)


@pytest.mark.slow
def test_a_lora_of_the_hub_is_pinned_loaded_at_its_commit_and_found_in_the_cache(
    model: Path, lora: Path, tmp_path: Path
) -> None:
    with Hub(tmp_path / "hub") as hub:
        first = hub.add_repo("model", "alice/lora", {FILE: (lora / FILE).read_bytes()})
        other = save_lora(model, tmp_path / "other", seed=1)
        second = hub.add_commit("model", "alice/lora", {FILE: (other / FILE).read_bytes()})
        hub.add_repo("model", "alice/gated", {FILE: b"x"}, gated=True, owner="alice")
        (tmp_path / "client").mkdir()
        with Client(hub, tmp_path / "client", token="hf_bob_write") as client:
            code = (
                "from drive_families import refusal\n"
                "from hfsyn.models.loras import pin_lora\n"
                "from hfsyn.images.generator import DiffusersGenerator\n"
                "from hfsyn.recipes.recipe import GeneratePart\n"
                "def part(**fields):\n"
                f"    return GeneratePart(model={str(model)!r}, dtype='float32', batch_size=2, steps=3, **fields)\n"
                "def drawn(**fields):\n"
                f"    images = DiffusersGenerator(part(**fields), None, 'cpu').generate({PROMPTS!r}, {SEEDS!r})\n"
                "    return [image.pixels.tolist() for image in images]\n"
            )
            newest = client.python(code + "result = pin_lora(part(lora='alice/lora')).lora_revision")
            assert newest == second
            old = client.python(code + f"result = drawn(lora='alice/lora', lora_revision={first!r})")
            assert largest(np.array(old), drawn(part(model, lora=str(lora)))) == 0
            hint = code + "result = refusal(lambda: pin_lora(part(lora={!r}, lora_file={!r})))"
            assert "has no file no.safetensors" in client.python(hint.format("alice/lora", "no.safetensors"))
            assert "is gated, and you have no access" in client.python(hint.format("alice/gated", None))
            assert "is not there, or not for you" in client.python(hint.format("alice/nothing", None))
            cached = client.python(
                code + f"result = pin_lora(part(lora='alice/lora', lora_revision={first!r})).lora_revision"
            )
            assert cached == first
