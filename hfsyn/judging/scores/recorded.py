"""What a training has shown of each image that it learnt from, as scores: `hfsyn train --record` kept it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from builders.errors import near_path
from builders.files import sha256_of
from hfsyn.errors import HfsynError
from hfsyn.judging.scores.pictures import Row
from hfsyn.judging.sets.image_set import TRAIN, open_images
from hfsyn.judging.train.checkpoints import RECORDED, RESULTS
from hfsyn.judging.train.recording import MEASURES
from hfsyn.runs.scores import ID, Judge


def recorded_judge(name: str, place: str, reference: str) -> Judge:
    """A judge from the record of a training on the set `reference`, or on several with this one among them.

    Its columns are those of `hfsyn.judging.train.recording`. Raises HfsynError if the training left no record, or was
    on other images.
    """
    import pyarrow.parquet as pq

    folder = Path(place).expanduser()
    if not (folder / RECORDED).is_file():
        said = f"{folder} holds no record of a training.{near_path(folder) if not folder.exists() else ''}"
        raise HfsynError(said, f"Train with it: hfsyn train --record --train-dataset {reference} ...")
    result: Mapping[str, Any] = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    mine = open_images(reference, default=TRAIN)
    sets = dict(zip(result["training"]["images"], result["training"]["sets"], strict=True))
    if mine.fingerprint not in sets:
        said = f"{folder} was trained on other images than those of {reference}."
        raise HfsynError(said, "Train on this set with --record, or score the set that it was trained on.")
    table = pq.read_table(folder / RECORDED)
    table = table.filter([asked == sets[mine.fingerprint]["reference"] for asked in table["reference"].to_pylist()])
    measured = [measure for measure in MEASURES if table[measure].null_count < len(table)]
    known = {row["id"]: row for row in table.select(["id", *measured]).to_pylist()}

    def of(rows: Sequence[Row]) -> Iterator[Row | str]:
        for row in rows:
            found = known.get(row[ID])
            if found is None or found["margin"] is None:
                yield "the training could not read it"
            else:
                yield {measure: found[measure] for measure in measured}

    kinds = {measure: "whole" if measure == "forgotten" else "number" for measure in measured}
    return Judge(name, kinds, {"kind": "record", "record": sha256_of(folder / RECORDED)}, of)
