"""Cards: what they say, what they leave alone, and that no text of a dataset can act on them.

The golden files in tests/golden/ are rendered from fixed facts. After a wanted change of the templates, write them
again with ``HFSYN_WRITE_GOLDEN=1 python -m pytest tests/publishing/test_cards.py -k golden`` and read the difference.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, run_folder
from datasets import load_dataset
from fakes import FakeCaptioner, FakeGenerator
from huggingface_hub import DatasetCard

from builders.runs import layout
from builders.runs.rows import captioned_features, synthetic_features
from builders.variants import get_variant
from builders.yaml import NOT_TEXT
from hfsyn.captions.caption_stage import caption
from hfsyn.cards import blocks as card_blocks
from hfsyn.cards.card import COLUMNS, changelog_of, render_card
from hfsyn.cards.facts import CardFacts, ChangelogEntry, Progress, example_rows, facts, facts_in_progress
from hfsyn.cards.text import cell, clean, code, recipe_block, uncell
from hfsyn.errors import HfsynError
from hfsyn.images.generate_stage import generate
from hfsyn.recipes.recipe import load_recipe, parse_recipe
from hfsyn.runs.finish import finish
from hfsyn.runs.run import load_run

GOLDEN = ROOT / "tests" / "golden"
REPO = "someone/imagenette-synthetic"
SOFTWARE = {"device": ["cuda (NVIDIA H200)"], "hfsyn": ["0.1.0"], "torch": ["2.14.0", "2.15.0"]}
SHA = "0123456789abcdef0123456789abcdef01234567"

HOSTILE = (
    "a | b",
    "---\nlicense: mit\n---",
    "{{ 7 * 7 }} {% for x in y %} {# note #}",
    "`code` ```\n```python\n",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "<!-- hfsyn:end config=cip -->",
    "x\n<!-- hfsyn:end config=cip -->\n<!-- hfsyn:begin use -->\ny",
    "--> <!-- & &lt;",
    "[link](javascript:alert(1)) ![](http://example.org/x.png) www.example.org https://example.org @someone $$x$$",
    "\\| \\\\| \\",
    "# heading\n\n- list\n\n| a |\n|---|\n",
    "a smile \U0001f600 a family \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\u202eright to left\u202c \u2066isolated \u200f",
    "\x00\x07\x1b[31m \x85 \u2028 \ud800",
    "_under_ *star* ~~gone~~",
    "x" * 5000,
    "",
    " ",
)


def manifest_of(recipe_name: str, *overrides: str, rows: int = 4, **changes: Any) -> dict[str, Any]:
    """The manifest of a run that was never made."""
    recipe = load_recipe(recipe_name, overrides)
    classes = get_variant(recipe.source.variant).classes
    counts = [rows // len(classes) + (i < rows % len(classes)) for i in range(len(classes))]
    return {
        "name": recipe.name,
        "format": layout.FORMAT,
        "fingerprint": "f" * 64,
        "recipe": recipe.model_dump(),
        "split": "train",
        "rows": rows,
        "bytes": rows * 1000,
        "source_rows": rows + 3,
        "readable_rows": rows + 1,
        "rejected": {"caption: truncated image": 2, "generate: the safety checker flagged it, 4 attempts": 1},
        "flags": {"no-class-word": 2, "retried": 1},
        "classes": [{"wnid": c.wnid, "name": c.name, "rows": n} for c, n in zip(classes, counts, strict=True) if n],
        "shards": [],
        **changes,
    }


def row(**changes: Any) -> dict[str, Any]:
    return {
        "class_name": "tench",
        "caption": "a man holding a fish",
        "prompt": "a photo of tench, a man holding a fish",
        "seed": 1,
        "sample_id": "n01440764/a.JPEG#0",
        "source_id": "n01440764/a.JPEG",
        **changes,
    }


def cip(config_name: str = "cip", **changes: Any) -> CardFacts:
    manifest = manifest_of(
        "imagenette-cip", f"caption.revision={SHA}", f"generate.revision={SHA}", f"source.revision={SHA}", rows=9469
    )
    return facts({**manifest, **changes}, SOFTWARE, config_name=config_name, rows=[row()])


def basic(config_name: str = "basic") -> CardFacts:
    rows = [row(caption=None, prompt="a photo of tench")]
    return facts(manifest_of("imagenette-basic", rows=800), SOFTWARE, config_name=config_name, rows=rows)


def captions() -> CardFacts:
    manifest = manifest_of("imagenette-cip")
    return facts(manifest, SOFTWARE, config_name="cip-captions", what="captions", folder="cip", download_bytes=77)


def front(card: str) -> dict[str, Any]:
    parsed = DatasetCard(card)
    plain = {k: v for k, v in yaml.safe_load(card.split("---", 2)[1]).items() if v is not None}
    assert parsed.data.to_dict() == plain, "the Hub's own class reads the same"
    return parsed.data.to_dict()


def outside_fences(text: str) -> str:
    return re.sub(r"^(`{3,}).*?^\1`*$", "", text, flags=re.M | re.S)


def tables(card: str) -> list[list[list[str]]]:
    """Every table outside fences as GitHub would cut it: rows of cells, cut at each bar."""
    text = outside_fences(DatasetCard(card).text)
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            found[-1].append([c.strip() for c in re.split(r"(?<!\\)\|", line.strip())[1:-1]])
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


def assert_sound(card: str) -> None:
    """Front matter parses, tables have rows of one width, marks pair, exactly one configuration is the default."""
    data = front(card)
    for table in tables(card):
        assert len({len(cells) for cells in table}) == 1, table
        assert set("".join(table[1])) == {"-"}
    segments = card_blocks.parse(DatasetCard(card).text)
    assert not [segment for segment in segments if segment.orphan]
    assert len([e for e in data["configs"] if e.get("default")]) == 1


def in_progress() -> CardFacts:
    known = facts_in_progress(load_recipe("imagenette-cip"), "train", 120, 9469, config_name="cip", rows=[row()])
    return replace(known, manifest={**known.manifest, "fingerprint": "f" * 64})


GOLDENS: dict[str, Callable[[], str]] = {
    "run": lambda: render_card(
        facts(manifest_of("shapes-cip", rows=20, rejected={}, flags={}), SOFTWARE, rows=[row(class_name="star")])
    ),
    "published": lambda: render_card(
        captions(),
        existing=render_card(basic(), existing=render_card(cip(), repo_id=REPO, version="v1.0.0"), repo_id=REPO),
        repo_id=REPO,
        version="v1.1.0",
        changelog=[ChangelogEntry("v1.1.0", "2026-11-23", "Captions added.")],
    ),
    "progress": lambda: render_card(
        in_progress(), repo_id=REPO, progress=Progress(120, 9469, 1, 10, "2026-11-23 10:00 UTC")
    ),
}


@pytest.mark.parametrize("name", GOLDENS)
def test_golden_cards(name: str) -> None:
    """HFSYN_WRITE_GOLDEN=1 writes them again."""
    path, card = GOLDEN / f"card-{name}.md", GOLDENS[name]()
    if os.environ.get("HFSYN_WRITE_GOLDEN"):
        path.write_text(card, encoding="utf-8")
    assert card == path.read_text(encoding="utf-8")
    assert_sound(card)


def test_every_column_has_a_meaning() -> None:
    assert list(COLUMNS["data"]) == list(synthetic_features(["x"]))
    assert set(COLUMNS["captions"]) == set(captioned_features(["x"]))


@pytest.mark.parametrize("make", [cip, basic, captions, lambda: cip("default")])
def test_rendering_again_changes_nothing(make: Callable[[], CardFacts]) -> None:
    entry = ChangelogEntry("v1.0.0", "2026-11-23", "First version.")
    once = render_card(make(), repo_id=REPO, version="v1.0.0", changelog=[entry])
    assert render_card(make(), existing=once, repo_id=REPO, version="v1.0.0", changelog=[entry]) == once
    assert render_card(make(), existing=once, repo_id=REPO, version="v1.0.0") == once
    assert_sound(once)


TEXTS = ("Before.\n\n<!-- a comment -->\n", "\n\n  Spaces kept. \t\n\n", "| a | b |\n|---|---|\n| 1 | 2 |\n", "no end")


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("moved", [False, True])
def test_what_a_person_writes_between_the_blocks_survives_every_publish(newline: str, moved: bool) -> None:
    first = render_card(cip(), repo_id=REPO)
    head, body = first[: first.index("# ")], first[first.index("# ") :]
    ours = [s.text for s in card_blocks.parse(body) if s.key]
    if moved:
        ours = ours[::-1]
    mine = [TEXTS[i % 3] + f"number {i}\n" for i in range(len(ours))] + [TEXTS[3]]
    written = (head + "".join(a + b for a, b in zip(mine, ours, strict=False)) + mine[-1]).replace("\n", newline)
    again = written
    for make in (cip, basic, cip):
        again = render_card(make(), existing=again, repo_id=REPO)
        position = 0
        for text in mine:
            position = again.index(text.replace("\n", newline), position)
        assert_sound(again)
    assert [s.key for s in card_blocks.parse(again) if s.key and not s.key.endswith("=basic")] == [
        s.key for s in card_blocks.parse("".join(ours)) if s.key
    ]
    assert again.count("\n") == (again.count("\r\n") if newline == "\r\n" else again.count("\n"))
    assert render_card(cip(), existing=written, repo_id=REPO) == written
    without = "".join(s.text for s in card_blocks.parse(render_card(basic(), existing=written)) if not s.key)
    for text in mine:
        assert text.replace("\n", newline) in without


def test_a_card_of_a_person_without_front_matter_stays_whole() -> None:
    card = render_card(cip(), existing="# Mine\n\nWords.", repo_id=REPO)
    assert DatasetCard(card).text.startswith("# Mine\n\nWords.\n\n<!-- hfsyn:begin intro -->")
    assert "# imagenette-synthetic" not in card
    assert render_card(cip(), existing=card, repo_id=REPO) == card


def test_edits_within_a_block_are_overwritten_and_a_lost_block_is_restored() -> None:
    first = render_card(cip(), repo_id=REPO)
    edited = first.replace("## Licences and terms", "## Mine now")
    assert render_card(cip(), existing=edited, repo_id=REPO) == first
    lost = first.replace(card_blocks.blocks(first)["use"] + "\n", "")
    assert "hfsyn:begin use" not in lost
    assert render_card(cip(), existing=lost, repo_id=REPO) == first
    for side in ("begin", "end"):
        unmarked = first.replace(f"<!-- hfsyn:{side} use -->\n", "Mine.\n")
        card = render_card(cip(), existing=unmarked, repo_id=REPO)
        assert "Mine." in card
        assert card_blocks.blocks(card)["use"] == card_blocks.blocks(first)["use"]
        assert_sound(card)
        assert render_card(cip(), existing=card, repo_id=REPO) == card


def test_copies_of_a_block_become_one() -> None:
    first = render_card(cip(), repo_id=REPO)
    doubled = first + "\nmine\n" + card_blocks.blocks(first)["use"]
    card = render_card(cip(), existing=doubled, repo_id=REPO)
    assert card.count("hfsyn:begin use") == 1
    assert card.endswith("\nmine\n")


OWN = """# a remark of mine
language: [en, de]   # two
license: cc-by-4.0
pretty_name: My own name
tags:
- birds   # not only
- synthetic

# about the files
configs:
- config_name: notes   # by hand
  data_files: 'notes/*.csv'
- config_name: photos
  data_files:
  - split: test
    path: photos/*
extra: {deep: [1, 2.5, null, yes]}
none: null
"""


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_persons_front_matter_survives_with_its_spelling(newline: str) -> None:
    existing = f"---\n{OWN}---\n\nHello.\n".replace("\n", newline)
    card = existing
    for make in (cip, basic, cip):
        card = render_card(make(), existing=card, repo_id=REPO)
    for line in OWN.replace("\n", newline).splitlines(keepends=True):
        assert line in card
    assert card.endswith(newline)
    data = front(card)
    own = yaml.safe_load(OWN)
    assert {key: data.get(key) for key in ("language", "license", "pretty_name", "extra")} == {
        key: own[key] for key in ("language", "license", "pretty_name", "extra")
    }
    assert data["tags"] == ["birds", "synthetic", "hfsyn", "cip", "basic"]
    assert [e["config_name"] for e in data["configs"]] == ["notes", "photos", "cip", "basic"]
    assert data["configs"][:2] == own["configs"]
    assert "<code>" not in card_blocks.blocks(DatasetCard(card).text)["licence"]
    assert "gives this dataset the licence `cc-by-4.0`" in card
    assert_sound(card)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("---\ntags: [a\nlicense: mit\n---\n", "line 3"),
        ("---\nlicense: mit\nlicense: other\n---\n", "line 3"),
        ("---\njust words\n---\n", "line 2"),
        ("---\r\na: 1\r\n b: 2\r\n---\r\n", "line 3"),
        ("---\nlicense: mit\n\n# never closed\n", "line 1"),
        ("\n---\na: b: c\n---\n", "line 3"),
    ],
)
def test_broken_front_matter_is_refused_with_its_line(text: str, line: str) -> None:
    with pytest.raises(HfsynError, match=line) as caught:
        render_card(cip(), existing=text)
    assert "Correct it" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "# a remark\n",
        "{a: 1, tags: [x]}\n",
        "tags: &t\n- x\nmine: *t\n",
        "  a: 1\n  tags:\n    - x # one\n",
        "tags:\n-\n  x\n- y\n",
        "text: |\n  tags:\n  - x\n\n\ntags: x\n",
        "tags:\nconfigs: []\n",
    ],
)
def test_rare_spellings_of_yaml_keep_their_values(text: str) -> None:
    card = render_card(cip(), existing=f"---\n{text}---\nHello\n")
    old, new = yaml.safe_load(text) or {}, yaml.safe_load(card.split("---", 2)[1])
    for key, value in old.items():
        assert new[key] == value or (key in ("tags", "configs") and all(item in new[key] for item in value or []))
    assert ("# a remark\n" in card) == ("remark" in text)
    assert ("- x # one\n" in card) == ("one" in text)
    assert render_card(cip(), existing=card) == card


def test_a_byte_order_mark_and_a_rule_at_the_top_are_no_trouble() -> None:
    card = render_card(cip(), existing="\ufeff---\nlicense: mit\n---\nHello\n")
    assert card.startswith("\ufeff---\nlicense: mit\n")
    assert front(card.removeprefix("\ufeff"))["license"] == "mit"
    assert "\n---\n\n# A rule above" in render_card(cip(), existing="---\n\n# A rule above\n")


def test_other_configurations_stay_as_they_are() -> None:
    one = render_card(cip(), repo_id=REPO)
    two = render_card(basic(), existing=one, repo_id=REPO)
    assert card_blocks.blocks(two)["config=cip"] == card_blocks.blocks(one)["config=cip"]
    data = front(two)
    assert [info["config_name"] for info in data["dataset_info"]] == ["cip", "basic"]
    assert data["dataset_info"][0] == front(one)["dataset_info"]
    assert data["size_categories"] == ["10K<n<100K"]  # 9,469 and 800
    assert front(one)["size_categories"] == ["1K<n<10K"]
    intro = card_blocks.blocks(two)["intro"]
    assert "`cip` | 9,469 images" in intro
    assert "`basic` | 800 images" in intro
    assert card_blocks.blocks(two)["again"].count("hfsyn reproduce") == 2
    assert_sound(render_card(captions(), existing=two))


def test_the_default_is_explicit_and_stays_until_another_is_asked_for() -> None:
    def default(card: str) -> list[str]:
        return [e["config_name"] for e in front(card)["configs"] if e.get("default") is True]

    card = render_card(cip())
    assert default(card) == ["cip"]
    card = render_card(basic(), existing=card)
    assert default(card) == ["cip"]
    card = render_card(basic(), existing=card, default_config="basic")
    assert default(card) == ["basic"]
    assert default(render_card(cip(), existing=card)) == ["basic"]
    with pytest.raises(HfsynError, match="no configuration 'nope'"):
        render_card(cip(), existing=card, default_config="nope")
    # load_dataset takes a configuration of this name for the default, whatever the card says.
    with pytest.raises(HfsynError, match="cannot be the default beside"):
        render_card(cip("default"), existing=card)
    assert default(render_card(cip("default"), existing=card, default_config="default")) == ["default"]


def test_data_of_others_under_the_same_name_are_not_taken_over() -> None:
    existing = "---\nconfigs:\n- config_name: cip\n  data_files: mine/*.csv\n---\n"
    with pytest.raises(HfsynError, match="not hfsyn's"):
        render_card(cip(), existing=existing)
    card = render_card(basic(), existing=existing)
    assert front(card)["configs"][0] == {"config_name": "cip", "data_files": "mine/*.csv", "default": True}


def test_lost_front_matter_is_made_again_from_what_the_blocks_carry() -> None:
    card = render_card(basic(), existing=render_card(cip(), repo_id=REPO), repo_id=REPO)
    bare = DatasetCard(card).text
    again = front(render_card(basic(), existing=bare, repo_id=REPO))
    assert sorted(e["config_name"] for e in again["configs"]) == ["basic", "cip"]


def test_the_changelog_keeps_every_entry_newest_first() -> None:
    card = render_card(cip(), changelog=[ChangelogEntry("v1.0.0", "2026-01-01", "First.")])
    card = render_card(cip(), existing=card, changelog=[ChangelogEntry("v1.10.0", "2026-03-01", "Third | `x`.")])
    card = render_card(basic(), existing=card, changelog=[ChangelogEntry("v1.9.0", "2026-03-01", "Second.")])
    card = render_card(basic(), existing=card, changelog=[ChangelogEntry("v1.9.0", "2026-03-01", "Second, better.")])
    assert [entry.version for entry in changelog_of(card)] == ["v1.10.0", "v1.9.0", "v1.0.0"]
    assert front(card)["tags"][:2] == ["synthetic", "hfsyn"]
    assert changelog_of("Hello.") == []
    card = render_card(cip(), existing=card)
    table = next(t for t in tables(card) if t[0][0] == "version")
    assert [(r[0], uncell(r[2])) for r in table[2:]] == [
        ("v1.10.0", "Third | `x`."),
        ("v1.9.0", "Second, better."),
        ("v1.0.0", "First."),
    ]


def test_progress_comes_and_goes() -> None:
    plain = render_card(cip(), repo_id=REPO)
    for done, total, percent in ((0, 0, "0 %"), (1, 3, "33 %"), (3, 3, "100 %"), (9, 3, "100 %")):
        now = render_card(cip(), existing=plain, repo_id=REPO, progress=Progress(done, total, 0, 1, "now | <b>"))
        assert percent in card_blocks.blocks(now)["progress"]
        assert "<b>" not in now
        assert render_card(cip(), existing=now, repo_id=REPO) == plain


def test_an_unfinished_run_has_a_card_that_the_finished_one_replaces() -> None:
    recipe = load_recipe("imagenette-cip")
    started = facts_in_progress(recipe, "train", 0, 9469, config_name="cip")
    card = render_card(started, repo_id=REPO, progress=Progress(0, 9469, 0, 10, "2026-11-23"))
    assert_sound(card)
    assert "splits" not in front(card)["dataset_info"]
    done = render_card(cip(), existing=card, repo_id=REPO)
    assert front(done) == front(render_card(cip(), repo_id=REPO))
    assert sorted(card_blocks.blocks(done).items()) == sorted(
        card_blocks.blocks(render_card(cip(), repo_id=REPO)).items()
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_in_its_cell(text: str) -> None:
    def make(word: str) -> str:
        rows = [row(class_name=word, caption=word, prompt=word, sample_id=word, source_id=word)]
        manifest = manifest_of("imagenette-cip", rejected={f"caption: {word}": 1}, flags={word: 1})
        recipe = copy.deepcopy(manifest["recipe"])
        if not NOT_TEXT.search(text):  # which no recipe takes
            recipe["prompt"]["negative"] = recipe["caption"]["prompt"] = word
            recipe["generate"]["model"] = word.strip() or "tame"
        manifest = {**manifest, "recipe": recipe, "classes": [{"wnid": word, "name": word, "rows": 1}]}
        return render_card(
            facts(manifest, {"torch": [word], word: ["1"]}, config_name="cip", rows=rows),
            repo_id=REPO,
            changelog=[ChangelogEntry("v1.0.0", "2026-01-01", word)],
            progress=Progress(1, 2, 3, 4, word),
        )

    card, tame = make(text), make("tame")
    assert_sound(card)
    card.encode("utf-8")
    assert front(card) == front(tame)
    assert [len(t) for t in tables(card)] == [len(t) for t in tables(tame)] or not text.strip()
    assert list(card_blocks.blocks(card)) == list(card_blocks.blocks(tame))
    for tag in ("<script", "<img", "<b>", "](javascript", "](http://example"):
        assert tag not in outside_fences(card)
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200e\u200f\x00-\x09\x0b-\x1f]", card)
    assert card.count("<!--") == tame.count("<!--")
    assert card.count("-->") == tame.count("-->")
    again = render_card(cip(), existing=card, repo_id=REPO, changelog=[ChangelogEntry("v1.1.0", "2026-02-01", "next")])
    assert_sound(again)
    assert uncell(cell(text)) == uncell(cell(uncell(cell(text))))


def test_a_hostile_recipe_is_written_so_that_it_loads_again() -> None:
    for text in HOSTILE:
        if NOT_TEXT.search(text):
            continue
        recipe = load_recipe("imagenette-cip")
        assert recipe.caption is not None
        recipe = recipe.model_copy(update={"caption": recipe.caption.model_copy(update={"prompt": text})})
        block = recipe_block(recipe)
        assert block.startswith("```yaml\n")
        assert block.endswith("\n```")
        assert block.count("```") == 2
        assert parse_recipe(block[8:-4], "the card") == recipe


def test_ordinary_words_are_not_disfigured() -> None:
    for text in ("crane (bird)", "a dog's bed, 3.5 m - brown", "n01440764_a", "caption: empty", "été 日本"):
        assert cell(text) == text
    assert code("a photo of {c}, {caption}") == "`a photo of {c}, {caption}`"
    assert clean("a\n b\t c") == "a b c"


def test_a_thousand_classes_fold_away() -> None:
    manifest = manifest_of("imagenet-1k-cip", rows=2998)
    card = render_card(facts(manifest, SOFTWARE, rows=[row()]))
    assert_sound(card)
    assert "<summary>All 1,000 classes</summary>" in card
    assert len(front(card)["dataset_info"]["features"][1]["dtype"]["class_label"]["names"]) == 1000
    assert "of 1,000 classes" in card
    few = render_card(facts(manifest_of("imagenet-1k-cip", rows=10), SOFTWARE))
    assert "and 970 more classes" in few


def test_licences_are_said_as_far_as_they_are_known() -> None:
    imagenet = front(render_card(cip()))
    assert (imagenet["license"], imagenet["license_name"]) == ("other", "imagenet-terms-of-access")
    assert imagenet["license_link"].startswith("https://")
    shapes = facts(manifest_of("shapes-cip"), SOFTWARE)
    assert front(render_card(shapes))["license"] == "apache-2.0"
    foreign = facts(manifest_of("shapes-cip", "generate.model=someone/model", f"generate.revision={SHA}"), SOFTWARE)
    card = render_card(foreign)
    assert front(card)["license"] == "unknown"
    assert "not known to hfsyn: see its page" in card
    local = facts(manifest_of("shapes-cip", "generate.model=/models/mine"), SOFTWARE)
    assert "read from a local folder" in render_card(local)
    chosen = render_card(cip(), licence="cc0-1.0")
    assert front(chosen)["license"] == "cc0-1.0"
    assert "license_name" not in front(chosen)
    assert front(render_card(cip(), existing=chosen))["license"] == "cc0-1.0"
    # What we wrote for drawn images alone does not hold once photographs stand behind some of them.
    mixed = render_card(cip(), existing=render_card(replace(shapes, config_name="shapes", folder="shapes")))
    assert front(mixed)["license_name"] == "imagenet-terms-of-access"


def test_a_recipe_without_a_captioner_says_so() -> None:
    card = render_card(basic())
    assert "none: the prompts hold no captions" in card
    assert "Captions describe real images" not in card
    assert "| class | prompt |" in card
    assert "a baseline to compare that method with" in card
    assert "a baseline to compare" not in render_card(basic(), existing=render_card(cip()))


def test_odd_names_are_refused() -> None:
    for name in ("a b", "x/y", "", "a\n", "-->"):
        with pytest.raises(HfsynError, match="configuration"):
            cip(name)
    with pytest.raises(HfsynError, match="repository"):
        render_card(cip(), repo_id="a/b`c")
    with pytest.raises(HfsynError, match="version"):
        render_card(cip(), version="v1 `")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two finished runs made by fakes."""
    folder = tmp_path_factory.mktemp("runs")
    found = {}
    for name, recipe in (("cip", "shapes-cip"), ("basic", "shapes-basic")):
        run = load_run(run_folder(folder, recipe=recipe, name=name))
        caption(run, captioner=FakeCaptioner() if run.recipe.caption else None, device="cpu")
        generate(run, generator=FakeGenerator(), device="cpu")
        finish(run)
        found[name] = run.folder
    return found


def test_a_finished_run_loads_by_its_card_whole_and_streamed(runs: dict[str, Path]) -> None:
    card = (runs["cip"] / "README.md").read_text(encoding="utf-8")
    assert_sound(card)
    rows = load_dataset(str(runs["cip"]), split="train")
    assert len(rows) == len(list(load_dataset(str(runs["cip"]), split="train", streaming=True)))
    assert rows.features["label"].names == [c.name for c in get_variant("shapes").classes]
    assert "mean " in card  # a real caption


def test_two_configurations_in_folders_load_by_name(runs: dict[str, Path], tmp_path: Path) -> None:
    repo, card = tmp_path / "repo", None
    for name, run in runs.items():
        shutil.copytree(run, repo / name)
        manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
        card = render_card(
            facts(manifest, SOFTWARE, config_name=name, rows=example_rows(run)), existing=card, repo_id=REPO
        )
    manifest = json.loads((runs["cip"] / "manifest.json").read_text(encoding="utf-8"))
    only = facts(manifest, SOFTWARE, config_name="captions", what="captions", folder="cip", download_bytes=1)
    card = render_card(only, existing=card, repo_id=REPO)
    (repo / "README.md").write_text(card, encoding="utf-8")
    assert_sound(card)
    for name in runs:
        rows = load_dataset(str(repo), name, split="train")
        streamed = list(load_dataset(str(repo), name, split="train", streaming=True))
        assert [r["sample_id"] for r in rows] == [r["sample_id"] for r in streamed]
        assert (repo / name / "preview" / "samples.png").is_file()
        assert f"]({name}/preview/samples.png)" in card
    assert set(load_dataset(str(repo), split="train")["caption"]) != {None}, "cip is the default"
    assert set(load_dataset(str(repo), "basic", split="train")["caption"]) == {None}
    words = load_dataset(str(repo), "captions", split="train")
    assert words.column_names == list(captioned_features(["x"]))
    assert len(words) == manifest["readable_rows"]


def test_a_card_says_what_it_is_and_how_to_load_it_before_anything_else_and_folds_versions_away() -> None:
    card = render_card(cip("default"), repo_id=REPO, version="v1.0.0")
    text = DatasetCard(card).text
    places = [
        text.index(words)
        for words in (
            "9,469 synthetic images of 10 classes",
            f'load_dataset("{REPO}", split="train")',
            "![",
            "### Columns",
            "## Intended use and limits",
            "## How the images were made",
            "<summary>Devices and versions",
            "torch",
        )
    ]
    assert places == sorted(places)
    assert len(text[: places[1]].splitlines()) < 14
    two = render_card(basic(), existing=card, repo_id=REPO)
    assert card_blocks.blocks(two)["intro"].count("load_dataset(") == 1
    assert f'load_dataset("{REPO}", split="train")' in card_blocks.blocks(two)["intro"]
