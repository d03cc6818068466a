"""Recipes: every key is checked, and the fingerprint names the content."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from PIL import Image

from builders.runs import layout
from builders.sources.new_class_map import new_variant
from builders.variants import get_variant
from hfsyn.errors import HfsynError
from hfsyn.recipes.loading import Part
from hfsyn.recipes.recipe import (
    RECIPES,
    Recipe,
    difference,
    dump_recipe,
    fingerprint,
    load_recipe,
    new_recipe,
    parse_recipe,
    published_recipe,
)
from hfsyn.runs.prepare import prepare

NAMED = {
    "shapes-basic",
    "shapes-cip",
    "imagenette-basic",
    "imagenette-cip",
    "tiny-imagenet-cip",
    "imagenet-100-cip",
    "imagenet-1k-cip",
}


def test_the_promised_recipes_are_shipped_and_load_under_their_own_names() -> None:
    assert set(RECIPES.names()) >= NAMED  # the rest of the paper's grid has a test of its own
    assert [load_recipe(name).name for name in RECIPES.names()] == RECIPES.names()


@pytest.mark.parametrize("name", sorted(NAMED - {"shapes-basic", "shapes-cip"}))
def test_imagenet_recipes_have_the_settings_that_evidence_backs(name: str) -> None:
    part = load_recipe(name).generate
    assert part.model == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert (part.guidance_scale, part.steps, part.width, part.height) == (2.0, 50, 512, 512)


def test_basic_and_cip_differ_only_in_the_prompt_and_the_captions() -> None:
    for variant in ("shapes", "imagenette"):
        fields = {
            key.split(".")[0]
            for key, _, _ in difference(load_recipe(f"{variant}-basic"), load_recipe(f"{variant}-cip"))
        }
        assert fields == {"caption", "prompt"}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("generate.stepz=3", ["generate.stepz", "generate.steps"]),
        ("sorce.split=train", ["sorce", "source"]),
        ("generate.steps=0", ["generate.steps", "0", "1"]),
        ("generate.steps=1001", ["1001", "1000"]),
        ("generate.steps=2.5", ["generate.steps", "2.5"]),
        ("generate.guidance_scale=-1", ["generate.guidance_scale", "-1", "0"]),
        ("generate.guidance_scale=99", ["99", "50"]),
        ("generate.width=100", ["100", "8"]),
        ("generate.dtype=int8", ["int8", "float32"]),
        ("generate.batch_size=0", ["generate.batch_size"]),
        ("store.quality=101", ["101", "100"]),
        ("store.format=gif", ["gif", "png"]),
        ("store.shard_rows=0", ["store.shard_rows"]),
        ("source.limit_per_class=0", ["source.limit_per_class", "0"]),
        ("source.variant=shape", ["shape", "shapes"]),
        ("source.split=nope", ["nope", "train"]),
        ("prompt.strategy=cpi", ["cpi", "cip"]),
        ("seed=-1", ["seed", "-1"]),
        ("name=a/b", ["name", "a/b"]),
        ("caption=null", ["cip", "caption"]),
        ("steps", ["steps", "KEY=VALUE"]),
    ],
)
def test_a_bad_field_is_refused_with_its_value_and_what_is_allowed(override: str, words: list[str]) -> None:
    with pytest.raises(HfsynError) as caught:
        load_recipe("shapes-cip", [override])
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(HfsynError, match="shapes-cip"):
        load_recipe("shape-cip")


def test_a_file_that_is_missing_or_no_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HfsynError, match="no recipe file"):
        load_recipe(tmp_path / "none.yaml")
    for text in ("just words", "- a\n- b", "a: [", ""):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(HfsynError) as caught:
            load_recipe(tmp_path / "bad.yaml")
        assert "\n" not in str(caught.value)


def test_a_dumped_recipe_is_the_same_recipe(tmp_path: Path) -> None:
    for name in RECIPES.names():
        wnid = get_variant(load_recipe(name).source.variant).classes[0].wnid
        recipe = load_recipe(name, ["seed=7", f"class_seeds.{wnid}=8"])
        (tmp_path / "r.yaml").write_text(dump_recipe(recipe))
        assert load_recipe(tmp_path / "r.yaml") == recipe


def test_overrides_reach_their_field_and_nothing_else() -> None:
    base, changed = (
        load_recipe("shapes-cip"),
        load_recipe("shapes-cip", ["generate.steps=20", "source.limit_per_class=5"]),
    )
    assert difference(base, changed) == [
        ("source.limit_per_class", None, 5),
        ("generate.steps", base.generate.steps, 20),
    ]


def test_another_model_drops_the_revision_and_the_size_of_the_old_one() -> None:
    base = {**load_recipe("imagenette-cip").model_dump()}
    base["generate"]["revision"] = base["caption"]["revision"] = "a" * 40
    part = load_recipe(base, ["generate.model=alice/sd"]).generate
    assert (part.revision, part.width, part.height, part.steps) == (None, None, None, 50)
    part = load_recipe(base, ["generate.model=builtin", "generate.width=64", "generate.steps=3"]).generate
    assert (part.revision, part.width, part.height, part.steps) == (None, 64, None, 3)
    both = load_recipe(base, ["generate.steps=3"])
    assert (both.generate.revision, both.generate.width) == ("a" * 40, 512)
    assert load_recipe(base, ["caption.model=builtin"]).caption.revision is None  # type: ignore[union-attr]


def test_the_fingerprint_changes_with_every_field_but_the_name() -> None:
    base = load_recipe("shapes-cip")
    assert fingerprint(base) == fingerprint(load_recipe("shapes-cip", ["name=other"]))
    changed = [
        "seed=1",
        "source.split=test",
        "source.limit_per_class=1",
        "caption.max_new_tokens=9",
        "caption.num_beams=2",
        "caption.prompt=a",
        "caption.batch_size=2",
        "prompt.strategy=cip-bare",
        "prompt.negative=blurry",
        "prompt.images_per_caption=2",
        "generate.steps=3",
        "generate.guidance_scale=3.5",
        "generate.width=64",
        "generate.batch_size=3",
        "generate.scheduler=ddim",
        "generate.max_retries=0",
        "store.format=webp",
        "store.size=16",
        "store.shard_rows=9",
        "caption.top_p=0.9",
        "caption.temperature=0.9",
    ]
    prints = [fingerprint(load_recipe("shapes-cip", [override])) for override in changed]
    assert len({fingerprint(base), *prints}) == len(changed) + 1


def test_a_stored_recipe_says_its_format_and_one_of_another_is_refused() -> None:
    recipe = load_recipe("shapes-cip")
    text = dump_recipe(recipe)
    assert text.startswith(f"format: {layout.FORMAT}\n")
    assert parse_recipe(text, "here") == recipe
    older = text.partition("\n")[2]
    with pytest.raises(HfsynError, match=r"recipe\.yaml of it is of format 1, and this hfsyn reads format 3"):
        parse_recipe(older, "recipe.yaml of it")
    with pytest.raises(HfsynError, match=r"is of format 4, .* A newer hfsyn reads it"):
        parse_recipe(f"format: 4\n{older}", "recipe.yaml of it")


def test_the_fingerprint_does_not_tell_where_things_lie_on_a_machine(tmp_path: Path) -> None:
    at = "sha256:" + "0" * 64
    here, there = (
        load_recipe(
            "tiny-imagenet-cip",
            [f"source.path=/{root}/images", f"generate.model=/{root}/sd", f"generate.revision={at}"],
        )
        for root in ("here", "there")
    )
    assert fingerprint(here) == fingerprint(there) == fingerprint(published_recipe(here))
    assert "/here" not in dump_recipe(published_recipe(here))
    assert published_recipe(here).generate.model == "./sd"
    other = load_recipe(here, [f"generate.revision=sha256:{'1' * 64}"])
    assert fingerprint(other) != fingerprint(here)
    at_hub = load_recipe(here, ["generate.model=a/b", "generate.revision=main"])
    assert fingerprint(at_hub) != fingerprint(load_recipe(at_hub, ["generate.model=a/c", "generate.revision=main"]))


def test_class_seeds_are_by_wnid_of_the_variant() -> None:
    wnid = get_variant("shapes").classes[2].wnid
    recipe = load_recipe("shapes-cip", [f"class_seeds.{wnid}=7"])
    assert (recipe.seed_for(wnid), recipe.seed_for("other")) == (7, 0)
    assert fingerprint(recipe) != fingerprint(load_recipe("shapes-cip"))
    with pytest.raises(HfsynError, match=r"class_seeds names n00000000, .*hfsyn variants info shapes"):
        load_recipe("shapes-cip", ["class_seeds.n00000000=7"])
    with pytest.raises(HfsynError, match=r"class_seeds.*-1"):
        load_recipe("shapes-cip", [f"class_seeds.{wnid}=-1"])


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_recipe("shapes-cip").seed = 3  # type: ignore[misc]


def test_every_field_says_what_it_means() -> None:
    def undescribed(model: type) -> list[str]:
        return [name for name, field in model.model_fields.items() if not field.description]  # type: ignore[attr-defined]

    parts = [type(part) for part in vars(load_recipe("shapes-cip")).values() if isinstance(part, Part)]
    assert len(parts) == 5
    assert [undescribed(part) for part in parts] == [[]] * 5


def test_a_new_recipe_is_written_with_comments_and_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = new_recipe("mine", "shapes-cip")
    assert load_recipe(path) == load_recipe("shapes-cip", ["name=mine"])
    assert "Denoising steps" in path.read_text()
    with pytest.raises(HfsynError, match="exists"):
        new_recipe("mine", "shapes-cip")


def test_a_shipped_recipe_prints_as_the_yaml_that_it_is() -> None:
    for name in NAMED:
        assert Recipe.model_validate(yaml.safe_load(RECIPES.read(name)[0])) == load_recipe(name)


def test_a_strength_that_leaves_no_step_is_refused_as_the_recipe_is_loaded() -> None:
    with pytest.raises(HfsynError, match=r"generate\.strength 0\.2 of 4 steps is less than one step"):
        load_recipe("shapes-cip", ["generate.init=source", "generate.steps=4", "generate.strength=0.2"])
    with pytest.raises(HfsynError, match="spares none of 3 steps"):
        load_recipe("shapes-cip", ["generate.init=source", "generate.steps=3", "generate.strength=0.7"])


IDLE = (
    (("generate.strength=0.4",), "decides nothing, because generate.init is 'none'"),
    (("generate.lora_scale=0.4",), "decides nothing, because there is no generate.lora"),
    (
        ("store.format=png", "store.quality=80"),
        "store.quality is 80 and decides nothing, because store.format is 'png'",
    ),
    (("store.format=webp", "store.subsampling=4:2:0"), "store.subsampling is '4:2:0' and decides nothing"),
    (("generate.guidance_start=0.8", "generate.guidance_stop=0.2"), "leaves no step with guidance"),
    (("generate.guidance_start=1.0",), "leaves no step with guidance"),
)


@pytest.mark.parametrize(("overrides", "words"), IDLE)
def test_fields_that_decide_nothing_are_refused_where_they_are_written(
    tmp_path: Path, overrides: tuple[str, ...], words: str
) -> None:
    with pytest.raises(HfsynError) as caught:
        load_recipe("shapes-cip", overrides)
    assert words in str(caught.value)
    lines = [
        f"{key.partition('.')[0]}: {{{key.partition('.')[2]}: {value}}}"
        for key, _, value in (override.partition("=") for override in overrides[-1:])
    ]
    own = tmp_path / "own.yaml"
    own.write_text("\n".join(["extends: shapes-cip", *lines]).replace("4:2:0", "'4:2:0'"))
    with pytest.raises(HfsynError, match=r"decides nothing|leaves no step"):
        load_recipe(own, overrides[:-1])


def test_recipes_that_are_stored_with_such_fields_still_load(tmp_path: Path) -> None:
    recipe = load_recipe("shapes-cip")
    old = recipe.model_copy(update={"generate": recipe.generate.model_copy(update={"strength": 0.4})})
    stored = tmp_path / "recipe.yaml"
    stored.write_text(dump_recipe(old))
    assert fingerprint(load_recipe(stored)) == fingerprint(parse_recipe(stored.read_text(), "it")) == fingerprint(old)
    assert load_recipe(old, ["generate.steps=5"]).generate.strength == 0.4


def test_another_model_drops_the_scale_of_the_old_ones_lora() -> None:
    recipe = load_recipe("shapes-cip", ["generate.lora=some/lora", "generate.lora_scale=0.5"])
    assert load_recipe(recipe, ["generate.model=some/model"]).generate.lora_scale == 1.0


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("extends: shapes-cip\ngenerate: {steps: 3}\nseed: 1\ngenerate: {steps: 4}\n")
    with pytest.raises(HfsynError, match=r"line 4, column 1: the key 'generate' is defined twice"):
        load_recipe(path)
    path.write_text("extends: shapes-cip\ngenerate: {steps: 3, steps: 4}\n")
    with pytest.raises(HfsynError, match="the key 'steps' is defined twice"):
        load_recipe(path)


def test_powers_of_ten_are_numbers_in_fields_that_are_numbers() -> None:
    found = load_recipe(
        "shapes-cip", ["seed=1e3", "generate.steps=1e1", "caption.temperature=1e-5", "caption.revision=1e3"]
    )
    assert (found.seed, found.generate.steps) == (1000, 10)
    assert found.caption is not None
    assert (found.caption.temperature, found.caption.revision) == (1e-5, "1e3")


def test_yes_and_no_are_texts_and_are_refused_with_that_where_true_or_false_is_meant() -> None:
    assert load_recipe("shapes-cip", ["prompt.negative=no"]).prompt.negative == "no"
    with pytest.raises(HfsynError, match=r"safety_checker is 'no': .* Write false: 'no' is a text"):
        load_recipe("shapes-cip", ["generate.safety_checker=no"])


def test_a_recipe_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(b"name: \xff")
    with pytest.raises(HfsynError, match=r"own\.yaml is not UTF-8: line 1 has the byte 0xff"):
        load_recipe(path)

    def forbidden(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    shipped = load_recipe("shapes-cip")
    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(HfsynError, match=r"own\.yaml cannot be read: Permission denied"):
        load_recipe(shipped, [f"source.variant={path}"])
    with pytest.raises(HfsynError, match=r"The recipe .*own\.yaml cannot be read: Permission denied"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("recipe", "overrides", "name"),
    [
        ("shapes-cip", [], "shapes-cip"),
        ("shapes-cip", ["source.variant=shapes-context"], "shapes-context-cip"),
        ("imagenette-cip-g1.5", ["source.variant=tiny-imagenet"], "tiny-imagenet-cip-g1.5"),
        ("shapes-cip", ["prompt.strategy=basic", "caption=null"], "shapes-basic"),
        ("shapes-cip", ["source.variant=shapes-context", "name=mine"], "mine"),
    ],
)
def test_a_run_is_named_after_its_data_unless_it_is_given_a_name(recipe: str, overrides: list[str], name: str) -> None:
    assert load_recipe(recipe, overrides).name == name


def test_a_name_of_ones_own_stays_and_an_inherited_one_follows_the_data(tmp_path: Path) -> None:
    own, heir = tmp_path / "own.yaml", tmp_path / "heir.yaml"
    heir.write_text("extends: imagenette-cip\nsource: {variant: tiny-imagenet}\n")
    own.write_text("name: mine\nextends: imagenette-cip\n")
    assert load_recipe(heir).name == "tiny-imagenet-cip"
    assert load_recipe(own, ["source.variant=tiny-imagenet"]).name == "mine"


def test_a_name_changes_no_image() -> None:
    assert fingerprint(load_recipe("shapes-cip", ["name=mine"])) == fingerprint(load_recipe("shapes-cip"))


def test_a_set_from_ones_own_photographs_is_titled_after_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (40, 40), (200, 100, 30)).save(tmp_path / "photos" / name / "a.jpg")
    new_variant("pets", "photos")
    recipe = load_recipe("shapes-cip", ["source.variant=pets.yaml"])
    assert recipe.name == "pets-cip"
    prepare(recipe, "run")
    assert prepare(load_recipe(recipe, ["name=other"]), "run").recipe.name == "pets-cip"
    assert capsys.readouterr().err == "run keeps the name that it began with, pets-cip.\n"


def test_a_mapping_may_be_thirty_two_levels_deep() -> None:
    def nested(levels: int) -> object:
        return {"a": nested(levels - 1)} if levels else 1

    with pytest.raises(HfsynError, match="nested more than 32 levels"):
        load_recipe({"a": nested(33)})
    with pytest.raises(HfsynError) as refused:  # for what it says, then
        load_recipe({"a": nested(32)})
    assert "nested" not in str(refused.value)
