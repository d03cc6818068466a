#!/usr/bin/env python
"""How fast one GPU draws and captions: hfsyn against the official code's way and a plain one, side by side in one run.

    python scripts/bench_gpu.py --compile                    everything, twenty minutes by our estimate
    python scripts/bench_gpu.py --minutes 4 --out gpu.json   the most telling figures first, and an end after 4 minutes
    python scripts/bench_gpu.py --needs                      what must be carried to a machine without a registry
    python scripts/bench_gpu.py --steps 50 --parts images    some of it
    python scripts/bench_gpu.py --parts tune                 steps a second and memory of LoRA tuning (`hfsyn tune`)
    python scripts/bench_gpu.py --parts entropy              what entropy guidance costs: aim at most 1.9 times plain
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
kernels ran (a turn of its own, under torch's profiler) and the costliest of these, PSNR of 16 images against float32. A
part for which the GPU has too little memory, or the budget no time, is left out, and named. With --out the figures are
written after every turn. Exit code 3: no GPU is here; 4: something was left out. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from benchmarks import caption_arms, entropy_arms, image_arms, needs, tune_arms
from benchmarks.budget import Budget
from benchmarks.measuring import Arm, Race, matmul_ceiling, roomy
from full_size_models import Size, save_blip, save_stable_diffusion

from builders.errors import first_line
from builders.files import atomic_text
from hfsyn.errors import ExitCode, HfsynError, leave_at_once
from hfsyn.images.tuning import is_out_of_memory, release_memory
from hfsyn.recipes.recipe import GeneratePart
from hfsyn.runs.options import WorkOptions
from hfsyn.workers import describe_device

ARMS = ("official-style", "plain", "ours")
ENTROPY_AIM = 1.9
"""Times the cost of a plain image, of guidance in one step of five; the paper has 1.82."""
SPEED_AIMS = {"ours / official-style": 4.0, "ours / plain": 1.4}
LEAST_ROUNDS = 2
"""Turns in both orders, as far as the whole budget allows."""
CEILING_AIM, BUSY_AIM, PSNR_AIM = 0.45, 0.97, 40.0
FEW_STEPS_BUSY_AIM = 0.95
"""Four steps without guidance take so little time that what is beside them shows most."""
CAPTIONS_AIM = 3.0
PSNR = "PSNR, dB"
SIZES = {
    "batch": (24, 4),
    "caption_batch": (64, 4),
    "tune_batch": (8, 2),
    "rounds": (5, 2),
    "seconds": (40.0, 2.0),
    "window": (20.0, 1.0),
}
"""What options are by default, and with --tiny."""


def main() -> None:
    options = parse_options()
    if options.needs:
        print(needs.told())
        return
    if not torch.cuda.is_available() and not options.tiny:
        print("bench_gpu.py: torch sees no NVIDIA GPU here; --tiny runs the same code on tiny models", file=sys.stderr)
        sys.exit(ExitCode.PREFLIGHT)
    quieten()
    budget = Budget(options.minutes)
    folder = Path(options.folder or tempfile.mkdtemp(prefix="hfsyn-bench-", dir=roomy()))
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(folder, options, budget)

    def leave() -> None:
        """In the thread that watches the clock."""
        try:
            say(f"the {options.minutes:g} minutes are over")
            finish(bench, None if options.folder else folder)
        finally:
            leave_at_once(ExitCode.PARTIAL)

    budget.watch(leave)
    try:
        bench.run()
    except HfsynError as error:
        print(f"bench_gpu.py: {error}", file=sys.stderr)
        sys.exit(error.code)
    finally:
        budget.close()
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    finish(bench, None)
    sys.exit(ExitCode.PARTIAL if bench.figures()["left_out"] else ExitCode.OK)


def finish(bench: Bench, folder: Path | None) -> None:
    """Say what was found, and remove a temporary folder."""
    bench.save()
    figures = bench.figures()
    if "device" in figures:
        print("\n" + table(figures) + "\n")
    print(json.dumps(figures), flush=True)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", type=arms_of, default=ARMS, help=f"of the images [{','.join(ARMS)}]")
    parser.add_argument(
        "--parts", type=parts_of, default=("images", "captions"), help="of images,captions,tune,entropy"
    )
    parser.add_argument("--steps", type=numbers, default=(50, 20, 4), help="[50,20,4]; below 5 without guidance")
    parser.add_argument("--batch", type=int, help="images a batch of plain and ours [24]")
    parser.add_argument("--caption-batch", type=int, help="images a batch of both captioning arms [64]")
    parser.add_argument("--tune-batch", type=int, help="images a step of tuning [8]")
    parser.add_argument("--minutes", type=float, help="end after so many, with what was measured by then [no limit]")
    parser.add_argument("--needs", action="store_true", help="only say which packages a common CUDA image lacks")
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
    if min(*(getattr(options, name) for name in SIZES), *options.steps, options.minutes or 1) <= 0:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in SIZES)
        parser.error(f"--minutes, --steps, {names} are above 0")
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
    return _of(text, ("images", "captions", "tune", "entropy"))


def _of(text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    chosen = set(text.split(","))
    if not chosen <= set(known):
        raise argparse.ArgumentTypeError(f"{text}: there are {', '.join(known)}")
    return tuple(name for name in known if name in chosen)


class Bench:
    """All figures, in the order of what they tell; written down after every turn.

    Args:
        folder: where models and files are written.
        options: of the command line.
        budget: what is not measured when it ends is named among what was left out.
    """

    def __init__(self, folder: Path, options: argparse.Namespace, budget: Budget) -> None:
        self._folder, self._options, self._budget = folder, options, budget
        self._work = Path(tempfile.mkdtemp(prefix="run-", dir=folder))
        self._size: Size = "tiny" if options.tiny else "full"
        self._images: dict[int, Images] = {}
        self._captions: Captions | None = None
        self._tuned: dict[str, Any] | None = None
        self._guided: dict[str, Any] | None = None
        self._like: dict[str, Arm] = {}
        self._head: dict[str, Any] = {}
        self._left_out: list[str] = []
        self._lock = threading.Lock()

    def run(self) -> dict[str, Any]:
        """Measure what the budget allows; the figures."""
        options = self._options
        ceiling, product = matmul_ceiling(options.device)
        say(f"ceiling: {ceiling / 1e12:.4g} TFLOP/s ({product})")
        self._head = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "device": describe_device(options.device),
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
        }
        self._left_out = [what for what, _, _ in self._plan(ceiling)]
        for what, share, work in self._plan(ceiling):
            if self._budget.left() <= 0:
                break
            if self._attempt(what, partial(work, self._budget.part(share))):
                self._left_out.remove(what)
            self.save()
        return self.figures()

    def _plan(self, ceiling: float) -> list[tuple[str, float, Callable[[Budget], bool]]]:
        """What is measured, with what share of the time that is left then; the most telling first."""
        first, *others = self._options.steps
        # The share of the time in which the device is busy, and exactness, are asked for where they cost least.
        cheap = next((steps for steps in others if image_arms.setting_of(steps).guided), first)
        names = ("images" in self._options.parts, "captions" in self._options.parts)
        race, look, psnr = self._race, self._look, self._psnr
        plan: list[tuple[str, float, Callable[[Budget], bool]]] = []
        if names[0]:
            plan.append((f"images at {first} steps", 0.6, partial(race, first, ceiling)))
        if names[1]:
            plan.append(("captions", 0.4, self._race_captions))
        if names[0]:
            plan += [(f"images at {cheap} steps", 0.4, partial(race, cheap, ceiling))] if cheap != first else []
            for steps in dict.fromkeys((cheap, first)):
                plan += [(f"PSNR at {steps} steps", 0.6, partial(psnr, steps))] if "ours" in self._options.arms else []
                plan.append((f"device busy at {steps} steps", 0.5, partial(look, steps)))
            for steps in others:
                if steps != cheap:
                    plan.append((f"images at {steps} steps", 0.6, partial(race, steps, ceiling)))
                    plan.append((f"device busy at {steps} steps", 0.9, partial(look, steps)))
                    if "ours" in self._options.arms:
                        plan.append((f"PSNR at {steps} steps", 1.0, partial(psnr, steps)))
        if names[1]:
            plan.append(("device busy at captions", 1.0, self._look_at_captions))
        if "tune" in self._options.parts:
            plan.append(("tuning", 1.0, self._tune))
        if "entropy" in self._options.parts:
            plan.append(("entropy guidance", 1.0, self._guide))
        return plan

    def figures(self) -> dict[str, Any]:
        """What is known now."""
        images = [self._images[steps].figures() for steps in sorted(self._images, reverse=True)]
        found = {
            **self._head,
            "images": [part for part in images if part["arms"]],
            "captions": self._captions.figures() if self._captions is not None else None,
            **({"tune": self._tuned} if self._tuned else {}),
            **({"entropy": self._guided} if self._guided else {}),
            "left_out": list(self._left_out),
        }
        aims = [aim for part in (*found["images"], found["captions"] or {}) for aim in part.get("aims", ())]
        holds = bool(aims) and all(aim["ok"] for aim in aims) and not found["left_out"] and not self._options.tiny
        return {**found, "holds": holds}

    def save(self) -> None:
        """Write the figures down, if a file for them was named."""
        if self._options.out and self._head:
            with self._lock:
                atomic_text(Path(self._options.out), json.dumps(self.figures(), indent=1) + "\n")

    def _attempt(self, what: str, work: Callable[[], bool]) -> bool:
        """Whether a part was measured: not where memory, or the time, ended before."""
        done = False
        try:
            done = work()
            if not done:
                say(f"{what}: left out, as there was no time for it")
        except Exception as error:  # of any kind: the other parts are worth the device's time
            if is_out_of_memory(error):
                say(f"{what}: left out, as memory ran out ({first_line(error)})")
            else:
                say(f"{what}: left out, as it failed\n{traceback.format_exc()}")
        release_memory()  # here, where no error holds the models any more
        return done

    def _tune(self, budget: Budget) -> bool:
        model = self._folder / "stable-diffusion"
        if not (model / "model_index.json").exists():
            save_stable_diffusion(model, self._size, device=self._options.device)
        arms = tune_arms.measured(model, self._work / "tune", self._options, budget)
        self._tuned = {"batch": self._options.tune_batch, "arms": arms}
        return len(arms) == len(tune_arms.ARMS)

    def _guide(self, budget: Budget) -> bool:
        model, options = self._folder / "stable-diffusion", self._options
        if not (model / "model_index.json").exists():
            save_stable_diffusion(model, self._size, device=options.device)
        critic = entropy_arms.untrained(self._work / "critic", "test_resnet" if options.tiny else "resnet50")
        setting = image_arms.setting_of(options.steps[0])
        fields = {"model": str(model), "scheduler": setting.scheduler, "steps": setting.steps}
        fields |= {"dtype": "bfloat16" if options.device.startswith("cuda") else "float32"}
        fields |= {"guidance_scale": setting.guidance, "batch_size": options.batch, "safety_checker": False}
        part = GeneratePart(**fields, entropy_weight=1.0, entropy_classifier=critic)
        arms = entropy_arms.measured(part, options.device, options.seconds, budget)
        self._guided = {"steps": setting.steps, "batch": options.batch, "aim": ENTROPY_AIM, "arms": arms}
        return True

    def _race(self, steps: int, ceiling: float, budget: Budget) -> bool:
        """The turns of one number of steps."""
        model = self._folder / "stable-diffusion"
        if not (model / "model_index.json").exists():
            save_stable_diffusion(model, self._size, device=self._options.device)
        try:
            part = self._warmed(model, steps, ceiling)
        except HfsynError as error:
            if not self._options.compile:
                raise
            say(f"{error}; going on without --compile")
            self._options.compile = self._head["compile"] = False
            self._like.clear()
            part = self._warmed(model, steps, ceiling)
        part.race.run(budget, LEAST_ROUNDS)
        return True

    def _warmed(self, model: Path, steps: int, ceiling: float) -> Images:
        part = Images(model, self._work / f"steps-{steps}", steps, ceiling, self._options, self._like, self.save)
        self._images[steps] = part
        part.race.warm()
        return part

    def _look(self, steps: int, budget: Budget) -> bool:
        part = self._images.get(steps)
        if part is None:
            return False
        for name in reversed(part.arms):
            if name in part.race.found.looks or not part.race.found.turns[name]:
                continue
            if budget.limited and budget.left() < 2 * part.race.found.turns[name][-1].seconds:
                return False
            part.race.look(name)
        return True

    def _psnr(self, steps: int, budget: Budget) -> bool:
        part = self._images.get(steps)
        if part is None or (budget.limited and budget.left() < part.exact_seconds()):
            return False
        part.exactness = part.ours.psnr()
        return True

    def _race_captions(self, budget: Budget) -> bool:
        model = self._folder / "blip"
        if not (model / "preprocessor_config.json").exists() and not (model / "processor_config.json").exists():
            save_blip(model, self._size, dtype=torch.float16, device=self._options.device)
        self._captions = Captions(model, self._work / "captions", self._options, self.save)
        self._captions.race.warm()
        self._captions.race.run(budget, LEAST_ROUNDS)
        return True

    def _look_at_captions(self, budget: Budget) -> bool:
        if self._captions is None:
            return False
        for name in ("ours", "official-style"):
            self._captions.race.look(name)
        return True


class Images:
    """Figures of one number of steps."""

    def __init__(
        self,
        model: Path,
        folder: Path,
        steps: int,
        ceiling: float,
        options: argparse.Namespace,
        like: dict[str, Arm],
        told: Callable[[], None],
    ) -> None:
        self._steps, self._ceiling, self._options = steps, ceiling, options
        self._setting = image_arms.setting_of(steps)
        say(f"images, {steps} steps ({self._setting.scheduler}), guidance {self._setting.guidance}")
        self._flop, self._rows = image_arms.flops_per_image(model, self._setting)
        self.arms = self._loaded(model, folder, like)
        self.exactness: dict[str, float] = {}
        self.race = race(list(self.arms.values()), options, told)

    @property
    def ours(self) -> image_arms.Ours:
        """The arm that is judged."""
        found = self.arms["ours"]
        assert isinstance(found, image_arms.Ours)
        return found

    def _loaded(self, model: Path, folder: Path, like: dict[str, Arm]) -> dict[str, Arm]:
        """The arms that were asked for, in their order. Networks are loaded, and compiled, once for all of `like`."""
        options, found = self._options, dict[str, Arm]()
        work = WorkOptions(compile=options.compile, channels_last=options.channels_last, attention=options.attention)
        mine = {"batch": options.batch, "dtype": options.dtype}
        kinds: dict[str, tuple[Any, str, dict[str, Any]]] = {
            "official-style": (image_arms.OfficialStyle, "float16", {}),
            "plain": (image_arms.Plain, "float16", {"batch": options.batch}),
            "ours": (image_arms.Ours, options.dtype, {**mine, "options": work}),
        }
        for name, (kind, dtype, more) in kinds.items():
            if name in options.arms:
                family = dtype if name in ("official-style", "plain") else "ours"
                more |= {"keep": options.folder is not None, "like": like.get(family)}
                found[name] = kind(model, self._setting, options.device, folder, **more)
                like.setdefault(family, found[name])
        return {name: found[name] for name in ARMS if name in found}

    def exact_seconds(self) -> float:
        """About how long the comparison with float32 takes: a GPU computes it at a tenth of the ceiling or more."""
        return self._flop * min(image_arms.REFERENCE_IMAGES, self._options.batch) / (0.05 * self._ceiling) + 5

    def figures(self) -> dict[str, Any]:
        """What is known now."""
        found, setting = self.race.found, self._setting
        arms, ratios = found.figures(), found.ratios()
        for figures in arms.values():
            figures["share_of_ceiling"] = round(figures["images_per_second"] * self._flop / self._ceiling, 4)
        aims: dict[str, tuple[float, float]] = {}
        if "ours" in arms:
            if setting.guided:
                aims = {name: (ratios[name]["ratio"], aim) for name, aim in SPEED_AIMS.items() if name in ratios}
                aims["share of the ceiling"] = (arms["ours"]["share_of_ceiling"], CEILING_AIM)
            if "busy" in arms["ours"]:
                aims["device busy"] = (arms["ours"]["busy"], BUSY_AIM if setting.guided else FEW_STEPS_BUSY_AIM)
            if self.exactness:
                aims[PSNR] = (self.exactness["psnr_db"], PSNR_AIM)
        return {
            "steps": self._steps,
            "scheduler": setting.scheduler,
            "guidance": setting.guidance,
            "tflop_per_image": round(self._flop / 1e12, 6),
            "unet_rows_per_image": self._rows,
            "arms": arms,
            "ratios": ratios,
            "void": found.void,
            **self.exactness,
            "aims": judged(aims, void=found.void),
        }


class Captions:
    """Figures of the captions."""

    def __init__(self, model: Path, folder: Path, options: argparse.Namespace, told: Callable[[], None]) -> None:
        self._options = options
        say(f"captions, batches of {options.caption_batch}")
        photographs = caption_arms.Photographs(folder / "source", different=20 if options.tiny else 200)
        photographs.grow(2 * options.caption_batch)
        more: dict[str, Any] = {"batch": options.caption_batch, "keep": options.folder is not None}
        theirs = caption_arms.OfficialStyle(model, photographs, options.device, folder, **more)
        ours = caption_arms.Ours(model, photographs, options.device, folder, dtype=options.dtype, **more)
        self.race = race([theirs, ours], options, told)

    def figures(self) -> dict[str, Any]:
        """What is known now."""
        found = self.race.found
        ratios = found.ratios()
        name = "ours / official-style"
        aims = {name: (ratios[name]["ratio"], CAPTIONS_AIM)} if name in ratios else {}
        return {
            "batch": self._options.caption_batch,
            "arms": found.figures(),
            "ratios": ratios,
            "void": found.void,
            "aims": judged(aims, void=found.void),
        }


def race(arms: list[Arm], options: argparse.Namespace, told: Callable[[], None]) -> Race:
    """As the options say."""
    return Race(
        arms,
        rounds=options.rounds,
        seconds=options.seconds,
        window=options.window,
        device=options.device,
        say=say,
        told=told,
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
            busy = f"{arm['busy']:.1%}" if "busy" in arm else ""
            lines.append(
                f"| {title} | {name} | {arm['images_per_second']:.2f} | {share} | {busy} "
                f"| {arm['cpu_seconds_per_image']:.3f} |"
            )
    for name, arm in figures.get("tune", {}).get("arms", {}).items():
        lines += [
            "",
            f"tuning a LoRA, {name}: {arm['steps_per_second']:.3f} steps/s of {figures['tune']['batch']} images,",
        ]
        lines[-1] += f" {arm['peak_gb']:.1f} GB"
    lines += ["", *entropy_arms.lines(figures["entropy"]["arms"])] if "entropy" in figures else []
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
        lines += ["", f"LEFT OUT: {', '.join(figures['left_out'])}"]
    return "\n".join(lines)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
