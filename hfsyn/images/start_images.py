"""The real images behind lines of the plan, for recipes whose images start from them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from builders.images.decoding import decoded
from builders.runs import layout
from builders.sources.rows import IndexEntry, SourceRow
from hfsyn.errors import HfsynError
from hfsyn.runs.run import Run
from hfsyn.runs.specs import SampleSpec

_THREADS = 4


class SourcePictures:
    """Gives the real image of each spec, in order, decoded; refuses one that is not the image that was captioned.

    Keeps about 200 bytes for each real image in memory.

    Args:
        run: with all of its captions.
        fit: what is kept of an image; see `hfsyn.images.generator.fitting`.
    """

    def __init__(self, run: Run, fit: Callable[[Image.Image], Image.Image]) -> None:
        self._fit = fit
        self._source = run.open_source()
        self._index = pq.read_table(run.checked(layout.SOURCE))
        columns = ["source_id", "source_sha256"]
        captions = pa.concat_tables(
            [pq.read_table(shard, columns=columns) for shard in run.caption_shards()], promote_options="permissive"
        )
        self._sha256 = captions.combine_chunks()
        self._folder = run.folder
        self._pool = ThreadPoolExecutor(_THREADS, "decode")

    def __call__(self, specs: Sequence[SampleSpec]) -> list[Image.Image]:
        """The images.

        Raises:
            HfsynError: the source has changed since it was captioned.
        """
        ids = pa.array(list(dict.fromkeys(spec.source_id for spec in specs)))
        lines = self._index.take(pc.index_in(ids, value_set=self._index["source_id"])).to_pylist()
        known = self._sha256.take(pc.index_in(ids, value_set=self._sha256["source_id"]))["source_sha256"].to_pylist()
        # Neighbours in the source are read together.
        order = sorted(range(len(lines)), key=lambda i: (lines[i]["location"], lines[i]["row"]))
        begun: list[Future[Image.Image]] = []
        for i, row in zip(order, self._source.read([IndexEntry(**lines[i]) for i in order]), strict=True):
            begun.append(self._pool.submit(self._decoded, row, known[i]))
            if len(begun) > 2 * _THREADS:  # files are not read faster than they are decoded
                begun[-2 * _THREADS].result()
        images = dict(zip(order, (future.result() for future in begun), strict=True))
        places = {source_id: place for place, source_id in enumerate(ids.to_pylist())}
        return [images[places[spec.source_id]] for spec in specs]

    def _decoded(self, row: SourceRow, sha256: str) -> Image.Image:
        if hashlib.sha256(row.image).hexdigest() != sha256:
            raise HfsynError(
                f"{row.source_id} is not the image that was captioned: the source of {self._folder} has changed.",
                "Put it back as it was.",
            )
        with decoded(row.image) as image:
            return self._fit(image)
