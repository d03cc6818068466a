"""What a recipe would make, before anything is spent: counts, prompts, truncations, shards, disk, upload, time, cost.

No model is loaded and no image is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from builders.errors import hours_text, plural, quoted, size_text
from builders.runs import layout
from builders.runs.layout import shard_count
from builders.stores.copies import local
from builders.variants import get_variant
from hfsyn.errors import HfsynError
from hfsyn.hub.repo import commits_for
from hfsyn.models.token_limits import Limit, limits
from hfsyn.outlook.costs import UTILISATION, Hours, hours, image_size
from hfsyn.outlook.informativeness import Informativeness
from hfsyn.outlook.probe import Probe, Projection
from hfsyn.pages.html import facts
from hfsyn.recipes.recipe import Recipe, difference, fingerprint
from hfsyn.runs.inputs import TableCounts, check_order, counted, in_table, index_of_run, indexed, takes_text, with_texts
from hfsyn.runs.pins import pin_prompt, pinned, pinned_here
from hfsyn.runs.run import Run, load_run
from hfsyn.runs.shards import pending
from hfsyn.runs.specs import Caption, Plan, digest_of, plan
from hfsyn.runs.stage import read_captions

# Bytes a pixel of 512 px photographs: JPEG quality 96 at 4:4:4 lies between the 124 KB of 95 and the 183 KB of 98.
_BYTES_PER_PIXEL = {"jpeg": 0.53, "png": 1.5, "webp": 1.25}
# Bytes beside an image: of its row, and of its lines in source index, captions and plan.
_BYTES_A_ROW = 300
_PLACEHOLDER = "<caption>"
_PAIRS = 3  # that are shown
_NOT_YET = "not made yet"


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a recipe would make."""

    recipe: str
    fingerprint: str | None
    """None if revisions are open that only the Hub can pin."""
    source: str
    counts: str  # where the counts come from: `of the source`, `of this run` or `from the variant's table`
    why: str  # why the source was not indexed; empty where it was
    real_images: int
    classes: int
    images: int
    images_per_class: tuple[int, int]  # smallest and largest; the mean twice where the counts are the table's
    captions: str  # where the captions come from: `none needed`, `of this run` or `not made yet`
    unique_prompts: int | None
    """None where it depends on captions, or on which images there are, and these are not known yet."""
    limits: tuple[Limit, ...]
    """What each text encoder would cut, the longest first; empty where captions or tokenizers are missing."""
    first_prompts: tuple[str, ...]
    shards: int
    disk_bytes: int  # of the run, which are also those of its first publication
    upload_files: int
    commits: int  # of the first publication
    hours_of: dict[str, Hours]
    """Estimated hours of one device of each kind; empty where the cost of the models is not known."""
    price: float | None = None  # USD per hour of one device
    classes_without_images: tuple[str, ...] = ()  # ids of a class map that the source has no image of
    left_out: dict[str, int] = field(default_factory=dict)  # what lies in the source and is not read, by reason
    pairs: tuple[tuple[str, str], ...] = ()
    """Of the first images that get the captions of others: class and id, and the id of the other."""
    measured: Probe | None = None  # some images, made here
    projection: Projection | None = None  # the whole run at that pace
    informativeness: Informativeness | str | None = None  # of the prompts, or why it cannot be measured

    @property
    def hours(self) -> dict[str, float]:
        """Hours for captions and images together, of one device of each kind."""
        return {device: found.total for device, found in self.hours_of.items() if found.total is not None}

    @property
    def cost(self) -> dict[str, float]:
        """USD by device, at `price`; empty without a price."""
        return {} if self.price is None else {d: round(h * self.price, 2) for d, h in self.hours.items()}

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        first = self.limits[0] if self.limits else None
        truncations = {"truncated": first and first.truncated, "max_tokens": first and first.max_tokens}
        computed = {"upload_bytes": self.disk_bytes, "hours": self.hours, "cost": self.cost}
        found = asdict(self) | truncations | computed | {"utilisation": UTILISATION}
        measured, projection, told = (found.pop(name) for name in ("measured", "projection", "informativeness"))
        if measured is None:
            return found
        told = self.informativeness.as_dict() if isinstance(self.informativeness, Informativeness) else told
        return found | {"probe": measured | projection, "informativeness": told}

    def text(self) -> str:
        """For people."""
        return "\n".join(f"{name:14}{text}" for name, text in self._lines() if text is not None)

    def _repr_html_(self) -> str:
        return facts(self._lines())

    def _lines(self) -> list[tuple[str, str | None]]:
        low, high = self.images_per_class
        about = "about " if self.why else ""
        sent = f"{plural(self.upload_files, 'file')} in {plural(self.commits, 'commit')}"
        costs = ", ".join(f"{cost:,.2f} on {device}" for device, cost in self.cost.items())
        cost = f"USD at {self.price:g} per hour: {costs}" if costs else "not known"
        told = self.informativeness
        real, missing = plural(self.real_images, "real image"), quoted(self.classes_without_images)
        return [
            ("recipe", f"{self.recipe}  {(self.fingerprint or '')[:12]}".rstrip()),
            ("", None if self.fingerprint else "its fingerprint comes with the revisions that `hfsyn build` pins"),
            ("source", f"{self.source}: {real} of {plural(self.classes, 'class')} (counts {self.counts})"),
            ("", f"not indexed: {self.why}" if self.why else None),
            ("", f"no image of {missing}, which the class map has" if missing else None),
            *(("", f"left out: {reason}, {count}") for reason, count in self.left_out.items()),
            ("images", f"{self.images}: {about}{low}{f' to {high}' if high != low else ''} per class"),
            ("captions", self.captions),
            ("prompts", f"{'?' if self.unique_prompts is None else self.unique_prompts} different"),
            *(("", prompt) for prompt in self.first_prompts),
            *(("pairing" if n == 0 else "", f"{a} gets the caption of {b}") for n, (a, b) in enumerate(self.pairs)),
            ("truncated", self._truncations(about)),
            ("shards", f"{self.shards}"),
            ("disk", f"about {size_text(self.disk_bytes)}"),
            ("upload", f"about {size_text(self.disk_bytes)}: {sent}"),
            ("time", self._times()),
            ("cost", None if self.price is None else cost),
            ("informative", told.verdict if isinstance(told, Informativeness) else told),
            ("measured", None if self.measured is None else self.measured.text()),
            ("projected", None if self.projection is None else self.projection.text()),
        ]

    def _truncations(self, about: str) -> str:
        if not self.limits:
            return "not counted (the captions or the tokenizer are not on this machine yet)"
        first, *others = self.limits
        also = [f"{about}{other.truncated} over the {other.max_tokens} of {other.encoder}" for other in others]
        more = f" ({', '.join(also)})" if any(other.max_tokens != first.max_tokens for other in others) else ""
        return f"{about}{first.truncated} of {self.images} prompts over {first.max_tokens} tokens{more}"

    def _times(self) -> str:
        here = "`hfsyn plan RECIPE --probe N` measures here"
        if self.hours:
            return f"about {_by_device(self.hours)} (one device, at {UTILISATION:.0%} of its peak)"
        alone = {device: found.images for device, found in self.hours_of.items() if found.images is not None}
        if alone:
            return f"about {_by_device(alone)} for the images, at {UTILISATION:.0%}; for the captions not known: {here}"
        return f"not known for these models: {here}"


def _by_device(hours: Mapping[str, float]) -> str:
    return ", ".join(f"{hours_text(some)} on {device}" for device, some in hours.items())


def forecast(recipe: Recipe, run_folder: str | Path | None = None, *, price: float | None = None) -> Forecast:
    """What a recipe would make.

    The source is indexed without reading an image. Where it is on the Hub and cannot be reached, the counts are those
    of the variant's table.

    Args:
        recipe: the recipe.
        run_folder: a run of the same source and captioner, whose captions are used if they are complete.
        price: USD per hour of one device, for the cost.

    Raises:
        HfsynError: the source is missing or empty, the run has other real images or captions, or the source cannot be
            read in the order that the recipe needs.
    """
    run = _run_at(run_folder)
    recipe = pinned(recipe, run.recipe) if run is not None else pin_prompt(recipe)
    exact = recipe if run is not None else pinned_here(recipe)
    check_order(recipe)
    left_out: dict[str, int] = {}
    found = _lines(recipe, run, left_out)
    each = recipe.prompt.images_per_caption
    if isinstance(found, TableCounts):
        made, counts, origin = None, "from the variant's table", _NOT_YET if takes_text(recipe) else "none needed"
        why, real, classes = found.why, found.images, found.classes
        low = high = round(real * each / classes)
        prompts, unique = _prompts_by_class(recipe, real * each)
    else:
        (made, origin, counts), why = found, ""
        sizes = made.per_class.values()
        real, classes, low, high = len(made) // each, len(sizes), min(sizes), max(sizes)
        prompts, unique = ((prompt, 1) for prompt in made.prompts()), None
    known = origin != _NOT_YET
    first, limited, different = _prompts(recipe, prompts, known=known)
    images = real * each
    files = _files(recipe, real, images)
    return Forecast(
        recipe=recipe.name,
        fingerprint=None if exact is None else fingerprint(exact),
        source=f"{recipe.source.variant} ({recipe.source.split})",
        counts=counts,
        why=why,
        real_images=real,
        classes=classes,
        images=images,
        images_per_class=(low, high),
        captions=origin,
        unique_prompts=None if not known else unique if made is None else different,
        limits=limited,
        first_prompts=first,
        shards=shard_count(images, recipe.store.shard_rows),
        disk_bytes=stored_bytes(recipe, images),
        upload_files=files,
        commits=commits_for(files - 1),
        hours_of=hours(recipe, real, images),
        price=price,
        classes_without_images=_without_images(recipe, made),
        left_out=left_out,
        pairs=_pairs(made),
    )


def _files(recipe: Recipe, real: int, images: int) -> int:
    """Files of the first publication."""
    # Each shard has its sidecar; recipe, index, plan, rejected lines, manifest, preview, card; two markers.
    return 2 * (shard_count(real, recipe.store.shard_rows) + shard_count(images, recipe.store.shard_rows)) + 9


def _pairs(made: Plan | None) -> tuple[tuple[str, str], ...]:
    specs = [spec for spec in (made or ())[:_PAIRS] if spec.caption_source_id is not None]
    return tuple((f"{spec.class_name} {spec.source_id}", str(spec.caption_source_id)) for spec in specs)


def _run_at(folder: str | Path | None) -> Run | None:
    """The run in a folder, if there is one whose source is indexed."""
    path = None if folder is None else local(folder)
    there = path is not None and layout.is_run_folder(path) and (path / layout.SOURCE).exists()
    return load_run(path) if path is not None and there else None


def _prompts(
    recipe: Recipe, prompts: Iterable[tuple[str, int]], *, known: bool
) -> tuple[tuple[str, ...], tuple[Limit, ...], int]:
    """The first different prompts, what the text encoders would cut, and how many prompts differ.

    The last two are only counted where the prompts are `known`; the prompts are read once, as there may be millions.
    """
    seen: set[bytes] = set()

    def noted() -> Iterator[tuple[str, int]]:
        for prompt, images in prompts:
            seen.add(digest_of(prompt))
            yield prompt, images

    passing = noted()
    head = list(islice(passing, 50))
    found: tuple[Limit, ...] = ()
    if known:
        found = limits(recipe.generate, chain(head, passing))
        deque(passing, maxlen=0)  # what the limits left
    return tuple(dict.fromkeys(prompt for prompt, _ in head))[:5], found, len(seen)


def _without_images(recipe: Recipe, made: Plan | None) -> tuple[str, ...]:
    variant = get_variant(recipe.source.variant)
    if made is None or not variant.label_ids:  # of a variant of the table people may well use a part
        return ()
    there = made.per_class
    return tuple(info.wnid for info in variant.classes if info.wnid not in there)


def _lines(recipe: Recipe, run: Run | None, left_out: dict[str, int]) -> tuple[Plan, str, str] | TableCounts:
    """The plan, and where its captions and its counts come from; or the counts of the variant's table."""
    needed = takes_text(recipe)
    text, origin = (_PLACEHOLDER, _NOT_YET) if needed else (None, "none needed")
    captions: Iterable[Caption]
    if run is not None:
        _refuse_other(recipe, run)
        shards = run.caption_shards()
        if not pending(shards):
            captions, origin = read_captions(shards), "of this run"
        else:
            captions = index_of_run(run.checked(layout.SOURCE), text)
        counts = "of this run"
        left_out.update(run.left_out)
    else:
        if (table := counted(recipe.source)) is not None:
            return table
        captions, counts = indexed(recipe, text, left_out), "of the source"
    if needed and origin == _NOT_YET and recipe.prompt.captions_file is not None:
        captions, origin = with_texts(recipe, captions), f"of {recipe.prompt.captions_file}"
    made = plan(recipe, captions)
    if not made:
        problem = f"The source {recipe.source.variant} ({recipe.source.split}) has no images."
        raise HfsynError(problem, "Check source.path and source.split.")
    return made, origin, counts


def _refuse_other(recipe: Recipe, run: Run) -> None:
    """Refuse the captions of other images, or of another captioner."""
    for key, old, new in difference(run.recipe, recipe):
        if key.startswith(("source.", "caption")) and not (key.endswith((".revision", ".path")) and new is None):
            raise HfsynError(
                f"The run {run.folder} has other real images or captions: {key} is {old!r} there, {new!r} here.",
                "Leave --out away, or name a run of this source and this captioner.",
            )


def _prompts_by_class(recipe: Recipe, images: int) -> tuple[Iterable[tuple[str, int]], int | None]:
    """One prompt of each class with its share of the images, and how many prompts differ; None where the strategy
    chooses by image.
    """
    text = _PLACEHOLDER if takes_text(recipe) else None
    # A strategy that writes sixteen equal prompts for a class writes the same for all its images.
    made = plan(
        recipe.model_copy(update={"prompt": recipe.prompt.model_copy(update={"images_per_caption": 1})}),
        (Caption(f"{c.wnid}/{k}", c.wnid, text) for c in get_variant(recipe.source.variant).classes for k in range(16)),
    )
    by_class: dict[str, set[str]] = {}
    for spec in made:
        by_class.setdefault(spec.wnid, set()).add(spec.prompt)
    chooses = any(len(prompts) > 1 for prompts in by_class.values())
    share, rest = divmod(images, len(by_class))
    firsts = [(min(prompts), share + (n < rest)) for n, prompts in enumerate(by_class.values())]
    return firsts, None if chooses else made.unique_prompts


def stored_bytes(recipe: Recipe, images: int) -> int:
    """Bytes that images take on the disk with their rows and indexes; an estimate."""
    width, height = image_size(recipe.generate)
    pixels = width * height if recipe.store.size is None else recipe.store.size**2
    return round(images * (pixels * _BYTES_PER_PIXEL[recipe.store.format] + _BYTES_A_ROW))


def disk_needed(recipe: Recipe, run_folder: str | Path | None = None) -> int:
    """Bytes that a run needs on the disk beyond those that its folder has; an estimate, for which no Hub is asked.

    Raises:
        HfsynError: the source is missing, or its size is not known.
    """
    there = 0
    if (run := _run_at(run_folder)) is not None:
        real = run.source_rows
        there = sum(path.stat().st_size for path in run.folder.rglob("*.parquet"))
    elif recipe.source.path is None and not get_variant(recipe.source.variant).drawn:
        real = in_table(recipe.source)
    else:
        real = sum(1 for _ in indexed(recipe, None))
    if not real:
        raise HfsynError(
            f"The number of images in {recipe.source.variant} is not known.", "Name its folder: source.path"
        )
    return max(0, stored_bytes(recipe, real * recipe.prompt.images_per_caption) - there)
