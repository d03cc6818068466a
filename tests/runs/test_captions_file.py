"""Captions from a file or a dataset of the Hub: joined by source id, complete or refused, pinned by their content."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import finished_run, run_folder

from builders.sources import open_source
from hfsyn.checks.verify import verify
from hfsyn.errors import HfsynError
from hfsyn.outlook.forecast import forecast
from hfsyn.recipes.recipe import dump_recipe, fingerprint, load_recipe, published_recipe
from hfsyn.runs.inputs import FileTexts
from hfsyn.runs.prepare import prepare
from hfsyn.runs.run import load_run

SMALL = ("source.limit_per_class=3", "store.shard_rows=8", "generate.batch_size=4")


def ids() -> list[str]:
    return [entry.source_id for entry in open_source("shapes", "train", limit_per_class=3).index()]


def texts() -> dict[str, str]:
    """One for each image, in another order than the images'."""
    return {source_id: f"text {n}, with a comma" for n, source_id in reversed(list(enumerate(ids())))}


def json_lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    return path


def comma_separated(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def parquet(path: Path, rows: list[dict[str, object]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


WRITERS: dict[str, Callable[[Path, list[dict[str, object]]], Path]] = {
    "jsonl": json_lines,
    "csv": comma_separated,
    "parquet": parquet,
}


def rows(column: str = "caption") -> list[dict[str, object]]:
    return [{"other": n, "source_id": source_id, column: text} for n, (source_id, text) in enumerate(texts().items())]


def with_file(path: Path | str, *more: str, strategy: str = "captions-file") -> tuple[str, ...]:
    return ("caption=null", f"prompt.strategy={strategy}", f"prompt.captions_file={path}", *more)


def planned(folder: Path) -> dict[str, tuple[str, str]]:
    return {
        row["source_id"]: (row["prompt"], row["caption"]) for row in pq.read_table(folder / "plan.parquet").to_pylist()
    }


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize("column", ["caption", "prompt"])
def test_each_image_has_the_text_of_its_id(tmp_path: Path, ending: str, column: str) -> None:
    path = WRITERS[ending](tmp_path / f"texts.{ending}", rows(column))
    folder = finished_run(tmp_path, *with_file(path))
    assert planned(folder) == {source_id: (text, text) for source_id, text in texts().items()}
    assert not verify(str(folder), quiet=True).problems
    assert "texts in the prompts" in (folder / "README.md").read_text()
    assert str(tmp_path) not in (folder / "README.md").read_text()


def test_other_strategies_take_these_texts_for_captions(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "texts.jsonl", rows())
    folder = finished_run(tmp_path, *with_file(path, strategy="cip"))
    names = {source_id: row["class_name"] for source_id, row in _by_id(folder).items()}
    assert planned(folder) == {
        source_id: (f"a photo of {names[source_id]}, {text}", text) for source_id, text in texts().items()
    }


def _by_id(folder: Path) -> dict[str, dict[str, str]]:
    return {row["source_id"]: row for row in pq.read_table(folder / "plan.parquet").to_pylist()}


def test_the_plan_knows_the_prompts_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = json_lines(tmp_path / "texts.jsonl", rows())
    monkeypatch.chdir(tmp_path)
    found = forecast(load_recipe("shapes-cip", [*SMALL, *with_file("texts.jsonl")]))
    assert found.captions == f"of {path}"
    assert found.unique_prompts == 30
    assert set(found.first_prompts) <= set(texts().values())


def test_the_content_of_the_file_is_part_of_the_recipes_name_and_its_place_is_not(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "texts.jsonl", rows())
    run = load_run(run_folder(tmp_path, *with_file(path)))
    moved = tmp_path / "elsewhere.jsonl"
    moved.write_bytes(path.read_bytes())
    same = load_run(run_folder(tmp_path, *with_file(moved), name="same"))
    assert run.fingerprint == same.fingerprint == fingerprint(published_recipe(run.recipe))
    assert str(tmp_path) not in dump_recipe(published_recipe(run.recipe))
    moved.write_text(moved.read_text().replace("text 3", "text three"))
    other = load_run(run_folder(tmp_path, *with_file(moved), name="other"))
    assert other.fingerprint != run.fingerprint


def test_a_changed_file_is_refused_where_a_run_goes_on(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "texts.jsonl", rows())
    folder = run_folder(tmp_path, *with_file(path))
    recipe = load_recipe("shapes-cip", [*SMALL, *with_file(path)])
    assert prepare(recipe, folder).folder == folder
    path.write_text(path.read_text().replace("text 3", "text three"))
    with pytest.raises(HfsynError, match=r"prompt\.captions_revision is 'sha256:[0-9a-f]{64}' there"):
        prepare(recipe, folder)
    with pytest.raises(HfsynError, match="is not the file that the recipe means"):
        FileTexts(load_run(folder).recipe.prompt)


# --- what is refused --------------------------------------------------------------------------------------------------


def refusal(tmp_path: Path, path: Path | str, *more: str) -> str:
    with pytest.raises(HfsynError) as caught:
        run_folder(tmp_path, *with_file(path, *more), name="refused")
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    assert not (tmp_path / "refused").exists()
    return str(caught.value)


def test_missing_and_empty_texts_are_counted_and_refused(tmp_path: Path) -> None:
    gaps = rows()
    absent = [str(row["source_id"]) for row in gaps[:4]]
    gaps[5]["caption"], gaps[6]["caption"], gaps[7]["caption"] = "", "  ", None
    path = json_lines(tmp_path / "texts.jsonl", gaps[4:])
    said = refusal(tmp_path, path)
    assert "has no text for 4 images (" in said
    assert " and an empty text for 3 images (" in said
    assert ", of 30." in said
    assert "--set prompt.captions_missing=class-name" in said
    folder = finished_run(tmp_path, *with_file(path, "prompt.captions_missing=class-name"))
    made = _by_id(folder)
    assert len(made) == 30
    for source_id in [*absent, *(str(row["source_id"]) for row in gaps[5:8])]:
        assert (made[source_id]["prompt"], made[source_id]["caption"]) == (made[source_id]["class_name"], "")
        assert made[source_id]["caption_flags"] == ["empty"]


def test_ids_that_stand_twice_are_refused_and_ids_of_no_image_are_not(tmp_path: Path) -> None:
    more = [*rows(), {"source_id": "of/another.png", "caption": "x"}]
    assert run_folder(tmp_path, *with_file(json_lines(tmp_path / "more.jsonl", more)))
    twice = [*rows(), *rows()[:2]]
    for ending, write in WRITERS.items():
        said = refusal(tmp_path, write(tmp_path / f"twice.{ending}", twice))
        assert "has 2 ids (" in said
        assert "more than once" in said


def test_a_file_for_other_images_says_what_the_ids_are(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "texts.jsonl", [{"source_id": "ILSVRC/n01440764_1.JPEG", "caption": "a fish"}])
    said = refusal(tmp_path, path, "prompt.captions_missing=class-name")
    assert "has no text for any of the 30 images" in said
    assert "ILSVRC/n01440764_1.JPEG" in said
    assert ids()[0] in said
    (tmp_path / "empty.jsonl").write_text("")
    assert "it has no lines" in refusal(tmp_path, tmp_path / "empty.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("texts.jsonl", '{"source_id": "a", "caption": "b"}\n{"source_id"', "line 2 is not a JSON object"),
        ("texts.jsonl", '["a", "b"]', "line 1 is not a JSON object"),
        ("texts.jsonl", '{"id": "a", "caption": "b"}', "line 1 has no source_id: it has id, caption"),
        ("texts.jsonl", '{"source_id": "a", "text": "b"}', "has no caption and no prompt: it has source_id, text"),
        ("texts.jsonl", '{"source_id": "a", "caption": 3}', "line 1 has the caption 3, which is not a text"),
        ("texts.jsonl", '{"source_id": 7, "caption": "b"}', "line 1 has the source_id 7, which is not a text"),
        ("texts.jsonl", '{"source_id": null, "caption": "b"}', "line 1 has no source_id"),
        ("texts.jsonl", '{"source_id": "a", "caption": "x \\ud83d"}', "line 1 has half of a character, '\\ud83d'"),
        ("texts.csv", "source_id,caption\na,b, c\n", "line 2 has more fields than the heading. Put texts with"),
        ("texts.csv", "id,caption\na,b\n", "line 2 has no source_id"),
        ("texts.csv", b"source_id,caption\na,\xff\n", "cannot be read"),
        ("texts.parquet", b"PAR1 and no more", "cannot be read"),
        ("texts.txt", "a\tb\n", "is of no known kind"),
    ],
)
def test_a_malformed_file_is_refused_with_its_line(tmp_path: Path, name: str, content: str | bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert words in refusal(tmp_path, path)


def test_a_parquet_file_without_the_columns_is_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path / "texts.parquet", [{"source_id": "a", "text": "b"}])
    assert "it has the columns source_id, text" in refusal(tmp_path, path)


def test_ids_that_are_numbers_are_refused_with_the_reason(tmp_path: Path) -> None:
    path = parquet(tmp_path / "texts.parquet", [{"source_id": 7, "caption": "b"}])
    assert "row 1 has the source_id 7, which is not a text" in refusal(tmp_path, path)


@pytest.mark.parametrize("name", ["texts.JSONL", "texts.ndjson"])
def test_endings_may_be_in_capitals_and_json_lines_have_two(tmp_path: Path, name: str) -> None:
    path = json_lines(tmp_path / name, rows())
    found = FileTexts(load_recipe("shapes-cip", with_file(path)).prompt)
    assert {source_id: found.of(source_id) for source_id in ids()} == texts()


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("hfsyn.runs.inputs.sha256_of", forbidden)
    path = json_lines(tmp_path / "texts.jsonl", rows())
    assert f"The captions file {path} cannot be read: Permission denied" in refusal(tmp_path, path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "There is no captions file" in refusal(tmp_path, tmp_path / "nowhere.jsonl")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("prompt.captions_file=x.jsonl",), "and the recipe has a captioner too, builtin"),
        (("prompt.strategy=captions-file",), "Strategy 'captions-file' needs the texts of a file"),
        (("prompt.strategy=basic", "caption=null", "prompt.captions_file=x.jsonl"), "has no place for its texts"),
        (("prompt.strategy=domain",), "Strategy 'domain' needs a word"),
        (("prompt.domain=pet",), "strategy 'cip' has no place for it"),
        (("prompt.captions_missing=ignore",), "prompt.captions_missing is 'ignore'"),
    ],
)
def test_fields_that_do_not_fit_are_refused(overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(HfsynError) as caught:
        load_recipe("shapes-cip", overrides)
    assert words in str(caught.value)


def test_a_domain_stands_before_the_photo() -> None:
    found = forecast(
        load_recipe("shapes-basic", ["prompt.strategy=domain", "prompt.domain=aircraft", "source.limit_per_class=1"])
    )
    assert len(found.first_prompts) == 5
    assert all(prompt.startswith("an aircraft photo of a") for prompt in found.first_prompts)


# --- from the Hub -----------------------------------------------------------------------------------------------------


PREPARED = """
from hfsyn.errors import HfsynError
from hfsyn.captions.caption_stage import caption
from hfsyn.recipes.recipe import load_recipe
from hfsyn.runs.prepare import prepare
try:
    run = prepare(load_recipe({recipe!r}, {overrides!r}), {out!r})
    caption(run, quiet=True)
    result = [run.recipe.prompt.captions_revision, run.fingerprint, ""]
except HfsynError as error:
    result = [None, None, str(error)]
"""


@pytest.mark.slow
def test_a_dataset_of_the_hub_is_pinned_to_its_commit(tmp_path: Path) -> None:
    """By the real clients; a stranger's recipe may name such a dataset, and neither a file nor a function of theirs."""
    from hub_client import Client
    from hub_server import Hub

    lines = [json.dumps(row).encode() for row in rows()]
    half = {"data/a.jsonl": b"\n".join(lines[:10]), "data/b.jsonl": b"\n".join(lines[10:]), "README.md": b"# texts\n"}
    with ExitStack() as running, Client(hub := running.enter_context(Hub(tmp_path / "hub")), tmp_path) as client:
        first = hub.add_repo("dataset", "alice/texts", files=half)
        hub.add_tag("dataset", "alice/texts", "v1", first)

        def prepared(out: str, *overrides: str, recipe: str = "shapes-cip") -> tuple[str | None, str | None, str]:
            code = PREPARED.format(recipe=recipe, overrides=[*SMALL, *overrides], out=str(tmp_path / out))
            revision, name, problem = client.python(code)
            return revision, name, problem

        def taken(out: str, reference: str) -> tuple[str | None, str | None, str]:
            return prepared(out, *with_file(reference))

        pinned, name, _ = taken("one", "hf://datasets/alice/texts@v1")
        assert pinned == first
        captions = [pq.read_table(path).to_pylist() for path in sorted((tmp_path / "one/captions").glob("*.parquet"))]
        assert {row["source_id"]: row["caption"] for shard in captions for row in shard} == texts()
        hub.add_commit("dataset", "alice/texts", {"data/b.jsonl": b"\n".join(lines[10:-1])})
        assert taken("one", "hf://datasets/alice/texts@v1") == (first, name, "")
        for reference, words in {
            "alice/texts": "has no text for 1 image (",
            "alice/texts@v1/data/a": "has no text for 20 images",
            "alice/texts@v1/nowhere": "holds no captions",
            "alice/texts@v9": "has no revision 'v9'",
            "alice/nothing": "is not there, or not for you",
            "alice": "which names no dataset",
        }.items():
            assert words in taken("two", f"hf://datasets/{reference}")[2]
        assert not (tmp_path / "two").exists()
        assert taken("three", f"hf://datasets/alice/texts@{first}") == (first, name, "")

        path = json_lines(tmp_path / "mine.jsonl", rows())
        (tmp_path / "mine.py").write_text("def write(c, caption, rng):\n    return f'{c.name}: {caption}'\n")
        own = {"captions_file": str(path), "strategy": f"{tmp_path}/mine.py:write"}
        made = finished_run(tmp_path, *with_file(path, strategy=own["strategy"]), name="made")
        sent = client.hfsyn("publish", made, "alice/made", "--version", "1.0.0", "-q")
        assert sent.code == 0, sent.err
        assert str(tmp_path) not in hub.files("dataset", "alice/made")["recipe.yaml"].decode()
        assert client.hfsyn("verify", "alice/made@v1.0.0").code == 0
        theirs = "hf://datasets/alice/made@v1.0.0"
        mine = {key: f"prompt.{key}={value}" for key, value in own.items()}
        assert "hfsyn runs no code of others" in prepared("theirs", mine["captions_file"], recipe=theirs)[2]
        assert "come from a file of its author's" in prepared("theirs", mine["strategy"], recipe=theirs)[2]
        assert not (tmp_path / "theirs").exists()
        # Someone who has both says so, and then has the same recipe.
        assert prepared("taken", *mine.values(), recipe=theirs)[1:] == (load_run(made).fingerprint, "")

        running.close()
        assert taken("one", "hf://datasets/alice/texts@v1") == (first, name, "")
        assert taken("four", f"hf://datasets/alice/texts@{first}") == (first, name, "")
        assert "cannot be reached" in taken("five", "hf://datasets/alice/others")[2]
