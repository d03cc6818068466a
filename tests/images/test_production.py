"""Shards on their way: what is made does not depend on how it is overlapped, and memory that runs out loses nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from conftest import parquet_bytes, run_folder
from fakes import FakeCaptioner, FakeGenerator
from tiny_models import sdxl

import hfsyn.images.latents
from builders.runs.layout import load_sidecar, sidecar_of
from hfsyn.captions.caption_stage import caption
from hfsyn.checks.reproduce import batch_size_of
from hfsyn.errors import HfsynError
from hfsyn.images.generate_stage import generate
from hfsyn.images.generator import DiffusersGenerator, Generated
from hfsyn.images.tuning import BatchSize, Tuning, is_out_of_memory, kernels, largest_batch, tune, tuning_of
from hfsyn.recipes.recipe import load_recipe
from hfsyn.rules import seed_of
from hfsyn.runs.finish import finish
from hfsyn.runs.options import WorkOptions
from hfsyn.runs.run import load_run
from hfsyn.runs.stage import write_plan

# 70 images in 7 shards of 10, in batches of 4: the last of a shard has two.
SMALL = ("source.limit_per_class=7", "store.shard_rows=10", "generate.batch_size=4", "caption.batch_size=8")


class Full(FakeGenerator):
    """Runs out of memory for more than `most` images at once, after `first` batches that went well."""

    def __init__(self, most: int, first: int = 0, error: type[Exception] = torch.OutOfMemoryError) -> None:
        super().__init__()
        self.most, self.first, self.error = most, first, error
        self.sizes: list[int] = []

    def start(self, prompts: Sequence[str], seeds: Sequence[int], size: int) -> Callable[[], list[Generated]]:
        if size > self.most and len(self.sizes) >= self.first:
            raise self.error(f"CUDA out of memory. Tried to allocate {size}.00 GiB")
        self.sizes.append(size)
        return super().start(prompts, seeds, size)


class Settling(FakeGenerator):
    """Its batches are drawn when they are waited for, as on a device; remembers which thread waited, and when."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[str] = set()
        self.at_once = self.most_at_once = 0

    def start(self, prompts: Sequence[str], seeds: Sequence[int], size: int) -> Callable[[], list[Generated]]:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)

        def settle() -> list[Generated]:
            self.threads.add(threading.current_thread().name)
            time.sleep(0.005)
            self.at_once -= 1
            return self.generate(prompts, seeds)

        return settle


def captioned(tmp_path: Path, *overrides: str, name: str = "run") -> Path:
    run = run_folder(tmp_path, *SMALL, *overrides, name=name)
    caption(run, captioner=FakeCaptioner(), quiet=True)
    return run


def grids(run: Path) -> list[tuple[tuple[int, int, int], ...]]:
    return [load_sidecar(sidecar_of(shard)).grid for shard in load_run(run).data_shards()]


def test_batches_that_settle_later_and_elsewhere_make_the_same_bytes(tmp_path: Path) -> None:
    plain, late = captioned(tmp_path, name="plain"), captioned(tmp_path, name="late")
    generate(plain, generator=FakeGenerator(), quiet=True)
    device = Settling()
    generate(late, generator=device, quiet=True)
    assert parquet_bytes(late) == parquet_bytes(plain)
    assert device.most_at_once == 2, "the device has one batch at work and one behind it"
    assert all(name.startswith("settle") for name in device.threads)


def test_a_finished_shard_is_written_while_the_next_one_is_drawn(tmp_path: Path) -> None:
    """It must not wait for the end of the other: a process that dies would lose both."""
    run = captioned(tmp_path, "store.shard_rows=20")
    write_plan(load_run(run))
    shards = load_run(run).data_shards()
    seen: list[int] = []

    class Watching(FakeGenerator):
        def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Generated]:
            time.sleep(0.05)
            seen.append(sum(sidecar_of(shard).exists() for shard in shards))
            return super().generate(prompts, seeds)

    generate(run, generator=Watching(), quiet=True)
    # Five batches a shard: before the second shard's last batch the first shard stands.
    assert seen[9] >= 1


def test_retries_are_drawn_among_other_shards_and_change_no_byte(tmp_path: Path) -> None:
    def problem(prompt: str, seed: int) -> str | None:
        return ("nan", "flat", None)[seed % 3] if seed % 2 else None

    runs = [captioned(tmp_path, name=name) for name in ("plain", "late")]
    generate(runs[0], generator=FakeGenerator(problem_of=problem), quiet=True)
    late = Settling()
    late.problem_of = problem
    generate(runs[1], generator=late, quiet=True)
    assert parquet_bytes(runs[0]) == parquet_bytes(runs[1])
    # Three retries at most, each on a grid of its own.
    assert {attempt for grid in grids(runs[1]) for attempt, _, _ in grid} == {0, 1, 2, 3}
    assert all(size == 4 for grid in grids(runs[1]) for _, _, size in grid)


def test_an_attempt_is_not_over_while_it_has_batches_to_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that are back before the next one is begun, in many retries of one shard: no attempt is left out."""
    run = captioned(tmp_path, "store.shard_rows=70")

    def problem(prompt: str, seed: int) -> str | None:
        return ("nan", "flat", None)[seed % 3]

    class AtOnce(ThreadPoolExecutor):
        def submit(self, work: Any, *args: Any, **kwargs: Any) -> Future[Any]:
            future = super().submit(work, *args, **kwargs)
            if work.__name__ == "_settle":
                future.result()
            return future

    monkeypatch.setattr("hfsyn.images.production.ThreadPoolExecutor", AtOnce)
    generate(run, generator=FakeGenerator(problem_of=problem), quiet=True)
    rows = [row for shard in load_run(run).data_shards() for row in pq.read_table(shard).to_pylist()]
    assert max(row["retries"] for row in rows) == 3
    for row in rows:
        tried = [seed_of(0, row["sample_id"], attempt) for attempt in range(row["retries"] + 1)]
        assert tried[-1] == row["seed"]
        assert [problem("", seed) is None for seed in tried] == [False] * row["retries"] + [True]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
def test_memory_that_runs_out_halves_the_batch_and_loses_nothing(
    tmp_path: Path, error: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    plain, full = captioned(tmp_path, name="plain"), captioned(tmp_path, name="full")
    generate(plain, generator=FakeGenerator(), quiet=True)
    device = Full(most=1, first=4, error=error)
    generate(full, generator=device, quiet=True)
    # The fake's pixels do not depend on the batch, so that every byte must be as without the trouble.
    assert parquet_bytes(full) == parquet_bytes(plain)
    assert device.sizes[:4] == [4] * 4
    assert set(device.sizes[4:]) == {1}
    # The fifth batch is the second of the second shard.
    assert grids(full)[:3] == [((0, 0, 4),), ((0, 0, 4), (0, 4, 1)), ((0, 0, 1),)]
    said = capsys.readouterr().err
    assert said.count("too little memory") == 2
    assert "batches of 4; going on with 2" in said
    finish(full)


def test_what_the_device_still_has_is_waited_for_before_a_smaller_batch_is_tried(tmp_path: Path) -> None:
    """It holds the memory that is too small: tried beside it, the smaller batch would not fit either."""

    class Crowded(FakeGenerator):
        def __init__(self) -> None:
            super().__init__()
            self.pending = 0
            self.full = threading.Event()
            self.beside: list[int] = []

        def start(self, prompts: Sequence[str], seeds: Sequence[int], size: int) -> Callable[[], list[Generated]]:
            if self.pending and not self.full.is_set():
                self.full.set()
                raise torch.OutOfMemoryError("CUDA out of memory.")
            self.beside.append(self.pending)
            self.pending += 1

            def settle() -> list[Generated]:
                if len(self.beside) == 1:  # the first batch takes until after the second has found no room
                    self.full.wait(10)
                    time.sleep(0.3)
                self.pending -= 1
                return self.generate(prompts, seeds)

            return settle

    run = captioned(tmp_path)
    device = Crowded()
    generate(run, generator=device, quiet=True)
    assert device.beside[:2] == [0, 0]


def test_too_little_memory_for_one_image_is_said_in_one_line_and_keeps_what_is_finished(tmp_path: Path) -> None:
    run = captioned(tmp_path)
    with pytest.raises(HfsynError, match="too little memory for one image at a time"):
        generate(run, generator=Full(most=0, first=4), quiet=True)
    done = [sidecar_of(shard).exists() for shard in load_run(run).data_shards()]
    assert done == [True, *[False] * 6]
    generate(run, generator=FakeGenerator(), quiet=True)
    plain = captioned(tmp_path, name="plain")
    generate(plain, generator=FakeGenerator(), quiet=True)
    assert parquet_bytes(run) == parquet_bytes(plain)


def test_another_batch_size_is_recorded_and_reproduce_takes_it(tmp_path: Path) -> None:
    run = captioned(tmp_path)
    device = Full(most=99)
    generate(run, generator=device, quiet=True, options=WorkOptions(batch_size="8"))
    assert set(device.sizes) == {8}
    assert grids(run) == [((0, 0, 8),)] * 7
    sidecar = load_sidecar(sidecar_of(load_run(run).data_shards()[0]))
    assert batch_size_of(sidecar, 0, 3, recipe_size=4) == 8


def test_the_batch_size_of_a_row_is_read_from_the_grid() -> None:
    from builders.runs.layout import Sidecar

    base = Sidecar("generate", 0, 1, 0, 10, 10, "", 0, "", grid=((0, 0, 8), (0, 6, 4), (1, 0, 4), (1, 2, 2)))
    assert [batch_size_of(base, 0, at, 16) for at in (0, 5, 6, 9)] == [8, 8, 4, 4]
    assert batch_size_of(base, 1, 0, 16) == 2
    assert batch_size_of(base, 2, 0, 16) == 16


def test_a_failing_disk_is_said_in_the_main_thread_and_no_shard_stays_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = captioned(tmp_path)
    with monkeypatch.context() as patch:

        def full(*args: object, **kwargs: object) -> None:
            raise OSError(28, "No space left on device", "data")

        patch.setattr("hfsyn.runs.stage.write_shard", full)
        with pytest.raises(OSError, match="No space left"):
            generate(run, generator=FakeGenerator(), quiet=True)
    assert not any(sidecar_of(shard).exists() for shard in load_run(run).data_shards())
    generate(run, generator=FakeGenerator(), quiet=True)
    finish(run)


def test_a_failing_model_is_said_in_the_main_thread(tmp_path: Path) -> None:
    class Broken(Settling):
        def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Generated]:
            if len(self.asked) > 20:
                raise RuntimeError("the device is gone")
            return super().generate(prompts, seeds)

    with pytest.raises(RuntimeError, match="the device is gone"):
        generate(captioned(tmp_path), generator=Broken(), quiet=True)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("write", "encode"))]


def test_what_counts_as_too_little_memory() -> None:
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes"))
    assert is_out_of_memory(RuntimeError("GET was unable to find an engine to execute this computation"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(ValueError("out of memory"))
    with pytest.raises(RuntimeError, match="shape"):
        BatchSize(4).run(lambda size: (_ for _ in ()).throw(RuntimeError("shape mismatch")))


@pytest.mark.parametrize(("limit", "guided", "found"), [(1e9, False, 48), (17, True, 8), (1, True, 1)])
def test_the_largest_batch_leaves_headroom_and_stays_below_64_rows(limit: float, guided: bool, found: int) -> None:
    """A device with room for `limit` images; 85 % of it may be used, but for a single image."""
    drawn: list[int] = []

    def draw(size: int) -> None:
        drawn.append(size)
        if size > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")

    tight = {16: 16 / 0.84, 17: 17}
    assert largest_batch(draw, guided=guided, used=lambda: drawn[-1] / tight.get(int(limit), limit)) == found


def test_no_room_for_one_image_is_said() -> None:
    def draw(size: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(HfsynError, match="one image at a time"):
        largest_batch(draw, guided=True, used=lambda: 0.0)


@pytest.mark.parametrize(
    ("options", "device", "expected"),
    [
        (WorkOptions(), "cpu", Tuning()),
        (WorkOptions(), "cuda:0", Tuning(channels_last=True)),
        (WorkOptions(channels_last="off", compile=True, attention="cudnn"), "cuda", Tuning(False, True, "cudnn")),
        (WorkOptions(channels_last="on", attention="math"), "cpu", Tuning(True, False, "math")),
    ],
)
def test_what_suits_the_device_unless_told_otherwise(options: WorkOptions, device: str, expected: Tuning) -> None:
    assert tuning_of(options, device) == expected


def test_a_kernel_of_gpus_is_refused_on_a_cpu() -> None:
    with pytest.raises(HfsynError, match="--attention flash"):
        tuning_of(WorkOptions(attention="flash"), "cpu")


def test_memory_format_and_kernel_change_at_most_a_level_and_are_recorded(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    part = load_recipe("shapes-cip", ["generate.steps=4"]).generate
    images = [
        DiffusersGenerator(part, None, "cpu", tuning=tuning).start(["a photo of star"], [1], 4)()[0].pixels.astype(int)
        for tuning in (Tuning(), Tuning(channels_last=True, attention="math"))
    ]
    assert abs(images[0] - images[1]).max() <= 1
    assert Tuning().record() == {}
    assert Tuning(True, True, "flash").record() == {"channels_last": "yes", "compile": "yes", "attention": "flash"}


def test_guidance_can_be_limited_to_some_of_the_steps() -> None:
    torch.set_num_threads(1)
    rows: list[int] = []

    def pixels(start: float, stop: float) -> bytes:
        part = load_recipe("shapes-cip", ["generate.steps=5"]).generate
        part = part.model_copy(update={"guidance_start": start, "guidance_stop": stop})
        one = DiffusersGenerator(part, None, "cpu")
        forward = one._pipe.unet.forward
        rows.clear()
        one._pipe.unet.forward = lambda x, *a, **k: (rows.append(len(x)), forward(x, *a, **k))[1]
        return one.start(["a photo of star"], [1], 2)()[0].pixels.tobytes()

    whole = pixels(0.0, 1.0)
    assert rows == [4, 4, 4, 4, 4]
    part = pixels(0.2, 0.6)
    assert rows == [2, 4, 4, 2, 2]
    assert part != whole
    with pytest.raises(HfsynError, match=r"none of the 5 steps lies between .*Set generate.guidance_start to 0"):
        pixels(0.5, 0.5)


# --- what a GPU asks for, as far as a CPU can show it ----------------------------------------------------------------


def test_memory_that_runs_out_in_an_upcast_decoder_leaves_it_as_it_was(tmp_path: Path) -> None:
    """SDXL's works in float32; after a lack of memory the next, smaller batch must find it in half precision."""
    part = load_recipe("shapes-cip", [f"generate.model={sdxl(tmp_path / 'xl')}", "generate.dtype=float16"]).generate
    one = DiffusersGenerator(part.model_copy(update={"steps": 2}), None, "cpu")
    one._pipe.vae.register_to_config(force_upcast=True)
    whole = one.start(["a dog"], [1], 1)()[0].pixels
    decode, calls = one._pipe.vae.decode, []

    def short_of_memory(latents: torch.Tensor, **options: object) -> object:
        calls.append(latents.dtype)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(latents, **options)

    one._pipe.vae.decode = short_of_memory
    with pytest.raises(torch.OutOfMemoryError):
        one.start(["a dog", "a cat"], [1, 2], 2)
    assert one._pipe.vae.dtype == torch.float16
    assert (one.start(["a dog"], [1], 1)()[0].pixels == whole).all()
    assert calls == [torch.float32] * 2


@pytest.mark.parametrize(
    ("batch", "side", "at_once"),
    [(16, 64, 16), (24, 64, 12), (3, 64, 3), (32, 4, 16), (16, 96, 6), (8, 128, 4), (2, 512, 1)],
)
def test_larger_images_are_decoded_in_smaller_parts_of_one_size(batch: int, side: int, at_once: int) -> None:
    assert hfsyn.images.latents.at_once(torch.empty(batch, 4, side, side, device="meta")) == at_once


def test_networks_with_convolutions_over_time_keep_their_memory_format() -> None:
    layer = torch.nn.Conv3d(2, 2, 3)
    tune(SimpleNamespace(unet=None, vae=layer), Tuning(channels_last=True))
    assert layer.weight.is_contiguous()


@pytest.mark.parametrize("attention", ["flash", "cudnn"])
def test_a_kernel_that_does_not_fit_a_layer_leaves_it_to_the_others(attention: str) -> None:
    """Of the two neither takes the one head of 512 in the decoders of Stable Diffusion."""
    with kernels(Tuning(attention=attention)):
        assert torch.backends.cuda.math_sdp_enabled()
        assert torch.backends.cuda.mem_efficient_sdp_enabled()
    with kernels(Tuning(attention="math")):
        assert not torch.backends.cuda.flash_sdp_enabled()
