"""The paper's grid of shipped recipes, and recipes that extend others."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from builders.variants import get_variant
from hfsyn.errors import HfsynError
from hfsyn.outlook.forecast import forecast
from hfsyn.recipes.recipe import RECIPES, difference, fingerprint, load_recipe

VARIANTS = ("imagenette", "imagenet-100", "imagenet-1k")
GUIDANCE = {"-g1.5": 1.5, "": 2.0, "-g3": 3.0}
GRID = [f"{v}-{s}{g}" for v, s, g in product(VARIANTS, ("basic", "cip"), GUIDANCE)]


def test_every_shipped_recipe_loads_under_its_own_name_and_no_two_are_the_same() -> None:
    recipes = [load_recipe(name) for name in RECIPES.names()]
    assert [recipe.name for recipe in recipes] == RECIPES.names()
    assert len({fingerprint(recipe) for recipe in recipes}) == len(recipes)
    assert set(GRID) <= set(RECIPES.names())


@pytest.mark.parametrize("name", GRID)
def test_the_grid_is_variant_by_strategy_by_guidance_and_each_is_planned_without_a_network(name: str) -> None:
    recipe = load_recipe(name)
    variant, strategy, guidance = next(
        (v, s, g) for v, s, g in product(VARIANTS, ("basic", "cip"), GUIDANCE) if name == f"{v}-{s}{g}"
    )
    assert (recipe.source.variant, recipe.prompt.strategy, recipe.generate.guidance_scale) == (
        variant,
        strategy,
        GUIDANCE[guidance],
    )
    assert (recipe.caption is not None) == (strategy == "cip")
    # Beside these three things nothing differs within the grid.
    base = load_recipe("imagenette-cip")
    changed = {key.partition(".")[0] if key.startswith("caption") else key for key, _, _ in difference(base, recipe)}
    assert changed <= {"source.variant", "prompt.strategy", "generate.guidance_scale", "caption"}

    plan = forecast(recipe)
    count = get_variant(variant).splits["train"]
    assert (plan.real_images, plan.images, plan.classes) == (count, count, len(get_variant(variant).classes))
    assert plan.why


def test_what_extends_another_states_its_changes_only(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("extends: shapes-cip\nname: base\ngenerate: {steps: 4}\n")
    (tmp_path / "top.yaml").write_text("extends: base.yaml\nname: top\ncaption: null\nprompt: {strategy: basic}\n")
    top = load_recipe(tmp_path / "top.yaml")
    whole = load_recipe("shapes-cip", ["generate.steps=4", "caption=null", "prompt.strategy=basic"])
    assert top.name == "top"
    assert fingerprint(top) == fingerprint(whole)
    assert fingerprint(load_recipe(tmp_path / "top.yaml", ["generate.steps=12"])) != fingerprint(top)


def test_recipes_that_extend_one_another_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\nname: a\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\nname: b\n")
    with pytest.raises(HfsynError, match="extends itself"):
        load_recipe(tmp_path / "a.yaml")
    (tmp_path / "c.yaml").write_text("extends: imagenete-cip\nname: c\n")
    with pytest.raises(HfsynError, match="Did you mean 'imagenette-cip'"):
        load_recipe(tmp_path / "c.yaml")
