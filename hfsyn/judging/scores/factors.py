"""Whether the images of an audit show what was asked for: a captioner, or a model that is asked, reads them back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from builders.variants import ClassInfo
from builders.yaml import is_yaml_name
from hfsyn.captions.captioner import TransformersCaptioner
from hfsyn.captions.questions import Questioner
from hfsyn.judging.scores.pictures import Row, in_batches
from hfsyn.judging.scores.questions import asking
from hfsyn.models.finding import pin
from hfsyn.recipes.factor_file import CLASS, PROMPTS, Factors, Reader, read_asked
from hfsyn.recipes.loading import fragments, load_fragment
from hfsyn.recipes.recipe import CaptionPart, check_part
from hfsyn.runs.scores import Judge

SHOWS, SAID = "shows_", "said"
"""How the column of a factor begins that tells whether its level is there; the caption."""
ASKS = "vlm:"


def factors_judge(name: str, folder: str, classes: Mapping[str, ClassInfo], device: str) -> Judge:
    """A judge from the folder of an audit, whose factors and reader it takes.

    Raises HfsynError if there is no such audit or reader.
    """
    asked = read_asked(Path(folder))
    factors, infos = asked.factors, [classes[wnid] for wnid in asked.classes]
    names = (CLASS, *factors.factors)
    table = pq.read_table(Path(folder) / PROMPTS, columns=["source_id", "levels"]).to_pylist()
    levels = {row["source_id"]: row["levels"] for row in table}
    part = reader_part(asked.reader, asked.revision)
    say = _asking(part, device, factors, classes, levels) if asked.reader.startswith(ASKS) else None
    say = say or _captioning(part, device, Reader(factors, infos), classes, levels)

    def of(rows: Sequence[Row]) -> Iterator[Row | str]:
        return in_batches(rows, lambda picture, row: picture, say, part.batch_size)

    facts = {"kind": "factors", "reader": asked.reader, "weights": str(part.revision), "reads": str(factors.reads)}
    return Judge(name, {**{f"{SHOWS}{one}": "truth" for one in names}, SAID: "text"}, facts, of, device)


def reader_part(reader: str, revision: str | None = None) -> CaptionPart:
    """The caption part of a reader, its model pinned; `revision` is that of a Hub id. Raises HfsynError if there is no
    such captioner.
    """
    if reader.startswith(ASKS):
        return asking(reader.removeprefix(ASKS))
    known = reader in fragments("captioner") or is_yaml_name(reader)
    fields = load_fragment("captioner", reader).part if known else {"model": reader, "revision": revision}
    part: Any = check_part("caption", fields, reader)
    return part.model_copy(update={"revision": pin(part.model, part.revision, "captioner")})


def _captioning(
    part: CaptionPart, device: str, reader: Reader, classes: Mapping[str, ClassInfo], levels: Mapping[str, Any]
) -> Any:
    captioner = TransformersCaptioner(part, device, classes=list(classes.values()))

    def say(pictures: Sequence[Any], rows: Sequence[Row]) -> list[Row]:
        infos = [classes[row["wnid"]] for row in rows]
        said = captioner.caption(pictures, infos, [row["seed"] for row in rows])
        return [
            {**_columns(reader.shown(text, info, levels[row["source_id"]])), SAID: text}
            for text, info, row in zip(said, infos, rows, strict=True)
        ]

    return say


def _asking(
    part: CaptionPart, device: str, factors: Factors, classes: Mapping[str, ClassInfo], levels: Mapping[str, Any]
) -> Any:
    asker = Questioner(part, device, classes=list(classes.values()))

    def say(pictures: Sequence[Any], rows: Sequence[Row]) -> list[Row]:
        infos = [classes[row["wnid"]] for row in rows]
        asked = [factors.asked(info, levels[row["source_id"]]) for info, row in zip(infos, rows, strict=True)]
        found: list[dict[str, bool | None]] = [{} for _ in rows]
        for name in (CLASS, *factors.factors):
            words = [one[name] for one in asked]
            named = [replace(info, name=word or info.name) for info, word in zip(infos, words, strict=True)]
            for one, word, answer in zip(found, words, asker.answers(pictures, named), strict=True):
                one[name] = answer.yes > 0.5 if word else None
        return [{**_columns(one), SAID: None} for one in found]

    return say


def _columns(shown: Mapping[str, bool | None]) -> dict[str, bool | None]:
    return {f"{SHOWS}{name}": value for name, value in shown.items()}
