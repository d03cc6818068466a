"""The real images of a recipe's source."""

from __future__ import annotations

from builders.sources import Source, open_source
from builders.variants import get_variant
from hfsyn.errors import HfsynError
from hfsyn.recipes.recipe import Recipe, SourcePart


def opened(source: SourcePart) -> Source:
    """Open them.

    Raises:
        DataError: they are not there.
    """
    return open_source(
        source.variant, source.split, path=source.path, revision=source.revision, limit_per_class=source.limit_per_class
    )


def check_order(recipe: Recipe) -> None:
    """Refuse to draw over real images that can only be read one after the other.

    Raises:
        HfsynError: they would be streamed, and are needed in the order of the plan.
    """
    source = recipe.source
    variant = get_variant(source.variant)
    hub = variant.hub
    if recipe.generate.init != "source" or source.path is not None or hub is None:
        return
    part = f" --include '{hub.config}/*'" if hub.config and not variant.label_ids else ""
    at = f" --revision {source.revision or hub.revision}" if source.revision or hub.revision else ""
    raise HfsynError(
        f"generate.init is source, and the images of {source.variant} are streamed from the Hub, in another order than "
        "they are needed.",
        f"Download them (hf download {hub.repo_id} --repo-type dataset{at}{part} --local-dir FOLDER) and --set "
        "source.path=FOLDER.",
    )
