"""From specs to rows: draw each image, try the bad ones again within a bound, set aside what stays bad."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from hfsyn.making.encode import SUFFIX, encode
from hfsyn.making.generator import Generated, ImageGenerator
from hfsyn.making.recipe import Recipe
from hfsyn.making.specs import SampleSpec, batches, seed_of


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one spec: its stored bytes (as a future, while they are encoded) or the problem that remained."""

    image: Future[bytes] | None
    seed: int
    retries: int
    safety: bool
    problem: str | None


def draw(
    specs: Sequence[SampleSpec],
    generator: ImageGenerator,
    recipe: Recipe,
    pool: ThreadPoolExecutor,
    tick: Callable[[int], None],
) -> list[Result]:
    """Images of one shard's specs, in order; those with a problem are tried again with new seeds, up to the recipe's
    bound.

    Retries are collected over the shard and drawn on the same grid, in the plan's order, so that they too are the same
    on any number of processes.
    """
    results: dict[str, Result] = {}
    left = list(specs)
    for attempt in range(recipe.generate.max_retries + 1):
        again = []
        for batch in batches(left, recipe.generate.batch_size):
            seeds = [
                seed_of(recipe.seed_for(spec.wnid), spec.sample_id, attempt) if attempt else spec.seed for spec in batch
            ]
            drawn = generator.generate([spec.prompt for spec in batch], seeds)
            for spec, seed, image in zip(batch, seeds, drawn, strict=True):
                before = results.get(spec.sample_id)
                results[spec.sample_id] = _settled(before, image, seed, attempt, recipe, pool)
                if image.problem:
                    again.append(spec)
            tick(sum(not image.problem for image in drawn))
        left = again
        if not left:
            break
    return [results[spec.sample_id] for spec in specs]


def _settled(
    before: Result | None, image: Generated, seed: int, attempt: int, recipe: Recipe, pool: ThreadPoolExecutor
) -> Result:
    safety = image.problem == "safety" or (before is not None and before.safety)
    encoded = None if image.problem else pool.submit(encode, image.pixels, recipe.store)
    return Result(encoded, seed, attempt, safety, image.problem)


def synthetic_rows(
    specs: Sequence[SampleSpec], results: Sequence[Result], generator: ImageGenerator, recipe: Recipe
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """The rows of a shard in the plan's order, with the columns of `builders.schema`; and what was set aside, why."""
    rows, rejected = [], []
    tokens = generator.count_tokens([spec.prompt for spec in specs])
    for spec, result, count in zip(specs, results, tokens, strict=True):
        if result.image is None:
            reason = f"{_PROBLEMS[result.problem or 'flat']}, {result.retries + 1} attempts"
            rejected.append({"id": spec.sample_id, "wnid": spec.wnid, "reason": reason})
            continue
        name = spec.sample_id.replace("/", "_").replace("#", "_") + SUFFIX[recipe.store.format]
        rows.append(
            {
                "image": {"bytes": result.image.result(), "path": name},
                "label": spec.label,
                "wnid": spec.wnid,
                "class_name": spec.class_name,
                "prompt": spec.prompt,
                "caption": spec.caption,
                "seed": result.seed,
                "sample_id": spec.sample_id,
                "source_id": spec.source_id,
                "prompt_tokens": count,
                "truncated": count > generator.max_tokens,
                "safety": result.safety,
                "retries": result.retries,
                "caption_flags": list(spec.caption_flags),
            }
        )
    return rows, rejected


_PROBLEMS = {
    "safety": "the safety checker flagged it",
    "nan": "the model made numbers that are none (NaN)",
    "flat": "the image is flat: nothing is in it",
}
