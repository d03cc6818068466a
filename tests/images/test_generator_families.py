"""Every family of generators, by its real classes at a small size, loaded from a Hub on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_client import Client
from hub_server import Hub
from tiny_families import FAMILIES, flux_schnell, lcm, sd3_medium, stable_diffusion_1
from tiny_models import stable_diffusion

from hfsyn.recipes.loading import fragments, load_fragment
from hfsyn.recipes.recipe import GeneratePart, fingerprint, load_recipe

SHIPPED = [name for name in fragments("generator") if name != "builtin"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Client]]:
    with Hub(tmp_path_factory.mktemp("hub")) as found, Client(found, tmp_path_factory.mktemp("client")) as client:
        yield found, client


@pytest.fixture(scope="module")
def published(hub: tuple[Hub, Client], tmp_path_factory: pytest.TempPathFactory) -> dict[Any, tuple[str, str]]:
    """Repository and commit of each kind of checkpoint."""
    found: dict[Any, tuple[str, str]] = {}
    for save in dict.fromkeys(family.save for family in FAMILIES.values()):
        repo_id = f"alice/{save.__name__.replace('_', '-')}"
        folder = save(tmp_path_factory.mktemp("model"))
        found[save] = repo_id, hub[0].add_repo("model", repo_id, files_of(folder))
    return found


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_draws_keeps_its_rules_and_says_its_limits(
    name: str, hub: tuple[Hub, Client], published: dict[Any, tuple[str, str]]
) -> None:
    family = FAMILIES[name]
    model, commit = published[family.save]
    found = hub[1].python(
        "from drive_families import look\n"
        f"result = look({model!r}, {commit!r}, {dict(family.fields)!r}, starts={family.starts_from_images})"
    )
    assert found["size"] == list(family.size)
    assert found["problems"] == [None] * 3
    assert (found["alone"], found["elsewhere"]) == (0, 0)
    assert found["other seed"] > 20
    assert found["other prompt"] > 0
    assert found["max tokens"] == family.limit
    short, long = found["tokens"]
    assert 2 < short < 40
    assert long > 600  # counted before any cut
    assert (found["flat"], found["nan"]) == ("flat", "nan")
    if not family.starts_from_images:
        assert "which starts from noise alone. Set generate.init to none." in found["over"]
        return
    over = found["over"]
    assert over["size"] == list(family.size)
    assert over["problems"] == [None] * 3
    assert over["alone"] == 0
    assert min(over["other image"], over["other seed"], over["from noise"]) > 2


def test_the_length_that_t5_reads_is_the_recipes(
    hub: tuple[Hub, Client], published: dict[Any, tuple[str, str]]
) -> None:
    for save, own in ((sd3_medium, 256), (flux_schnell, 512)):
        model, commit = published[save]
        for fields, limit in (({}, own), ({"max_sequence_length": 300}, 300)):
            code = f"from drive_families import limits\nresult = limits({model!r}, {commit!r}, {fields!r})"
            found = hub[1].python(code)
            assert found["max tokens"] == limit
            assert found["tokens"][1] > 600
    model, commit = published[stable_diffusion_1]
    code = (
        "from drive_families import limits, refusal\n"
        f"result = refusal(lambda: limits({model!r}, {commit!r}, {{'max_sequence_length': 99}}))"
    )
    assert "takes no max_sequence_length. Set generate.max_sequence_length to null." in hub[1].python(code)


ENCODERS = {
    "sd-1.5": ("StableDiffusionPipeline", 1),
    "sd-2.1": ("StableDiffusionPipeline", 1),
    "sdxl": ("StableDiffusionXLPipeline", 2),
    "lcm": ("LatentConsistencyModelPipeline", 1),
    "sd-3-medium": ("StableDiffusion3Pipeline", 3),
    "flux-schnell": ("FluxPipeline", 2),
    "pixart": ("PixArtAlphaPipeline", 1),
    "pixart-sigma": ("PixArtSigmaPipeline", 1),
}


def test_each_family_has_the_pipeline_and_the_text_encoders_that_it_should(
    hub: tuple[Hub, Client], published: dict[Any, tuple[str, str]]
) -> None:
    wanted = {name: published[FAMILIES[name].save] for name in ENCODERS}
    found = hub[1].python(
        "import diffusers\n"
        "result = {}\n"
        f"for name, (model, commit) in {wanted!r}.items():\n"
        "    index = diffusers.DiffusionPipeline.load_config(model, revision=commit)\n"
        "    result[name] = [index['_class_name'], sum(k.startswith('text_encoder') for k in index)]\n"
    )
    assert {name: tuple(value) for name, value in found.items()} == ENCODERS


def test_a_safety_checker_is_heard_in_every_family_that_has_one(
    hub: tuple[Hub, Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tiny_families._safety_checker", lambda flags: __import__("tiny_models")._safety_checker(True))
    folders = {"sd": stable_diffusion(tmp_path / "sd", flags=True), "lcm": lcm(tmp_path / "lcm")}
    for name, folder in folders.items():
        commit = hub[0].add_repo("model", f"alice/flagged-{name}", files_of(folder))
        found = hub[1].python(
            f"from drive_families import flags\nresult = flags('alice/flagged-{name}', {commit!r}, {{}})"
        )
        assert found == ["safety", None]


# --- the fragments that come with hfsyn ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_each_shipped_generator_makes_a_recipe_of_its_own_and_says_where_it_is_from(name: str) -> None:
    fragment = load_fragment("generator", name)
    part = GeneratePart.model_validate(dict(fragment.part))
    recipe = load_recipe("imagenette-cip", generator=name)
    assert recipe.generate == part
    assert part.revision is None  # the newest is pinned when a run starts
    assert {"card", "training data", "text", "source", "licence"} <= fragment.facts.keys()
    assert part.width == part.height
    assert name in FAMILIES  # which is tested above
    family = FAMILIES[name]
    for key in ("scheduler", "max_sequence_length"):
        assert family.fields.get(key, GeneratePart.model_fields[key].default) == getattr(part, key)
    assert f"{family.limit} tokens" in fragment.facts["text"]
    others = {fingerprint(load_recipe("imagenette-cip", generator=other)) for other in SHIPPED if other != name}
    assert fingerprint(recipe) not in others


def test_guidance_is_the_evidences_where_a_model_takes_guidance_and_the_cards_where_it_was_distilled() -> None:
    guidance = {name: load_fragment("generator", name).part["guidance_scale"] for name in SHIPPED}
    assert guidance == {
        "sd-1.5": 2.0,
        "sd-2.1": 2.0,
        "sdxl": 2.0,
        "sd-3-medium": 2.0,
        "pixart": 2.0,
        "sd-turbo": 0.0,
        "sdxl-turbo": 0.0,
        "sdxl-lightning": 0.0,
        "flux-schnell": 0.0,
        "lcm": 8.0,
    }


def test_the_default_generator_is_the_recipes_own() -> None:
    assert load_recipe("imagenette-cip", generator="sd-1.5").generate == load_recipe("imagenette-cip").generate
