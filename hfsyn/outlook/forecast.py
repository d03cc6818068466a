"""What a recipe would make, before anything is spent: counts, prompts, truncations, shards, disk, upload, time, cost.
No model is loaded and no image is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from builders.runs import layout
from builders.runs.layout import shard_count
from builders.variants import get_variant
from builders.wording import hours_text, quoted, size_text
from hfsyn.errors import HfsynError
from hfsyn.hub.limits import commits_for
from hfsyn.models.token_limits import Limit, limits
from hfsyn.outlook.costs import Hours, hours, image_size
from hfsyn.outlook.devices import UTILISATION
from hfsyn.recipes.recipe import Recipe, difference, fingerprint
from hfsyn.runs.inputs import TableCounts, check_order, counted, in_table, index_of_run, indexed, takes_text, with_texts
from hfsyn.runs.pins import pin_prompt, pinned
from hfsyn.runs.plan import read_captions
from hfsyn.runs.run import Run, load_run
from hfsyn.runs.shards import pending
from hfsyn.runs.specs import Caption, Plan, digest_of, plan

# Bytes a pixel of 512 px photographs: JPEG quality 96 at 4:4:4 lies between the 124 KB of 95 and the 183 KB of 98.
_BYTES_PER_PIXEL = {"jpeg": 0.53, "png": 1.5, "webp": 1.25}
# Bytes beside an image: of its row, and of its lines in source index, captions and plan.
_BYTES_A_ROW = 300
_PLACEHOLDER = "<caption>"
_NOT_YET = "not made yet"


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a recipe would make."""

    recipe: str
    fingerprint: str
    source: str
    counts: str
    """Where they are from: ``of the source``, ``of this run`` or ``from the variant's table``."""
    why: str
    """Why the source was not asked itself; empty where it was."""
    real_images: int
    classes: int
    images: int
    images_per_class: tuple[int, int]
    """Smallest and largest; the mean twice where the counts are the table's."""
    captions: str
    """Where captions were taken from: ``none needed``, ``of this run`` or ``not made yet``."""
    unique_prompts: int | None
    """None as long as it depends on captions or, by a strategy that chooses, on images that are not here."""
    limits: tuple[Limit, ...]
    """What each text encoder would cut; empty where captions or tokenizers are not at hand."""
    first_prompts: tuple[str, ...]
    shards: int
    disk_bytes: int
    upload_bytes: int
    upload_files: int
    commits: int
    """Of the first publication."""
    hours_of: dict[str, Hours]
    """Estimated hours of one device of each kind; empty where the models' cost is not known."""
    price: float | None = None
    """USD an hour of one device."""
    classes_without_images: tuple[str, ...] = ()
    """Ids that a class map has and its source does not."""
    left_out: dict[str, int] = field(default_factory=dict)
    """What lies in the source and is not read, by reason."""

    @property
    def truncated(self) -> int | None:
        """Images whose prompt no text encoder takes whole; None where that was not counted."""
        return self.limits[0].truncated if self.limits else None

    @property
    def max_tokens(self) -> int | None:
        """What the text encoder takes that takes the most."""
        return self.limits[0].max_tokens if self.limits else None

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
        found = {"truncated": self.truncated, "max_tokens": self.max_tokens, "hours": self.hours, "cost": self.cost}
        return asdict(self) | found | {"utilisation": UTILISATION}

    def text(self) -> str:
        """For people."""
        low, high = self.images_per_class
        exactly = "about " if self.why else ""
        lines = [
            f"recipe        {self.recipe}  {self.fingerprint[:12]}",
            f"source        {self.source}: {self.real_images} real images of {self.classes} classes "
            f"(counts {self.counts})",
            *([f"              not indexed: {self.why}"] if self.why else []),
            *(
                [f"              no image of {quoted(self.classes_without_images)}, which the class map has"]
                if self.classes_without_images
                else []
            ),
            *(f"              left out: {reason}, {count}" for reason, count in self.left_out.items()),
            f"images        {self.images}: {exactly}{low}" + (f" to {high}" if high != low else "") + " a class",
            f"captions      {self.captions}",
            f"prompts       {'?' if self.unique_prompts is None else self.unique_prompts} different",
            *(f"              {prompt}" for prompt in self.first_prompts),
            f"truncated     {self._truncations()}",
            f"shards        {self.shards}",
            f"disk          about {size_text(self.disk_bytes)}",
            f"upload        about {size_text(self.upload_bytes)}: {self.upload_files} files in {self.commits} "
            f"commit{'s' if self.commits > 1 else ''}",
            f"time          {self._times()}",
        ]
        if self.price is not None:
            costs = ", ".join(f"{cost:,.2f} on {device}" for device, cost in self.cost.items())
            lines.append(f"cost          {f'USD at {self.price:g} an hour: {costs}' if costs else 'not known'}")
        return "\n".join(lines)

    def _truncations(self) -> str:
        if not self.limits:
            return "not counted (captions or tokenizer are not at hand)"
        about = "about " if self.why else ""
        first, *others = self.limits
        also = [f"{about}{other.truncated} over the {other.max_tokens} of {other.encoder}" for other in others]
        more = f" ({', '.join(also)})" if also and any(o.max_tokens != first.max_tokens for o in others) else ""
        return f"{about}{first.truncated} of {self.images} prompts over {first.max_tokens} tokens{more}"

    def _times(self) -> str:
        here = "`hfsyn plan RECIPE --probe N` measures here"
        if self.hours:
            return f"about {_said(self.hours)} (one device, at {UTILISATION:.0%} of its peak)"
        alone = {device: found.images for device, found in self.hours_of.items() if found.images is not None}
        if alone:
            return f"about {_said(alone)} for the images, at {UTILISATION:.0%}; for the captions not known: {here}"
        return f"not known for these models: {here}"


def _said(hours: Mapping[str, float]) -> str:
    return ", ".join(f"{hours_text(some)} on {device}" for device, some in hours.items())


def forecast(recipe: Recipe, run_folder: str | Path | None = None, *, price: float | None = None) -> Forecast:
    """What a recipe would make.

    The source is indexed, without reading an image; where it is on the Hub and cannot be reached, the counts are those
    of the variant's table.

    Args:
        recipe: the recipe.
        run_folder: a run of the same source and captioner, whose captions are used if they are complete.
        price: USD an hour of one device, for the cost.

    Raises:
        HfsynError: the source is missing or empty, or the run has other real images or captions; or the images cannot
            be read as they are needed.
    """
    folder = None if run_folder is None else Path(run_folder)
    there = folder is not None and layout.is_run_folder(folder) and (folder / layout.SOURCE).exists()
    run = load_run(folder) if folder is not None and there else None
    recipe = pinned(recipe, run.recipe) if run is not None else pin_prompt(recipe)
    check_order(recipe)
    left_out: dict[str, int] = {}
    found = _lines(recipe, run, left_out)
    needed = takes_text(recipe)
    each = recipe.prompt.images_per_caption
    if isinstance(found, TableCounts):
        made, known = None, not needed
        counts, why, real, classes = "from the variant's table", found.why, found.images, found.classes
        origin = _NOT_YET if needed else "none needed"
        low = high = round(real * each / classes)
        prompts, unique = _prompts_by_class(recipe, real * each)
    else:
        made, origin, counts = found
        known, why = origin != _NOT_YET, ""
        sizes = made.per_class.values()
        real, classes, low, high = len(made) // each, len(sizes), min(sizes), max(sizes)
        prompts, unique = ((prompt, 1) for prompt in made.prompts()), None
    images = real * each
    different = _Different(prompts)
    first, prompts = _first(different)
    limited = limits(recipe.generate, prompts) if known else ()
    if known and made is not None:
        deque(prompts, maxlen=0)  # what the limits left
        unique = different.count
    stored = stored_bytes(recipe, images)
    files, commits = _upload(recipe, real, images)
    return Forecast(
        recipe=recipe.name,
        fingerprint=fingerprint(recipe),
        source=f"{recipe.source.variant} ({recipe.source.split})",
        counts=counts,
        why=why,
        real_images=real,
        classes=classes,
        images=images,
        images_per_class=(low, high),
        captions=origin,
        unique_prompts=unique if known else None,
        limits=limited,
        first_prompts=first,
        shards=shard_count(images, recipe.store.shard_rows),
        disk_bytes=stored,
        upload_bytes=stored,
        upload_files=files,
        commits=commits,
        hours_of=hours(recipe, real, images),
        price=price,
        classes_without_images=_without_images(recipe, made),
        left_out=left_out,
    )


def _without_images(recipe: Recipe, made: Plan | None) -> tuple[str, ...]:
    variant = get_variant(recipe.source.variant)
    if made is None or not variant.label_ids:  # a variant of the table is whole: a part of it is what somebody chose
        return ()
    there = made.per_class
    return tuple(info.wnid for info in variant.classes if info.wnid not in there)


def _lines(recipe: Recipe, run: Run | None, left_out: dict[str, int]) -> tuple[Plan, str, str] | TableCounts:
    """The plan, where its captions and its counts are from; or what the table says."""
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
        raise HfsynError(
            f"The source {recipe.source.variant} ({recipe.source.split}) holds no image.",
            "Check source.path and source.split.",
        )
    return made, origin, counts


def _refuse_other(recipe: Recipe, run: Run) -> None:
    """Refuse the captions of other images, or of another captioner."""
    fields = [
        (key, old, new)
        for key, old, new in difference(run.recipe, recipe)
        if key.startswith(("source.", "caption")) and not (key.endswith((".revision", ".path")) and new is None)
    ]
    if fields:
        key, old, new = fields[0]
        raise HfsynError(
            f"The run {run.folder} has other real images or captions: {key} is {old!r} there, {new!r} here.",
            "Leave --out away, or name a run of this source and this captioner.",
        )


def _prompts_by_class(recipe: Recipe, images: int) -> tuple[Iterable[tuple[str, int]], int | None]:
    """One prompt of each class with its share of the images, and how many prompts differ; None where a strategy chooses
    by image.
    """
    variant = get_variant(recipe.source.variant)
    text = _PLACEHOLDER if takes_text(recipe) else None
    # A strategy that writes sixteen prompts of a class alike writes them all alike.
    made = plan(
        recipe.model_copy(update={"prompt": recipe.prompt.model_copy(update={"images_per_caption": 1})}),
        (Caption(f"{info.wnid}/{k}", info.wnid, text) for info in variant.classes for k in range(16)),
    )
    by_class: dict[str, set[str]] = {}
    for spec in made:
        by_class.setdefault(spec.wnid, set()).add(spec.prompt)
    chooses = any(len(prompts) > 1 for prompts in by_class.values())
    share, rest = divmod(images, len(by_class))
    firsts = [(min(prompts), share + (n < rest)) for n, prompts in enumerate(by_class.values())]
    return firsts, None if chooses else made.unique_prompts


class _Different:
    """Prompts as they pass, and how many different ones have passed."""

    def __init__(self, prompts: Iterable[tuple[str, int]]) -> None:
        self._prompts = prompts
        self._seen: set[bytes] = set()

    @property
    def count(self) -> int:
        """How many there were."""
        return len(self._seen)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        for prompt, images in self._prompts:
            self._seen.add(digest_of(prompt))
            yield prompt, images


def _first(prompts: Iterable[tuple[str, int]]) -> tuple[tuple[str, ...], Iterator[tuple[str, int]]]:
    """The first prompts that differ, and all of them again."""
    left = iter(prompts)
    head = list(islice(left, 50))

    def again() -> Iterator[tuple[str, int]]:
        yield from head
        yield from left

    return tuple(dict.fromkeys(prompt for prompt, _ in head))[:5], again()


def stored_bytes(recipe: Recipe, images: int) -> int:
    """What so many images take on the disk, with all that stands beside them; an estimate."""
    width, height = image_size(recipe.generate)
    pixels = width * height if recipe.store.size is None else recipe.store.size**2
    return round(images * (pixels * _BYTES_PER_PIXEL[recipe.store.format] + _BYTES_A_ROW))


def disk_needed(recipe: Recipe, run_folder: str | Path | None = None) -> int:
    """Bytes that a run still takes on the disk; an estimate, for which the Hub is not asked.

    Args:
        recipe: the recipe.
        run_folder: where the run is or will be; what it holds already is taken off.

    Raises:
        HfsynError: the source is missing, or nothing says how many images it has.
    """
    folder = None if run_folder is None else Path(run_folder).expanduser()
    there = 0
    if folder is not None and layout.is_run_folder(folder) and (folder / layout.SOURCE).exists():
        real = load_run(folder).source_rows
        there = sum(path.stat().st_size for path in folder.rglob("*.parquet"))
    elif recipe.source.path is None and not get_variant(recipe.source.variant).drawn:
        real = in_table(recipe.source)
    else:
        real = sum(1 for _ in indexed(recipe, None))
    if not real:
        raise HfsynError(f"Nothing says how many images {recipe.source.variant} has.", "Name its folder: source.path")
    return max(0, stored_bytes(recipe, real * recipe.prompt.images_per_caption) - there)


def _upload(recipe: Recipe, real: int, images: int) -> tuple[int, int]:
    """Files that a first publication sends, and its commits."""
    shards = shard_count(real, recipe.store.shard_rows) + shard_count(images, recipe.store.shard_rows)
    # Each shard has its sidecar; recipe, index, plan, list of what was set aside, manifest, preview, card; two markers.
    files = 2 * shards + 9
    return files, commits_for(files - 1)
