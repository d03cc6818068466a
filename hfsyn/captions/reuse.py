"""Captions that somebody has made already: of a published dataset or another run, taken instead of made again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from builders.published.versions import Published, RunFolder, fetch_sidecars, open_reference
from builders.runs import layout
from builders.runs.layout import ShardEntry, parse_sidecar, sidecar_name
from builders.runs.shard import Shard
from hfsyn.captions.token_drawing import Refused
from hfsyn.errors import HfsynError
from hfsyn.recipes.recipe import Recipe, parse_recipe
from hfsyn.recipes.strategies import get_strategy
from hfsyn.runs.run import REFUSES, load_run
from hfsyn.runs.shards import pending


class KnownCaptions:
    """Captions by source id, each for exactly the image file that was captioned.

    Only captions that this recipe's captioner would make are taken: with them the run is the same as without.

    Args:
        reference: a run folder whose captions are finished, or ``USER/NAME[@REVISION][#CONFIG]``, of images or of
            captions alone.
        recipe: of the run that takes them, its revisions pinned.

    Raises:
        HfsynError: they were made of another source, or by another captioner.
        DataError: there are none.
    """

    def __init__(self, reference: str, recipe: Recipe) -> None:
        place, _, config = reference.partition("#")
        side = open_reference(place, config or None)
        self._label = side.label
        theirs = parse_recipe(side.text(layout.RECIPE), f"{layout.RECIPE} of {side.label}")
        mine, other = _decisive(recipe), _decisive(theirs)
        if wrong := [name for name in mine if mine[name] != other[name]]:
            raise HfsynError(
                f"The captions of {side.label} are not this recipe's: {wrong[0]} is {other[wrong[0]]} there, and "
                f"{mine[wrong[0]]} here.",
                "Leave --captions out, or set the recipe's fields to theirs.",
            )
        self._known: dict[str, tuple[str, str | None]] = {}
        files = _files(side)
        self._refused = _refused(side, [file for file, _ in files])
        for file, entry in files:
            with side.open(file) as handle:
                for row in Shard(handle, entry, self._label).rows(["source_id", "source_sha256", "caption"]):
                    self._known[row["source_id"]] = row["source_sha256"], row["caption"]

    def of(self, source_id: str, sha256: str) -> str | None:
        """The caption of an image, whose file has this SHA-256.

        Raises:
            Refused: the model that made them refused it.
            HfsynError: it is not among them, or they describe another file of that name.
        """
        if (reason := self._refused.get(source_id)) is not None:
            raise Refused(reason.removeprefix(f"{REFUSES}: "), f"{self._label} has none for {source_id}: {reason}.", "")
        described, caption = self._known.get(source_id, ("", None))
        if described != sha256:
            what = "describe another image under the id" if described else "have none for"
            raise HfsynError(
                f"The captions of {self._label} {what} {source_id}.",
                "Leave --captions out: what is captioned so far is kept, and the rest is captioned here.",
            )
        return caption


def _files(side: Published | RunFolder) -> list[tuple[str, ShardEntry | None]]:
    """The shards of captions, as far as there is a manifest with what it states; a run on this disk needs to be
    finished as far as these only.
    """
    if isinstance(side, RunFolder) and not (side.folder / layout.MANIFEST).exists():
        run = load_run(side.folder)
        shards = run.caption_shards() if (side.folder / layout.SOURCE).is_file() else []
        if shards and not pending(shards):
            return [(f"{layout.CAPTIONS}/{shard.name}", None) for shard in shards]
    manifest = side.manifest()
    entries = manifest.shards if manifest.raw.get("what") == "captions" else manifest.captions
    return [(entry.file, entry) for entry in entries]


def _refused(side: Published | RunFolder, files: Sequence[str]) -> dict[str, str]:
    """Of each image that the model refused, why; the sidecars are read where the manifest says that there are any."""
    if isinstance(side, Published):
        if not any(reason.startswith(f"caption: {REFUSES}") for reason in side.manifest().raw.get("rejected", {})):
            return {}
        fetch_sidecars(side)
    names = [sidecar_name(file) for file in files]
    lines = [line for name in names for line in parse_sidecar(side.text(name), f"{name} of {side.label}").rejected]
    return {line["id"]: line["reason"] for line in lines if line["reason"].startswith(REFUSES)}


def _decisive(recipe: Recipe) -> dict[str, Any]:
    """What decides the captions of a source's images."""
    fields: dict[str, Any] = {
        "variant": recipe.source.variant,
        "split": recipe.source.split,
        "caption": recipe.caption,
        "seed": None,
        "strategy": None,
    }
    of_class = get_strategy(recipe.prompt.strategy).text_from == "class"
    if of_class:  # each asks its language model something else
        fields["strategy"] = recipe.prompt.strategy
    if of_class or (recipe.caption is not None and recipe.caption.draws):
        fields["seed"] = recipe.seed
    return fields
