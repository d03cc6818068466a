"""Texts about classes from real language model classes with tiny random weights: what is asked, and what is kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq
import pytest
import tiny_models
import torch
from conftest import run_folder
from fakes import FakeGenerator
from safetensors.torch import load_file, save_file

from builders.variants import ClassInfo, get_variant
from hfsyn.captions.caption_stage import caption
from hfsyn.captions.text_writer import TextWriter, request, said_line
from hfsyn.captions.texts import filled
from hfsyn.errors import HfsynError
from hfsyn.images.generate_stage import generate
from hfsyn.recipes.recipe import CaptionPart, load_recipe
from hfsyn.recipes.strategies import word_lists
from hfsyn.rules import seed_of
from hfsyn.runs.finish import finish

FAMILIES = {"chat_model": "llm", "plain_model": "llm-diverse", "t5": "w2s"}
"""Each kind of model, with a strategy that asks it."""
CRANE = ClassInfo("n02012849", 134, "crane", ("crane",), "large long-necked wading bird", "wading bird")
SEEDS = [11 * n for n in range(6)]
CLASSES = list(get_variant("imagenet-1k").classes[100:106])
Folders = Callable[[str], Path]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The saved tiny model of a family, written when it is first asked for."""
    root = tmp_path_factory.mktemp("writers")

    def folder(family: str) -> Path:
        path = root / family
        return path if path.is_dir() else getattr(tiny_models, family)(path)

    return folder


def writer(folder: Path | str, strategy: str, **options: Any) -> TextWriter:
    part = CaptionPart(model=str(folder), **{"max_new_tokens": 8, "top_p": 0.9, "temperature": 1.5, **options})
    return TextWriter(part, strategy, "cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_depends_on_its_class_and_seed_alone(folders: Folders, family: str) -> None:
    one = writer(folders(family), FAMILIES[family])
    texts = one.write(CLASSES, SEEDS)
    assert len(set(texts)) >= 5
    for info, seed, text in zip(CLASSES, SEEDS, texts, strict=True):
        assert one.write([info] * 3, [seed, 1, 2])[0] == text
        assert one.write([CRANE, info], [5, seed])[1] == text
    assert one.write(CLASSES[::-1], SEEDS[::-1]) == texts[::-1]
    assert one.write(CLASSES, [seed + 1 for seed in SEEDS]) != texts
    assert writer(folders(family), FAMILIES[family]).write(CLASSES, SEEDS) == texts


def test_without_drawing_what_is_asked_still_varies(folders: Folders) -> None:
    one, two = (writer(folders("chat_model"), "llm", top_p=None, temperature=None) for _ in range(2))
    texts = one.write([CRANE] * 12, range(12))
    assert len(set(texts)) >= 3
    assert texts == two.write([CRANE] * 12, range(12))


def test_a_text_ends_with_its_line(folders: Folders) -> None:
    """A model that only continues texts would go on with the next thing."""
    texts = writer(folders("plain_model"), "llm", max_new_tokens=200, temperature=3.0).write([CRANE] * 12, range(12))
    assert min(map(len, texts)) < 190
    assert not any("\n" in text for text in texts)


def test_what_is_asked_of_a_chat_model_goes_through_its_template(folders: Folders) -> None:
    one = writer(folders("chat_model"), "llm")
    seen: list[str] = []
    tokenizer = one._tokenizer

    def spy(texts: list[str], **options: Any) -> Any:
        seen.extend(texts)
        return tokenizer(texts, **options)

    class Spy:
        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        __call__ = staticmethod(spy)

    one._tokenizer = Spy()
    one.write([CRANE], [3])
    asked = request("llm", CRANE, Random(3))
    turns = [turn["content"] for turn in asked.turns()]
    assert len(turns) == 7
    assert seen[0] == (
        "".join(f"<|turn|>{'assistant' if n % 2 else 'user'}: {text}\n" for n, text in enumerate(turns))
        + "<|turn|>assistant: "
    )


# --- what is asked ----------------------------------------------------------------------------------------------------


def test_llm_shows_three_demonstrations_of_one_of_three_kinds() -> None:
    lists, places = word_lists("demonstrations.json"), word_lists("places.json")["places"]
    kinds = set()
    for seed in range(60):
        asked = request("llm", CRANE, Random(seed))
        assert asked == request("llm", CRANE, Random(seed))
        assert len(asked.demonstrations) == len(set(asked.demonstrations)) == 3
        kind = "background" if "place:" in asked.question else "relation" if "relation:" in asked.question else "plain"
        kinds.add(kind)
        assert asked.question.startswith("thing: crane")
        extra = asked.question.rpartition(": ")[2]
        assert kind == "plain" or extra in (places if kind == "background" else lists["relations"])
        for question, answer in asked.demonstrations:
            name, *more = next(words for words in lists[kind] if words[-1] == answer)
            assert name in question
            assert kind == "plain" or question.endswith(f": {more[0]}")
            assert ("place:" in question, "relation:" in question) == (kind == "background", kind == "relation")
        assert asked.plain().endswith(f"\n\n{asked.question}\ncaption:")
    assert kinds == {"plain", "background", "relation"}


def test_llm_diverse_tells_the_meaning_and_draws_scene_and_style() -> None:
    lists = word_lists("demonstrations.json")
    questions = {request("llm-diverse", CRANE, Random(seed)).question for seed in range(300)}
    assert len(questions) > 150
    for question in questions:
        head, scene, style = question.split("; ")
        assert head == "thing: crane (large long-necked wading bird)"
        assert scene.removeprefix("scene: ") in lists["contexts"]
        assert style.removeprefix("style: ") in lists["styles"]


def test_every_demonstration_names_its_thing_and_keeps_what_it_is_shown_with() -> None:
    lists = word_lists("demonstrations.json")
    for kind in ("plain", "background", "relation", "diverse"):
        assert len(lists[kind]) >= 8
        for thing, *extra, text in lists[kind]:
            assert thing in text
            assert kind not in ("background", "relation") or extra[0] in text
            assert len(text.split()) <= 25


def test_a_prompt_of_the_recipe_stands_in_place_of_all_that() -> None:
    assert filled("{c}: {definition}, {hypernym} {x}", CRANE) == "crane: large long-necked wading bird, wading bird {x}"
    for strategy in ("llm", "llm-diverse", "w2s"):
        asked = request(strategy, CRANE, Random(1), "Say {c}.")
        assert asked.turns() == [{"role": "user", "content": "Say crane."}]
        assert asked.plain() == asked.asked() == "Say crane."
    assert request("w2s", CRANE, Random(1)).asked() == "crane"


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (" a crane in a marsh.\nthing: dog\ncaption: a dog", "a crane in a marsh"),
        ('"A crane in a marsh."', "A crane in a marsh"),
        ("Caption: a crane", "a crane"),
        ("**Caption:** a crane", "a crane"),
        ("<think>\nHm, a bird.\n</think>\n\nA crane wading.", "A crane wading"),
        ("<think>I never end", ""),
        ("\n\n", ""),
    ],
)
def test_a_caption_is_what_is_kept_of_an_answer(said: str, kept: str) -> None:
    assert said_line(said) == kept


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_model_of_the_wrong_kind_is_refused(folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(HfsynError, match="makes sentences of keywords"):
        writer(folders("plain_model"), "w2s")
    with pytest.raises(HfsynError, match="hfsyn comes with no language model"):
        writer("builtin", "llm")
    with pytest.raises(HfsynError, match=r"caption\.prompt makes .* takes at most 1023"):
        writer(folders("plain_model"), "llm", prompt="{c} " * 600).write([CRANE], [1])
    long = ClassInfo("n00000001", 0, "crane " * 200, (), "", "")
    with pytest.raises(HfsynError, match=r"What is asked of .* makes"):
        writer(folders("plain_model"), "llm").write([long], [1])
    vit = tiny_models.vit_gpt2(tmp_path / "vit")
    with pytest.raises(HfsynError, match="cannot be loaded as a language model") as caught:
        writer(vit, "llm")
    assert "\n" not in str(caught.value)
    lost = shutil.copytree(folders("plain_model"), tmp_path / "copy")
    weights = load_file(lost / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "mlp" not in k}, lost / "model.safetensors", {"format": "pt"})
    with pytest.raises(HfsynError, match=r"has no weights for 4 parameters of its language model, such as"):
        writer(lost, "llm")


# --- in a run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_has_the_texts_that_the_model_writes_of_each_images_class(
    folders: Folders, family: str, tmp_path: Path
) -> None:
    strategy = FAMILIES[family]
    model = (
        f"prompt.strategy={strategy}",
        f"caption.model={folders(family)}",
        "caption.top_p=0.9",
        "seed=5",
        "caption.max_new_tokens=8",
        "caption.batch_size=4",
        "caption.dtype=float32",
    )
    folder = run_folder(tmp_path, *model)
    caption(folder, quiet=True, device="cpu")
    generate(folder, generator=FakeGenerator(), quiet=True)
    run = finish(folder)
    rows = {row["source_id"]: row for row in pq.read_table(folder / "plan.parquet").to_pylist()}
    one = TextWriter(run.recipe.caption, strategy, "cpu")  # type: ignore[arg-type]
    for source_id, row in list(rows.items())[:6]:
        info = run.classes[row["wnid"]]
        (text,) = one.write([info], [seed_of(5, source_id, purpose="caption")])
        assert row["caption"] == text
        named = info.name in text.lower()
        assert row["prompt"] == (text if named else f"{info.name}, {text}" if text else info.name)
    assert len({row["caption"] for row in rows.values()}) > 7
    card = (folder / "README.md").read_text()
    assert "language model, told the class" in card
    assert "drawn at random by each image's own seed, top-p 0.9" in card
    again = run_folder(tmp_path, *model, name="again")
    caption(again, quiet=True, captions=str(folder))
    taken = [row["caption"] for path in sorted((again / "captions").glob("*.parquet")) for row in _rows(path)]
    assert taken == [row["caption"] for path in sorted((folder / "captions").glob("*.parquet")) for row in _rows(path)]
    for change, field in (("seed=6", "seed"), ("prompt.strategy=llm-diverse", "strategy")):
        if change.endswith(strategy):
            continue
        other = run_folder(tmp_path, *model, change, name=f"other-{field}")
        with pytest.raises(HfsynError, match=f"are not this recipe's: {field} is"):
            caption(other, quiet=True, captions=str(folder))


def _rows(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path, columns=["caption"]).to_pylist()


def test_texts_of_classes_need_a_language_model_in_the_recipe() -> None:
    with pytest.raises(HfsynError, match="needs a language model that writes its texts"):
        load_recipe("shapes-basic", ["prompt.strategy=llm"])
    assert json.dumps(load_recipe("shapes-cip", ["prompt.strategy=llm"]).model_dump())
