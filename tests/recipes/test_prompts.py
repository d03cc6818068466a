"""Strategies: exact templates, the class first, pure."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from builders.variants import ClassInfo, get_variant
from hfsyn.errors import HfsynError
from hfsyn.outlook.prompt_examples import examples
from hfsyn.recipes.parts import PromptPart, strategy_of
from hfsyn.recipes.strategies import CLIP80, STRATEGIES, get_strategy, with_article, word_lists

TENCH = ClassInfo("n01440764", 0, "tench", ("tench", "Tinca tinca"), "freshwater dace-like game fish", "cyprinid")


def write(name: str, caption: str | None = "a man holding a fish") -> str:
    return get_strategy(name).write(TENCH, caption, Random(0))


def test_the_named_strategies_write_what_their_papers_write() -> None:
    expected = {
        "classname": "tench",
        "basic": "a photo of tench",
        "article": "a photo of a tench",
        "cip": "a photo of tench, a man holding a fish",
        "cip-bare": "tench, a man holding a fish",
        "cip-quality": "photo of tench, a man holding a fish, best quality",
        "caption-only": "a man holding a fish",
        "captions-file": "a man holding a fish",
        "w2s": "tench, a man holding a fish",
        "llm": "tench, a man holding a fish",
        "llm-diverse": "tench, a man holding a fish",
        "domain": "a photo of a tench",
        "definition": "tench, freshwater dace-like game fish",
        "hypernym": "tench, cyprinid",
    }
    assert {name: write(name) for name in expected} == expected
    assert set(STRATEGIES) == {*expected, "clip80", "background"}
    assert len(STRATEGIES) == 16


def test_only_caption_strategies_look_at_the_caption() -> None:
    for name, strategy in STRATEGIES.items():
        assert (write(name, "one") != write(name, "two")) == strategy.needs_caption


def test_an_empty_caption_leaves_no_comma_and_never_an_empty_prompt() -> None:
    for empty in ("", "  ", None):
        assert write("cip", empty) == "a photo of tench"
        assert write("cip-bare", empty) == "tench"
        assert write("caption-only", empty) == "tench"


def test_a_caption_is_put_on_one_line() -> None:
    assert write("cip", " a man\n holding  a fish ") == "a photo of tench, a man holding a fish"


def test_there_are_eighty_different_clip_templates_and_the_rng_chooses() -> None:
    assert len(set(CLIP80)) == 80
    assert all(template.count("{}") == 1 for template in CLIP80)
    strategy = get_strategy("clip80")
    assert strategy.write(TENCH, None, Random(3)) == strategy.write(TENCH, None, Random(3))
    drawn = {strategy.write(TENCH, None, Random(seed)) for seed in range(3000)}
    assert drawn == {template.replace("{}", "tench") for template in CLIP80}


def test_the_class_comes_within_the_first_words_of_every_prompt_for_every_class() -> None:
    for info in get_variant("imagenet-1k").classes:
        for name, strategy in STRATEGIES.items():
            if name not in ("caption-only", "captions-file"):  # their words are somebody else's
                prompt = strategy.write(info, "word " * 90, Random(1))
                assert prompt.index(info.name) < 50, (name, info.name)


@pytest.mark.parametrize(
    ("noun", "expected"),
    [
        ("tench", "a tench"),
        ("axolotl", "an axolotl"),
        ("hourglass", "an hourglass"),
        ("unicycle", "a unicycle"),
        ("English Springer Spaniel", "an English Springer Spaniel"),
        ("umbrella", "an umbrella"),
    ],
)
def test_the_article_fits_the_noun(noun: str, expected: str) -> None:
    assert with_article(noun) == expected


def test_an_unknown_strategy_names_the_nearest() -> None:
    with pytest.raises(HfsynError, match="'cip'"):
        get_strategy("cpi")


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_shows_ten_examples_with_their_tokens(name: str) -> None:
    found = examples(name, "shapes", "a red heart on a blue background", recipe="shapes-cip")
    assert [row["class"] for row in found.rows] == [info.name for info in get_variant("shapes").classes]
    assert found.remarks[0] == "tokens are counted by the tokenizer of builtin, which takes 32"
    short = examples("classname", "shapes", "", recipe="shapes-cip")
    for row, bare in zip(found.rows, short.rows, strict=True):
        assert row["tokens"] >= bare["tokens"] == 3  # one word between the two markers
    assert any("negative prompt" in remark for remark in found.remarks) == (name == "cip-quality")


def test_ones_own_function_shows_examples_too(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def write(c, caption, rng):\n    return f'{c.name}: {caption}'\n")
    found = examples(f"{tmp_path}/mine.py:write", "shapes", "red", recipe="shapes-cip")
    assert found.rows[0]["prompt"] == "circle: red"


def test_a_place_stands_behind_the_hypernym() -> None:
    places = word_lists("places.json")["places"]
    drawn = {get_strategy("background").write(TENCH, None, Random(seed)) for seed in range(2000)}
    assert drawn == {f"tench, cyprinid inside {place}" for place in places}
    assert len(places) == 92


def test_a_models_sentence_gets_the_class_where_it_does_not_name_it() -> None:
    for name in ("w2s", "llm", "llm-diverse"):
        assert write(name, "A Tench on a plate") == "A Tench on a plate"
        assert write(name, "a fish") == "tench, a fish"
        assert write(name, "") == "tench"


def test_a_domain_word_gets_its_article() -> None:
    written = [
        strategy_of(PromptPart(strategy="domain", domain=word)).write(TENCH, None, Random(0))
        for word in ("pet", "aircraft", " under water ")
    ]
    assert written == ["a pet photo of a tench", "an aircraft photo of a tench", "an under water photo of a tench"]


def test_the_classes_of_a_class_map_are_examples_too(tmp_path: Path) -> None:
    file = tmp_path / "flowers.yaml"
    file.write_text("{name: flowers, splits: {train: 2}, classes: [{id: rose, name: rose}, {id: tulip, name: tulip}]}")
    (tmp_path / "mine.py").write_text("def write(c, caption, rng):\n    return f'{caption} {c.name}'\n")
    for name in ("cip", f"{tmp_path}/mine.py:write"):
        found = examples(name, str(file), "red", recipe="shapes-cip")
        assert [row["class"] for row in found.rows] == ["rose", "tulip"]
    with pytest.raises(HfsynError, match="2 classes have none"):
        examples("definition", str(file), "red", recipe="shapes-cip")
