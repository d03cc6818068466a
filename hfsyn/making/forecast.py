"""What a recipe would make, before anything is spent: counts, prompts, truncations, shards, disk, time. No model is
loaded.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from builders import layout
from builders.layout import is_run_folder, shard_count
from builders.sources import open_source
from builders.variants import get_variant
from hfsyn.errors import HfsynError
from hfsyn.making.hub_models import locate
from hfsyn.making.prompts import get_strategy
from hfsyn.making.recipe import Recipe, fingerprint, is_content_hash
from hfsyn.making.runs import load_run
from hfsyn.making.shards import is_done
from hfsyn.making.specs import Caption, plan

# Bytes a pixel of 512 px photographs: JPEG quality 96 at 4:4:4 lies between the 124 KB of 95 and the 183 KB of 98.
_BYTES_PER_PIXEL = {"jpeg": 0.53, "png": 1.5, "webp": 1.25}
# TFLOP of one UNet row and of one VAE decoding at 512 px, counted on the true architecture; and dense bf16 TFLOP/s.
_TFLOP = {"stable-diffusion-v1-5/stable-diffusion-v1-5": (0.8033, 2.5145)}
_DEVICES = {"A100": 312.0, "H100/H200": 790.0}
_UTILISATION = 0.45
_PLACEHOLDER = "<caption>"


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a recipe would make."""

    recipe: str
    fingerprint: str
    source: str
    real_images: int
    classes: int
    images: int
    images_per_class: tuple[int, int]
    """Smallest and largest."""
    captions: str
    """Where captions were taken from: ``none needed``, ``of this run`` or ``not made yet``."""
    unique_prompts: int | None
    truncated: int | None
    """Prompts longer than the text encoder takes; None where captions or tokenizer are not at hand."""
    max_tokens: int | None
    first_prompts: tuple[str, ...]
    shards: int
    disk_bytes: int
    hours: dict[str, float]
    """Estimated hours of one device of each kind; empty where the model's cost is not known."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def text(self) -> str:
        """For people."""
        low, high = self.images_per_class
        token_line = (
            "not counted (captions or tokenizer are not at hand)"
            if self.truncated is None
            else f"{self.truncated} of {self.images} prompts over {self.max_tokens} tokens"
        )
        lines = [
            f"recipe        {self.recipe}  {self.fingerprint[:12]}",
            f"source        {self.source}: {self.real_images} real images of {self.classes} classes",
            f"images        {self.images}: {low}" + (f" to {high}" if high != low else "") + " a class",
            f"captions      {self.captions}",
            f"prompts       {'?' if self.unique_prompts is None else self.unique_prompts} different",
            *(f"              {prompt}" for prompt in self.first_prompts),
            f"truncated     {token_line}",
            f"shards        {self.shards}",
            f"disk          about {_size(self.disk_bytes)}",
        ]
        guess = ", ".join(
            (f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.0f} min") + f" on one {device}"
            for device, hours in self.hours.items()
        )
        lines.append(
            f"time          {f'about {guess} (counted FLOPs at 45 % of peak)' if guess else 'not known for this model'}"
        )
        return "\n".join(lines)


def forecast(recipe: Recipe, run_folder: str | Path | None = None) -> Forecast:
    """What a recipe would make.

    Args:
        recipe: the recipe; its source is indexed (no image is read).
        run_folder: a run of this recipe whose captions are used if they are complete.

    Raises:
        HfsynError: the source is missing or empty.
    """
    source = recipe.source
    variant = get_variant(source.variant)
    entries = list(
        open_source(
            source.variant,
            source.split,
            path=source.path,
            revision=source.revision,
            limit_per_class=source.limit_per_class,
        ).index()
    )
    if not entries:
        raise HfsynError(
            f"The source {source.variant} ({source.split}) holds no image.", "Check source.path and source.split."
        )
    strategy = get_strategy(recipe.prompt.strategy)
    captions = _captions_of(run_folder)
    if captions is None:
        text = _PLACEHOLDER if strategy.needs_caption else None
        captions = [Caption(entry.source_id, entry.wnid, text) for entry in entries]
        origin = "not made yet" if strategy.needs_caption else "none needed"
    else:
        origin = "of this run"
    made = plan(recipe, captions)
    known = origin != "not made yet"
    counts = Counter(spec.wnid for spec in made)
    truncated, limit = _truncations(recipe, [spec.prompt for spec in made]) if known else (None, None)
    pixels = _pixels(recipe)
    return Forecast(
        recipe=recipe.name,
        fingerprint=fingerprint(recipe),
        source=f"{variant.name} ({source.split})",
        real_images=len(entries),
        classes=len(counts),
        images=len(made),
        images_per_class=(min(counts.values()), max(counts.values())),
        captions=origin,
        unique_prompts=made.unique_prompts if known else None,
        truncated=truncated,
        max_tokens=limit,
        first_prompts=tuple(dict.fromkeys(spec.prompt for spec in made[:50]))[:5],
        shards=shard_count(len(made), recipe.store.shard_rows),
        disk_bytes=round(len(made) * (pixels * _BYTES_PER_PIXEL[recipe.store.format] + 300)),
        hours=_hours(recipe, len(made)),
    )


def _captions_of(folder: str | Path | None) -> list[Caption] | None:
    """All captions of a run, or None where they are not complete."""
    if folder is None or not is_run_folder(Path(folder)):
        return None
    run = load_run(folder)
    shards = run.caption_shards() if (run.folder / layout.SOURCE).exists() else []
    if not shards or not all(is_done(shard) for shard in shards):
        return None
    rows = (row for shard in shards for row in pq.read_table(shard).to_pylist())
    return [Caption(row["source_id"], row["wnid"], row["caption"], tuple(row["caption_flags"])) for row in rows]


def _truncations(recipe: Recipe, prompts: list[str]) -> tuple[int | None, int | None]:
    """How many prompts the text encoder would cut, and its limit; None where its tokenizer is not at hand."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            locate(recipe.generate.model, "generator"),
            subfolder="tokenizer",
            revision=None if is_content_hash(recipe.generate.revision) else recipe.generate.revision or "main",
            local_files_only=True,
        )
    except (OSError, ValueError):
        return None, None
    limit = int(tokenizer.model_max_length)
    return sum(len(ids) > limit for ids in tokenizer(prompts, truncation=False, verbose=False).input_ids), limit


def _pixels(recipe: Recipe) -> int:
    """Pixels of a stored image: the recipe's, or the model's own where its configuration is at hand, or 512 x 512."""
    part = recipe.generate
    if recipe.store.size is not None:
        return recipe.store.size**2
    if part.width is not None and part.height is not None:
        return part.width * part.height
    own = 512
    try:
        folder = Path(locate(part.model, "generator"))
        unet = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
        vae = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
        own = unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)
    except (OSError, KeyError, HfsynError):
        pass
    return (part.width or own) * (part.height or own)


def _hours(recipe: Recipe, images: int) -> dict[str, float]:
    part = recipe.generate
    if part.model not in _TFLOP or {part.width, part.height} - {None, 512}:
        return {}
    row, decode = _TFLOP[part.model]
    each = part.steps * (2 if part.guidance_scale > 1 else 1) * row + decode
    return {device: round(images * each / (peak * _UTILISATION) / 3600, 4) for device, peak in _DEVICES.items()}


def _size(size: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
