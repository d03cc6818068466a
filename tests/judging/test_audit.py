"""The audit: its design is even, chance is not named, a planted lack is, and what was asked for is what is judged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from fakes import FakeGenerator

import hfsyn
from builders.errors import HfsynError
from builders.runs import layout
from builders.sources.drawing import BACKGROUNDS, COLOURS, Drawing, contrasts, draw_array, parse_caption
from builders.variants import get_variant
from builders.variants.class_maps import own_variant
from hfsyn.captions.questions import Answer
from hfsyn.judging.audit import audit as auditing
from hfsyn.judging.audit import prompts as prompting
from hfsyn.judging.audit.design import design
from hfsyn.judging.audit.effects import (
    Cell,
    Found,
    adjusted,
    cell_table,
    effects,
    findings,
    rows_by_cell,
    suspects,
    tail,
)
from hfsyn.judging.audit.prompts import Axes, cells, repairing
from hfsyn.judging.audit.telling import cell_text, words_of
from hfsyn.judging.scores import factors as factors_judging
from hfsyn.judging.scores import judges
from hfsyn.recipes.factor_file import CLASS, Factors, Reader, load_factors
from hfsyn.runs.scores import Judge

SHAPES = get_variant("shapes").classes
NAMES = [info.name for info in SHAPES]
HEART, RED = NAMES.index("heart"), COLOURS.index("red")


def axes(name: str = "shapes") -> Axes:
    return Axes(load_factors(name), SHAPES)


def counts(table: np.ndarray, *columns: int) -> np.ndarray:
    sizes = table.max(0) + 1
    return np.array([line["n"] for line in cell_table(table, np.ones(len(table), bool), sizes, columns)])


# --- the design -------------------------------------------------------------------------------------------------------


def test_a_design_has_each_level_and_each_pair_of_levels_about_equally_often() -> None:
    table = design([10, 4, 3, 2], 360, seed=1)
    for columns in [(0,), (1,), (2,), (3,), *combinations(range(4), 2)]:
        found = counts(table, *columns)
        expected = 360 / len(found)
        assert len(found) == np.prod([[10, 4, 3, 2][c] for c in columns])
        assert abs(found - expected).max() <= max(1.0, 0.12 * expected), columns


def test_a_design_is_the_same_for_the_same_seed_and_another_one_for_another() -> None:
    first, again, other = (design([10, 8, 8, 5], 200, seed=seed) for seed in (3, 3, 4))
    assert (first == again).all()
    assert (first != other).any()


def test_pairs_that_are_never_drawn_are_not_in_the_design_and_the_others_are_even() -> None:
    found = axes()
    table = cells(found, 800, seed=0)
    allowed = found.allowed()[1, 2]
    assert allowed[table[:, 1], table[:, 2]].all()
    assert np.ptp(counts(table, 1)) <= 8
    assert np.ptp(counts(table, 0, 1)) <= 3
    assert counts(table, 1, 2).min() >= 8


def test_a_level_that_fits_nothing_is_refused() -> None:
    fields = {"prompt": "a {colour} {c} {place}", "factors": {"colour": ["red", "blue"], "place": ["here", "there"]}}
    factors = Factors.model_validate({**fields, "never": [{"place": "here", "colour": ["blue", "red"]}]})
    with pytest.raises(HfsynError, match="place here fits no colour"):
        cells(Axes(factors, SHAPES), 40, seed=0)


# --- effects and findings ---------------------------------------------------------------------------------------------


Wrong = Callable[[np.ndarray], np.ndarray]


def answers(table: np.ndarray, wrong: Wrong, seed: int) -> np.ndarray:
    """Whether each is right, wrong with the chance that `wrong` gives each row."""
    return np.random.default_rng(seed).random(len(table)) >= wrong(table)


def answered(
    wrong: Wrong, images: int = 1600, seed: int = 0, left_out: frozenset[Cell] = frozenset()
) -> tuple[list[str], list[Found]]:
    """What is suspected in the design of some images, in words, and what is found by those same images."""
    found = axes()
    table = cells(found, images, seed=0)
    right = answers(table, wrong, seed)
    suspected, number = suspects(table, right, found.sizes, left_out)
    named = findings(table, right, found.sizes, suspected, looked_at=number)
    return [cell_text(found, cell) for cell in suspected], named


def looked_at_again(
    wrong: Wrong, images: int = 1600, each: int = 80, seed: int = 0, then: Wrong | None = None
) -> tuple[list[str], list[Found]]:
    """The same, found by new images of each suspect, which `then` answers."""
    found = axes()
    table = cells(found, images, seed=0)
    right = answers(table, wrong, seed)
    suspected, _ = suspects(table, right, found.sizes)
    more, drawn = [table], [np.full(images, -1)]
    for number, cell in enumerate(suspected):
        rows = rows_by_cell(table, found.sizes, cell[0])[cell]
        more.append(np.resize(table[rows], (each, 4)))
        drawn.append(np.full(each, number))
    every = np.concatenate(more)
    new = answers(every[images:], then or wrong, seed + 1)
    named = findings(every, np.concatenate([right, new]), found.sizes, suspected, drawn=np.concatenate(drawn))
    return [cell_text(found, cell) for cell in suspected], named


def said(named: Sequence[Found]) -> list[str]:
    return [words_of(axes(), one.columns, one.levels) for one in named]


def red_hearts(table: np.ndarray) -> np.ndarray:
    return np.where((table[:, 0] == HEART) & (table[:, 1] == RED), 0.8, 0.02)


def test_a_pair_that_is_wrong_is_named_as_the_pair_and_not_as_its_class_or_its_colour() -> None:
    for look in (answered, looked_at_again):
        suspected, named = look(red_hearts)
        assert "heart with colour red" in suspected
        assert said(named) == ["heart with colour red"]
        (one,) = named
        assert one.here["value"] < 0.5 < 0.9 < one.elsewhere["value"]
        # Of the design a pair of class and colour has one image in eighty, however many new ones there are.
        assert one.cost == pytest.approx((one.elsewhere["value"] - one.here["value"]) / 80, rel=0.06)


def test_two_levels_of_one_class_are_one_finding_and_two_classes_with_one_level_are_two() -> None:
    two = {RED, COLOURS.index("blue")}
    _, named = answered(lambda t: np.where((t[:, 0] == HEART) & np.isin(t[:, 1], list(two)), 0.8, 0.02))
    assert said(named) == ["heart with colour red or blue"]
    stars = NAMES.index("star")
    _, named = answered(lambda t: np.where((t[:, 1] == RED), (t[:, 0] == HEART) * 0.9 + (t[:, 0] == stars) * 0.7, 0.02))
    assert said(named) == ["heart with colour red", "star with colour red"]


def test_a_level_that_is_wrong_everywhere_is_named_alone_and_a_costlier_finding_comes_first() -> None:
    for look in (answered, looked_at_again):
        suspected, named = look(lambda t: np.where(t[:, 3] == 2, 0.4, red_hearts(t)))
        assert "texture stripes" in suspected
        assert sum("with texture stripes" in one for one in suspected) <= 3, "its 26 pairs are not suspected for it"
        assert said(named) == ["texture stripes", "heart with colour red"]
        assert named[0].cost > named[1].cost


def test_a_class_that_is_hard_has_no_pairs_that_are_named_for_it() -> None:
    def two_worlds(t: np.ndarray) -> np.ndarray:
        return np.where(t[:, 0] < 5, 0.1, 0.4)

    pairs = [one for seed in range(10) for one in looked_at_again(two_worlds, seed=seed)[1] if len(one.columns) == 2]
    assert len(pairs) <= 1
    _, named = looked_at_again(lambda t: np.where((t[:, 0] == HEART) & (t[:, 1] == RED), 0.9, two_worlds(t)))
    assert "heart with colour red" in said(named)


def test_a_single_mistake_where_none_is_expected_is_not_suspected() -> None:
    for colours in (1, 2, 5):
        suspected, _ = answered(lambda t, n=colours: np.where((t[:, 0] == HEART) & (t[:, 1] < n), 0.9, 0.02))  # type: ignore[misc]
        assert len([one for one in suspected if "heart" not in one]) <= 16
        assert "heart" in suspected[0]


def test_a_pair_that_is_worse_than_its_level_is_named_beside_it() -> None:
    _, named = looked_at_again(lambda t: np.where(t[:, 1] == RED, np.where(t[:, 0] == HEART, 1.0, 0.4), 0.02))
    assert said(named) == ["colour red", "heart with colour red"]


def test_a_level_is_not_named_for_what_one_of_its_pairs_does() -> None:
    design = np.array([(a, b) for a in range(4) for b in range(2)] * 10)
    pair, level = np.tile([[0, 0]], (50, 1)), np.array([(a, 0) for a in range(4)] * 15)
    table = np.concatenate([design, pair, level])
    drawn = np.repeat([-1, 0, 1], [80, 50, 60])
    suspected: list[Cell] = [((0, 1), (0, 0)), ((1,), (0,))]
    named = findings(table, ~((table == 0).all(1)), [4, 2], suspected, drawn=drawn)
    assert [one.columns for one in named] == [(0, 1)]


def test_where_nothing_differs_nothing_is_named() -> None:
    for look in (answered, looked_at_again):
        named = [look(lambda t: np.full(len(t), 0.03), 500, seed=seed)[1] for seed in range(4)]
        assert sum(map(bool, named)) == 0


def test_what_is_a_little_worse_is_suspected_and_not_named() -> None:
    suspected, named = looked_at_again(lambda t: np.where(t[:, 1] == RED, 0.1, 0.02))
    assert any("colour red" in one for one in suspected)
    assert named == []


def test_only_new_images_say_whether_a_suspect_is_worse() -> None:
    suspected, named = looked_at_again(red_hearts, then=lambda t: np.full(len(t), 0.02))
    assert "heart with colour red" in suspected
    assert named == []
    suspected, named = looked_at_again(red_hearts, then=lambda t: np.ones(len(t)))
    assert len(named) > len(suspected) / 2, "of some two are one finding"
    assert {one.here["value"] for one in named} == {0.0}


def test_a_second_look_finds_what_the_first_alone_would_not() -> None:
    def wrong(t: np.ndarray) -> np.ndarray:
        return np.where((t[:, 0] == HEART) & (t[:, 1] == RED), 0.4, 0.01)

    once, twice = ([said(look(wrong, seed=seed)[1]) for seed in range(8)] for look in (answered, looked_at_again))
    assert sum(one == ["heart with colour red"] for one in twice) >= 7
    assert sum(map(bool, once)) <= 4


def test_all_right_and_all_wrong_name_nothing() -> None:
    for chance in (0.0, 1.0):
        assert answered(lambda t, chance=chance: np.full(len(t), chance), 200)[1] == []  # type: ignore[misc]


def test_a_cell_that_is_left_out_is_not_named() -> None:
    suspected, named = answered(red_hearts, left_out=frozenset({((0, 1), (HEART, RED))}))
    assert "heart with colour red" not in suspected
    assert "heart with colour red" not in said(named)


def test_an_effect_is_told_from_chance_by_permutations() -> None:
    found = axes()
    table = cells(found, 800, seed=0)
    first = effects(table, answers(table, red_hearts, 0), found.sizes)[0]
    assert (first.columns, first.q <= 0.05) == ((0, 1), True)
    chance = [effects(table, answers(table, lambda t: np.full(len(t), 0.3), seed), found.sizes) for seed in range(4)]
    assert sum(one.q <= 0.05 for some in chance for one in some) <= 1
    of_pairs = [one for some in chance for one in some if len(one.columns) == 2]
    assert 0.3 < np.mean([one.p for one in of_pairs]) < 0.7, "under chance p is even"
    assert np.mean([one.share for one in of_pairs]) < 0.01


def test_the_rate_of_false_discoveries_and_the_binomial_tail_are_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    ps = [0.001, 0.2, 0.03, 0.031, 0.9, 0.0005]
    assert adjusted(ps) == pytest.approx(stats.false_discovery_control(ps))
    for count, n, p in ((3, 20, 0.05), (20, 25, 0.3), (25, 25, 0.01), (2, 400, 0.001), (300, 5000, 0.04)):
        assert tail(count, n, p) == pytest.approx(stats.binom.sf(count - 1, n, p), rel=1e-9)


def test_a_repair_has_its_images_in_the_suspectedof_the_findings_and_all_else_even() -> None:
    rows = repairing(axes(), answered(red_hearts)[1], 60, seed=5)
    assert len(rows) == len({row["source_id"] for row in rows}) == 60
    levels = [row["levels"] for row in rows]
    assert {(row["class_name"], row["levels"]["colour"]) for row in rows} == {("heart", "red")}
    assert len({one["texture"] for one in levels}) == 5
    assert all(contrasts(one["colour"], one["background"]) for one in levels)


# --- factor files -----------------------------------------------------------------------------------------------------


def test_the_drawn_world_never_pairs_colours_without_contrast() -> None:
    allowed = axes().allowed()[1, 2]
    assert [[contrasts(c, b) for b in BACKGROUNDS] for c in COLOURS] == allowed.tolist()


def test_prompts_leave_empty_words_out_and_have_the_right_article() -> None:
    words = dict.fromkeys(("style", "place", "light", "view"), "plain")
    photo = load_factors("photo-basics")
    heart = SHAPES[HEART]
    assert photo.prompt_of(heart, {**words, "style": "photo"}) == "a photo of heart"
    assert (
        load_factors("shapes").prompt_of(
            SHAPES[NAMES.index("hourglass")], {"colour": "orange", "background": "blue", "texture": "stripes"}
        )
        == "a photo of hourglass, an orange hourglass on a striped blue background"
    )


BASE = {"prompt": "a {colour} {c}", "factors": {"colour": ["red", "blue"]}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"factors": {"colour": ["red"]}}, "has 1 level"),
        ({"factors": {"colour": []}}, "has 0 levels"),
        ({"factors": {"colour": {"a": "red", "b": "Red"}}}, "have the same words"),
        ({"factors": {"class": ["a", "b"]}}, "A factor is called 'class'"),
        ({"prompt": "a {color} {c}"}, "Did you mean 'colour'"),
        ({"prompt": "a {colour} thing"}, "has no {c}"),
        ({"never": [{"colour": "red"}]}, "names levels of two factors"),
        ({"never": [{"colour": "green", "class": "heart"}]}, "names the level 'green'"),
        ({"said": {"colours": {"red": "red"}}}, "Did you mean 'colour'"),
        ({"level": 3}, "Unknown key 'level'"),
    ],
)
def test_what_is_wrong_with_a_factor_file_is_said_in_one_line(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps({**BASE, **changes}))
    with pytest.raises(HfsynError) as caught:
        load_factors(str(file))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_caption_is_read_by_its_pattern_so_that_no_word_counts_for_another_factor() -> None:
    factors, heart = load_factors("shapes"), SHAPES[HEART]
    reader = Reader(factors, SHAPES)
    asked = {"colour": "white", "background": "blue", "texture": "stripes"}
    assert all(reader.shown("a white heart on a striped blue background", heart, asked).values())
    swapped = reader.shown("a blue heart on a striped white background", heart, asked)
    assert swapped == {CLASS: True, "colour": False, "background": False, "texture": True}
    assert not any(reader.shown("a dog", heart, asked).values())


def test_without_a_pattern_a_level_is_read_by_its_whole_words_and_an_empty_one_not_at_all() -> None:
    fields = {"prompt": "{c}, {place}", "factors": {"place": {"none": "", "sea": "by the sea", "ice": "on ice"}}}
    factors = Factors.model_validate({**fields, "said": {"place": {"sea": "ocean"}}})
    reader, heart = Reader(factors, SHAPES), SHAPES[HEART]
    assert reader.shown("a dog in the Ocean", heart, {"place": "sea"}) == {CLASS: None, "place": True}
    assert reader.shown("a dog with rice", heart, {"place": "ice"})["place"] is False
    assert reader.shown("a dog", heart, {"place": "none"})["place"] is None


# --- the whole --------------------------------------------------------------------------------------------------------


class Obedient(FakeGenerator):
    """Draws what its prompt says, but never a white shape: it is red instead."""

    def draw(self, prompt: str, seed: int) -> np.ndarray:
        said = parse_caption(prompt)
        colour = {"white": "red"}.get(str(said["colour"]), said["colour"])
        return draw_array(Drawing(**{**said, "colour": colour}, size=0.8, x=0, y=0, rotation=0, variation=seed % 2**40))  # type: ignore[arg-type]


def lacking(name: str, model: str, classes: Any, label: str, device: str) -> Judge:
    """A classifier that calls every green star a heart, and all else right."""

    def of(rows: Sequence[Any]) -> Iterator[Any]:
        for row in rows:
            lacks = row["class_name"] == "star" and "a green star" in row["prompt"]
            predicted = SHAPES[HEART].wnid if lacks and SHAPES[HEART].wnid in classes else row["wnid"]
            yield {"p_label": 0.1 if lacks else 0.9, "margin": 0.0, "entropy": 0.0, "predicted": predicted}

    return Judge(name, judges_columns(), {"kind": "fake", "model": model}, of, device)


def judges_columns() -> dict[str, str]:
    return {"p_label": "number", "margin": "number", "entropy": "number", "predicted": "text"}


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    known = SimpleNamespace(classes={info.wnid: info.name for info in SHAPES if info.name != "ring"})
    monkeypatch.setattr(auditing, "open_classifier", lambda model, **words: known)
    monkeypatch.setattr(judges, "classifier_judge", lacking)
    for module in ("hfsyn.building.tried_generator", "hfsyn.images.generate_stage.loaded_generator"):
        monkeypatch.setattr(module, lambda run, options: Obedient())


def audited(out: Path, **words: Any) -> dict[str, Any]:
    given = {
        "images": 360,
        "confirm": 50,
        "repair": 20,
        "factors": "shapes",
        "num_processes": 1,
        "device": "cpu",
        "quiet": True,
        **words,
    }
    found = hfsyn.audit("fake", out=out, **given)
    assert found is not None
    return found.as_dict()


@pytest.mark.usefixtures("fakes")
def test_an_audit_names_what_the_classifier_lacks_and_what_the_generator_does_not_obey(tmp_path: Path) -> None:
    found = audited(tmp_path / "audit", images=160, classes="circle,heart,star,ring")
    assert [one["levels"] for one in found["findings"]] == [{"class": ["star"], "colour": ["green"]}]
    assert found["findings"][0]["sentence"].startswith("star with colour green: 0.0 % [")
    assert found["left_out"] == ["colour white"]
    assert any("'colour white'" in remark for remark in found["remarks"])
    assert any("'ring'" in remark for remark in found["remarks"]), "the class that the classifier does not have"
    assert found["judged"] == pytest.approx(160 * 7 / 8, abs=10)
    (suspect,) = found["suspects"]
    assert (suspect["what"], suspect["again"]["n"], suspect["named"]) == ("star with colour green", 50, True)
    assert found["findings"][0]["n"] == 50, "only new images count"
    (again,) = (tmp_path / "audit" / "again").iterdir()
    prompts = pq.read_table(again / "prompts.parquet")["prompt"].to_pylist()
    assert all("a green star" in prompt for prompt in prompts)
    assert not any(line["levels"] == ["ring"] for line in found["levels"]["class"])
    page = (tmp_path / "audit" / "audit.html").read_text()
    assert "star with colour green" in page
    assert "called heart" in page
    # The repair is a recipe that builds wherever it is now, and all that it draws is what was lacking.
    (tmp_path / "audit").rename(tmp_path / "moved")
    run = hfsyn.build(
        tmp_path / "moved" / "repair.yaml", tmp_path / "repair", num_processes=1, device="cpu", quiet=True
    )
    rows = run.dataset()
    assert len(rows) == 20
    assert all("a green star" in prompt for prompt in rows["prompt"])
    assert set(rows["class_name"]) == {"star"}
    assert not hfsyn.verify(str(run.folder), quiet=True).problems
    # No blank picture is shown as a real one.
    assert hfsyn.look(run.folder, quiet=True).remarks == ["without real images: its prompts are of no real image"]


def test_prompts_with_images_are_written_a_part_at_a_time_and_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompting, "_AT_ONCE", 3)
    plain = axes().rows(cells(axes(), 7, seed=0), "audit")
    rows = [{**row, "image": bytes([number])} for number, row in enumerate(plain)]
    for name, some, groups in (("plain", plain, 1), ("begun", rows, 3)):
        prompting.write_prompts(tmp_path / name, some)
        written = pq.ParquetFile(tmp_path / name)
        assert written.num_row_groups == groups
        found = written.read().to_pylist()
        assert [{key: line[key] for key in some[0]} for line in found] == some


def test_the_captioner_of_a_recipe_reads_in_its_revision_and_a_language_model_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(factors_judging, "pin", lambda *words: asked.append(words) or "0" * 40)
    model = ["generate.model=nobody/nothing", "caption.model=nobody/reads", "caption.revision=v1"]
    read = hfsyn.load_recipe("shapes-cip", model)
    assert auditing.reader_of(None, read) == ("nobody/reads", "v1")
    assert auditing.reader_of("builtin", read) == ("builtin", None)
    factors_judging.reader_part("nobody/reads", "v1")
    assert asked[0] == asked[2] == ("nobody/reads", "v1", "captioner")
    written = hfsyn.load_recipe("shapes-cip", [*model, "prompt.strategy=llm", "caption.prompt=Write about {c}."])
    with pytest.raises(HfsynError, match="Nobody reads back"):
        auditing.reader_of(None, written)


@pytest.mark.usefixtures("fakes")
def test_the_same_command_continues_and_another_one_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "audit"
    words = {"images": 60, "reader": "none", "classes": "heart,star,circle"}
    first = audited(out, **words)
    shards = sorted((out / "run" / layout.DATA).glob("*.parquet"))
    layout.sidecar_of(shards[0]).unlink()
    before = {path.name: path.read_bytes() for path in shards}
    (out / "audit.json").unlink()
    assert audited(out, **words) == first
    assert {path.name: path.read_bytes() for path in shards} == before
    with pytest.raises(HfsynError, match="holds an audit with images 60, not 61"):
        audited(out, **{**words, "images": 61})
    with pytest.raises(HfsynError, match="holds an audit with other classes"):
        audited(out, **{**words, "classes": "heart,star"})
    shutil.rmtree(out / "run")
    assert audited(out, **words)["findings"] == first["findings"]
    # Moved in the middle, it goes on where it is.
    shards = sorted((out / "run" / layout.DATA).glob("*.parquet"))
    layout.sidecar_of(shards[0]).unlink()
    moved = out.rename(tmp_path / "elsewhere")
    assert audited(moved, **words) == {**first, "page": str(moved / "audit.html"), "repair": str(moved / "repair.yaml")}
    assert str(out) not in (moved / "run" / layout.RECIPE).read_text()
    assert not hfsyn.verify(str(moved / "run"), quiet=True).problems


@pytest.mark.usefixtures("fakes")
def test_new_images_of_one_class_are_judged_among_all_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    star, green = 1, 3
    monkeypatch.setattr(auditing, "suspects", lambda table, *rest: ([((0, 1), (star, green))], 40))
    found = audited(tmp_path / "audit", images=160, reader="none", classes="circle,heart,star")
    (suspect,) = found["suspects"]
    assert suspect["what"] == "star with colour green"
    assert suspect["again"]["value"] == 0.0, "it is called a heart, though no image here shows one"


@pytest.mark.usefixtures("fakes")
def test_suspects_that_new_images_do_not_reach_for_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditing, "suspects", lambda table, *rest: ([((0,), (k,)) for k in range(3)], 40))
    words = {"images": 60, "reader": "none", "classes": "heart,star,circle"}
    found = audited(tmp_path / "audit", **words)
    assert [one["what"] for one in found["suspects"]] == ["circle"]
    assert "2 suspects more were not looked at again: --confirm 150 would do" in found["remarks"]
    every = audited(tmp_path / "audit", **words, confirm=160)["suspects"]
    assert [(one["what"], one["again"]["n"]) for one in every] == [("circle", 53), ("star", 53), ("heart", 53)]
    assert [one["again"] for one in audited(tmp_path / "audit", **words, confirm=0)["suspects"]] == [None] * 3


@pytest.mark.usefixtures("fakes")
def test_what_cannot_be_audited_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "audit"
    typo = {"factors": {"colour": ["red", "blue"]}, "never": [{"class": "hart", "colour": "red"}]}
    (tmp_path / "typo.yaml").write_text(json.dumps({"prompt": "a {colour} {c}", "recipe": "shapes-basic", **typo}))
    for words, said in (
        ({"images": 8}, "8 images are too few: not each of the 9 classes would have one"),
        ({"classes": "heart"}, "has 1 class of the 1 of shapes"),
        ({"classes": "ring,heart"}, "has 1 class of the 2 of shapes"),
        ({"recipe": "imagenette-basic"}, "has 0 classes of the 10 of imagenette"),
        ({"factors": "photo-basics"}, "Nothing says who draws"),
        ({"reader": "nobody"}, "nobody"),
        ({"factors": str(tmp_path / "typo.yaml")}, "never names the class 'hart', which shapes does not have. Did you"),
    ):
        with pytest.raises(HfsynError) as caught:
            audited(out, **words)
        assert said in str(caught.value)
        assert not out.exists()
    out.mkdir()
    (out / "thesis.tex").write_text("")
    with pytest.raises(HfsynError, match=r"files that are not of an audit: 'thesis\.tex'"):
        audited(out)


@pytest.mark.usefixtures("fakes")
def test_levels_whose_words_name_a_class_are_left_out_and_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    place = {"room": "in a room", "stars": "under many stars", "startle": "startled"}
    file.write_text(
        json.dumps({"prompt": "a red {c} on a plain blue background, {place}", "factors": {"place": place}})
    )
    found = audited(tmp_path / "audit", factors=str(file), recipe="shapes-basic", images=40, reader="none")
    assert [line["levels"] for line in found["levels"]["place"]] == [["room"], ["startle"]]
    assert any("stars (the class star)" in remark for remark in found["remarks"])
    prompts = pq.read_table(tmp_path / "audit" / "prompts.parquet")["prompt"].to_pylist()
    assert not any("stars" in prompt for prompt in prompts)


def test_a_class_of_another_name_is_refused_and_only_what_both_have_is_audited(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"name": "pets", "splits": {"train": None}, "classes": [{"id": i, "name": i} for i in ("cat", "dog", "emu")]}
    recipe = hfsyn.load_recipe("shapes-basic").model_dump()
    variant = own_variant(own)
    recipe["source"] |= {"variant": variant.name, "definition": dict(variant.definition), "path": "photos"}
    ordered = {"images": 20, "classes": (), "reader": "none", "seed": 0}
    factors = Factors.model_validate({"prompt": "{c} {place}", "factors": {"place": ["here", "there"]}})

    def known(**names: str) -> None:
        monkeypatch.setattr(auditing, "open_classifier", lambda model, **words: SimpleNamespace(classes=names))

    known(dog="dog", cat="cat", cow="cow")
    order = auditing.ordered("fake", factors, hfsyn.load_recipe(recipe), **ordered)  # type: ignore[arg-type]
    assert order.asked.classes == ("cat", "dog")
    assert order.remarks == ["classes that fake does not have are left out: 'emu'"]
    known(dog="hound", cat="cat")
    with pytest.raises(HfsynError, match="The class dog is 'hound' in fake and 'dog' in pets"):
        auditing.ordered("fake", factors, hfsyn.load_recipe(recipe), **ordered)  # type: ignore[arg-type]


@pytest.mark.usefixtures("fakes")
def test_a_model_that_is_asked_reads_each_level_and_factors_may_be_called_like_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Asked:
        def __init__(self, part: Any, device: str, classes: Any) -> None:
            assert "{c}" in part.prompt

        def answers(self, pictures: Sequence[Any], infos: Sequence[Any]) -> list[Answer]:
            return [Answer("", 0.1 if info.name == "red" else 0.9) for info in infos]

    monkeypatch.setattr(factors_judging, "Questioner", Asked)
    file = tmp_path / "mine.yaml"
    factors = {"prompt": ["red", "blue"], "wnid": {"plain": "plain", "stripes": "striped"}}
    file.write_text(json.dumps({"prompt": "a {prompt} {c} on a {wnid} black background", "factors": factors}))
    words = {"recipe": "shapes-basic", "classes": "heart,star", "images": 40, "reader": "vlm:builtin"}
    found = audited(tmp_path / "audit", factors=str(file), **words)
    assert found["left_out"] == ["prompt red"]
    assert found["judged"] == 20
    assert found["shown"] == {"class": 1.0, "prompt": 0.5, "wnid": 1.0}
