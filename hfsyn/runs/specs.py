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
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast, overload

from builders.runs.layout import shard_count
from builders.variants import ClassInfo, get_variant
from hfsyn.recipes.recipe import Recipe
from hfsyn.recipes.strategies import strategy_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_SLICE = 4096


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


class Plan(Sequence[SampleSpec]):
    """All specs of a run in their final order, with the figures that people ask for first.

    What is kept is the captions and the order, some 300 bytes a real image; a spec is written when it is asked for. A
    slice is a tuple of specs. Two plans are equal when all their specs are.

    Args:
        recipe: its strategy, seeds and images per caption are used.
        captions: one for each usable real image, in any order.

    Raises:
        ValueError: a source id occurs twice, or a wnid is not one of the variant's.
    """

    def __init__(self, recipe: Recipe, captions: Iterable[Caption]) -> None:
        self._recipe = recipe
        self._each = recipe.prompt.images_per_caption
        self._ids: list[str] = []
        self._classes: list[ClassInfo] = []
        self._texts: list[str | None] = []
        self._flags: dict[int, tuple[str, ...]] = {}
        classes: dict[str, ClassInfo] = get_variant(recipe.source.variant).by_wnid  # type: ignore[assignment]
        for number, caption in enumerate(captions):
            if caption.wnid not in classes:
                raise ValueError(f"wnid {caption.wnid!r} of {caption.source_id!r} is not in {recipe.source.variant}")
            self._ids.append(caption.source_id)
            self._classes.append(classes[caption.wnid])
            self._texts.append(caption.text)
            if caption.flags:
                self._flags[number] = caption.flags
        self._order = self._sorted()

    @property
    def shard_rows(self) -> int:
        """Lines a shard."""
        return self._recipe.store.shard_rows

    @property
    def shards(self) -> int:
        """Number of shards."""
        return shard_count(len(self), self.shard_rows)

    @property
    def per_class(self) -> dict[str, int]:
        """Images of each wnid, sorted by wnid."""
        counts = Counter(info.wnid for info in self._classes)
        return {wnid: counts[wnid] * self._each for wnid in sorted(counts)}

    @property
    def unique_prompts(self) -> int:
        """How many different prompts there are; every one is written for it."""
        return len({digest_of(prompt) for prompt in self.prompts()})

    def prompts(self) -> Iterator[str]:
        """The prompts of all lines, in order."""
        write = strategy_of(self._recipe.prompt).write
        for position in self._positions():
            number, k = divmod(position, self._each)
            info = self._classes[number]
            yield write(info, self._texts[number], self._chance(info, sample_id_of(self._ids[number], k)))

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, at: int) -> SampleSpec: ...

    @overload
    def __getitem__(self, at: slice) -> tuple[SampleSpec, ...]: ...

    def __getitem__(self, at: int | slice) -> SampleSpec | tuple[SampleSpec, ...]:
        if isinstance(at, slice):
            return tuple(self._specs(self._order[at].tolist()))
        return next(self._specs([int(self._order[at])]))

    def __iter__(self) -> Iterator[SampleSpec]:
        return self._specs(self._positions())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plan):
            return NotImplemented
        same = len(self) == len(other) and self.shard_rows == other.shard_rows
        return same and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def _positions(self) -> Iterator[int]:
        """``caption * images per caption + k`` of all lines, in order."""
        for start in range(0, len(self), _SLICE):
            yield from self._order[start : start + _SLICE].tolist()

    def _specs(self, positions: Iterable[int]) -> Iterator[SampleSpec]:
        write = strategy_of(self._recipe.prompt).write
        for position in positions:
            number, k = divmod(position, self._each)
            info, text = self._classes[number], self._texts[number]
            sample_id = sample_id_of(self._ids[number], k)
            yield SampleSpec(
                sample_id=sample_id,
                source_id=self._ids[number],
                wnid=info.wnid,
                class_name=info.name,
                label=info.index,
                prompt=write(info, text, self._chance(info, sample_id)),
                caption=text,
                caption_flags=self._flags.get(number, ()),
                seed=seed_of(self._recipe.seed_for(info.wnid), sample_id),
            )

    def _chance(self, info: ClassInfo, sample_id: str) -> random.Random:
        return cast(random.Random, _Chance(self._recipe.seed_for(info.wnid), sample_id))

    def _sorted(self) -> npt.NDArray[np.int64]:
        """The positions in the plan's order: sorted by the hash of the sample id, of which 8 bytes nearly always do."""
        import numpy as np

        heads = bytearray()
        for source_id in self._ids:
            for k in range(self._each):
                heads += order_of(sample_id_of(source_id, k))[:8]
        keys = np.frombuffer(heads, dtype=">u8").astype(np.uint64)
        order = np.argsort(keys, kind="stable")
        ranked = keys[order]
        for start, stop in _runs(np.flatnonzero(ranked[1:] == ranked[:-1]).tolist()):
            tied = sorted((self._sample_id(int(p)) for p in order[start:stop]), key=order_of)
            for one, other in pairwise(tied):
                if one == other:
                    raise ValueError(f"source id {one.rpartition('#')[0]!r} occurs twice")
            order[start:stop] = sorted(order[start:stop].tolist(), key=lambda p: order_of(self._sample_id(p)))
        return order

    def _sample_id(self, position: int) -> str:
        number, k = divmod(position, self._each)
        return sample_id_of(self._ids[number], k)


class _Chance:
    """A ``random.Random`` by the rule of choices, seeded when it is first asked: most strategies never ask."""

    def __init__(self, recipe_seed: int, sample_id: str) -> None:
        self._from = recipe_seed, sample_id

    def __getattr__(self, name: str) -> Any:
        if "_random" not in self.__dict__:
            self._random = random.Random(seed_of(*self._from, purpose="prompt"))
        return getattr(self._random, name)


def _runs(places: Sequence[int]) -> Iterator[tuple[int, int]]:
    """``(first, one past the last)`` of what is tied, from the places whose neighbour to the right is equal."""
    first = last = None
    for place in places:
        if last is None or place > last + 1:
            if first is not None and last is not None:
                yield first, last + 2
            first = place
        last = place
    if first is not None and last is not None:
        yield first, last + 2


def sample_id_of(source_id: str, k: int) -> str:
    """The id of the k-th image made from a real one."""
    return f"{source_id}#{k}"


def digest_of(prompt: str) -> bytes:
    """16 bytes that no two prompts have in common: smaller than these, where very many are compared."""
    return hashlib.blake2b(prompt.encode(), digest_size=16).digest()


def seed_of(recipe_seed: int, sample_id: str, attempt: int = 0, *, purpose: str = "seed") -> int:
    """The seed of a sample by the rule in the module's docstring; 0 <= seed < 2^63."""
    text = f"hfsyn-{purpose}-v1\n{recipe_seed}\n{sample_id}\n" + (f"{attempt}\n" if attempt else "")
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def order_of(sample_id: str) -> bytes:
    """The sort key of a sample in the plan."""
    return hashlib.sha256(sample_id.encode()).digest()


def plan(recipe: Recipe, captions: Iterable[Caption]) -> Plan:
    """Write the plan: pure, the same on every machine. A million images take seconds and some hundred megabytes.

    Args:
        recipe: the recipe; its strategy, seed and images per caption are used.
        captions: one for each usable real image, in any order; source ids are unique.

    Raises:
        ValueError: a source id occurs twice, or a wnid is not one of the variant's.
    """
    return Plan(recipe, captions)
