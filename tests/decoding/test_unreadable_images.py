"""Images that cannot be read: each file is counted once and named with its reason, wherever it was to be used."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_tables import rows_of, write_table
from fakes import FakeCaptioner, FakeGenerator
from PIL import Image

from builders.sources.new_class_map import new_variant
from hfsyn.captions.caption_stage import caption
from hfsyn.cli import main
from hfsyn.images.generate_stage import generate
from hfsyn.judging.sets.batches import Augmented, Order
from hfsyn.judging.sets.image_set import open_images
from hfsyn.recipes.recipe import load_recipe
from hfsyn.runs.finish import finish
from hfsyn.runs.prepare import prepare

SMALL = (
    "--model",
    "test_resnet",
    "--image-size",
    "32",
    "--batch-size",
    "8",
    "--epochs",
    "3",
    "--device",
    "cpu",
    "--set",
    "optimise.warmup_epochs=1",
    "--num-processes",
    "1",
)
CLASSES = ("n01440764", "n02102040", "n02979186")
BAD = {"0.png": b"", "1.png": b"this is text", "2.png": b"\x89PNG\r\n\x1a\n"}


@pytest.fixture
def hfsyn_says(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process: exit code, stdout, stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code: Any = 0
        try:
            main([str(word) for word in words])
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        return int(code or 0), said.out, said.err

    return run


def photographs(folder: Path, each: int = 8, bad: dict[str, bytes] = BAD, of: tuple[str, ...] = CLASSES) -> Path:
    """Class folders; in the first class, the files of `bad` cannot be read."""
    drawn = iter(rows_of(each * len(of)))
    for wnid in of:
        (folder / wnid).mkdir(parents=True)
        for number in range(each):
            name = f"{number}.png"
            data = bad[name] if wnid == of[0] and name in bad else next(drawn)[1]
            (folder / wnid / name).write_bytes(data)
    return folder


def numbers(text: str) -> list[int]:
    return [int(found) for found in re.findall(r"\d+", text)]


@pytest.mark.parametrize("workers", [0, 2])
def test_train_counts_a_bad_file_once_however_often_it_was_met_and_says_why(
    tmp_path: Path, hfsyn_says: Callable[..., tuple[int, str, str]], workers: int
) -> None:
    data = photographs(tmp_path / "photos")
    (data / CLASSES[1] / "notes.txt").write_text("of the second class")
    code, _, err = hfsyn_says(
        "train", "--train-dataset", data, "--out", tmp_path / "out", "--num-workers", workers, *SMALL
    )
    assert code == 0
    assert "1 (ending .txt)" in err
    result = json.loads((tmp_path / "out" / "results.json").read_text())["training"]
    assert result["undecodable_seen"] == 3
    assert result["undecodable"]["reasons"] == {"empty, or cannot be opened": 1, "not an image": 1, "truncated": 1}
    line = next((line for line in err.splitlines() if "could not be read" in line), "")
    assert line.startswith("3 images of ")
    assert "1 not an image" in line
    assert "n01440764/1.png" in line


def test_evaluate_says_what_it_could_not_read_and_why(
    tmp_path: Path, hfsyn_says: Callable[..., tuple[int, str, str]]
) -> None:
    data = photographs(tmp_path / "photos", bad={})
    bad = photographs(tmp_path / "bad")
    assert hfsyn_says("train", "--train-dataset", data, "--out", tmp_path / "out", *SMALL)[0] == 0
    code, _, err = hfsyn_says(
        "evaluate",
        tmp_path / "out",
        bad,
        "--split",
        "train",
        "--device",
        "cpu",
        "--out",
        tmp_path / "result.json",
        "--num-processes",
        "1",
    )
    assert code == 0, err
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["n"] == 21
    assert found["undecodable"].get("reasons") == {"empty, or cannot be opened": 1, "not an image": 1, "truncated": 1}
    assert "3 images of " in err
    assert "1 truncated" in err


@pytest.mark.parametrize("seed", [0, 1])
def test_what_stands_in_for_a_bad_file_is_of_its_class_and_belongs_to_the_position(tmp_path: Path, seed: int) -> None:
    data = photographs(tmp_path / "photos", bad={f"{n}.png": b"bad" for n in range(2, 8)})
    images = open_images(str(data), "train")
    order = Order((len(images),), (len(images),), seed)
    labels = {wnid: number for number, wnid in enumerate(CLASSES)}

    def shown(positions: Any) -> dict[int, tuple[bytes, int]]:
        items: Any = Augmented([images], order, labels, lambda picture: picture.tobytes(), seed)
        return {position: items[position][:2] for position in positions}

    forwards, backwards = shown(range(48)), shown(reversed(range(48)))
    wanted = {position: labels[images.wnids[order[position][1]]] for position in range(48)}
    assert {position: label for position, (_, label) in forwards.items()} == wanted
    assert forwards == backwards
    stood_in = {forwards[p][0] for p in range(48) if images.images[order[p][1]] == b"bad"}
    assert len(stood_in) == 2, "both readable ones of the class take turns"


def test_a_stream_passes_over_what_it_cannot_read_and_counts_it_once(
    tmp_path: Path, hfsyn_says: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    write_table(tmp_path / "data" / "train.parquet", rows_of(40), bad={1, 2, 17})
    code, _, err = hfsyn_says(
        "train",
        "--train-dataset",
        tmp_path / "data",
        "--out",
        tmp_path / "out",
        "--streaming",
        "--budget",
        "40",
        *SMALL,
    )
    assert code == 0, err
    found = json.loads((tmp_path / "out" / "results.json").read_text())["training"]["undecodable_seen"]
    assert found == 1, "three rows with the same bytes and no name"
    assert "1 not an image" in err


# --- a class of which nothing can be read ---------------------------------------------------------------------------


def built(tmp_path: Path) -> Path:
    """A run over two classes, of one of which no image can be read."""
    data = photographs(tmp_path / "photos", each=3, of=("cats", "dogs"))
    class_map = new_variant("pets", str(data), out=tmp_path / "pets.yaml")
    run = prepare(load_recipe("shapes-cip", [f"source.variant={class_map}"]), tmp_path / "run").folder
    caption(run, captioner=FakeCaptioner(), quiet=True)
    generate(run, generator=FakeGenerator(), quiet=True)  # type: ignore[arg-type]
    return finish(run).folder


def test_a_class_of_which_no_image_can_be_read_is_named_in_status_manifest_and_card(
    tmp_path: Path, hfsyn_says: Callable[..., tuple[int, str, str]]
) -> None:
    run = built(tmp_path)
    code, out, err = hfsyn_says("status", run)
    assert code == 0
    assert "cats" in out + err
    assert "none of its 3 images could be read" in out + err
    card = (run / "README.md").read_text()
    assert "cats" in card
    assert "none of its 3 images could be read" in card
    named = json.loads((run / "manifest.json").read_text()).get("unreadable_classes")
    assert named == [{"wnid": "cats", "name": "cats", "images": 3}]
    assert json.loads(hfsyn_says("status", run, "--json")[1]).get("unreadable_classes") == named


def test_build_ends_with_what_was_left_out_and_what_could_not_be_read(
    tmp_path: Path, hfsyn_says: Callable[..., tuple[int, str, str]]
) -> None:
    data = photographs(tmp_path / "photos", each=3, of=("cats", "dogs"))
    (data / "dogs" / "notes.txt").write_text("walks")
    (data / "birds").mkdir()
    class_map = new_variant("pets", str(data), out=tmp_path / "pets.yaml")
    code, out, err = hfsyn_says(
        "build",
        "shapes-cip",
        "--set",
        f"source.variant={class_map}",
        "--set",
        "generate.steps=1",
        "--out",
        tmp_path / "run",
        "--num-processes",
        "1",
    )
    assert code == 0, err
    assert "the class cats (none of its 3 images could be read)" in err
    assert "ending .txt" in err
    assert "set aside: 1 (caption: not an image)" in err
    assert out.splitlines()[-1] == str(tmp_path / "run")
    status = hfsyn_says("status", tmp_path / "run")[1]
    card = (tmp_path / "run" / "README.md").read_text()
    assert "ending .txt" in status
    assert "ending .txt" in card


def test_large_photographs_are_not_kept_in_memory(tmp_path: Path) -> None:
    """Reduced to what the captioner sees one by one: the pixels of all of them would take 600 MB."""
    photo = io.BytesIO()
    Image.effect_noise((2900, 2000), 20).convert("RGB").save(photo, "JPEG", quality=50)
    for number in range(36):
        path = tmp_path / "photos" / ("cats", "dogs")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo.getvalue())
    class_map = new_variant("pets", str(tmp_path / "photos"), out=tmp_path / "pets.yaml")
    run = prepare(load_recipe("shapes-cip", [f"source.variant={class_map}"]), tmp_path / "run").folder
    first = prepare(load_recipe("shapes-cip", ["source.limit_per_class=1"]), tmp_path / "first").folder
    caption(first, quiet=True)  # the libraries and the model take their memory
    status = Path("/proc/self/status")
    before = _kilobytes(status, "VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins here
    caption(run, quiet=True)
    assert (_kilobytes(status, "VmHWM") - before) / 1000 < 350
    assert np.isfinite(before)


def _kilobytes(status: Path, name: str) -> int:
    return int(status.read_text().split(f"{name}:")[1].split()[0])
