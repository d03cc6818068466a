"""The whole path with the small real models, in real processes: one result however many work on it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import PHOTOGRAPHS, ROOT, command, needs_photographs, parquet_bytes
from datasets import ClassLabel, load_dataset
from PIL import Image

from builders.captioned import Captioned
from builders.images.decoding import decode_rgb
from builders.runs import layout
from builders.sources import open_source
from builders.synthetic import Synthetic
from builders.variants import get_variant

SMALL = (
    "--limit",
    "2",
    "--set",
    "store.shard_rows=5",
    "--set",
    "generate.batch_size=4",
    "--set",
    "caption.batch_size=4",
    "--set",
    "generate.steps=4",
)
COLUMNS = ["image", "label", "wnid", "class_name", "prompt", "caption", "seed", "sample_id", "source_id"]


def hfsyn(*arguments: str | Path, prefix: tuple[str, ...] = (), check: bool = True) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own, or under a launcher given as `prefix`."""
    if prefix:
        around = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        words = [sys.executable, *prefix, *map(str, arguments)]
        done = subprocess.run(words, env=around, capture_output=True, text=True, timeout=280, check=False)
    else:
        done = command(*arguments, cwd=ROOT, CUDA_VISIBLE_DEVICES="")
    assert not check or done.returncode == 0, done.stderr
    return done


def workers_of(run: Path) -> Counter[str]:
    sidecars = [layout.load_sidecar(path) for path in sorted(run.glob("sidecars/*/*.json"))]
    return Counter(sidecar.worker for sidecar in sidecars)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by one process."""
    run = tmp_path_factory.mktemp("reference") / "run"
    done = hfsyn("build", "shapes-cip", *SMALL, "--num-processes", "1", "--out", run)
    assert done.stdout == f"{run}\n"
    return run


def test_a_finished_run_loads_with_the_promised_columns_in_both_ways(reference: Path) -> None:
    rows = load_dataset(str(reference), split="train")
    streamed = list(load_dataset(str(reference), split="train", streaming=True))
    assert rows.column_names[: len(COLUMNS)] == COLUMNS
    assert isinstance(rows.features["label"], ClassLabel)
    assert rows.features["label"].names == [info.name for info in get_variant("shapes").classes]
    assert len(rows) == len(streamed) == 20
    for a, b in zip(rows, streamed, strict=True):
        assert {k: v for k, v in a.items() if k != "image"} == {k: v for k, v in b.items() if k != "image"}
        assert a["image"].size == (32, 32)
        assert a["image"].tobytes() == b["image"].tobytes()
        assert rows.features["label"].int2str(a["label"]) == a["class_name"]
    assert Counter(rows["wnid"]) == {info.wnid: 2 for info in get_variant("shapes").classes}
    assert not list(reference.rglob(".*.tmp"))


def test_prompts_and_seeds_follow_the_published_rules(reference: Path) -> None:
    """Recomputed from the text of the rules, without calling the code that made them."""
    recipe_seed = yaml.safe_load((reference / "recipe.yaml").read_text())["seed"]
    names = {info.wnid: info.name for info in get_variant("shapes").classes}
    for row in load_dataset(str(reference), split="train"):
        assert row["prompt"] == f"a photo of {names[row['wnid']]}, {row['caption']}"
        text = f"hfsyn-seed-v1\n{recipe_seed}\n{row['sample_id']}\n"
        assert row["retries"] == 0
        assert row["seed"] == int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
        assert row["sample_id"] == row["source_id"] + "#0"


def test_the_builders_read_the_run_too(reference: Path) -> None:
    rows = list(load_dataset(str(reference), split="train", streaming=True))
    own = list(Synthetic(run=str(reference)).as_streaming_dataset("train"))
    assert [row["sample_id"] for row in own] == [row["sample_id"] for row in rows]
    captions = {row["source_id"]: row["caption"] for row in rows}
    captioned = list(Captioned(run=str(reference)).as_streaming_dataset("train"))
    assert {row["source_id"]: row["caption"] for row in captioned} == captions
    source = open_source("shapes", "train", limit_per_class=2)
    images = {row.source_id: decode_rgb(row.image) for row in source.read(list(source.index()))}
    assert all(row["image"].tobytes() == images[row["source_id"]].tobytes() for row in captioned)


@pytest.mark.slow
def test_two_processes_that_accelerate_starts_make_the_same_bytes(reference: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    hfsyn("build", "shapes-cip", *SMALL, "--num-processes", "2", "--device", "cpu", "--out", run)
    assert parquet_bytes(run) == parquet_bytes(reference)
    assert (run / "manifest.json").read_bytes() == (reference / "manifest.json").read_bytes()
    assert {worker.split(" of ")[1] for worker in workers_of(run)} == {"2"}


@pytest.mark.slow
def test_three_processes_under_torchrun_make_the_same_bytes(reference: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3", "-m", "hfsyn")
    done = hfsyn("build", "shapes-cip", *SMALL, "--device", "cpu", "--out", run, prefix=torchrun)
    assert done.stdout == f"{run}\n"
    assert parquet_bytes(run) == parquet_bytes(reference)
    assert {worker.split(" of ")[1] for worker in workers_of(run)} == {"3"}


@pytest.mark.slow
def test_halves_made_in_separate_processes_make_the_same_bytes(reference: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    # Stops after the first half, says what is missing, and exits with the code of a part.
    done = hfsyn("build", "shapes-cip", *SMALL, "--num-processes", "1", "--shards", ":2", "--out", run, check=False)
    assert done.returncode == 4
    assert "2 of 4 generate shards" in done.stderr
    hfsyn("generate", run, "--num-processes", "1", "--shards", "2:")
    assert hfsyn("finish", run).stdout == f"{run}\n"
    assert parquet_bytes(run) == parquet_bytes(reference)


def test_a_finished_run_started_again_makes_nothing_and_returns_at_once(reference: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in reference.rglob("*.*")}
    code = f"""
import sys, time
started = time.monotonic()
from hfsyn.cli import main
try:
    main(["build", "shapes-cip", *{SMALL!r}, "--out", {str(reference)!r}])
except SystemExit as stop:
    print(stop.code, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == [str(reference), "0 False"]
    assert {path: path.stat().st_mtime_ns for path in reference.rglob("*.*")} == before


@pytest.mark.slow
def test_another_batch_size_is_another_recipe_with_the_same_seeds_and_nearly_the_same_pixels(
    reference: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    sized = [*SMALL[:5], "generate.batch_size=3", *SMALL[6:]]
    hfsyn("build", "shapes-cip", *sized, "--num-processes", "1", "--out", run)
    done = hfsyn("build", "shapes-cip", *sized, "--out", reference, check=False)
    assert done.returncode == 2
    assert "generate.batch_size is 4 there, 3 here" in done.stderr
    for a, b in zip(load_dataset(str(reference), split="train"), load_dataset(str(run), split="train"), strict=True):
        assert (a["sample_id"], a["seed"], a["prompt"]) == (b["sample_id"], b["seed"], b["prompt"])
        difference = np.asarray(a["image"]).astype(int) - np.asarray(b["image"]).astype(int)
        assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(
    "stage", [pytest.param("captions", marks=pytest.mark.slow), pytest.param("data", marks=pytest.mark.slow)]
)
def test_a_killed_run_continues_with_other_processes_to_the_same_bytes(
    reference: Path, tmp_path: Path, stage: str
) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "hfsyn", "build", "shapes-cip", *SMALL, "--out", str(run), "--num-processes", "2"]
    parent = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not list(run.glob(f"sidecars/{stage}/*.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while _at_work(run) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _at_work(run), "processes outlived their killed parent"
    assert 0 < len(list(run.glob(f"sidecars/{stage}/*.json"))) < 4
    hfsyn("build", "shapes-cip", *SMALL, "--out", run, "--num-processes", "1")
    assert parquet_bytes(run) == parquet_bytes(reference)


def _at_work(run: Path) -> list[str]:
    """Processes whose command line names this run folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(run).encode() in words:
            found.append(path.parent.name)
    return found


def test_ctrl_c_keeps_the_work_and_exits_with_130(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "hfsyn", "build", "shapes-cip", *SMALL, "--out", str(run), "--num-processes", "1"]
    command += ["--set", "generate.steps=500"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (run / layout.PLAN).exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert "kept" in err
    assert len(list(layout.finished_shards(run / "captions"))) == 4


@pytest.mark.slow
@needs_photographs
def test_real_photographs_in_a_folder_are_captioned_and_answered(tmp_path: Path) -> None:
    run = tmp_path / "run"
    hfsyn(
        "build",
        "tiny-imagenet-cip",
        "--set",
        f"source.path={PHOTOGRAPHS}",
        "--set",
        "caption.model=builtin",
        "--set",
        "generate.model=builtin",
        "--limit",
        "2",
        "--set",
        "generate.steps=2",
        "--num-processes",
        "2",
        "--device",
        "cpu",
        "--out",
        run,
    )
    rows = list(load_dataset(str(run), split="train"))
    wnids = (PHOTOGRAPHS / "wnids.txt").read_text().split()
    assert Counter(row["wnid"] for row in rows) == dict.fromkeys(wnids, 2)
    captions = {
        row["source_id"]: row for row in pq.read_table(sorted((run / "captions").glob("*.parquet"))).to_pylist()
    }
    for row in rows:
        wnid, name = row["source_id"].split("/")
        assert row["wnid"] == wnid
        photograph = PHOTOGRAPHS / "train" / wnid / "images" / name
        known = captions[row["source_id"]]
        assert known["source_sha256"] == hashlib.sha256(photograph.read_bytes()).hexdigest()
        assert row["caption"] == known["caption"]
    from hfsyn.captions.captioner import TransformersCaptioner
    from hfsyn.recipes.recipe import load_recipe

    captioner = TransformersCaptioner(load_recipe("tiny-imagenet-cip", ["caption.model=builtin"]).caption, "cpu")  # type: ignore[arg-type]
    for row in rows[:5]:
        wnid, name = row["source_id"].split("/")
        image = decode_rgb((PHOTOGRAPHS / "train" / wnid / "images" / name).read_bytes())
        assert captioner.caption([image] * 32)[0] == row["caption"]


def salted(folder: Path) -> dict[str, str]:
    """Two classes of Tiny ImageNet with sound and unsound files; returns the unsound ones with their reasons."""
    rng = np.random.default_rng(0)

    def picture(mode: str = "RGB", size: tuple[int, int] = (48, 32)) -> Image.Image:
        return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)

    def jpeg(**options: object) -> bytes:
        out = io.BytesIO()
        picture().save(out, "JPEG", **options)
        return out.getvalue()

    good, bad = folder / "n01443537", folder / "n01629819"
    good.mkdir(parents=True)
    bad.mkdir()
    for i in range(3):
        picture().save(good / f"good{i}.JPEG")
        picture().save(bad / f"good{i}.JPEG")
    (bad / "zero.JPEG").write_bytes(b"")
    (bad / "truncated.JPEG").write_bytes(jpeg()[:700])
    (bad / "text.JPEG").write_text("this is not an image")
    picture("CMYK").save(good / "cmyk.JPEG", "JPEG")
    Image.fromarray(rng.integers(0, 65536, (32, 48), dtype=np.uint16)).save(good / "grey16.png")
    picture().save(good / "really.JPEG", "PNG")
    broken = jpeg(exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\xff\xff\xff\xff\xff")
    (good / "broken_exif.JPEG").write_bytes(broken)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(good / "rotated.JPEG", exif=exif)
    picture("RGBA").save(good / "alpha.png")
    picture(size=(1, 1)).save(good / "pixel.png")
    return {"zero.JPEG": "empty", "truncated.JPEG": "truncated", "text.JPEG": "not an image"}


def test_a_salted_folder_is_used_as_far_as_it_can_be_read_and_the_counts_add_up(tmp_path: Path) -> None:
    unsound = salted(tmp_path / "salted" / "train")
    run = tmp_path / "run"
    done = hfsyn(
        "build",
        "tiny-imagenet-cip",
        "--set",
        f"source.path={tmp_path / 'salted'}",
        "--set",
        "caption.model=builtin",
        "--set",
        "generate.model=builtin",
        "--set",
        "generate.steps=2",
        "--set",
        "generate.dtype=float32",
        "--num-processes",
        "1",
        "--out",
        run,
    )
    rejected = {
        line["id"]: line["reason"] for line in map(json.loads, (run / "rejected.jsonl").read_text().splitlines())
    }
    assert set(rejected) == {f"n01629819/{name}" for name in unsound}
    for name, word in unsound.items():
        assert word in rejected[f"n01629819/{name}"]
    manifest = json.loads((run / "manifest.json").read_text())
    assert (manifest["source_rows"], manifest["readable_rows"], manifest["rows"]) == (16, 13, 13)
    assert "set aside" in done.stderr
    sizes = {
        row["source_id"]: (row["width"], row["height"])
        for row in pq.read_table(next((run / "captions").glob("*.parquet"))).to_pylist()
    }
    assert sizes["n01443537/rotated.JPEG"] == (32, 48)
    assert sizes["n01443537/pixel.png"] == (1, 1)
