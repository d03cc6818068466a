"""scripts/bench_gpu.py on tiny models: every arm writes its files and does the work that it should; figures add up."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT
from PIL import Image

sys.path.insert(0, str(ROOT / "scripts"))

import bench_gpu
from benchmarks import image_arms, measuring, needs
from benchmarks.budget import Budget
from full_size_models import _UNET_15, _VAE

SCRIPT = ROOT / "scripts" / "bench_gpu.py"


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path) -> None:
    done = bench(tmp_path, "--steps", "50")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.count("\n") == 1
    assert "no NVIDIA GPU" in done.stderr
    assert "--tiny" in done.stderr


@pytest.mark.slow
def test_all_arms_run_and_write_their_files(tmp_path: Path) -> None:
    done = bench(
        tmp_path,
        "--tiny",
        "--steps",
        "5",
        "--batch",
        "2",
        "--caption-batch",
        "4",
        "--rounds",
        "2",
        "--seconds",
        "0.1",
        "--window",
        "0.1",
        "--folder",
        "kept",
        "--out",
        "figures.json",
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures == json.loads((tmp_path / "figures.json").read_text())
    assert figures["tiny"]
    assert not figures["holds"]
    (images,) = figures["images"]
    captions = figures["captions"]

    # The work: five calls an image and two rows each, in every arm; so has the text encoder.
    arms = images["arms"]
    assert list(arms) == ["official-style", "plain", "ours"]
    assert images["unet_rows_per_image"] == 10
    for arm in arms.values():
        assert arm["rows_per_image"]["unet"] == 10
        assert arm["rows_per_image"]["vae"] == 1
        assert arm["images_per_second"] > 0
        assert arm["share_of_ceiling"] > 0
        assert 0 < arm["busy"] <= 1
    assert [arms[name]["calls_per_image"]["unet"] for name in arms] == [5, 2.5, 2.5]
    assert [arms[name]["rows_per_image"]["text_encoder"] for name in arms] == [2, 2, 2]
    for arm in captions["arms"].values():
        assert arm["calls_per_image"] == {"vision": 1 / 4, "text": 15 / 4}
        assert arm["rows_per_image"] == {"vision": 1, "text": 15}

    # The figures: each ratio has a pair a round, and each aim its word.
    assert set(images["ratios"]) == {"ours / official-style", "ours / plain", "ours / again"}
    assert figures["left_out"] == []
    assert set(captions["ratios"]) == {"ours / official-style", "ours / again"}
    for found in (*images["ratios"].values(), *captions["ratios"].values()):
        assert found["low"] <= found["ratio"] <= found["high"]
        assert found["pairs"] == 2
    assert [aim["what"] for aim in images["aims"]] == [
        "ours / official-style",
        "ours / plain",
        "share of the ceiling",
        "device busy",
        "PSNR, dB",
    ]
    assert [aim["aim"] for aim in images["aims"]] == [4.0, 1.4, 0.45, 0.97, 40.0]
    assert images["psnr_db"] >= images["psnr_db_lowest"] > 35
    assert [aim["aim"] for aim in captions["aims"]] == [3.0]
    for aim in (*images["aims"], *captions["aims"]):
        word = "ok" if aim["ok"] else "short" if aim["value"] < aim["aim"] else "void"
        said = f"{aim['what']} {aim['value']:.4g}, aim {aim['aim']:g}: {word}"
        assert said in done.stdout

    # The files. Each turn's are there and open; the last turn was the one that is looked at.
    (run,) = (tmp_path / "kept").glob("run-*")
    for name, tables in (("official-style", 75), ("plain", 96)):
        turns = sorted((run / "steps-5" / name).iterdir())
        pictures = sorted(turns[-1].iterdir())
        assert len(pictures) == arms[name]["images_a_turn"]
        for path in pictures:
            with Image.open(path) as picture:
                picture.load()
                assert picture.size == (64, 64)
                assert picture.quantization == quantization(tables)
    rows = [
        row
        for path in sorted((run / "steps-5").glob("ours-*/data/*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
    assert len(rows) >= 5 * arms["ours"]["images_a_turn"]
    assert len({row["prompt"] for row in rows[-4:]}) == 4
    for row in rows:
        assert Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB").size == (64, 64)
    lines = sorted((run / "captions" / "official-style").iterdir())[-1].read_text().splitlines()
    assert len(lines) == captions["arms"]["official-style"]["images_a_turn"]
    assert all(lines)
    texts = [
        row["caption"]
        for path in (run / "captions").glob("ours-*/captions/*.parquet")
        for row in pq.read_table(path).to_pylist()
    ]
    assert len(texts) >= 5 * captions["arms"]["ours"]["images_a_turn"]
    assert all(texts)


def quantization(quality: int) -> dict[int, list[int]]:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", quality=quality, **({} if quality == 75 else {"subsampling": 0}))
    return Image.open(buffer).quantization


def test_the_cost_of_an_image_is_counted_on_the_true_configuration(tmp_path: Path) -> None:
    """The known numbers: 803.3 GFLOP a UNet row, 2514.5 a decoding, 13.3 a prompt; PNDM makes 51 calls of 50 steps."""
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig

    with torch.device("meta"):
        UNet2DConditionModel(**_UNET_15).save_config(tmp_path / "unet")
        AutoencoderKL(**_VAE).save_config(tmp_path / "vae")
    CLIPTextConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=77,
    ).save_pretrained(tmp_path / "text_encoder")
    PNDMScheduler(skip_prk_steps=True, steps_offset=1, beta_schedule="scaled_linear").save_config(
        tmp_path / "scheduler"
    )
    for steps, rows in ((50, 102), (20, 40), (4, 4)):
        flop, counted = image_arms.flops_per_image(tmp_path, image_arms.setting_of(steps))
        assert counted == rows
        assert flop / 1e9 == pytest.approx(rows * 803.273 + 2514.519 + 13.2985, rel=1e-5)


class Part:
    """In place of what measures: turns that are done, and too little memory where it is asked for that."""

    def __init__(self, full: str = "") -> None:
        turns = [measuring.Turn(8, 1.0, 1.0)]
        self.found = measuring.Comparison(
            {"ours": turns, "again": turns}, {"ours": measuring.Look(turns[0], 0.99, {}, {})}
        )
        self.race, self.ours, self.arms, self._full = self, self, {"ours": self}, full
        self.exactness: dict[str, float] = {}

    def warm(self) -> None:
        if self._full == "warm":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nSee more.")

    def run(self, budget: Budget, least: int) -> None:
        pass

    def look(self, name: str) -> None:
        pass

    def psnr(self) -> dict[str, float]:
        if self._full == "psnr":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return {"psnr_db": 50.0, "psnr_db_lowest": 49.0}

    def exact_seconds(self) -> float:
        return 1.0

    def figures(self) -> dict[str, Any]:
        said = {"arms": self.found.figures(), "ratios": self.found.ratios(), "void": False, "aims": []}
        return {"steps": 1, **said, **self.exactness}


def in_place(monkeypatch: pytest.MonkeyPatch, parts: dict[int, Part]) -> None:
    monkeypatch.setattr(bench_gpu, "Images", lambda model, folder, steps, *more: parts[steps])
    monkeypatch.setattr(bench_gpu, "Captions", lambda *given: Part())
    monkeypatch.setattr(bench_gpu, "matmul_ceiling", lambda device: (1e12, "nothing"))
    monkeypatch.setattr(bench_gpu, "save_stable_diffusion", lambda *given, **more: None)
    monkeypatch.setattr(bench_gpu, "save_blip", lambda *given, **more: None)


def options_of(monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["bench_gpu.py", "--device", "cpu", "--arms", "ours", *words])
    return bench_gpu.parse_options()


def test_a_part_without_memory_is_left_out_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The images of 50 steps, and of 4 steps the comparison with float32; all else is told."""
    in_place(monkeypatch, {50: Part("warm"), 4: Part("psnr")})
    out = tmp_path / "figures.json"
    options = options_of(monkeypatch, "--steps", "50,4", "--out", str(out))
    figures = bench_gpu.Bench(tmp_path, options, Budget(None)).run()
    assert figures["left_out"] == ["images at 50 steps", "PSNR at 4 steps"]
    assert figures["captions"]["arms"]["ours"]["images_per_second"] == 8
    assert not figures["holds"], "what was left out was not found to hold"
    assert json.loads(out.read_text()) == figures
    text = bench_gpu.table(figures)
    assert "LEFT OUT: images at 50 steps, PSNR at 4 steps" in text
    assert "| captions | ours | 8.00 |" in text
    assert "images at 50 steps: left out, as memory ran out (CUDA out of memory" in capsys.readouterr().err


def test_the_most_telling_figures_come_first_and_what_the_time_is_too_short_for_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("benchmarks.budget.time.monotonic", lambda: clock[0])
    parts = {steps: Part() for steps in (50, 20, 4)}
    done: list[str] = []

    def spend(what: str, seconds: float) -> Any:
        def work(*given: Any) -> dict[str, float]:
            done.append(what)
            clock[0] += seconds
            return {"psnr_db": 50.0}

        return work

    for steps, part in parts.items():
        monkeypatch.setattr(part, "run", spend(f"race {steps}", 50))
        monkeypatch.setattr(part, "psnr", spend(f"psnr {steps}", 10))
        monkeypatch.setattr(part, "exact_seconds", lambda: 10.0)
    in_place(monkeypatch, parts)
    figures = bench_gpu.Bench(tmp_path, options_of(monkeypatch, "--minutes", "2.5"), Budget(2.5, began=1000.0)).run()
    assert done == ["race 50", "race 20", "psnr 20", "psnr 50", "race 4"]
    assert figures["left_out"] == ["device busy at 4 steps", "PSNR at 4 steps", LAST]


LAST = "device busy at captions"


def test_rounds_end_where_the_budget_has_no_time_for_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("benchmarks.budget.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("benchmarks.measuring.time.perf_counter", lambda: clock[0])

    class Slow(Arm):
        def work(self, images: int) -> int:
            clock[0] += images
            return super().work(images)

    arm = Slow("mine", 1)
    told: list[int] = []
    found = measuring.Race(
        [arm], rounds=5, seconds=1e-9, window=1, device="cpu", say=lambda line: None, told=lambda: told.append(1)
    )
    found.warm()
    found.run(Budget(5 / 60, began=clock[0]), least=1)  # a round takes two seconds
    assert [len(turns) for turns in found.found.turns.values()] == [2, 2]
    assert len(told) == 4


@pytest.mark.parametrize(
    "after", ["the first turn", *(pytest.param(one, marks=pytest.mark.slow) for one in ("the second", "a look"))]
)
def test_what_a_killed_run_leaves_behind_is_whole(tmp_path: Path, after: str) -> None:
    """Killed by SIGKILL as soon as the figures say so much; they are one whole JSON object."""
    wanted = {"the first turn": '"images_per_second"', "the second": '"plain"', "a look": '"busy"'}[after]
    out = tmp_path / "figures.json"
    small = ("--tiny", "--steps", "2", "--batch", "1", "--rounds", "1", "--seconds", "0.01", "--window", "0.01")
    words = [sys.executable, str(SCRIPT), *small, "--parts", "images", "--arms", "plain,ours", "--out", str(out)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as script:
        until = time.monotonic() + 200
        while not (out.exists() and wanted in out.read_text()):
            assert script.poll() is None, script.stdout.read() if script.stdout else ""
            assert time.monotonic() < until
            time.sleep(0.02)
        script.kill()
    figures = json.loads(out.read_text())
    assert figures["left_out"]
    assert figures["images"][0]["arms"]


@pytest.mark.slow
def test_a_budget_ends_the_script_whatever_it_is_at(tmp_path: Path) -> None:
    began = time.monotonic()
    done = bench(tmp_path, "--tiny", "--minutes", "0.5", "--seconds", "600", "--out", "figures.json")
    assert time.monotonic() - began < 32, done.stderr
    assert done.returncode == 4
    figures = json.loads(done.stdout.splitlines()[-1])
    assert "captions" in figures["left_out"]
    assert list(tmp_path.iterdir()) == [tmp_path / "figures.json"] or not list(tmp_path.iterdir())


class Arm:
    """Work of no time that tells what it was asked for."""

    def __init__(self, name: str, unit: int, short: int = 0) -> None:
        self.name, self.unit, self.asked, self.cleared, self.short = name, unit, [], 0, short
        self.prepared: list[int] = []
        self.seen = torch.nn.Identity()

    def prepare(self, images: int) -> None:
        self.prepared.append(images)
        self.asked.append([])

    def work(self, images: int) -> int:
        self.asked[-1].append(images)
        self.seen(torch.zeros(images, 1))
        return images - self.short

    def clear(self) -> None:
        self.cleared += 1

    def watched(self) -> list[measuring.Watched]:
        return [measuring.module("seen", self.seen)]


def test_turns_go_forth_and_back_and_the_last_arm_has_a_control() -> None:
    arms = [Arm("theirs", 1), Arm("mine", 6)]
    race = measuring.Race(arms, rounds=3, seconds=1e-9, window=1e-9, device="cpu", say=lambda line: None)
    race.warm()
    race.run(Budget(None))
    for arm in arms:
        race.look(arm.name)
    found = race.found
    assert measuring.order(["theirs", "mine"], 3) == [
        ["theirs", "mine", "again"],
        ["again", "mine", "theirs"],
        ["theirs", "mine", "again"],
    ]
    assert {name: len(turns) for name, turns in found.turns.items()} == {"theirs": 3, "mine": 3, "again": 3}
    # Warmed with two units, then a turn a round (two of the judged arm), then the look.
    assert [len(part) for part in arms[0].asked] == [2, 3 + 1]
    assert [len(part) for part in arms[1].asked] == [2, 2 * 3 + 1]
    assert [sum(part) for part in arms[1].asked] == arms[1].prepared
    # As many turns are prepared for the other arm: a larger run folder costs more a turn.
    assert arms[0].prepared == [2, 2 * 3 + 1]
    for arm in arms:
        assert all(count % arm.unit == 0 for part in arm.asked for count in part)
        assert arm.cleared == sum(map(len, arm.asked))
    assert found.looks["mine"].rows == {"seen": 1.0}
    assert found.judged == "mine"
    assert set(found.ratios()) == {"mine / theirs", "mine / again"}


def test_a_round_that_was_cut_off_gives_ratios_of_the_turns_that_are_there() -> None:
    turn = measuring.Turn(100, 10.0, 1.0)
    found = measuring.Comparison({"plain": [turn, turn], "ours": [turn], "again": []})
    assert set(found.ratios()) == {"ours / plain"}
    assert found.ratios()["ours / plain"]["pairs"] == 1
    assert found.void, "nothing says how much the ratio is worth"
    assert list(found.figures()) == ["plain", "ours"]


def test_a_turn_that_writes_too_little_is_no_turn() -> None:
    lazy = Arm("lazy", 1, short=1)
    lazy.prepare(4)
    with pytest.raises(RuntimeError, match="lazy wrote 3 of 4"):
        measuring.timed(lazy, 4, "cpu")


@pytest.mark.parametrize(("control", "void"), [(1.0, False), (0.96, True), (1.04, True)])
def test_a_run_in_which_ours_is_unlike_itself_is_void(control: float, void: bool) -> None:
    def turn(rate: float) -> measuring.Turn:
        return measuring.Turn(100, 100 / rate, 1.0)

    look = measuring.Look(turn(8), 0.5, {}, {})
    turns = {"plain": [turn(4), turn(5)], "ours": [turn(8), turn(8)], "again": [turn(8 / control), turn(8 / control)]}
    found = measuring.Comparison(turns, {"plain": look, "ours": look})
    assert found.void is void
    assert found.ratios()["ours / plain"] == {"ratio": 1.8, "low": 1.6, "high": 2.0, "pairs": 2}
    assert found.figures()["plain"]["images_per_second"] == 4.5


def test_in_a_void_run_no_time_holds() -> None:
    aims = {"ours / plain": (1.6, 1.4), "device busy": (0.9, 0.97), "PSNR, dB": (41.0, 40.0)}
    assert [aim["ok"] for aim in bench_gpu.judged(aims, void=False)] == [True, False, True]
    assert [aim["ok"] for aim in bench_gpu.judged(aims, void=True)] == [False, False, True]


def test_calls_of_a_compiled_network_are_counted_from_outside_and_left_as_they_were() -> None:
    network = torch.nn.Linear(2, 2)
    network.compile(backend="eager")
    compiled = network._compiled_call_impl
    plain = torch.nn.Linear(2, 2)
    calls = measuring.Calls()
    with calls.watching([measuring.module("compiled", network), measuring.module("plain", plain)]):
        for rows in (3, 3, 4):
            network(torch.zeros(rows, 2))
            plain(torch.zeros(rows, 2))
    plain(torch.zeros(1, 2))
    assert calls.calls == {"compiled": 3, "plain": 3}
    assert calls.rows == {"compiled": 10, "plain": 10}
    assert network._compiled_call_impl is compiled
    assert "_compiled_call_impl" not in vars(plain)


def test_only_kernels_count_as_work_and_overlaps_count_once() -> None:
    def event(name: str, begin: float, end: float, *, cuda: bool = True, named: bool = False) -> SimpleNamespace:
        kind = torch.autograd.DeviceType.CUDA if cuda else torch.autograd.DeviceType.CPU
        return SimpleNamespace(
            name=lambda: name,
            device_type=lambda: kind,
            is_user_annotation=lambda: named,
            start_ns=lambda: int(begin * 1e9),
            end_ns=lambda: int(end * 1e9),
        )

    events = [
        event("gemm", 5, 6),
        event("conv", 0, 2),
        event("gemm", 1, 3),
        event("inside", 1.2, 1.4),
        event("Memcpy DtoH (Device -> Pinned)", 3, 4),
        event("Memset (Device)", 4, 5),
        event("launch", 0, 9, cuda=False),
        event("ProfilerStep", 0, 9, named=True),
    ]
    costs: Counter[str] = Counter()
    spans = measuring.kernel_spans(events, costs)
    assert measuring.covered(spans) == pytest.approx(4)
    assert costs.most_common(1) == [("gemm", pytest.approx(3.0))]
    assert measuring.covered([]) == 0


def test_the_profilers_own_events_are_read_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a CPU have all that is asked of those of a GPU, whose names this torch must not have changed."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(20):
            torch.zeros(4) + 1
    monkeypatch.setattr(type(profile), "events", lambda self: pytest.fail("the slow way"))
    events = list(measuring.raw_events(profile))
    assert len(events) >= 20
    assert measuring.kernel_spans(events) == []
    monkeypatch.setattr(torch.autograd.DeviceType, "CPU", torch.autograd.DeviceType.CUDA)
    spans = measuring.kernel_spans(events)
    assert len(spans) == len(events)
    assert 0 < measuring.covered(spans) < 10


def test_what_an_image_lacks_is_what_its_own_packages_do_not_bring() -> None:
    found = needs.missing()
    assert {"datasets", "diffusers", "pydantic", "pydantic-core", "ruamel-yaml", "dill", "multiprocess"} <= set(found)
    assert not {"torch", "transformers", "numpy", "hfsyn", "pytest"} & set(found)
    text = needs.told()
    megabytes = int(re.search(r"packages, about (\d+) MB", text)[1])
    assert 5 <= megabytes < 20
    assert f"datasets=={found['datasets'].version}" in text.splitlines()[-1]
