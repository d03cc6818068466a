"""The plan: pure, complete, ordered by a stated rule, with seeds that anybody can recompute."""

from __future__ import annotations

import hashlib
import random
from collections import Counter

import pytest

from builders.variants import get_variant
from hfsyn.recipes.recipe import load_recipe
from hfsyn.recipes.strategies import CLIP80
from hfsyn.rules import seed_of
from hfsyn.runs.specs import Caption, plan

WNIDS = [info.wnid for info in get_variant("shapes").classes]


def captions(n: int = 40) -> list[Caption]:
    return [Caption(f"{WNIDS[i % 10]}/{i:04d}.png", WNIDS[i % 10], f"caption {i}") for i in range(n)]


def published_seed(recipe_seed: int, sample_id: str, attempt: int = 0) -> int:
    """The rule as README and cards state it, written out again."""
    text = "hfsyn-seed-v1\n" + str(recipe_seed) + "\n" + sample_id + "\n" + (str(attempt) + "\n" if attempt else "")
    first_eight = hashlib.sha256(text.encode("utf-8")).digest()[:8]
    return int.from_bytes(first_eight, byteorder="big") // 2


def test_seeds_follow_the_published_rule() -> None:
    for spec in plan(load_recipe("shapes-cip", ["seed=5"]), captions()):
        assert spec.seed == published_seed(5, spec.sample_id)
        assert seed_of(5, spec.sample_id, 2) == published_seed(5, spec.sample_id, 2)


def test_a_class_seed_changes_the_seeds_of_that_class_alone() -> None:
    base, changed = (
        plan(load_recipe("shapes-cip"), captions()),
        plan(load_recipe("shapes-cip", [f"class_seeds.{WNIDS[3]}=9"]), captions()),
    )
    for a, b in zip(base, changed, strict=True):
        assert b.seed == published_seed(9 if b.wnid == WNIDS[3] else 0, b.sample_id)
        assert (a.sample_id, a.prompt) == (b.sample_id, b.prompt)
        assert (a == b) == (b.wnid != WNIDS[3])


def test_the_plan_does_not_depend_on_the_order_of_the_captions() -> None:
    recipe = load_recipe("shapes-cip")
    shuffled = captions()
    random.Random(1).shuffle(shuffled)
    assert plan(recipe, shuffled) == plan(recipe, captions())


def test_each_caption_gives_its_images_and_stays_with_its_own_class() -> None:
    recipe = load_recipe("shapes-cip", ["prompt.images_per_caption=3"])
    made = plan(recipe, captions())
    assert Counter(spec.source_id for spec in made) == {c.source_id: 3 for c in captions()}
    known = {c.source_id: c for c in captions()}
    for spec in made:
        assert spec.wnid == known[spec.source_id].wnid == spec.source_id.split("/")[0]
        assert spec.prompt == f"a photo of {spec.class_name}, {known[spec.source_id].text}"


def test_no_two_samples_share_a_seed_or_an_id() -> None:
    """10,001 possible seeds gave the method's first implementation about 6 % exact duplicates."""
    recipe = load_recipe("shapes-basic", ["prompt.images_per_caption=50"])
    made = plan(recipe, captions(200))
    assert len({spec.seed for spec in made}) == len({spec.sample_id for spec in made}) == len(made) == 10_000


def test_another_recipe_seed_changes_every_seed_and_no_prompt() -> None:
    a, b = (plan(load_recipe("shapes-cip", [f"seed={s}"]), captions()) for s in (0, 1))
    assert [s.prompt for s in a] == [s.prompt for s in b]
    assert not {s.seed for s in a} & {s.seed for s in b}


def test_shards_cover_the_plan_and_every_prefix_is_a_fair_sample_of_the_classes() -> None:
    made = plan(load_recipe("shapes-cip", ["store.shard_rows=1000"]), captions(5000))
    assert made.shards == 5
    for start in range(0, 5000, 1000):
        counts = Counter(spec.wnid for spec in made[start : start + 1000])
        assert len(counts) == 10
        assert min(counts.values()) > 60  # 100 expected, standard deviation 9


def test_class_counts_are_those_of_the_real_set_with_and_without_captions() -> None:
    uneven = [*captions(40), *[Caption(f"{WNIDS[0]}/x{i}", WNIDS[0], "x") for i in range(7)]]
    basic, cip = plan(load_recipe("shapes-basic"), uneven), plan(load_recipe("shapes-cip"), uneven)
    assert basic.per_class == cip.per_class == {w: 4 + 7 * (w == WNIDS[0]) for w in sorted(WNIDS)}
    assert basic.unique_prompts == 10


def test_a_source_id_that_occurs_twice_or_a_foreign_class_is_refused() -> None:
    recipe = load_recipe("shapes-cip")
    with pytest.raises(ValueError, match="twice"):
        plan(recipe, [*captions(3), captions(1)[0]])
    with pytest.raises(ValueError, match="n00000000"):
        plan(recipe, [Caption("a", "n00000000", "x")])


def test_a_plan_is_a_sequence_of_its_specs() -> None:
    made = plan(load_recipe("shapes-cip", ["prompt.images_per_caption=2"]), captions(9))
    specs = list(made)
    assert [made[i] for i in range(18)] == specs
    assert made[-1] == specs[-1]
    assert made[3:11] == tuple(specs[3:11])
    assert list(made.prompts()) == [spec.prompt for spec in specs]
    assert specs == sorted(specs, key=lambda spec: hashlib.sha256(spec.sample_id.encode()).digest())
    assert made != plan(load_recipe("shapes-cip", ["prompt.images_per_caption=2", "seed=1"]), captions(9))


def test_samples_whose_hashes_begin_alike_are_sorted_by_the_whole_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    def clumped(sample_id: str) -> bytes:
        digest = hashlib.sha256(sample_id.encode()).digest()
        return bytes([digest[0] % 5]) + bytes(7) + digest

    monkeypatch.setattr("hfsyn.runs.specs.order_of", clumped)
    recipe = load_recipe("shapes-cip", ["prompt.images_per_caption=2"])
    made = plan(recipe, captions(30))
    assert [s.sample_id for s in made] == sorted((s.sample_id for s in made), key=clumped)
    with pytest.raises(ValueError, match="occurs twice"):
        plan(recipe, [*captions(30), captions(1)[0]])


def test_a_strategy_that_chooses_is_asked_with_the_published_choice() -> None:
    for spec in plan(load_recipe("shapes-basic", ["prompt.strategy=clip80", "seed=3"]), captions()):
        text = f"hfsyn-prompt-v1\n3\n{spec.sample_id}\n"
        chosen = random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") // 2)
        assert spec.prompt == chosen.choice(CLIP80).replace("{}", spec.class_name)
