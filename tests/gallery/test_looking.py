"""`look`: the right real image beside each synthetic one, and only the rows that were asked for."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import in_chromium, needs_chromium
from click.testing import CliRunner
from conftest import finished_run
from PIL import Image

from builders.sources import open_source
from hfsyn import HfsynError, look
from hfsyn.cli import cli
from hfsyn.gallery import rows, view
from hfsyn.recipes.recipe import load_recipe
from hfsyn.runs.prepare import prepare
from hfsyn.runs.run import load_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("look"))


def reference(folder: Path, source_id: str) -> Image.Image:
    source = open_source("shapes", "train", limit_per_class=3)
    (row,) = source.read([entry for entry in source.index() if entry.source_id == source_id])
    return Image.open(io.BytesIO(row.image)).convert("RGB")


def pictures(page: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/\w+;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB") for data in found]


def test_each_row_stands_beside_its_own_real_image(run: Path, tmp_path: Path) -> None:
    found = look(run, html=tmp_path / "a.html", classes="star", quiet=True)
    shown = pictures(Path(str(found.page)).read_text(encoding="utf-8"))
    assert len(found.rows) == 3 and len(shown) == 6  # noqa: PT018
    stored = {row["sample_id"]: row for row in load_run(run).samples(30)}
    for row, real, made in zip(found.rows, shown[::2], shown[1::2], strict=True):
        assert np.array_equal(np.asarray(real), np.asarray(reference(run, row["source_id"])))
        assert np.array_equal(np.asarray(made), np.asarray(stored[row["sample_id"]]["image"]))


def test_rows_are_chosen_by_class_words_and_number(run: Path, tmp_path: Path) -> None:
    def ids(**wanted: object) -> list[str]:
        found = look(run, out=tmp_path / "a.png", quiet=True, **wanted)  # type: ignore[arg-type]
        return [row["sample_id"] for row in found.rows]

    every = look(run, out=tmp_path / "a.png", quiet=True).rows
    assert len(every) == 30
    assert {row["class_name"] for row in look(run, out=tmp_path / "a.png", classes=["ring", "star"]).rows} == {
        "ring",
        "star",
    }
    assert len(ids(per_class=1)) == 10
    word = every[0]["caption"].split()[-1]
    wanted = [row["sample_id"] for row in every if word in f"{row['prompt']} {row['caption']}"]
    assert ids(words=word.upper()) == wanted
    assert ids(words=f"{word} {every[0]['class_name']}") == [
        row["sample_id"] for row in every if word in row["prompt"] and every[0]["class_name"] in row["prompt"]
    ]


def test_a_flag_chooses_the_rows_that_have_it(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = look(run, out=tmp_path / "a.png", quiet=True).rows[4]["seed"]
    monkeypatch.setattr(rows, "flags_of", lambda row: ["truncated"] if row["seed"] == chosen else [])
    assert [row["seed"] for row in look(run, out=tmp_path / "a.png", flag="truncated", quiet=True).rows] == [chosen]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"classes": "hart"}, "Did you mean 'heart'"),
        ({"flag": "truncate"}, "Did you mean 'truncated'"),
        ({"words": "zebra", "classes": "ring"}, "No row of .* matches classes 'ring' and words 'zebra'"),
        ({"out": "."}, "is a folder"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(run: Path, wanted: dict[str, str], said: str) -> None:
    with pytest.raises(HfsynError, match=said):
        look(run, **wanted)  # type: ignore[arg-type]


def test_a_page_says_that_it_holds_the_first_rows_of_many(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(view, "MOST_ROWS", 7)
    found = look(run, html=tmp_path / "a.html")
    assert len(found.rows) == 7
    assert "the first 7 of 30 rows" in capsys.readouterr().err
    assert "first 7 of 30 rows" in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_without_the_real_images_the_synthetic_ones_stand_alone(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / "mine" / "n01443537").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (200, 100 * number, 30)).save(tmp_path / "mine" / "n01443537" / f"{number}.png")
    mine = finished_run(tmp_path, "source.variant=tiny-imagenet", f"source.path={tmp_path / 'mine'}")
    assert len(pictures(Path(str(look(mine, html=True, quiet=True).page)).read_text(encoding="utf-8"))) == 4
    shutil.move(tmp_path / "mine", tmp_path / "elsewhere")
    found = look(mine, html=True, quiet=True)
    assert len(pictures(Path(str(found.page)).read_text(encoding="utf-8"))) == 2
    assert found.remarks[0].startswith("without real images: ")
    assert look(mine, html=True, source=str(tmp_path / "elsewhere"), quiet=True).seen[0].real is not None


def test_texts_of_a_set_are_never_html(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = '<script>alert("x")</script>'
    monkeypatch.setattr(rows, "flags_of", lambda row: [])
    monkeypatch.setattr(
        rows.Shard,
        "rows",
        lambda self, *a, _rows=rows.Shard.rows, **k: ({**row, "prompt": bad} for row in _rows(self, *a, **k)),
    )
    found = look(run, html=tmp_path / "a.html", quiet=True)
    assert bad not in Path(str(found.page)).read_text(encoding="utf-8")
    assert bad not in found._repr_html_()


def test_the_command_writes_the_picture_into_the_run_and_names_the_way_to_make_a_row_again(run: Path) -> None:
    done = CliRunner().invoke(cli, ["look", str(run), "--classes", "ring", "-n", "1"])
    assert done.stdout.splitlines() == [str(run / "preview" / "look.png")]
    assert Image.open(run / "preview" / "look.png").width > 200
    (row,) = json.loads(CliRunner().invoke(cli, ["look", str(run), "--classes", "ring", "-n1", "--json"]).stdout)[
        "rows"
    ]
    words = row["command"].split()
    assert words[:2] == ["hfsyn", "reproduce"]
    context = cli.commands["reproduce"].make_context("reproduce", [w.strip("'") for w in words[2:]])
    assert context.params["sample_id"] == row["sample_id"]
    page = CliRunner().invoke(cli, ["look", str(run), "--html", "-q"])
    assert page.stdout.splitlines() == [str(run / "preview" / "look.html")]
    assert prepare(load_recipe(str(run / "recipe.yaml")), run).folder == run  # what look wrote is not a stranger's


def test_a_run_at_work_shows_what_it_has(run: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    shutil.copytree(run, part)
    (part / "manifest.json").unlink()
    for mark in sorted((part / "sidecars" / "data").glob("*.json"))[1:]:
        mark.unlink()
    assert len(look(part, html=True, quiet=True).rows) == 8


def test_a_published_set_is_looked_at_as_a_run_is(run: Path, hub: Any, alice: Any, tmp_path: Path) -> None:
    assert alice.hfsyn("publish", run, "alice/look", "--version", "1.0.0", "-q").code == 0
    done = alice.hfsyn("look", "alice/look@v1.0.0", "--classes", "ring", "--html", "--json", cwd=tmp_path)
    found = json.loads(done.out)
    assert [row["sample_id"] for row in found["rows"]] == [r["sample_id"] for r in look(run, classes="ring").rows]
    assert found["rows"][0]["command"].startswith("hfsyn reproduce alice/look@v1.0.0 --sample-id ")
    assert len(pictures((tmp_path / "look-look.html").read_text(encoding="utf-8"))) == 6


@needs_chromium
def test_in_a_browser_the_page_filters_by_class_and_words_and_fits_a_phone(run: Path, tmp_path: Path) -> None:
    every = look(run, html=tmp_path / "a.html", quiet=True).rows
    word = every[0]["caption"].split()[-1]
    wanted = [r["seed"] for r in every if r["class_name"] == "ring" and word in f"{r['prompt']} {r['caption']}"]
    found = in_chromium(
        tmp_path / "a.html",
        tmp_path,
        "(() => { const form = d.forms[0], told = form.querySelector('output'), all = told.value;"
        f"form.class.value = 'ring'; form.words.value = '{word.upper()}'; form.dispatchEvent(new Event('input'));"
        "return {all, told: told.value, wide: d.documentElement.scrollWidth, "
        "seen: [...d.querySelectorAll('.row')].filter(r => !r.hidden).length}})()",
    )
    assert found == {"all": "30 rows", "told": f"{len(wanted)} of 30 rows", "wide": 360, "seen": len(wanted)}


def test_what_is_left_out_is_said_and_what_is_whole_is_not_called_a_part(run: Path, tmp_path: Path) -> None:
    assert look(run, html=tmp_path / "a.html", classes="ring", quiet=True).remarks[0].startswith("a page of ")
    few = look(run, html=tmp_path / "a.html", per_class=1, quiet=True).remarks
    assert few[0] == "the first 10 of 30 rows, at most 1 of each class"
    assert look(run, out=tmp_path / "a.png", per_class=99, quiet=True).remarks[0].startswith("12 images of each class")
