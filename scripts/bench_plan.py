#!/usr/bin/env python
"""Whether a run of ImageNet's size can be planned, forecast and asked how far it is: time and peak memory of each.

    python scripts/bench_plan.py                    1,281,167 images of imagenet-1k, about two minutes
    python scripts/bench_plan.py --count 20000      a smaller one

It makes Parquet files of that many images (of a few bytes) and captions of ten words for them, then runs each step in a
process of its own: the indexing of the source, the plan, the forecast with and without captions, and the whole command
`hfsyn status` once all shards of both stages have sidecars. Peak memory is the resident set of that process, imports
included. Aims: each step in less than 60 s and 2 GB, the status in 1 s. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# What makes the data is imported where it is used, in processes of their own: the kernel counts the memory of the
# process that starts another into the peak of the other.

if TYPE_CHECKING:
    from builders.runs.layout import Sidecar
    from hfsyn.runs.run import Run

ROOT = Path(__file__).resolve().parent.parent
SOURCE_FILES = 294
WORDS = (
    "a photo of the two small large old brown white dog bird man woman standing sitting on in front wooden table grass "
    "water with red blue striped background close up view near window holding looking at camera"
)
STEPS = {
    "index": "from hfsyn.recipes.recipe import load_recipe; from hfsyn.runs.prepare import prepare; "
    "prepare(load_recipe('imagenet-1k-cip', [{overrides}]), {run!r})",
    "plan": "from hfsyn.runs.stage import write_plan; from hfsyn.runs.run import load_run; "
    "write_plan(load_run({run!r}))",
    "forecast": "from hfsyn.outlook.forecast import forecast; from hfsyn.recipes.recipe import load_recipe; "
    "forecast(load_recipe('imagenet-1k-cip', [{overrides}]), {run!r})",
    "forecast without captions": "from hfsyn.outlook.forecast import forecast; "
    "from hfsyn.recipes.recipe import load_recipe; forecast(load_recipe('imagenet-1k-cip', [{overrides}]))",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_281_167, help="images [1281167]")
    parser.add_argument("--folder", metavar="DIR", help="where to make them; kept [a temporary folder]")
    parser.add_argument("--make", choices=["source", "captions", "sidecars"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make(options.make, Path(options.folder), options.count)
        return
    folder = Path(options.folder or tempfile.mkdtemp(prefix="hfsyn-plan-"))
    try:
        found = measured(folder, options.count)
    finally:
        if options.folder is None:
            shutil.rmtree(folder)
    print(f"{'step':28} {'seconds':>8} {'peak GB':>8}")
    for name, (seconds, peak) in found.items():
        print(f"{name:28} {seconds:8.2f} {peak:8.2f}")
    figures = {
        f"{name.replace(' ', '_')}_{unit}": value
        for name, pair in found.items()
        for unit, value in zip(("seconds", "peak_gb"), pair, strict=True)
    }
    holds = all(seconds < 60 and peak < 2 for seconds, peak in found.values()) and found["status"][0] <= 1
    print(json.dumps({"count": options.count, **figures, "holds": holds}))


def measured(folder: Path, count: int) -> dict[str, tuple[float, float]]:
    """Seconds and peak GB of each step, in order."""
    source, run = folder / "source", folder / "run"
    here = (str(Path(__file__).resolve()), "--folder", str(folder), "--count", str(count), "--make")
    in_a_process(*here, "source")
    overrides = (f"source.path={source}", "caption.model=builtin", f"generate.model={folder / 'model'}")
    words = ", ".join(repr(word) for word in overrides)
    code = {name: text.format(run=str(run), overrides=words) for name, text in STEPS.items()}
    found = {"index": in_a_process("-c", code["index"])}
    in_a_process(*here, "captions")
    for name in ("plan", "forecast", "forecast without captions"):
        found[name] = in_a_process("-c", code[name])
    in_a_process(*here, "sidecars")
    status = [in_a_process("-m", "hfsyn", "status", str(run)) for _ in range(5)]
    found["status"] = sorted(status)[2]
    return found


def in_a_process(*arguments: str) -> tuple[float, float]:
    """Wall seconds, interpreter start included, and the peak resident set in GB."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    child = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{' '.join(arguments)[:200]} ended with exit code {child.returncode}")
    return round(seconds, 2), round(usage.ru_maxrss * 1024 / 1e9, 3)


def make(what: str, folder: Path, count: int) -> None:
    """What the next step reads."""
    from hfsyn.runs.run import load_run

    if what == "source":
        make_source(folder / "source", count)
        make_model(folder / "model")
    else:
        (make_captions if what == "captions" else make_sidecars)(load_run(folder / "run"))


def make_source(folder: Path, count: int) -> None:
    """Parquet files as the Hub's ImageNet has them, by number of files and columns, with a few bytes an image."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from builders.variants import get_variant

    folder.mkdir(parents=True)
    wnids = [info.wnid for info in get_variant("imagenet-1k").classes]
    files = max(1, min(SOURCE_FILES, count // 1000))
    for number in range(files):
        rows = range(number * count // files, (number + 1) * count // files)
        images = [{"bytes": b"?", "path": f"{wnids[row % 1000]}_{row}.JPEG"} for row in rows]
        table = pa.table({"image": images, "wnid": [wnids[row % 1000] for row in rows]})
        pq.write_table(table, folder / f"train-{number:05d}-of-{files:05d}.parquet")


def make_model(folder: Path) -> None:
    """What a forecast reads of a Stable Diffusion: its index and its tokenizer, which takes 77 tokens as CLIP's does.
    It is the built-in one, which spells most words in letters: of CLIP's own, fewer prompts come near the limit.
    """
    from hfsyn.models.finding import locate

    builtin = Path(locate("builtin", "generator"))
    shutil.copytree(builtin / "tokenizer", folder / "tokenizer")
    shutil.copy(builtin / "model_index.json", folder)
    settings = folder / "tokenizer" / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "model_max_length": 77}))


def make_captions(run: Run) -> None:
    """Finished caption shards, as the stage writes them."""
    from builders.runs.rows import captioned_features
    from hfsyn.runs.shards import write_shard

    schema = captioned_features(run.class_names).arrow_schema
    words = WORDS.split()
    for path in run.caption_shards():
        (start, stop), lines = run.span(path), run.lines(path)
        chance = random.Random(start)
        rows: list[dict[str, Any]] = [
            {
                "source_id": line["source_id"],
                "wnid": line["wnid"],
                "label": run.classes[line["wnid"]].index,
                "class_name": run.classes[line["wnid"]].name,
                "caption": " ".join(chance.choices(words, k=10)),
                "caption_flags": [],
                "source_sha256": "0" * 64,
                "width": 500,
                "height": 375,
            }
            for line in lines
        ]
        columns = {field.name: [row[field.name] for row in rows] for field in schema}
        write_shard(path, columns, schema, lambda sha256, size, at=(start, stop): sidecar(run, "caption", at, size))


def make_sidecars(run: Run) -> None:
    """Sidecars of finished data shards, beside files without content: a status reads sidecars alone."""
    from builders.files import atomic_text
    from builders.runs.layout import sidecar_of

    for path in run.data_shards():
        start, stop = run.span(path)
        path.parent.mkdir(exist_ok=True)
        path.touch()
        atomic_text(sidecar_of(path), sidecar(run, "generate", (start, stop), 10**8).dump())


def sidecar(run: Run, stage: str, at: tuple[int, int], size: int) -> Sidecar:
    from builders.runs.layout import Sidecar
    from hfsyn.workers import software

    start, stop = at
    counts = Counter(random.Random(start).choices(sorted(run.classes), k=stop - start))
    return Sidecar(
        stage=stage,
        shard=start // run.recipe.store.shard_rows,
        of=1,
        start=start,
        stop=stop,
        rows=stop - start,
        sha256="0" * 64,
        bytes=size,
        fingerprint=run.fingerprint,
        counts=dict(sorted(counts.items())),
        seconds=100.0,
        device="cpu",
        worker="0 of 1",
        software=software(),
    )


if __name__ == "__main__":
    main()
