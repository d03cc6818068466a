"""Who gives the texts of a run: a captioner, a language model, a file, earlier captions, or no one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from PIL import Image

from builders.published import Published, RunFolder, fetch_sidecars, open_reference
from builders.runs import layout
from builders.runs.layout import ShardEntry, parse_sidecar, sidecar_name
from builders.runs.rows import Shard
from builders.variants import ClassInfo
from hfsyn.captions.captioner import Captioner, TransformersCaptioner
from hfsyn.captions.own_captioner import is_own_captioner, own_captioner
from hfsyn.captions.text_writer import TextWriter
from hfsyn.captions.token_drawing import Refused
from hfsyn.errors import HfsynError
from hfsyn.recipes.recipe import Recipe, parse_recipe
from hfsyn.recipes.strategies import get_strategy
from hfsyn.rules import seed_of
from hfsyn.runs.inputs import FileTexts
from hfsyn.runs.options import WorkOptions
from hfsyn.runs.run import REFUSES, Run, load_run
from hfsyn.runs.shards import pending
from hfsyn.workers import pick_device


@dataclass(frozen=True)
class Seen:
    """What is kept of a real image once it has been read: a photograph itself takes fifty megabytes."""

    source_id: str
    wnid: str
    sha256: str  # of the file, in hex
    width: int
    height: int
    view: Any = None  # what the model will see of it; see `TextSource.view`


Answer = Callable[[], Sequence[str | None]]
"""Asks the model for the texts of some images, one for each, in order; None if the recipe has none."""


@dataclass(frozen=True)
class TextSource:
    """Gives the texts: looks at one image after the other, in any threads, and then answers for several."""

    answer: Callable[[Sequence[Seen], int], Answer]
    """Prepares what asks the model, in any thread. The number is the batch's size, up to which a short batch is padded,
    so that rounding stays the same."""
    view: Callable[[Image.Image, ClassInfo], Any] = lambda image, info: None
    """What the model sees of an image, which need not be kept any longer and may then be closed. An error, other than
    `HfsynError`, sets the image aside."""
    model: str = ""  # its name; empty if no model is asked
    unused_weights: Mapping[str, int] = field(default_factory=dict)
    """Weights of the model that are not used: how many of each kind."""


def texts_of(run: Run, *, options: WorkOptions, captioner: Captioner | None = None) -> tuple[TextSource, str]:
    """What gives the texts, ready to be asked, and the device on which this is done.

    A `captioner` in place of the recipe's model (for tests and benchmarks) is prepared for ahead, like the recipe's, if
    it has `TransformersCaptioner.look` and `ask`. Raises HfsynError if the model, the file or the captions are not
    available.
    """
    part, prompt = run.recipe.caption, run.recipe.prompt
    if part is None:
        if prompt.captions_file is None:
            return _at_once(lambda seen: None), "cpu"
        file = FileTexts(prompt)
        return _at_once(lambda seen: file.of(seen.source_id)), "cpu"
    if options.captions is not None:
        known = KnownCaptions(options.captions, run.recipe)
        return _at_once(lambda seen: known.of(seen.source_id, seen.sha256)), "cpu"

    def seeds(batch: Sequence[Seen]) -> list[int]:
        """By the rule of `hfsyn.captions.token_drawing`."""
        return [seed_of(run.recipe.seed, seen.source_id, purpose="caption") for seen in batch]

    def looking(found: Any) -> TextSource:
        asking = _padded(lambda batch: found.ask([seen.view for seen in batch], seeds(batch)))
        return TextSource(asking, found.look, part.model)

    device, classes = "cpu" if captioner is not None else pick_device(options.device), run.classes
    given: Any = own_captioner(part, device) if captioner is None and is_own_captioner(part.model) else captioner
    if given is not None:
        if hasattr(given, "look"):
            return looking(given), device
        asking = _padded(lambda batch: lambda: given.caption([seen.view for seen in batch]))
        return TextSource(asking, lambda image, info: image.copy(), part.model), device
    infos, pickles = list(classes.values()), options.allow_pickle_weights
    if get_strategy(prompt.strategy).text_from == "class":
        writer = TextWriter(part, prompt.strategy, device, allow_pickle=pickles, classes=infos)
        writing = _padded(lambda batch: lambda: writer.write([classes[seen.wnid] for seen in batch], seeds(batch)))
        return TextSource(writing, model=part.model, unused_weights=writer.idle.counts()), device
    model = TransformersCaptioner(part, device, allow_pickle=pickles, classes=infos)
    view = partial(model.look, close=True)
    return replace(looking(model), view=view, unused_weights=model.idle.counts()), device


def _at_once(text: Callable[[Seen], str | None]) -> TextSource:
    """No model is asked: nothing to prepare, nothing to pad."""
    return TextSource(lambda batch, size: lambda: [text(seen) for seen in batch])


def _padded(prepare: Callable[[Sequence[Seen]], Answer]) -> Callable[[Sequence[Seen], int], Answer]:
    """A short batch is padded with its last image."""

    def prepared(batch: Sequence[Seen], size: int) -> Answer:
        answer = prepare([*batch, *[batch[-1]] * (size - len(batch))])
        return lambda: answer()[: len(batch)]

    return prepared


class KnownCaptions:
    """Captions of a published dataset or another run, by source id, each for exactly the image that was captioned.

    `reference` is a run folder whose captions are finished, or ``USER/NAME[@REVISION][#CONFIG]``, of images or of
    captions alone. Only captions that the captioner of `recipe`, with its revisions pinned, would make are taken: with
    them the run is the same as without.

    Raises DataError if there are none, and HfsynError if they were made of another source or by another captioner.
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

        Raises Refused if the model that made them refused it, and HfsynError if it is not among them, or if they
        describe another file of that name.
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
    """The caption shards, each with what the manifest states; a local run need not be finished any further."""
    if isinstance(side, RunFolder) and not (side.folder / layout.MANIFEST).exists():
        run = load_run(side.folder)
        shards = run.caption_shards() if (side.folder / layout.SOURCE).is_file() else []
        if shards and not pending(shards):
            return [(f"{layout.CAPTIONS}/{shard.name}", None) for shard in shards]
    manifest = side.manifest()
    entries = manifest.shards if manifest.raw.get("what") == "captions" else manifest.captions
    return [(entry.file, entry) for entry in entries]


def _refused(side: Published | RunFolder, files: Sequence[str]) -> dict[str, str]:
    """Why the model refused an image, by source id; sidecars are fetched only if the manifest counts any."""
    if isinstance(side, Published):
        if not any(reason.startswith(f"caption: {REFUSES}") for reason in side.manifest().raw.get("rejected", {})):
            return {}
        fetch_sidecars(side)
    names = [sidecar_name(file) for file in files]
    lines = [line for name in names for line in parse_sidecar(side.text(name), f"{name} of {side.label}").rejected]
    return {line["id"]: line["reason"] for line in lines if line["reason"].startswith(REFUSES)}


def _decisive(recipe: Recipe) -> dict[str, Any]:
    # A text about a class depends on the strategy, which asks its language model in its own way.
    of_class = get_strategy(recipe.prompt.strategy).text_from == "class"
    draws = of_class or (recipe.caption is not None and recipe.caption.draws)
    return {
        "variant": recipe.source.variant,
        "split": recipe.source.split,
        "caption": recipe.caption,
        "seed": recipe.seed if draws else None,
        "strategy": recipe.prompt.strategy if of_class else None,
    }
