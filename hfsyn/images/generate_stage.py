"""The second costly stage: make the images of the plan."""

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from builders.images.decoding import decoded
from builders.runs import layout
from builders.runs.rows import synthetic_features
from builders.sources.rows import SourceRow
from builders.stores.copies import present
from hfsyn.errors import HfsynError
from hfsyn.images.generator import DiffusersGenerator, ImageGenerator, fitting
from hfsyn.images.production import Production, Work
from hfsyn.images.tuning import PLAIN, BatchSize, choose, release_memory, tuning_of
from hfsyn.runs.options import WorkOptions, select
from hfsyn.runs.run import Run, index_entries, load_run
from hfsyn.runs.shards import pending
from hfsyn.runs.specs import SampleSpec
from hfsyn.runs.stage import Stage, write_plan
from hfsyn.workers import current_worker, pick_device

KEPT_PARAMETERS = 2 * 10**8  # a model of fewer waits in memory while captions are made; a larger one is loaded again
_THREADS = 4


def loaded_generator(run: Run, options: WorkOptions) -> ImageGenerator:
    """The recipe's model on its device, tried out; what is not used of it is printed."""
    device = pick_device(options.device)
    found = DiffusersGenerator(
        run.recipe.generate,
        run.recipe.prompt.negative,
        device,
        allow_pickle=options.allow_pickle_weights,
        tuning=tuning_of(options, device),
        variant=run.recipe.source.variant,
    )
    if current_worker().is_main:
        for what, count in getattr(found, "left_out", {}).items():
            print(f"hfsyn: left out: {count} ({what})", file=sys.stderr, flush=True)
    return found


def tried_generator(run: Run, options: WorkOptions) -> ImageGenerator | None:
    """The model, tried out before anything costly is done; None if it is too large to be kept."""
    found = loaded_generator(run, replace(options, compile=False))
    if options.compile or getattr(found, "parameters", 0) > KEPT_PARAMETERS:
        del found
        release_memory()
        return None
    return found


def generate(
    run: Run | str | Path,
    *,
    generator: ImageGenerator | None = None,
    options: WorkOptions | None = None,
    **more_options: Any,
) -> None:
    """Make the images of the plan. The plan is written first, if it is not there and all captions are.

    Args:
        run: a prepared run or its folder.
        generator: one that is loaded already, or in place of the recipe's model (for tests).
        options: where, how fast and how long to work; when the budget is spent the stage ends with shards left.
        more_options: fields of `WorkOptions` in place of those of `options`.

    Raises:
        HfsynError: captions are missing, or the model is refused; see `DiffusersGenerator`.
    """
    run = run if isinstance(run, Run) else load_run(run)
    options = replace(options or WorkOptions(), **more_options)
    write_plan(run)
    paths = select(run.data_shards(), options.shards)
    if not pending(paths):
        return
    if generator is None:
        generator = loaded_generator(run, options)
    device, tuning = getattr(generator, "device", "cpu"), getattr(generator, "tuning", PLAIN)
    unused: Mapping[str, int] = getattr(generator, "left_out", {})
    schema = synthetic_features(run.class_names, paired=run.recipe.prompt.pairing != "own").arrow_schema
    stage = Stage(run, "generate", options, paths, schema, device, tuning.record(), unused)
    recipe, part, max_tokens = run.recipe, run.recipe.generate, generator.max_tokens
    size = BatchSize(choose(options.batch_size, part.batch_size, device, generator, guided=part.guidance_scale > 1))
    pictures = SourcePictures(run, fitting(generator)) if part.init == "source" else None

    def write(work: Work) -> None:
        stage.write(work.shard, *work.rows(max_tokens, recipe), work.grid, work.seconds)

    with (
        stage.at_work("generating") as progress,
        Production(generator, recipe, size, write, progress.add, pictures) as production,
    ):
        # Before this process waits for the shards of others, it finishes its own.
        for shard in stage.shards(stage.mine(), before_waiting=production.finish):
            specs = [SampleSpec(**{**line, "caption_flags": tuple(line["caption_flags"])}) for line in shard.lines]
            production.add(Work(shard, specs))


class SourcePictures:
    """Gives the real image of each spec, in order, decoded and cut down by `fit`; refuses one that has changed since it
    was captioned. Keeps about 200 bytes for each real image in memory.
    """

    def __init__(self, run: Run, fit: Callable[[Image.Image], Any]) -> None:
        self._fit = fit
        self._source = run.open_source()
        self._index = pq.read_table(run.checked(layout.SOURCE))
        columns = ["source_id", "source_sha256"]
        captions = pa.concat_tables(
            [pq.read_table(present(shard), columns=columns) for shard in run.caption_shards()],
            promote_options="permissive",
        )
        self._sha256 = captions.combine_chunks()
        self._pool = ThreadPoolExecutor(_THREADS, "decode")

    def __call__(self, specs: Sequence[SampleSpec]) -> list[Any]:
        """The images, or what `fit` gives."""
        ids = pa.array(list(dict.fromkeys(spec.source_id for spec in specs)))
        lines = self._index.take(pc.index_in(ids, value_set=self._index["source_id"])).to_pylist()
        known = self._sha256.take(pc.index_in(ids, value_set=self._sha256["source_id"]))["source_sha256"].to_pylist()
        # Neighbours in the source are read together.
        order = sorted(range(len(lines)), key=lambda i: (lines[i]["location"], lines[i]["row"]))
        begun: list[Future[Any]] = []
        for i, row in zip(order, self._source.read(index_entries([lines[i] for i in order])), strict=True):
            begun.append(self._pool.submit(self._decoded, row, known[i]))
            if len(begun) > 2 * _THREADS:  # files are not read faster than they are decoded
                begun[-2 * _THREADS].result()
        images = {lines[i]["source_id"]: future.result() for i, future in zip(order, begun, strict=True)}
        return [images[spec.source_id] for spec in specs]

    def _decoded(self, row: SourceRow, sha256: str) -> Any:
        check_captioned(row, sha256)
        with decoded(row.image) as image:
            return self._fit(image)


def check_captioned(row: SourceRow, sha256: str) -> None:
    """Refuse a source row whose file is not the one that was captioned."""
    if hashlib.sha256(row.image).hexdigest() != sha256:
        said = f"{row.source_id} is not the image that was captioned: the source has changed."
        raise HfsynError(said, "Put it back as it was.")
