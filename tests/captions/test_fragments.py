"""Ready-made parts: --captioner and --generator put one in; each shipped captioner runs on its own classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import yaml
from click.testing import CliRunner
from test_captioner import images

from builders.variants import get_variant
from hfsyn.captions.captioner import TransformersCaptioner
from hfsyn.captions.text_writer import TextWriter
from hfsyn.cli import cli
from hfsyn.errors import HfsynError
from hfsyn.recipes.loading import fragments, load_fragment
from hfsyn.recipes.recipe import CaptionPart, GeneratePart, difference, load_recipe

# The model classes that each shipped captioner loads as.
FAMILY = {
    "blip-base": "blip",
    "blip-large": "blip",
    "blip2": "blip2",
    "builtin": "blip",
    "vit-gpt2": "vit_gpt2",
    "git-base": "git",
    "florence-2": "florence2",
    "florence-2-large": "florence2",
    "smolvlm": "idefics3",
    "smolvlm2": "smolvlm",
    "qwen2-vl": "qwen2_vl",
    "llava-1.5": "llava",
    "t5-common-gen": "t5",
    "qwen2.5": "chat_model",
    "llama-2": "plain_model",
}
STRATEGY = {"t5-common-gen": "w2s", "qwen2.5": "llm-diverse", "llama-2": "llm"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("families")
    torch.set_num_threads(1)

    def folder(family: str) -> Path:
        path = root / family
        return path if path.is_dir() else getattr(tiny_models, family)(path)

    return folder


def test_every_shipped_captioner_has_a_test() -> None:
    assert set(FAMILY) == set(fragments("captioner"))


@pytest.mark.parametrize("name", FAMILY)
def test_a_shipped_captioner_runs_with_its_settings_on_its_own_classes(
    name: str, folders: Callable[[str], Path]
) -> None:
    """Its settings, in a recipe, on the true architecture shrunken."""
    strategy = STRATEGY.get(name, "cip")
    recipe = load_recipe("imagenette-cip", [f"prompt.strategy={strategy}"], captioner=name)
    part = recipe.caption
    assert part is not None
    here = {"model": str(folders(FAMILY[name])), "dtype": "float32", "max_new_tokens": 8}
    small = part.model_copy(update=here)
    classes, seeds = [*get_variant("imagenette").classes[:8]], range(8)
    if strategy == "cip":
        captioner = TransformersCaptioner(small, "cpu")
        texts = captioner.caption(images(), classes, seeds)
        assert texts == captioner.caption(images(), classes, seeds)
        # A model that does as it is told is told the class.
        told = part.prompt is not None and "{c}" in part.prompt
        assert told == (FAMILY[name] in ("llava", "idefics3", "smolvlm", "qwen2_vl"))
    else:
        writer = TextWriter(small, strategy, "cpu")
        texts = writer.write(classes, seeds)
        assert texts == writer.write(classes, seeds)
        assert part.draws
    assert any(texts)


@pytest.mark.parametrize("kind", ["captioner", "generator"])
def test_every_fragment_is_a_part_and_says_what_people_want_to_know(kind: Any) -> None:
    for name in fragments(kind):
        found = load_fragment(kind, name)
        {"captioner": CaptionPart, "generator": GeneratePart}[kind].model_validate(dict(found.part))
        assert found.title
        assert found.about
        assert found.facts["source"]
        assert "revision" not in found.part


def test_a_fragment_replaces_the_whole_part_and_overrides_come_after_it() -> None:
    before = load_recipe("imagenette-cip", ["caption.num_beams=4", "caption.prompt=a photo of"])
    after = load_recipe(before, ["caption.max_new_tokens=20"], captioner="blip-large")
    assert after.caption == CaptionPart(
        model="Salesforce/blip-image-captioning-large", max_new_tokens=20, dtype="bfloat16"
    )
    assert {key.split(".")[0] for key, _, _ in difference(before, after)} == {"caption"}
    drawn = load_recipe("imagenette-basic", ["generate.steps=4"], generator="builtin")
    assert (drawn.generate.model, drawn.generate.steps, drawn.generate.width) == ("builtin", 4, None)
    given = load_recipe("shapes-basic", ["prompt.strategy=cip"], captioner="builtin")
    assert given.caption is not None


def test_a_file_of_ones_own_is_a_fragment_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("caption: {model: org/name, num_beams: 2}\n")
    part = load_recipe("shapes-cip", captioner=str(path)).caption
    assert part == CaptionPart(model="org/name", num_beams=2)
    assert load_fragment("captioner", str(path)).title == str(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("generate: {model: x}", "is not a captioner: it needs the key 'caption'"),
        ("caption: x", "is not a captioner: it needs the key 'caption'"),
        ("caption: {model: x}\nprompt: {}", "is not a captioner: its key 'prompt' is unknown"),
        ("caption: {model: x}\nfacts: 3", "is not a captioner"),
        ("- 1", "holds a list, and a captioner is a mapping"),
        ("caption: {", "line 1, column 11: "),
        ("caption: {model: x, beams: 3}", "Unknown key 'caption.beams'"),
        ("caption: {model: x, top_p: 2}", "caption.top_p is 2"),
        ("caption: {model: x, top_p: 0.5, num_beams: 3}", "caption.num_beams is 3, and caption.top_p"),
    ],
)
def test_a_bad_fragment_is_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(HfsynError) as caught:
        load_recipe("shapes-cip", captioner=str(path))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(HfsynError, match=r"Unknown captioner 'blip-basse'. Did you mean 'blip-base'\?"):
        load_fragment("captioner", "blip-basse")
    with pytest.raises(HfsynError, match=r"There is no generator file nowhere\.yaml"):
        load_fragment("generator", "nowhere.yaml")


def invoke(*arguments: str) -> str:
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_a_file_with_a_bad_field_is_shown_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("generate: {model: builtin, steps: 0}\n")
    result = CliRunner().invoke(cli, ["generators", "show", str(path)])
    assert isinstance(result.exception, HfsynError)
    assert "generate.steps is 0" in str(result.exception)


def test_the_commands_list_and_show_them() -> None:
    assert {row["name"] for row in json.loads(invoke("captioners", "ls", "--json"))} == set(FAMILY)
    assert {row["name"] for row in json.loads(invoke("generators", "ls", "--json"))} == set(fragments("generator"))
    shown = invoke("captioners", "show", "florence-2")
    assert "arXiv 2311.06242" in shown
    assert '  prompt: "<DETAILED_CAPTION>"' in shown
    part = json.loads(invoke("generators", "show", "builtin", "--json"))["generate"]
    assert GeneratePart(**part).model == "builtin"


def test_a_plan_takes_them_as_flags() -> None:
    text = invoke("plan", "shapes-basic", "--limit", "1", "--captioner", "blip2", "--strategy", "cip-bare", "--json")
    assert json.loads(text)["captions"] == "not made yet"
    assert json.loads(text)["first_prompts"][0].endswith(", <caption>")
    assert yaml.safe_load(invoke("recipes", "show", "shapes-cip"))["caption"]["model"] == "builtin"


def test_the_small_models_bring_their_own_settings_into_a_recipe_of_large_ones() -> None:
    recipe = load_recipe("imagenette-cip", ["caption.model=builtin", "generate.model=builtin"])
    assert recipe.caption is not None
    assert (recipe.caption.dtype, recipe.generate.dtype, recipe.generate.steps) == ("float32", "float32", 12)
    assert (recipe.generate.safety_checker, recipe.generate.guidance_scale) == (False, 2.5)
    kept = load_recipe("imagenette-cip", ["generate.model=builtin", "generate.steps=3", "generate.dtype=bfloat16"])
    assert (kept.generate.steps, kept.generate.dtype) == (3, "bfloat16")
    assert load_recipe("shapes-cip", ["generate.model=builtin"]) == load_recipe("shapes-cip")
