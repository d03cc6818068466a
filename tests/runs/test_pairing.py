"""Pairing: whose caption an image gets, by a rule that anyone can apply, and how it is told of another class."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import finished_run, parquet_bytes, run_folder
from fakes import FakeCaptioner, FakeGenerator

from builders.runs import layout
from builders.variants import ClassInfo, get_variant
from hfsyn.captions.caption_stage import caption
from hfsyn.checks.verify import verify
from hfsyn.errors import HfsynError
from hfsyn.images.generate_stage import generate
from hfsyn.outlook.forecast import forecast
from hfsyn.recipes.recipe import fingerprint, load_recipe, parse_recipe
from hfsyn.runs.finish import finish
from hfsyn.runs.pairing import donors, retold
from hfsyn.runs.specs import Caption, plan

ACROSS = "prompt.pairing=across-classes"
SHAPES = get_variant("shapes").classes


def published_rule(ids: list[str], classes: list[str], seed: int) -> list[str]:
    """The rule as `hfsyn.rules` states it, written out again: the id whose text each image gets."""

    def row(name: str) -> list[int]:
        def key(i: int) -> bytes:
            return hashlib.sha256(f"hfsyn-pairing-{name}-v1\n{seed}\n{ids[i]}\n".encode()).digest()[:8]

        return sorted(range(len(ids)), key=lambda i: int.from_bytes(key(i), "big") // 2)

    images, texts = row("image"), row("text")
    for n in range(len(ids)):
        own = classes[images[n]]
        if classes[texts[n]] == own:
            for m in [*range(n + 1, len(ids)), *range(n)]:
                if classes[images[m]] != own and classes[texts[m]] != own:
                    texts[n], texts[m] = texts[m], texts[n]
                    break
    whose = dict(zip(images, texts, strict=True))
    return [ids[whose[i]] for i in range(len(ids))]


@pytest.mark.parametrize("seed", range(60))
def test_as_few_images_as_possible_get_a_text_of_their_own_class(seed: int) -> None:
    rng = random.Random(seed)
    sizes = [rng.choice([1, 1, 2, 5, 30]) for _ in range(rng.randint(1, 12))]
    if seed % 3 == 0:
        sizes[0] = rng.randint(1, 3 * sum(sizes))  # one class may be more than half
    classes = [f"c{number}" for number, size in enumerate(sizes) for _ in range(size)]
    ids = [f"{name}/{number}.png" for number, name in enumerate(classes)]
    found = donors(ids, classes, seed)
    assert sorted(found) == list(range(len(ids)))  # each text once: counts by class stay
    unavoidable = max(0, 2 * max(sizes) - sum(sizes))
    assert sum(classes[taker] == classes[giver] for taker, giver in enumerate(found)) == unavoidable
    assert [ids[giver] for giver in found] == published_rule(ids, classes, seed)


def test_a_class_gets_its_texts_from_all_the_others() -> None:
    classes = [f"c{n % 5}" for n in range(1000)]
    found = donors([str(n) for n in range(1000)], classes, 0)
    counts = Counter((classes[taker], classes[giver]) for taker, giver in enumerate(found))
    assert len(counts) == 20
    assert min(counts.values()) > 25  # 50 each on average: no class is tied to another one's contexts


def info(name: str, *lemmas: str, hypernym: str = "entity") -> ClassInfo:
    return ClassInfo("n00000001", 0, name, lemmas, "", hypernym)


@pytest.mark.parametrize(
    ("text", "own", "target", "told"),
    [
        ("a red circle on a circle", info("circle"), "octagon", "a red octagon on an octagon"),
        ("An Owl in a tree", info("great grey owl", "owl"), "tench", "A tench in a tree"),
        ("two churches", info("church", "church building"), "dog", "two dogs"),
        ("a church and a dog", info("church"), "bus", "a bus and a dog"),
        ("two dogs and a dog's bone", info("dog"), "butterfly", "two butterflies and a butterfly's bone"),
        ("a hot dog stand", info("hot dog", "dog"), "owl", "an owl stand"),
        ("three foxes", info("red fox", "fox"), "bus", "three buses"),
        ("a crane by a lake", info("crane (bird)", "crane"), "drum", "a drum by a lake"),
        ("a drum by a lake", info("drum"), "crane (bird)", "a crane by a lake"),
        ("a fish on a plate", info("tench", "Tinca tinca", hypernym="fish"), "church", "a church on a plate"),
        ("a tench is a fish", info("tench", hypernym="fish"), "church", "a church is a fish"),
        ("concatenate the category", info("cat"), "dog", None),
        ("a dog-like thing", info("dog"), "cat", None),
        ("a man on a bench", info("tench", hypernym="fish"), "church", None),
        ("a (strange) c++ [thing]", info("c++"), "a.*", "a (strange) a.* [thing]"),
    ],
)
def test_words_for_the_own_class_become_the_name_of_the_other(
    text: str, own: ClassInfo, target: str, told: str | None
) -> None:
    assert retold(text, own, info(target)) == ((text, False) if told is None else (told, True))


def lines(count: int = 30) -> list[Caption]:
    some = [SHAPES[n % 10] for n in range(count)]
    return [Caption(f"{c.wnid}/{n:02}.png", c.wnid, f"a red {c.name} number {n}") for n, c in enumerate(some)]


def test_a_spec_has_the_text_of_another_class_and_says_whose_it_is() -> None:
    known = {line.source_id: line for line in lines()}
    names = {c.wnid: c.name for c in SHAPES}
    made = plan(load_recipe("shapes-cip", [ACROSS, "prompt.images_per_caption=2"]), reversed(lines()))
    assert made == plan(load_recipe("shapes-cip-across", ["prompt.images_per_caption=2"]), lines())
    for spec in made:
        donor = known[spec.caption_source_id or ""]
        assert donor.wnid != spec.wnid
        assert spec.caption == donor.text.replace(names[donor.wnid], spec.class_name)  # type: ignore[union-attr]
        assert spec.prompt == f"a photo of {spec.class_name}, {spec.caption}"
        assert spec.caption_flags == ()
    assert made != plan(load_recipe("shapes-cip-across", ["prompt.images_per_caption=2", "seed=1"]), lines())


def test_flags_say_where_nothing_was_replaced_and_where_no_other_class_was_left() -> None:
    star, ring = SHAPES[0], SHAPES[1]
    some = [
        Caption("a.png", star.wnid, f"a {star.name}", ("repeated", "no-class-word")),
        Caption("b.png", star.wnid, f"one {star.name}"),
        Caption("c.png", ring.wnid, "a man", ("no-class-word",)),
        Caption("d.png", ring.wnid, "", ("empty",)),
    ]
    flags = {
        spec.source_id: (spec.caption_source_id, spec.caption_flags)
        for spec in plan(load_recipe("shapes-cip-across"), some)
    }
    whose = {source_id: donor for source_id, (donor, _) in flags.items()}
    assert flags["d.png"] == (None, ("empty",))  # without a text it takes none from the others
    assert whose["c.png"] in ("a.png", "b.png")
    assert "no-class-word" not in flags["c.png"][1]
    kept = "a.png" if whose["b.png"] == "c.png" else "b.png"
    assert flags["b.png" if kept == "a.png" else "a.png"][1] == ("no-class-word",)
    assert flags[kept][1][-1] == "own-class"


def test_a_run_publishes_whose_captions_it_has_and_verifies(tmp_path: Path) -> None:
    run = finished_run(tmp_path, recipe="shapes-cip-across")
    rows = pq.read_table(run / "data").to_pylist()
    assert {row["caption_source_id"] for row in rows} == {row["source_id"] for row in rows}
    assert all(row["caption_source_id"] != row["source_id"] for row in rows)
    assert verify(str(run), quiet=True).problems == []
    card = (run / layout.CARD).read_text()
    assert "across classes" in card
    assert "`caption_source_id`" in card
    own = finished_run(tmp_path, name="own")
    assert "caption_source_id" not in pq.read_schema(next((own / "data").glob("*.parquet"))).names
    assert "caption_source_id" not in (own / layout.CARD).read_text() + pq.read_schema(own / layout.PLAN).to_string()


def test_verify_finds_rows_that_the_rule_of_pairing_does_not_give(tmp_path: Path) -> None:
    run = finished_run(tmp_path, recipe="shapes-cip-across")
    recipe = run / layout.RECIPE
    other = parse_recipe(recipe.read_text(), "x").model_copy(update={"seed": 3})
    problems = [problem for problem in _differences(run, other) if "the rule of pairing gives that of" in problem]
    assert problems


def _differences(run: Path, recipe: object) -> list[str]:
    """What `verify` finds if the recipe had been another one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hfsyn.checks.verify.recipe_of", lambda side: recipe)
        return verify(str(run), quiet=True).problems


def test_shares_and_interruptions_change_nothing(tmp_path: Path) -> None:
    whole = finished_run(tmp_path, recipe="shapes-cip-across", name="whole")
    parts = run_folder(tmp_path, recipe="shapes-cip-across", name="parts")
    for shards in ("2:", ":2"):
        caption(parts, captioner=FakeCaptioner(), quiet=True, shards=shards)
    for shards in ("1:2", ":1", "2:"):
        generate(parts, generator=FakeGenerator(), quiet=True, shards=shards)
    assert parquet_bytes(finish(parts).folder) == parquet_bytes(whole)


def test_a_pairing_that_decides_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HfsynError, match="no texts to exchange"):
        load_recipe("shapes-basic", [ACROSS])
    one = tmp_path / "one.yaml"
    one.write_text("name: one\nsplits: {train: null}\nclasses: [{id: cat, name: cat}]\n")
    with pytest.raises(HfsynError, match="has one class"):
        load_recipe("shapes-cip", [ACROSS, f"source.variant={one}", f"source.path={tmp_path}"])
    with pytest.raises(HfsynError, match="own"):
        load_recipe("shapes-cip", ["prompt.pairing=within-class"])


def test_a_recipe_without_pairing_has_the_fingerprint_of_one_that_says_own() -> None:
    assert fingerprint(load_recipe("shapes-cip")) == fingerprint(load_recipe("shapes-cip", ["prompt.pairing=own"]))
    assert fingerprint(load_recipe("shapes-cip")) != fingerprint(load_recipe("shapes-cip-across"))


def test_plan_shows_whose_captions_images_would_get() -> None:
    found = forecast(load_recipe("shapes-cip-across", ["source.limit_per_class=2"]))
    assert len(found.pairs) == 3
    assert f"{found.pairs[0][0]} gets the caption of {found.pairs[0][1]}" in found.text()
    assert forecast(load_recipe("shapes-cip", ["source.limit_per_class=2"])).pairs == ()
