"""Images of one's own: a class map makes a variant, the recipe carries it, and nobody needs the file afterwards."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import PHOTOGRAPHS, finished_run, needs_photographs
from drawn_tables import rows_of, write_table
from hub_client import Client
from hub_server import Hub
from PIL import Image

from builders.errors import DataError
from builders.images.decoding import decode_rgb
from builders.sources import open_source
from builders.sources.new_class_map import new_variant
from builders.variants import get_variant
from builders.variants.class_maps import class_id, read_variant
from hfsyn.cards.card import render_card
from hfsyn.cards.facts import facts
from hfsyn.errors import HfsynError
from hfsyn.recipes.recipe import dump_recipe, fingerprint, load_recipe, parse_recipe

FOLDERS = {"circle": "Round_Thing", "square": "Box!", "star": "01 star"}
BOX = class_id("Box!")
LAST = ("caption.model=builtin", "generate.model=builtin", "generate.steps=1", "store.shard_rows=100")


def photographs(folder: Path, each: int = 2, names: dict[str, str] | None = None) -> Path:
    """Class folders of drawings: those of `names`, class -> folder."""
    names = FOLDERS if names is None else names
    found: dict[str, int] = {}
    for name, image in rows_of(200):
        if name in names and found.get(name, 0) < each:
            found[name] = found.get(name, 0) + 1
            path = folder / names[name] / f"{found[name]}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image)
    return folder


@pytest.fixture
def things(tmp_path: Path) -> Path:
    """A class map of three folders."""
    return new_variant("things", str(photographs(tmp_path / "photos")), out=tmp_path / "things.yaml")


def changed(file: Path, change: object) -> Path:
    """The class map with something else in it."""
    fields = yaml.safe_load(file.read_text())
    change(fields)  # type: ignore[operator]
    file.write_text(yaml.safe_dump(fields))
    return file


# --- writing a class map -------------------------------------------------------------------------------------------


def test_a_class_map_is_made_from_the_folders_and_reads_them(things: Path) -> None:
    variant, path = read_variant(things)
    assert [(c.index, c.wnid, c.name) for c in variant.classes] == [
        (0, "01_star", "01 star"),
        (1, BOX, "Box!"),
        (2, "Round_Thing", "Round Thing"),
    ]
    assert variant.splits == {"train": 6}
    entries = list(open_source(variant.name, "train", path=path).index())
    assert [entry.source_id for entry in entries] == [
        f"{wnid}/{number}.png" for wnid in ("01_star", BOX, "Round_Thing") for number in (1, 2)
    ]


def test_folders_that_are_imagenets_get_imagenets_ids_and_words(tmp_path: Path) -> None:
    photographs(tmp_path / "photos", names={"circle": "tench", "square": "n02123045", "star": "Golden_Retriever"})
    variant, _ = read_variant(new_variant("pets", str(tmp_path / "photos"), out=tmp_path / "pets.yaml"))
    thousand = get_variant("imagenet-1k").by_wnid
    assert {c.wnid for c in variant.classes} == {"n01440764", "n02123045", "n02099601"}
    for info in variant.classes:
        known = thousand[info.wnid]
        assert (info.name, info.lemmas, info.definition, info.hypernym) == (
            known.name,
            known.lemmas,
            known.definition,
            known.hypernym,
        )


def test_one_foreign_folder_makes_all_classes_ones_own(tmp_path: Path) -> None:
    photographs(tmp_path / "photos", names={"circle": "crane", "square": "drill press", "star": "hammer"})
    variant, _ = read_variant(new_variant("tools", str(tmp_path / "photos"), out=tmp_path / "tools.yaml"))
    assert [c.wnid for c in variant.classes] == ["crane", "drill_press", "hammer"]


def test_split_folders_and_tables_are_counted(tmp_path: Path) -> None:
    photographs(tmp_path / "photos" / "train", each=3)
    photographs(tmp_path / "photos" / "val", each=1)
    variant, _ = read_variant(new_variant("a", str(tmp_path / "photos"), out=tmp_path / "a.yaml"))
    assert variant.splits == {"train": 9, "validation": 3}
    names = ["zebra fish", "box", "star", "circle", "triangle", "square", "cross", "ring", "heart", "crescent"]
    rows = [(names[number % 10], image) for number, (_, image) in enumerate(rows_of(20))]
    write_table(tmp_path / "tables" / "test-00000-of-00001.parquet", rows, names=names)
    variant, path = read_variant(new_variant("b", str(tmp_path / "tables"), out=tmp_path / "b.yaml"))
    assert variant.splits == {"test": 20}
    assert [c.name for c in variant.classes] == names  # numbered as the table numbers
    rows_read = list(open_source(variant.name, "test", path=path).index())
    assert [row.wnid for row in rows_read[:2]] == ["zebra_fish", "box"]


def test_ids_are_made_of_what_a_class_is_called() -> None:
    labels = ("Rosa_canina", "dog-rose", "01. Été", "___", "日本", "a" * 65)
    ids = [class_id(text) for text in labels]
    assert ids[:2] == ["Rosa_canina", "dog-rose"]
    assert [identity.rpartition("-")[0] for identity in ids[2:]] == ["01-Ete", "class", "class", "a" * 51]
    assert all(len(identity.rpartition("-")[2]) == 12 for identity in ids[2:])


def test_a_file_that_is_there_is_not_overwritten(things: Path, tmp_path: Path) -> None:
    before = things.read_bytes()
    with pytest.raises(DataError, match="exists"):
        new_variant("things", str(tmp_path / "photos"), out=things)
    with pytest.raises(DataError, match="nothing there says their classes"):
        new_variant("none", str(tmp_path / "photos" / "Box!"), out=tmp_path / "none.yaml")
    assert things.read_bytes() == before
    assert not (tmp_path / "none.yaml").exists()


# --- what a class map may say --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f["classes"][0].update(id=1), r"id in classes\[0\] of .* is 1. Put it in quotes"),
        (lambda f: f["classes"][0].update(id="a/b"), r"id in classes\[0\] of .* is 'a/b'"),
        (lambda f: f["classes"][0].update(id="../x"), r"id in classes\[0\]"),
        (lambda f: f["classes"][0].update(name=None), "The class 01_star of .* has no name"),
        (lambda f: f["classes"][0].update(name="box!"), "Two classes of .* are called 'Box!': 01_star and Box-"),
        (lambda f: f["classes"][0].update(label="Round Thing"), "Two classes of .* are called 'Round Thing'"),
        (lambda f: f["classes"][0].update(id=BOX), f"The id {BOX} occurs twice"),
        (lambda f: f["classes"][0].update(name="a\u202eb"), r"name in classes\[0\]"),
        (lambda f: f["classes"][0].update(names="x"), "has an unknown key 'names'"),
        (lambda f: f["classes"][0].update(lemmas="x"), "lemmas in .* is 'x'"),
        (lambda f: f.update(classes=[]), "is not a list of classes"),
        (lambda f: f.pop("splits"), "has no 'splits'"),
        (lambda f: f.update(splits={"dev": 1}), "splits in .* is"),
        (lambda f: f.update(splits={"train": True}), "splits.train in .* is True"),
        (lambda f: f.update(name="a b"), "name in .* is 'a b'"),
        (lambda f: f.update(hub={"repo_id": "https://x.y/z)"}), "hub.repo_id in"),
        (lambda f: f.update(hub={"repo_id": "a/b", "splits": {"test": "test"}}), "hub.splits in"),
        (lambda f: f.update(path=3), "path in .* is 3"),
    ],
)
def test_what_is_no_class_map_is_refused_with_its_place(things: Path, change: object, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read_variant(changed(things, change))
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_the_content_names_a_class_map_and_what_changes_no_row_does_not(things: Path) -> None:
    name = read_variant(things)[0].name
    assert name.startswith("things@")
    same = (
        lambda f: f.update(title="Other", licence="CC0", homepage="https://x.y", splits={"train": None}),
        lambda f: f["classes"][0].update(lemmas=["01 star"], label="01 star", definition=None),
    )
    other = (
        lambda f: f["classes"].reverse(),
        lambda f: f["classes"][0].update(name="star"),
        lambda f: f["classes"][0].update(definition="a star"),
        lambda f: f["classes"].pop(),
        lambda f: f.update(hub={"repo_id": "a/b"}),
    )
    text = things.read_text()
    names = []
    for change in (*same, *other):
        things.write_text(text)
        names.append(read_variant(changed(things, change))[0].name)
    assert names[: len(same)] == [name] * len(same)
    assert len({name, *names}) == 1 + len(other)


# --- the recipe carries it -----------------------------------------------------------------------------------------


def test_a_recipe_names_the_file_and_carries_its_content(things: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: shapes-cip\nname: mine\nsource: {variant: things.yaml}\n")
    recipe = load_recipe(tmp_path / "mine.yaml")
    given = load_recipe("shapes-cip", [f"source.variant={things}"])
    variant, path = read_variant(things)
    assert recipe.source.path == given.source.path == path
    assert fingerprint(recipe) == fingerprint(given) != fingerprint(load_recipe("shapes-cip"))
    assert recipe.source.variant == variant.name
    again = parse_recipe(dump_recipe(recipe), "text")
    assert again == recipe
    assert load_recipe(recipe, ["source.variant=shapes", "source.path=null"]).source.definition is None
    with pytest.raises(HfsynError, match="has no such class"):
        load_recipe(recipe, ["class_seeds.n13873502=1"])
    assert load_recipe(recipe, [f"class_seeds.{BOX}=1"]).seed_for(BOX) == 1


def test_a_strategy_that_asks_for_words_which_the_class_map_lacks_is_refused(things: Path) -> None:
    for strategy, word in (("definition", "definition"), ("hypernym", "hypernym"), ("background", "hypernym")):
        with pytest.raises(HfsynError, match=f"each class's {word}, and 3 classes have none, such as 01_star"):
            load_recipe("shapes-basic", [f"source.variant={things}", f"prompt.strategy={strategy}"])
    changed(things, lambda f: [row.update(definition="a thing") for row in f["classes"]])
    assert load_recipe("shapes-basic", [f"source.variant={things}", "prompt.strategy=definition"])


def test_a_definition_of_another_content_than_its_name_says_is_refused(things: Path) -> None:
    fields = load_recipe("shapes-cip", [f"source.variant={things}"]).model_dump()
    fields["source"]["definition"]["classes"][0]["name"] = "another"
    with pytest.raises(HfsynError, match="is the class map of things@"):
        load_recipe(fields)
    with pytest.raises(HfsynError, match=r"There is no class map file gone.yaml"):
        load_recipe("shapes-cip", ["source.variant=gone.yaml"])
    with pytest.raises(HfsynError, match=r"no variant 'things\.yaml'"):  # a stranger's text opens no file
        parse_recipe(dump_recipe(load_recipe("shapes-cip")).replace("variant: shapes", "variant: things.yaml"), "text")


def test_a_run_keeps_its_class_map_and_refuses_another(things: Path, tmp_path: Path) -> None:
    run = finished_run(tmp_path, f"source.variant={things}")
    table = pq.read_table(next((run / "data").glob("*.parquet")))
    rows = table.select(["wnid", "class_name", "label", "prompt"]).to_pylist()
    assert {(r["wnid"], r["class_name"], r["label"]) for r in rows} == {
        ("01_star", "01 star", 0),
        (BOX, "Box!", 1),
        ("Round_Thing", "Round Thing", 2),
    }
    assert all(r["prompt"].startswith(f"a photo of {r['class_name']}, ") for r in rows)
    changed(things, lambda f: f["classes"][1].update(name="crate"))
    with pytest.raises(HfsynError, match=r"source.variant is 'things@\w+' there, 'things@\w+' here"):
        finished_run(tmp_path, f"source.variant={things}")


def test_a_card_with_a_block_of_a_class_map_that_is_not_here_keeps_it(things: Path, tmp_path: Path) -> None:
    run = finished_run(tmp_path, f"source.variant={things}")
    manifest = json.loads((run / "manifest.json").read_text())
    card = render_card(facts(manifest, {}), repo_id="alice/things")
    assert "things" in card.split("## Licences")[1]
    stranger = card.replace("things@", "unheard@")  # a digest of a variant that this process has not read
    shapes = json.loads((finished_run(tmp_path, name="shapes") / "manifest.json").read_text())
    both = render_card(facts(shapes, {}, config_name="drawn"), existing=stranger, repo_id="alice/things")
    assert "| `default` | 6 images | 3 | things" in both
    assert "| `drawn` | 30 images | 10 | Shapes" in both


def test_more_than_a_hundred_classes_do_not_fill_the_card(tmp_path: Path) -> None:
    classes = [{"id": f"c{number}", "name": f"class {number}"} for number in range(101)]
    (tmp_path / "many.yaml").write_text(yaml.safe_dump({"name": "many", "splits": {"train": 1}, "classes": classes}))
    (tmp_path / "photos" / "c7").mkdir(parents=True)
    (tmp_path / "photos" / "c7" / "a.png").write_bytes(rows_of(1)[0][1])
    run = finished_run(tmp_path, f"source.variant={tmp_path / 'many.yaml'}", f"source.path={tmp_path / 'photos'}")
    card = (run / "README.md").read_text()
    assert "its 101 classes are in recipe.yaml" in card
    assert "definition:" not in card.split("```yaml")[1].split("```")[0]
    assert "c100" in (run / "recipe.yaml").read_text()


# --- through the Hub -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_hub_set_of_ones_own_becomes_a_published_one_that_a_stranger_verifies_reads_and_builds_again(
    hub: Hub, alice: Client, tmp_path: Path
) -> None:
    names = ["disc", "box", "corner", "star", "plus", "ring", "heart", "moon", "arrow", "glass"]
    rows = [(names[number % 10], image) for number, (_, image) in enumerate(rows_of(40))]
    table = write_table(tmp_path / "t.parquet", rows, names=names).read_bytes()
    hub.add_repo("dataset", "bob/forms", {"data/train-00000-of-00001.parquet": table})

    done = alice.hfsyn("variants", "new", "forms", "--from", "bob/forms", cwd=tmp_path)
    assert (done.code, done.last) == (0, "forms.yaml"), done.err
    build = ["build", "shapes-cip", "--set", "source.variant=forms.yaml", "--limit", "2", "--out", "run"]
    build += [word for setting in LAST for word in ("--set", setting)]
    done = alice.hfsyn(*build, "--num-processes", "1", "--device", "cpu", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "bob/forms" in (tmp_path / "run" / "README.md").read_text()
    assert f"revision: {hub.head('dataset', 'bob/forms')}" in (tmp_path / "run" / "recipe.yaml").read_text()
    (tmp_path / "forms.yaml").unlink()
    done = alice.hfsyn("publish", "run", "alice/forms", "--version", "1.0.0", "-q", cwd=tmp_path)
    assert done.code == 0, done.err

    home = tmp_path / "stranger"
    home.mkdir()
    with Client(hub, home, token="hf_bob_write") as stranger:
        done = stranger.hfsyn("verify", "alice/forms@v1.0.0")
        assert done.code == 0, done.out
        assert done.last.endswith("20 captions, 20 rows")
        done = stranger.hfsyn(
            "build",
            "hf://datasets/alice/forms@v1.0.0",
            "--out",
            home / "again",
            "--device",
            "cpu",
            "--num-processes",
            "1",
        )
        assert done.code == 0, done.err
        for mine in sorted((tmp_path / "run").glob("*/*.parquet")):
            assert (home / "again" / mine.relative_to(tmp_path / "run")).read_bytes() == mine.read_bytes()
        sample = "moon/train-00000-of-00001-000007#0"
        done = stranger.hfsyn("reproduce", "alice/forms@v1.0.0", "--sample-id", sample, "--out", home)
        assert "byte-equal" in done.err, done.err
        read = stranger.python(
            "from hfsyn.judging.sets.image_set import open_images\n"
            "images = open_images('alice/forms@v1.0.0', default=('train',))\n"
            "result = [len(images), images.names]"
        )
        assert read == [20, {class_id(name): name for name in names}]
        names_of = stranger.python(
            "from datasets import load_dataset\n"
            "rows = load_dataset('alice/forms', split='train', revision='v1.0.0')\n"
            "result = rows.features['label'].names"
        )
        assert names_of == names


def test_a_peek_of_a_stream_is_a_contact_sheet(hub: Hub, alice: Client, tmp_path: Path) -> None:
    names = ["b", "a"]
    red = Image.new("RGB", (40, 40), (250, 0, 0))
    out = io.BytesIO()
    red.save(out, "PNG")
    table = write_table(tmp_path / "t.parquet", [("b", out.getvalue()), ("a", b"no image")], names=names).read_bytes()
    hub.add_repo("dataset", "bob/red", {"data/train-00000-of-00001.parquet": table})
    assert alice.hfsyn("variants", "new", "red", "--from", "bob/red", cwd=tmp_path).code == 0
    done = alice.hfsyn("variants", "peek", "red.yaml", cwd=tmp_path)
    assert (done.code, done.last) == (0, "red-train.png"), done.err
    pixels = np.asarray(Image.open(tmp_path / "red-train.png").convert("RGB")).reshape(-1, 3)
    assert (np.abs(pixels.astype(int) - [250, 0, 0]).max(1) < 3).sum() >= 1000


@needs_photographs
def test_tiny_imagenet_streamed_in_its_layout_on_the_hub_gives_the_rows_of_the_folder(
    hub: Hub, alice: Client, tmp_path: Path
) -> None:
    """The repository has 200 label names, two columns, and splits called train and valid, in its own row order."""
    tiny = get_variant("tiny-imagenet")
    assert tiny.hub is not None
    assert tiny.hub_label_names is not None
    files = {}
    expected = {}
    for split, theirs in tiny.hub.splits.items():
        source = open_source("tiny-imagenet", split, path=PHOTOGRAPHS, limit_per_class=5)
        read = list(source.read(list(source.index())))
        rows = sorted(
            ((tiny.hub_label_names[tiny.hub_label_wnids.index(row.wnid)], row.image) for row in read),
            key=lambda row: row[1],
        )
        path = write_table(tmp_path / f"{theirs}.parquet", rows, names=tiny.hub_label_names)
        files[f"data/{theirs}-00000-of-00001.parquet"] = path.read_bytes()
        expected[split] = sorted((row.wnid, decode_rgb(row.image).tobytes()) for row in read)
    hub.add_repo("dataset", tiny.hub.repo_id, files)
    for split, rows in expected.items():
        code = (
            "import hashlib\n"
            "from builders.images.decoding import decode_rgb\nfrom builders.sources import open_source\n"
            f"source = open_source('tiny-imagenet', {split!r})\n"
            "rows = source.read(list(source.index()))\n"
            "result = sorted((r.wnid, hashlib.sha256(decode_rgb(r.image).tobytes()).hexdigest()) for r in rows)\n"
        )
        assert [tuple(row) for row in alice.python(code)] == sorted(
            (wnid, hashlib.sha256(pixels).hexdigest()) for wnid, pixels in rows
        )
    done = alice.hfsyn("variants", "peek", "tiny-imagenet", "-n", "2", "--out", "sheet.png", cwd=tmp_path)
    assert done.code == 0, done.err
    assert Image.open(tmp_path / "sheet.png").size[0] > 100
