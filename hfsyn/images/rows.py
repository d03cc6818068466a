"""Rows of a data shard, from specs and what was drawn for them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from hfsyn.images.encoding import SUFFIX
from hfsyn.recipes.recipe import Recipe
from hfsyn.runs.specs import SampleSpec


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one spec: its stored bytes (as a future, while they are encoded) or the problem that remained."""

    image: Future[bytes] | None
    seed: int
    retries: int
    safety: bool
    problem: str | None


def synthetic_rows(
    specs: Sequence[SampleSpec], results: Sequence[Result], tokens: Sequence[int], max_tokens: int, recipe: Recipe
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """The rows of a shard in the plan's order, with the columns of `builders.runs.schema`; and what was set aside, why.

    Args:
        specs, results: of the shard, in the same order.
        tokens: of each prompt.
        max_tokens: that the text encoder takes.
        recipe: of the run.
    """
    rows, rejected = [], []
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
                "truncated": count > max_tokens,
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
