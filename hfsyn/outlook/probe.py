"""A few images of a plan, made here and thrown away: how long one takes on this machine, measured, not estimated."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from builders.errors import hours_text
from builders.files import atomic_text
from builders.runs import layout
from builders.runs.layout import load_sidecar, sidecar_of
from builders.runs.run_files import write_marker
from builders.variants import get_variant
from hfsyn.captions.caption_stage import caption
from hfsyn.captions.captioner import Captioner
from hfsyn.errors import HfsynError
from hfsyn.images.generate_stage import generate, tried_generator
from hfsyn.images.generator import ImageGenerator
from hfsyn.images.tuning import CANDIDATES
from hfsyn.recipes.recipe import Recipe, dump_recipe
from hfsyn.rules import order_of, sample_id_of
from hfsyn.runs.options import WorkOptions
from hfsyn.runs.prepare import SOURCE_SCHEMA, prepare
from hfsyn.runs.run import Run, load_run
from hfsyn.runs.shards import is_done, write_groups
from hfsyn.runs.specs import plan
from hfsyn.runs.stage import read_captions, write_lines


@dataclass(frozen=True, slots=True)
class Pace:
    """How long one image takes in one process."""

    seconds: float  # of one in the steady state: without loading, and without the first batch where there were others
    measured: int  # number of images that the time was averaged over
    warm: bool  # whether a batch came before them
    device: str


@dataclass(frozen=True, slots=True)
class Projection:
    """A whole run at a measured pace."""

    hours: float
    processes: int
    cost: float | None  # USD of all processes together; None without a price

    def text(self) -> str:
        """For people, in one line."""
        where = f"{self.processes} processes, each with a device like this" if self.processes > 1 else "one process"
        return f"{hours_text(self.hours)} in {where}" + (f", {self.cost:,.2f} USD" if self.cost is not None else "")


@dataclass(frozen=True, slots=True)
class Probe:
    """What was measured on this machine."""

    captions: Pace  # of a real image: read, decoded and, where the recipe has a captioner, captioned
    images: Pace  # of a synthetic image: generated, encoded and stored

    def projected(self, real: int, images: int, processes: int = 1, price: float | None = None) -> Projection:
        """A run of this many real and synthetic images, in processes like this one; `price` is USD per hour of each."""
        hours = (real * self.captions.seconds + images * self.images.seconds) / processes / 3600
        return Projection(round(hours, 4), processes, None if price is None else round(hours * processes * price, 2))

    def text(self) -> str:
        """For people, in one line."""
        image, real = (
            f"{pace.seconds:.2f} s" if pace.seconds >= 0.1 else f"{pace.seconds * 1000:.1f} ms"
            for pace in (self.images, self.captions)
        )
        cold = "" if self.images.warm and self.captions.warm else ", the first batch among them"
        count = f"{self.images.measured} and {self.captions.measured} of them{cold}"
        return f"{image} per image and {real} per real one ({count}) on {self.images.device}"


def probe(
    recipe: Recipe,
    count: int,
    *,
    options: WorkOptions | None = None,
    say: Callable[[str], None] = lambda line: None,
    captioner: Captioner | None = None,
    generator: ImageGenerator | None = None,
) -> Probe:
    """Make some images of a recipe's plan as a run would, in a temporary folder, and measure how long it takes.

    Captions and images are made in whole batches, with one more batch before and one after the measured ones. Only
    models and sources in the Hub's cache stay.

    Args:
        count: images, >= 1; rounded up to whole batches. A source with fewer gives what it has.
        options: as for the run that is planned.
        say: called with a line about each step.
        captioner, generator: in place of the recipe's models (for tests).

    Raises:
        HfsynError: as a run of the recipe would, and where no image can be read.
    """
    options = replace(options or WorkOptions(), quiet=True)
    drawn_at_once = recipe.generate.batch_size
    if options.batch_size is not None:
        drawn_at_once = max(CANDIDATES) if options.batch_size == "auto" else int(options.batch_size)
    captioned_at_once = recipe.caption.batch_size if recipe.caption is not None else 64
    each = recipe.prompt.images_per_caption
    images = _whole(count, drawn_at_once)
    real = _whole(max(count, math.ceil(images / each)), captioned_at_once)
    with tempfile.TemporaryDirectory(prefix="hfsyn-probe-") as temporary:
        folder = Path(temporary)
        whole, chosen = first_images(recipe, real, folder)
        first = run_of(folder / "captions", whole, captioned_at_once, chosen)
        if generator is None:
            generator = tried_generator(first, options)
        say(f"probing: {first.source_rows} real images")
        caption(first, options=options, captioner=captioner)
        lines = plan(first.recipe, read_captions(first.caption_shards()))[:images]
        if not lines:
            problem = f"None of the {first.source_rows} images that were tried can be read."
            raise HfsynError(problem, "Check source.path.")
        second = run_of(folder / "images", whole, drawn_at_once, chosen)
        _copy_captions(first, second)
        write_lines(second.folder / layout.PLAN, lines, drawn_at_once)
        write_marker(second.folder / layout.PLAN, len(lines), second.fingerprint)
        say(f"probing: {len(lines)} images, after the model is loaded")
        generate(second, options=options, generator=generator)
        return Probe(_pace(first.caption_shards()), _pace(second.data_shards()))


def _whole(count: int, batch: int) -> int:
    """The count in whole batches, with one more before to warm up and one after to keep the device busy."""
    return (math.ceil(count / batch) + 2) * batch


def _few(recipe: Recipe, real: int) -> Recipe:
    """The recipe with just enough images per class for `real` in all: indexing a large source takes long."""
    enough = math.ceil(real / len(get_variant(recipe.source.variant).classes))
    limit = min(enough, recipe.source.limit_per_class or enough)
    return recipe.model_copy(update={"source": recipe.source.model_copy(update={"limit_per_class": limit})})


def first_images(recipe: Recipe, count: int, folder: Path) -> tuple[Run, list[dict[str, Any]]]:
    """A run, prepared within `folder`, of at least `count` real images if the source has them, spread over the classes;
    and the lines of its source index that come first in the plan.
    """
    run = prepare(_few(recipe, count), folder / "few")
    if run.source_rows < count:  # the source lacks some classes, or has fewer images of some
        run = prepare(recipe, folder / "all")
    lines = pq.read_table(run.checked(layout.SOURCE)).to_pylist()
    return run, sorted(lines, key=lambda line: order_of(sample_id_of(line["source_id"], 0)))[:count]


def run_of(folder: Path, whole: Run, shard_rows: int, lines: Sequence[dict[str, Any]]) -> Run:
    """A run folder of these real images with one batch a shard."""
    recipe = whole.recipe
    store = recipe.store.model_copy(update={"shard_rows": min(shard_rows, 100_000)})
    shutil.copytree(whole.folder, folder, ignore=shutil.ignore_patterns("source.*", layout.LOCKS))

    def groups() -> Iterator[dict[str, list[Any]]]:
        for start in range(0, len(lines), shard_rows):
            yield {name: [line[name] for line in lines[start : start + shard_rows]] for name in SOURCE_SCHEMA.names}

    made = Run(folder, recipe.model_copy(update={"store": store}))
    write_groups(folder / layout.SOURCE, groups(), SOURCE_SCHEMA)
    write_marker(folder / layout.SOURCE, len(lines), made.fingerprint)
    atomic_text(folder / layout.RECIPE, dump_recipe(made.recipe))
    return load_run(folder)


def _copy_captions(first: Run, second: Run) -> None:
    """Copy the captions of a run to another run of the same images with other shard sizes."""
    table = pa.concat_tables([pq.read_table(shard) for shard in first.caption_shards()])
    for number, shard in enumerate(second.caption_shards()):
        shard.parent.mkdir(exist_ok=True)
        rows = second.recipe.store.shard_rows
        pq.write_table(table.slice(number * rows, rows), shard)


def _pace(shards: Sequence[Path]) -> Pace:
    """From the times at which shards were finished: the next was begun before, so all but the last lag alike."""
    done = sorted((sidecar_of(shard) for shard in shards if is_done(shard)), key=_finished)
    sidecars = [load_sidecar(path) for path in done]
    lines = [sidecar.stop - sidecar.start for sidecar in sidecars]
    device = sidecars[0].device
    if len(done) < 3:
        began = min(_finished(path) - sidecar.seconds for path, sidecar in zip(done, sidecars, strict=True))
        return Pace((_finished(done[-1]) - began) / sum(lines), sum(lines), False, device)
    measured = sum(lines[1:-1])
    return Pace((_finished(done[-2]) - _finished(done[0])) / measured, measured, True, device)


def _finished(sidecar: Path) -> float:
    return sidecar.stat().st_mtime_ns / 1e9
