"""Loops of which nothing is drawn or trained in earnest: what the tests of loops are made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import FakeGenerator

import hfsyn
from builders.files import atomic_text
from hfsyn.images.generator import Generated
from hfsyn.judging.sets.image_set import TRAIN, open_images
from hfsyn.judging.sets.references import parse_dataset
from hfsyn.looping import rounds
from hfsyn.looping.rounds import add_scores
from hfsyn.runs.scores import Judge
from hfsyn.runs.shards import StoredRows

QUICK: dict[str, Any] = {
    "recipe": "shapes-basic",
    "factors": "shapes",
    "policy": "hard-classes",
    "images": 20,
    "rounds": 1,
    "steer": {"dataset": "shapes", "split": "test", "limit": 3},
    "test": {"dataset": "shapes", "split": "train[held 5%]", "limit": 3},
}


def number(*parts: Any) -> float:
    """A number from 0 to 1 that follows from some things."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16) / 2**32


class Drawer(FakeGenerator):
    """Noise, or the image that it is given."""

    def start(  # type: ignore[override]
        self, prompts: Sequence[str], seeds: Sequence[int], size: int, *, images: Sequence[Any] | None = None
    ) -> Callable[[], list[Generated]]:
        self.asked += list(zip(prompts, seeds, strict=True))
        if images is not None:
            return lambda: [Generated(np.asarray(image), None) for image in images]
        return lambda: [Generated(self.draw(p, s), None) for p, s in zip(prompts, seeds, strict=True)]


def learn(config: Any, out: Path, options: Any) -> None:
    """A training of no time, whose weights follow from the recipe and the images."""
    out.mkdir(exist_ok=True)
    rows = []
    for text in config.data.train:
        images = open_images(text, default=TRAIN)
        name = str(parse_dataset(text))
        rows += [(name, one, wnid) for one, wnid in zip(images.ids, images.wnids, strict=True)]
    seen = [(Path(name).name, one) for name, one, _ in rows]
    atomic_text(out / "from", str(config.model.init_from))
    atomic_text(out / "weights", hashlib.sha256(repr((config.seed, seen)).encode()).hexdigest())
    if options.record:
        columns = dict(zip(("reference", "id", "wnid"), map(list, zip(*rows, strict=True)), strict=True))
        loss = [number(one) for _, one, _ in rows]
        kept = {"early_loss": loss, "margin": loss, "forgotten": [0] * len(rows)}
        pq.write_table(pa.table({**columns, **kept}), out / "record.parquet")


def score(run: str, judges: Sequence[str], **how: Any) -> bool:
    """As a classifier's answers, which follow from its weights."""
    sha256 = (Path(judges[0].removeprefix("last=")) / "weights").read_text()
    judge = Judge(
        "last", {"entropy": "number"}, {"weights": sha256}, lambda rows: [answered(sha256, row) for row in rows]
    )
    add_scores(Path(run), judge, how["options"])
    return True


def answered(sha256: str, row: Any) -> dict[str, float]:
    return {"entropy": number(sha256, row["sample_id"])}


def without_work(monkeypatch: pytest.MonkeyPatch) -> Drawer:
    """Nothing is drawn or trained in earnest."""
    drawer = Drawer()
    for module in ("hfsyn.building.tried_generator", "hfsyn.images.generate_stage.loaded_generator"):
        monkeypatch.setattr(module, lambda run, options: drawer)
    monkeypatch.setattr(rounds, "train", learn)
    monkeypatch.setattr(rounds, "BEAT", 1e6)
    monkeypatch.setattr(rounds, "score_set", score)
    monkeypatch.setattr(rounds, "start_accelerator", lambda device: SimpleNamespace(device="cpu"))
    opened = lambda model, device: SimpleNamespace(sha256=(model / "weights").read_text())  # noqa: E731
    monkeypatch.setattr(rounds, "open_classifier", opened)
    right = lambda one, images, _: (  # noqa: E731
        np.arange(len(images)),
        np.array([number(one.sha256, name, images.split) < 0.5 for name in images.ids]),
    )
    monkeypatch.setattr(rounds, "rights", right)
    return drawer


def written(tmp_path: Path, **changes: Any) -> Path:
    file = tmp_path / "loop.yaml"
    file.write_text(json.dumps({**QUICK, **changes}))
    return file


def looped(file: Path, out: Path) -> dict[str, Any]:
    return hfsyn.loop(file, out, num_processes=1, device="cpu", quiet=True).as_dict()


def bytes_of(out: Path) -> dict[Path, bytes]:
    kept = {path for end in ("*.parquet", "plan.json", "measured.json", "curve.json") for path in out.rglob(end)}
    return {path.relative_to(out): path.read_bytes() for path in sorted(kept)}


def rows_of(run: Path) -> list[dict[str, Any]]:
    stored = StoredRows(run)
    return stored.read(range(len(stored)))
