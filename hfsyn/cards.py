"""The card of a dataset: facts from the manifest, then text from a template. Both steps are pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from builders import layout
from builders.variants import get_variant
from hfsyn.prompts import get_strategy
from hfsyn.recipe import Recipe, dump_recipe

_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)


def facts(manifest: Mapping[str, Any], software: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What the card states: taken from the manifest of a finished run, and from its sidecars for `software`."""
    recipe = Recipe.model_validate(manifest["recipe"])
    variant = get_variant(recipe.source.variant)
    rows = int(manifest["rows"])
    return {
        **manifest,
        "recipe_text": dump_recipe(
            recipe.model_copy(update={"source": recipe.source.model_copy(update={"path": None})})
        ),
        "variant": variant,
        "strategy": get_strategy(recipe.prompt.strategy),
        "parts": recipe,
        "size_category": next((name for limit, name in _SIZES if rows < limit), "n>10M"),
        "software": software,
        "data_files": f"{layout.DATA}/{manifest['split']}-*.parquet",
    }


def render_card(known: Mapping[str, Any]) -> str:
    """The text of README.md, front matter included."""
    import jinja2
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(
        task_categories=["image-classification"],
        pretty_name=known["name"],
        size_categories=[known["size_category"]],
        annotations_creators=["machine-generated"],
        tags=["synthetic", "hfsyn", known["strategy"].name],
        configs=[{"config_name": "default", "data_files": [{"split": known["split"], "path": known["data_files"]}]}],
    )
    template = (resources.files("dataset_cards") / "card.md.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  (Markdown: nothing is to be escaped)
    )
    return f"---\n{data.to_yaml()}\n---\n\n" + environment.from_string(template).render(**known)
