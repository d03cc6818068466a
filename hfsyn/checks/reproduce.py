"""One image made again from its published row and recipe, and compared with the stored one."""

import hashlib
import io
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from builders.errors import DataError
from builders.images.decoding import ImageRejected, decode_rgb
from builders.published import Published, RunFolder, open_reference
from builders.runs import layout
from builders.runs.rows import Shard
from builders.sources import open_source
from builders.stores.copies import on_disk
from hfsyn.checks.diff import readable, recipe_of
from hfsyn.errors import HfsynError
from hfsyn.images.encoding import encode
from hfsyn.images.generator import DiffusersGenerator, Generated, ImageGenerator, fitting, for_class
from hfsyn.images.marking import stored_mark
from hfsyn.images.tuning import ATTENTION, PLAIN, Tuning
from hfsyn.recipes.recipe import GeneratePart, Recipe, load_recipe
from hfsyn.rules import order_of
from hfsyn.runs.sheets import Row, Tile, contact_sheet, save_png
from hfsyn.workers import check_device, describe_device, pick_device, software

Verdict = Literal["byte-equal", "equal up to rounding", "different"]

MOST_LEVELS, MOST_MEAN = 24, 1.5
"""The largest and the mean difference in grey levels of 255 that count as rounding. Half-precision arithmetic moves a
level or two, which JPEG turns into several in single pixels; another image differs by tens on average."""


@dataclass(frozen=True)
class Reproduction:
    """An image made again, beside the stored one."""

    label: str
    sample_id: str
    prompt: str
    seed: int
    verdict: Verdict
    largest: int  # difference in grey levels, 0 to 255, of the pixels as a reader decodes them
    mean: float
    picture: str  # path of both images side by side
    theirs: dict[str, str]
    """Software, device and options (memory format, compilation, attention kernel) that made the stored image."""
    ours: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def text(self) -> str:
        """For people, in lines."""
        how = f" (largest difference {self.largest} of 255, mean {self.mean:.3f})"
        lines = [
            f"{self.label}  {self.sample_id}  seed {self.seed}",
            f"prompt   {self.prompt}",
            f"result   {self.verdict}{'' if self.verdict == 'byte-equal' else how}",
        ]
        for name in sorted({*self.theirs, *self.ours}):
            theirs, ours = self.theirs.get(name, "-"), self.ours.get(name, "-")
            lines.append(f"{name:12} {ours}" if theirs == ours else f"{name:12} {theirs} there, {ours} here")
        return "\n".join(lines)


def reproduce(
    what: str,
    sample_id: str,
    *,
    out: str | Path = ".",
    device: str | None = None,
    model: str | None = None,
    source: str | None = None,
    config_name: str | None = None,
    token: str | bool | None = None,
    allow_pickle_weights: bool = False,
    generator: ImageGenerator | None = None,
) -> Reproduction:
    """Make one image again and compare it with the stored one.

    Args:
        what: a finished run folder, or ``USER/NAME[@REVISION]``.
        sample_id: of a row.
        out: folder for the picture of both.
        device: cpu, cuda or mps; None is the GPU, or the CPU.
        model: the generator's folder here, with the same content, if the recipe names a local one.
        source: the folder of the real images here, if the recipe starts from them; None is the recipe's.
        config_name, token: as for `verify`.
        allow_pickle_weights: read weights in other formats than safetensors too.
        generator: in place of the recipe's model.

    Raises HfsynError if there is no such sample, or the model is not available.
    """
    check_device(device)
    pictures = on_disk(out)
    side = open_reference(what, config_name, token=token)
    recipe = recipe_of(side)
    row, sidecar, position = find_row(side, sample_id)
    stored = _stored_image(row, what)
    part = _part_of(recipe, model)
    size = batch_size_of(sidecar, int(row["retries"]), position, part.batch_size)
    real = real_image(side, recipe, row, source) if part.init == "source" else None
    where = pick_device(device) if generator is None else "cpu"

    def draw(how: Tuning) -> Generated:
        if generator is not None:
            return _drawn(generator, row, size, real)
        by = DiffusersGenerator(part, recipe.prompt.negative, where, allow_pickle=allow_pickle_weights, tuning=how)
        return _drawn(by, row, size, real)

    made, tuning = as_recorded(draw, PLAIN if generator is not None else recorded_tuning(sidecar.options, where))
    mine = encode(made.pixels, recipe.store, stored_mark(stored, recipe))
    verdict, largest, mean = judge(stored, mine)
    return Reproduction(
        label=side.label,
        sample_id=sample_id,
        prompt=row["prompt"],
        seed=row["seed"],
        verdict=verdict,
        largest=largest,
        mean=mean,
        picture=str(_picture(row, stored, mine, verdict, pictures)),
        theirs={**sidecar.software, "device": sidecar.device, **sidecar.options},
        ours={**software(), "device": describe_device(where), **tuning.record()},
    )


def _stored_image(row: Mapping[str, Any], what: str) -> bytes:
    stored = bytes((row.get("image") or {}).get("bytes") or b"")
    try:
        decode_rgb(stored)
    except ImageRejected as rejected:
        problem = f"The stored image of {row['sample_id']} cannot be opened: {rejected.reason}"
        raise HfsynError(problem, f"See: hfsyn verify {what}") from None
    return stored


def _drawn(by: ImageGenerator, row: Mapping[str, Any], batch_size: int, real: Image.Image | None) -> Generated:
    images = {} if real is None else {"images": [fitting(by)(real)]}
    for_class(by, row["wnid"])
    (made,) = by.start([row["prompt"]], [row["seed"]], batch_size, **images)()
    return made


def recorded_tuning(options: Mapping[str, str], device: str) -> Tuning:
    """How the stored image was computed, by its sidecar, without a kernel that the device does not have."""
    attention = options.get("attention", "auto")
    if attention not in ATTENTION or (attention != "math" and not device.startswith("cuda")):
        attention = "auto"
    return Tuning(options.get("channels_last") == "yes", options.get("compile") == "yes", attention)


def as_recorded(draw: Callable[[Tuning], Generated], tuning: Tuning) -> tuple[Generated, Tuning]:
    """The image, drawn with this tuning, or without compilation and kernel if that fails here; and the tuning used."""
    simpler = replace(tuning, compiled=False, attention="auto")
    try:
        return draw(tuning), tuning
    except HfsynError:
        if simpler == tuning:
            raise
    # Not in the except clause, where the error would still hold the model on the device.
    return draw(simpler), simpler


def _part_of(recipe: Recipe, model: str | None) -> GeneratePart:
    """The recipe's generator, checked again where another folder of it is named."""
    part = recipe.generate.model_copy(update={} if model is None else {"model": model})
    return load_recipe({**recipe.model_dump(), "generate": part.model_dump()}).generate


def real_image(side: Published | RunFolder, recipe: Recipe, row: Mapping[str, Any], path: str | None) -> Image.Image:
    """The real image that a synthetic one started from, found by its id and checked by its content.

    Raises HfsynError if it was not found, or is another image.
    """
    part, source_id = recipe.source, row["source_id"]
    hint = "Say where the real images are: --source FOLDER"
    try:
        found = open_source(part.variant, part.split, path=path or part.path, revision=part.revision)
        entry = next((entry for entry in found.index() if entry.source_id == source_id), None)
    except DataError as error:
        raise HfsynError(f"The image starts from the real image {source_id}: {error.message}", hint) from None
    if entry is None:
        raise HfsynError(f"The image starts from the real image {source_id}, which is not in {found.layout}.", hint)
    (real,) = found.read([entry])
    for shard in side.manifest().captions:
        with readable(side, shard), side.open(shard.file) as handle:
            rows = Shard(handle, shard, side.label).rows(["source_id", "source_sha256"])
            described = next((row["source_sha256"] for row in rows if row["source_id"] == source_id), None)
        if described is not None:
            if described != hashlib.sha256(real.image).hexdigest():
                raise HfsynError(f"{source_id} in {found.layout} is another image than the one that was used.", hint)
            return decode_rgb(real.image)
    raise HfsynError(f"{side.label} has no caption row of {source_id}.", f"See: hfsyn verify {side.label}")


def find_row(side: Published | RunFolder, sample_id: str) -> tuple[dict[str, Any], layout.Sidecar, int]:
    """The row of a sample, the sidecar of its shard, and the number of its line there.

    Raises HfsynError if there is no such sample; the message names some that exist.
    """
    manifest = side.manifest()
    some: list[str] = []
    for entry in manifest.shards:
        with readable(side, entry), side.open(entry.file) as handle:
            shard = Shard(handle, entry, side.label)
            if "sample_id" not in shard.schema.names:
                raise HfsynError(f"{side.label} holds captions, and no images.", "Name a configuration with images.")
            before = 0
            for group in shard.groups():
                ids = [row["sample_id"] for row in shard.rows(["sample_id"], groups=[group])]
                some += ids[: 3 - len(some)]
                if sample_id in ids:
                    row = next(row for row in shard.rows(groups=[group]) if row["sample_id"] == sample_id)
                    name = layout.sidecar_name(entry.file)
                    sidecar = layout.parse_sidecar(side.text(name), name)
                    # Lines that were set aside have no row, but had their place in a batch.
                    by_class = recipe_of(side).generate.lora_by_class
                    place = order_of(sample_id, by_class=by_class)
                    aside = sum(order_of(line["id"], by_class=by_class) < place for line in sidecar.rejected)
                    return row, sidecar, before + ids.index(sample_id) + aside
                before += len(ids)
    raise HfsynError(f"{side.label} has no sample {sample_id!r}.", f"It has, for instance: {', '.join(some)}.")


def batch_size_of(sidecar: layout.Sidecar, attempt: int, position: int, recipe_size: int) -> int:
    """The size of the batch in which a sample was drawn: the recipe's, unless the sidecar of its shard says otherwise.

    `attempt` is 0, or the number of the retry; `position` that of its line in the shard. The place of a retry is not
    known: it gets the last size of that attempt.
    """
    sizes = [size for a, first, size in sidecar.grid if a == attempt and (attempt or first <= position)]
    return sizes[-1] if sizes else recipe_size


def judge(stored: bytes, made: bytes) -> tuple[Verdict, int, float]:
    """How two stored images differ: verdict, largest and mean difference in grey levels."""
    if stored == made:
        return "byte-equal", 0, 0.0
    a, b = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(np.int16) for data in (stored, made))
    if a.shape != b.shape:
        return "different", 255, 255.0
    difference = np.abs(a - b)
    largest, mean = int(difference.max()), float(difference.mean())
    return "equal up to rounding" if largest <= MOST_LEVELS and mean <= MOST_MEAN else "different", largest, mean


def _picture(row: Mapping[str, Any], stored: bytes, made: bytes, verdict: str, folder: Path) -> Path:
    tiles = [[Tile(Image.open(io.BytesIO(data)).convert("RGB"))] for data in (stored, made)]
    name = "".join(c if c.isalnum() or c in "._-" else "_" for c in row["sample_id"])
    sheet = contact_sheet(f"{row['sample_id']}: {verdict}", ["stored", "made again"], [Row(row["class_name"], tiles)])
    path = folder / f"{name}-reproduced.png"
    if path.exists():
        print(f"{path} is overwritten", file=sys.stderr)
    return save_png(sheet, path)
