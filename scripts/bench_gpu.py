#!/usr/bin/env python
"""How fast one GPU draws and captions: hfsyn against the official code's way and a plain one, side by side in one run.

    python scripts/bench_gpu.py --compile                    everything, twenty minutes by our estimate
    python scripts/bench_gpu.py --steps 50 --parts images    some of it
    python scripts/bench_gpu.py --tiny                       the same code on tiny models, also without a GPU

The models have the true configurations of Stable Diffusion 1.5 (512 px) and BLIP-base, and random weights, so that
nothing is downloaded. Arms of the images, each of which writes its files:

    official-style   one prompt a call, fp16 weights under autocast, PNDM at 50 steps, Pillow's JPEG of quality 75; the
                     safety checker finds nothing
    plain            pipe(prompts) in batches, fp16, eager; JPEG of quality 96, as ours
    ours             the stage `hfsyn generate` on a prepared run folder, in its shards of Parquet; --compile,
                     --channels-last and --attention are passed on to it

Captions have official-style (one thread, the same batch) and ours (`hfsyn caption`). Turns are interleaved, forth and
back, and a ratio pairs two turns of the same round: median, lowest and highest. Ours has a second turn in each round;
where its median ratio to itself leaves 0.97 to 1.03, the run is void. Also: the share of the ceiling (images/s times
FLOP an image, over the speed of a large matrix product measured in the same run), the share of the time in which
kernels ran (a turn of its own, under torch's profiler), PSNR of 16 images against float32. A part for which the GPU has
too little memory is left out, and named. Exit code 3: no GPU is here. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from benchmarks import caption_arms, image_arms
from benchmarks.measuring import Arm, Comparison, compare, matmul_ceiling
from full_size_models import Size, save_blip, save_stable_diffusion

from builders.errors import first_line
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.images.tuning import is_out_of_memory, release_memory
from hfsyn.runs.options import WorkOptions
from hfsyn.workers import describe_device

T = TypeVar("T")

ARMS = ("official-style", "plain", "ours")
SPEED_AIMS = {"ours / official-style": 4.0, "ours / plain": 1.4}
CEILING_AIM, BUSY_AIM, PSNR_AIM = 0.45, 0.97, 40.0
FEW_STEPS_BUSY_AIM = 0.95
"""Four steps without guidance take so little time that what is beside them shows most."""
CAPTIONS_AIM = 3.0
PSNR = "PSNR, dB"
SIZES = {"batch": (24, 4), "caption_batch": (64, 4), "rounds": (5, 2), "seconds": (40.0, 2.0), "window": (20.0, 1.0)}
"""What options are by default, and with --tiny."""


def main() -> None:
    options = parse_options()
    if not torch.cuda.is_available() and not options.tiny:
        print("bench_gpu.py: torch sees no NVIDIA GPU here; --tiny runs the same code on tiny models", file=sys.stderr)
        sys.exit(ExitCode.PREFLIGHT)
    quieten()
    folder = Path(options.folder or tempfile.mkdtemp(prefix="hfsyn-bench-", dir=roomy()))
    try:
        figures = measured(folder, options)
    except HfsynError as error:
        print(f"bench_gpu.py: {error}", file=sys.stderr)
        sys.exit(error.code)
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    if options.out:
        Path(options.out).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print("\n" + table(figures) + "\n")
    print(json.dumps(figures))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", type=arms_of, default=ARMS, help=f"of the images [{','.join(ARMS)}]")
    parser.add_argument("--parts", type=parts_of, default=("images", "captions"), help="[images,captions]")
    parser.add_argument("--steps", type=numbers, default=(50, 20, 4), help="[50,20,4]; below 5 without guidance")
    parser.add_argument("--batch", type=int, help="images a batch of plain and ours [24]")
    parser.add_argument("--caption-batch", type=int, help="images a batch of both captioning arms [64]")
    parser.add_argument("--rounds", type=int, help="turns of each arm [5]")
    parser.add_argument("--seconds", type=float, help="of each arm, over all its turns, about [40]")
    parser.add_argument("--window", type=float, help="seconds in which kernels are watched, about [20]")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16"), help="of ours [bfloat16]")
    parser.add_argument("--compile", action="store_true", help="as `hfsyn generate --compile`")
    parser.add_argument("--channels-last", choices=("on", "off"), help="as of `hfsyn generate`")
    parser.add_argument("--attention", metavar="KERNEL", help="as of `hfsyn generate`")
    parser.add_argument("--device", help="a torch device [cuda; with --tiny the CPU where there is no GPU]")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny models and short turns; the figures then mean nothing"
    )
    parser.add_argument("--folder", metavar="DIR", help="where models and files are written, and kept [temporary]")
    parser.add_argument("--out", metavar="FILE", help="write the JSON there too")
    options = parser.parse_args()
    for name, (full, tiny) in SIZES.items():
        if getattr(options, name) is None:
            setattr(options, name, tiny if options.tiny else full)
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if min(*(getattr(options, name) for name in SIZES), *options.steps) <= 0:
        parser.error("--steps, --batch, --caption-batch, --rounds, --seconds and --window are above 0")
    return options


def quieten() -> None:
    """The libraries load models with bars, and warn of half precision on a CPU."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def arms_of(text: str) -> tuple[str, ...]:
    """In their order, whichever way they were named: the last one is compared to the others."""
    return _of(text, ARMS)


def parts_of(text: str) -> tuple[str, ...]:
    return _of(text, ("images", "captions"))


def _of(text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    chosen = set(text.split(","))
    if not chosen <= set(known):
        raise argparse.ArgumentTypeError(f"{text}: there are {', '.join(known)}")
    return tuple(name for name in known if name in chosen)


def roomy() -> str | None:
    """Memory where there is enough, so that no arm waits for a disk; else the usual place."""
    shm = Path("/dev/shm")  # noqa: S108
    return str(shm) if shm.is_dir() and shutil.disk_usage(shm).free > 12e9 else None


def measured(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    device = options.device
    size: Size = "tiny" if options.tiny else "full"
    ceiling, product = matmul_ceiling(device)
    say(f"ceiling: {ceiling / 1e12:.4g} TFLOP/s ({product})")
    figures: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": describe_device(device),
        "torch": torch.__version__,
        "tiny": options.tiny,
        "ceiling_tflops": round(ceiling / 1e12, 4),
        "ceiling_of": product,
        "batch": options.batch,
        "dtype": options.dtype,
        "compile": options.compile,
        "channels_last": options.channels_last,
        "attention": options.attention,
        "rounds": options.rounds,
        "images": [],
        "captions": None,
        "left_out": [],
    }
    work = Path(tempfile.mkdtemp(prefix="run-", dir=made(folder)))
    if "images" in options.parts:
        model = folder / "stable-diffusion"
        if not (model / "model_index.json").exists():
            save_stable_diffusion(model, size, device=device)
        for steps in options.steps:
            place = work / f"steps-{steps}"
            part = partial(images, model, place, steps, ceiling, options)
            done = attempt(f"images at {steps} steps", part, figures["left_out"])
            if done is not None:
                figures["left_out"] += done.pop("left_out")
                figures["images"].append(done)
    if "captions" in options.parts:
        model = folder / "blip"
        if not (model / "preprocessor_config.json").exists() and not (model / "processor_config.json").exists():
            save_blip(model, size, dtype=torch.float16, device=device)
        part = partial(captions, model, work / "captions", options)
        figures["captions"] = attempt("captions", part, figures["left_out"])
    aims = [aim for part in (*figures["images"], figures["captions"] or {}) for aim in part.get("aims", ())]
    holds = all(aim["ok"] for aim in aims) and not figures["left_out"] and not options.tiny
    return {**figures, "holds": holds}


def attempt(what: str, work: Callable[[], T], left_out: list[str]) -> T | None:
    """The figures of one part; None, and its name among those left out, where the GPU has too little memory for it."""
    found = None
    try:
        found = work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        say(f"{what}: left out, as memory ran out ({first_line(error)})")
        left_out.append(what)
    release_memory()  # here, where no error holds the models any more
    return found


def made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def images(model: Path, folder: Path, steps: int, ceiling: float, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of one number of steps."""
    setting = image_arms.setting_of(steps)
    say(f"images, {steps} steps ({setting.scheduler}), guidance {setting.guidance}")
    keep = {"keep": options.folder is not None}
    chosen: dict[str, Arm] = {}
    if "official-style" in options.arms:
        chosen["official-style"] = image_arms.OfficialStyle(model, setting, options.device, folder, **keep)
    if "plain" in options.arms:
        chosen["plain"] = image_arms.Plain(model, setting, options.device, folder, batch=options.batch, **keep)
    work = WorkOptions(compile=options.compile, channels_last=options.channels_last, attention=options.attention)
    ours = None
    if "ours" in options.arms:
        ours = image_arms.Ours(
            model, setting, options.device, folder, batch=options.batch, dtype=options.dtype, options=work, **keep
        )
        chosen["ours"] = ours
    found = compared(list(chosen.values()), options)
    flop, rows = image_arms.flops_per_image(model, setting)
    arms = found.figures()
    for figures in arms.values():
        figures["share_of_ceiling"] = round(figures["images_per_second"] * flop / ceiling, 4)
    chosen.clear()  # the other arms' models, beside which the float32 one may find no room
    release_memory()
    left_out: list[str] = []
    exactness = attempt(f"PSNR at {steps} steps", ours.psnr, left_out) if ours is not None else None
    result: dict[str, Any] = {
        "steps": steps,
        "scheduler": setting.scheduler,
        "guidance": setting.guidance,
        "tflop_per_image": round(flop / 1e12, 6),
        "unet_rows_per_image": rows,
        "arms": arms,
        "ratios": found.ratios(),
        "void": found.void,
        **(exactness or {}),
        "aims": [],
        "left_out": left_out,
    }
    if ours is not None:
        aims = {
            name: (result["ratios"][name]["ratio"], aim)
            for name, aim in SPEED_AIMS.items()
            if name in result["ratios"] and setting.guided
        }
        if setting.guided:
            aims["share of the ceiling"] = (arms["ours"]["share_of_ceiling"], CEILING_AIM)
        aims["device busy"] = (arms["ours"]["busy"], BUSY_AIM if setting.guided else FEW_STEPS_BUSY_AIM)
        if exactness is not None:
            aims[PSNR] = (exactness["psnr_db"], PSNR_AIM)
        result["aims"] = judged(aims, void=found.void)
    return result


def captions(model: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of the captions."""
    say(f"captions, batches of {options.caption_batch}")
    photographs = caption_arms.Photographs(folder / "source", different=20 if options.tiny else 500)
    photographs.grow(2 * options.caption_batch)
    more: dict[str, Any] = {"batch": options.caption_batch, "keep": options.folder is not None}
    theirs = caption_arms.OfficialStyle(model, photographs, options.device, folder, **more)
    ours = caption_arms.Ours(model, photographs, options.device, folder, dtype=options.dtype, **more)
    found = compared([theirs, ours], options)
    ratios = found.ratios()
    aims = {"ours / official-style": (ratios["ours / official-style"]["ratio"], CAPTIONS_AIM)}
    return {
        "batch": options.caption_batch,
        "arms": found.figures(),
        "ratios": ratios,
        "void": found.void,
        "aims": judged(aims, void=found.void),
    }


def compared(arms: list[Arm], options: argparse.Namespace) -> Comparison:
    return compare(
        arms, rounds=options.rounds, seconds=options.seconds, window=options.window, device=options.device, say=say
    )


def judged(aims: dict[str, tuple[float, float]], *, void: bool) -> list[dict[str, Any]]:
    """Each figure beside its aim; no time holds in a void run."""
    return [
        {"what": what, "value": value, "aim": aim, "ok": value >= aim and (not void or what == PSNR)}
        for what, (value, aim) in aims.items()
    ]


def table(figures: dict[str, Any]) -> str:
    """For people, and for the README."""
    lines = [
        f"{figures['device']}, torch {figures['torch']}, {figures['date']}; "
        f"ceiling {figures['ceiling_tflops']} TFLOP/s ({figures['ceiling_of']})",
        *(["TINY MODELS: these figures say only that the code runs"] if figures["tiny"] else []),
        "",
        "| | arm | images/s | of the ceiling | device busy | CPU s an image |",
        "|---|---|---|---|---|---|",
    ]
    parts = [(f"{part['steps']} steps", part) for part in figures["images"]]
    parts += [("captions", figures["captions"])] if figures["captions"] else []
    for title, part in parts:
        for name, arm in part["arms"].items():
            share = f"{arm['share_of_ceiling']:.1%}" if "share_of_ceiling" in arm else ""
            lines.append(
                f"| {title} | {name} | {arm['images_per_second']:.2f} | {share} | {arm['busy']:.1%} "
                f"| {arm['cpu_seconds_per_image']:.3f} |"
            )
    for title, part in parts:
        lines.append("")
        lines += [
            f"{title}: {name} {found['ratio']:.2f} [{found['low']:.2f}, {found['high']:.2f}], {found['pairs']} pairs"
            for name, found in part["ratios"].items()
        ]
        if part["void"]:
            lines.append(f"{title}: VOID, as ours was too unlike itself: something else was at work here")
        lines += [
            f"{title}: {aim['what']} {aim['value']:.4g}, aim {aim['aim']:g}: "
            + ("ok" if aim["ok"] else "short" if aim["value"] < aim["aim"] else "void")
            for aim in part["aims"]
        ]
    if figures["left_out"]:
        lines += ["", f"LEFT OUT, as memory ran out: {', '.join(figures['left_out'])}"]
    return "\n".join(lines)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
