"""The plan: one SampleSpec for each image to make, computed by a pure function before anything costly starts.

Ids, seeds and the order of the lines follow `hfsyn.rules`. A shard is a run of ``store.shard_rows`` lines; a batch is a
run of ``generate.batch_size`` lines counted from its shard's first. A short batch is padded with its last line and the
surplus dropped, so that no image depends on how many processes ran or on where a run was interrupted.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast, overload

from builders.runs.layout import shard_count
from builders.variants import ClassInfo, get_variant
from hfsyn.recipes.parts import strategy_of
from hfsyn.recipes.recipe import Recipe
from hfsyn.rules import order_of, sample_id_of, seed_of
from hfsyn.runs.pairing import Told

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_SLICE = 4096


@dataclass(frozen=True, slots=True)
class Caption:
    """The id and class of one real image, and its caption if the recipe asks for one."""

    source_id: str
    wnid: str
    text: str | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SampleSpec:
    """One line of the plan: everything that an image depends on besides the recipe."""

    sample_id: str
    source_id: str
    wnid: str
    class_name: str
    label: int
    prompt: str
    caption: str | None
    caption_flags: tuple[str, ...]
    seed: int
    caption_source_id: str | None = None
    """The image whose caption it is, if the recipe pairs images with the captions of others."""


class Plan(Sequence[SampleSpec]):
    """All specs of a run in their final order, made from one caption for each usable real image, in any order.

    It holds the captions and the order, some 300 bytes per real image; a spec is made when it is asked for. A slice is
    a tuple of specs. Two plans are equal when all their specs are.

    Raises ValueError if a source id occurs twice, or a wnid is not one of the variant's.
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
        pairing, ids = recipe.prompt.pairing, self._ids
        self._told = Told(ids, self._classes, self._texts, self._flags, None if pairing == "own" else recipe.seed)

    @property
    def shard_rows(self) -> int:
        """Lines per shard."""
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
        """How many different prompts there are; all of them are written to count them."""
        return len({digest_of(prompt) for prompt in self.prompts()})

    def prompts(self) -> Iterator[str]:
        """The prompts of all lines, in order."""
        return (prompt for _, _, prompt in self._written(self._positions()))

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
        """``caption number * images per caption + k`` of all lines, in order."""
        for start in range(0, len(self), _SLICE):
            yield from self._order[start : start + _SLICE].tolist()

    def _written(self, positions: Iterable[int]) -> Iterator[tuple[int, str, str]]:
        """Caption number, sample id and prompt of each line."""
        write = strategy_of(self._recipe.prompt).write
        for position in positions:
            number, k = divmod(position, self._each)
            info, sample_id = self._classes[number], sample_id_of(self._ids[number], k)
            rng = cast(random.Random, _LazyRandom(self._recipe.seed_for(info.wnid), sample_id))
            yield number, sample_id, write(info, self._told.of(number)[0], rng)

    def _specs(self, positions: Iterable[int]) -> Iterator[SampleSpec]:
        for number, sample_id, prompt in self._written(positions):
            info = self._classes[number]
            text, flags, whose = self._told.of(number)
            yield SampleSpec(
                sample_id=sample_id,
                source_id=self._ids[number],
                wnid=info.wnid,
                class_name=info.name,
                label=info.index,
                prompt=prompt,
                caption=text,
                caption_flags=flags,
                seed=seed_of(self._recipe.seed_for(info.wnid), sample_id),
                caption_source_id=whose,
            )

    def _sorted(self) -> npt.NDArray[np.int64]:
        import numpy as np

        sample_ids = (sample_id_of(source_id, k) for source_id in self._ids for k in range(self._each))
        keys = np.fromiter(map(order_of, sample_ids), dtype=f"S{len(order_of(''))}", count=len(self._ids) * self._each)
        order = np.argsort(keys, kind="stable")
        ranked = keys[order]
        if self._recipe.generate.lora_by_class:  # all of a class together, so that its LoRA is loaded once
            wnids = np.array([info.wnid for info in self._classes])
            order = order[np.argsort(wnids[order // self._each], kind="stable")]
        if len(same := np.flatnonzero(ranked[1:] == ranked[:-1])):
            number = int(np.flatnonzero(keys == ranked[same[0]])[0]) // self._each
            raise ValueError(f"source id {self._ids[number]!r} occurs twice")
        return order


class _LazyRandom:
    """A ``random.Random`` for a strategy's choices, seeded when it is first used: most strategies never use it."""

    def __init__(self, recipe_seed: int, sample_id: str) -> None:
        self._from = recipe_seed, sample_id

    def __getattr__(self, name: str) -> Any:
        if "_random" not in self.__dict__:
            self._random = random.Random(seed_of(*self._from, purpose="prompt"))
        return getattr(self._random, name)


def digest_of(prompt: str) -> bytes:
    """A 16-byte digest of a prompt, smaller than the prompt, to compare very many of them."""
    return hashlib.blake2b(prompt.encode(), digest_size=16).digest()


def plan(recipe: Recipe, captions: Iterable[Caption]) -> Plan:
    """Make the `Plan`: pure, the same on every machine. A million images take seconds and a few hundred megabytes."""
    return Plan(recipe, captions)
