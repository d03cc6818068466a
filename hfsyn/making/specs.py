"""The plan: one SampleSpec for each image to make, written by a pure function before anything costly starts.

The rules, which a reader of a published set can apply without this code:

*Sample id.* ``{source_id}#{k}`` for the k-th image (from 0) made from one real image.

*Seed.* The UTF-8 text ``hfsyn-seed-v1``, the recipe's seed (or that of the class in ``class_seeds``) and the sample id,
each followed by a newline, is hashed with SHA-256; the seed is the first 8 bytes, read big-endian, shifted right by one
bit: 0 to 2^63 - 1. A retry (an image that was flagged, NaN or flat) appends the number of the attempt (1, 2, ...) and a
newline to that text. The initial noise is drawn by ``torch.Generator("cpu").manual_seed(seed)``.

*Choice.* A strategy that chooses at random gets ``random.Random(s)`` with s made by the rule of the seed from
``hfsyn-prompt-v1`` instead of ``hfsyn-seed-v1``.

*Order.* Lines are sorted by the SHA-256 of the sample id, so that each shard, and each prefix of a run that was stopped
early, is a fair sample of all classes, and a stream of the result is not sorted by class.

*Grid.* A shard is a run of ``store.shard_rows`` lines; a batch is a run of ``generate.batch_size`` lines counted from
its shard's first. A short batch is padded with its last line and the surplus dropped, so that no image depends on how
many processes ran or on where a run was interrupted.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from builders.layout import shard_count
from builders.variants import ClassInfo, get_variant
from hfsyn.making.prompts import get_strategy
from hfsyn.making.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Caption:
    """What is known of one real image: its id and class, and its caption where the recipe asks for one."""

    source_id: str
    wnid: str
    text: str | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SampleSpec:
    """One line of the plan: everything that an image depends on, beside the recipe."""

    sample_id: str
    source_id: str
    wnid: str
    class_name: str
    label: int
    prompt: str
    caption: str | None
    caption_flags: tuple[str, ...]
    seed: int


@dataclass(frozen=True, slots=True)
class Plan:
    """All specs of a run in their final order, with the figures that people ask for first."""

    specs: tuple[SampleSpec, ...]
    shard_rows: int

    @property
    def shards(self) -> int:
        """Number of shards."""
        return shard_count(len(self.specs), self.shard_rows)

    @property
    def per_class(self) -> dict[str, int]:
        """Images of each wnid, sorted by wnid."""
        return dict(sorted(Counter(s.wnid for s in self.specs).items()))

    @property
    def unique_prompts(self) -> int:
        """How many different prompts there are."""
        return len({s.prompt for s in self.specs})

    def __len__(self) -> int:
        return len(self.specs)

    def __iter__(self) -> Iterator[SampleSpec]:
        return iter(self.specs)


def sample_id_of(source_id: str, k: int) -> str:
    """The id of the k-th image made from a real one."""
    return f"{source_id}#{k}"


def seed_of(recipe_seed: int, sample_id: str, attempt: int = 0, *, purpose: str = "seed") -> int:
    """The seed of a sample by the rule in the module's docstring; 0 <= seed < 2^63."""
    text = f"hfsyn-{purpose}-v1\n{recipe_seed}\n{sample_id}\n" + (f"{attempt}\n" if attempt else "")
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def order_of(sample_id: str) -> bytes:
    """The sort key of a sample in the plan."""
    return hashlib.sha256(sample_id.encode()).digest()


def plan(recipe: Recipe, captions: Iterable[Caption]) -> Plan:
    """Write the plan: pure, the same on every machine, in about 10 microseconds a line.

    Args:
        recipe: the recipe; its strategy, seed and images per caption are used.
        captions: one for each usable real image, in any order; source ids are unique.

    Raises:
        ValueError: a source id occurs twice, or a wnid is not one of the variant's.
    """
    strategy = get_strategy(recipe.prompt.strategy)
    classes: dict[str, ClassInfo] = get_variant(recipe.source.variant).by_wnid  # type: ignore[assignment]
    seen: set[str] = set()
    specs = []
    for caption in captions:
        if caption.source_id in seen:
            raise ValueError(f"source id {caption.source_id!r} occurs twice")
        seen.add(caption.source_id)
        if caption.wnid not in classes:
            raise ValueError(f"wnid {caption.wnid!r} of {caption.source_id!r} is not in {recipe.source.variant}")
        info = classes[caption.wnid]
        for k in range(recipe.prompt.images_per_caption):
            sample_id = sample_id_of(caption.source_id, k)
            rng = random.Random(seed_of(recipe.seed_for(info.wnid), sample_id, purpose="prompt"))
            specs.append(
                SampleSpec(
                    sample_id=sample_id,
                    source_id=caption.source_id,
                    wnid=caption.wnid,
                    class_name=info.name,
                    label=info.index,
                    prompt=strategy.write(info, caption.text, rng),
                    caption=caption.text,
                    caption_flags=caption.flags,
                    seed=seed_of(recipe.seed_for(info.wnid), sample_id),
                )
            )
    specs.sort(key=lambda spec: order_of(spec.sample_id))
    return Plan(tuple(specs), recipe.store.shard_rows)


def batches(specs: Sequence[SampleSpec], size: int) -> Iterator[tuple[SampleSpec, ...]]:
    """Cut one shard's lines into the fixed grid; only the last batch is shorter (the generator pads it)."""
    for start in range(0, len(specs), size):
        yield tuple(specs[start : start + size])
