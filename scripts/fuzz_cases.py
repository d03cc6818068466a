"""What `fuzz_inputs.py` gives to the commands: files and command lines from a seed, sound ones and broken ones."""

from __future__ import annotations

import contextlib
import io
import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import click

from builders.yaml import dump_flow
from hfsyn.cli import cli


class Raw(str):
    """A piece of YAML that is written as it is."""

    __slots__ = ()


@dataclass
class Case:
    """What is given to a command."""

    kind: str
    arguments: list[str]
    files: dict[str, bytes] = field(default_factory=dict)


# What is sound ------------------------------------------------------------------------------------------------------

RECIPE: dict[str, Any] = {
    "name": "mine",
    "seed": 3,
    "source": {"variant": "shapes", "split": "train", "limit_per_class": 2},
    "caption": {"model": "builtin", "max_new_tokens": 30, "num_beams": 1, "dtype": "float32", "batch_size": 4},
    "prompt": {"strategy": "cip", "negative": "blurry", "images_per_caption": 1},
    "generate": {
        "model": "builtin",
        "scheduler": "ddim",
        "steps": 4,
        "guidance_scale": 2.0,
        "dtype": "float32",
        "batch_size": 4,
        "safety_checker": False,
        "max_retries": 1,
        "guidance_start": 0.0,
        "guidance_stop": 0.9,
    },
    "store": {"format": "jpeg", "quality": 96, "subsampling": "4:4:4", "size": 32, "shard_rows": 10},
}
TRAINING: dict[str, Any] = {
    "seed": 1,
    "data": {"train": ["shapes"], "budget": 100, "limit_per_class": 5, "streaming": False, "shuffle_mb": 10},
    "model": {"name": "test_resnet", "image_size": 32, "drop_path": 0.1, "options": {"output_stride": 8}},
    "augment": {"scale": [0.3, 1.0], "ratio": [0.75, 1.3], "flip": 0.5, "mixup": 0.2, "label_smoothing": 0.1},
    "optimise": {
        "epochs": 2,
        "batch_size": 8,
        "optimizer": "sgd",
        "lr": 0.1,
        "weight_decay": 0.0005,
        "momentum": 0.9,
        "warmup_epochs": 1,
        "min_lr": 0.0,
        "clip_grad": 1.0,
        "mixed_precision": "no",
    },
    "test": {"dataset": "shapes", "split": "test", "crop": 0.9, "every_epochs": 0},
}
MATRIX: dict[str, Any] = {
    "name": "a matrix",
    "config": TRAINING,
    "arms": {"plain": {"train": ["shapes"]}, "context": {"train": ["shapes-context:0.5"], "split": "train"}},
    "models": ["test_resnet"],
    "seeds": [0, 1],
    "budgets": [None, 50],
    "limits": [20],
    "mix": {"dataset": "shapes", "shares": [0, 0.5]},
    "tests": {"drawings": {"dataset": "shapes", "split": "test", "arms": ["plain"]}},
}
CLASS_MAP: dict[str, Any] = {
    "name": "flowers",
    "title": "Flowers",
    "licence": None,
    "splits": {"train": 30, "test": None},
    "path": "photos",
    "hub": {"repo_id": "alice/flowers", "splits": {"train": "train", "test": "validation"}},
    "classes": [
        {"id": "n11939491", "name": "daisy"},
        {"id": "dog-rose", "name": "dog rose", "label": "Rosa canina", "definition": "a wild rose", "lemmas": ["rose"]},
    ],
}


@cache
def captions() -> list[dict[str, Any]]:
    """A text for each image of the smallest run."""
    from builders.sources import open_source

    ids = [entry.source_id for entry in open_source("shapes", "train").index()][:10]
    return [{"source_id": source_id, "caption": f"a thing, number {number}"} for number, source_id in enumerate(ids)]


# How it is broken ---------------------------------------------------------------------------------------------------

VALUES: list[Any] = [
    None,
    True,
    False,
    "",
    " ",
    "no",
    "yes",
    "on",
    0,
    -1,
    1,
    2.5,
    -0.0,
    1e308,
    5e-324,
    2**31,
    2**63,
    10**30,
    -(2**63),
    Raw("1e1"),
    Raw("1e3"),
    Raw("1e400"),
    Raw("-1e400"),
    Raw(".inf"),
    Raw("-.inf"),
    Raw(".nan"),
    Raw("9" * 6000),
    Raw("0x1F"),
    Raw("1_000"),
    Raw("4:4:4"),
    Raw("2024-01-01"),
    Raw("!!python/object:os.system x"),
    Raw("!x 1"),
    Raw("*a"),
    Raw("&a [*a]"),
    Raw("&a b"),
    Raw("!!binary AAAA"),
    Raw("[" * 3000),
    Raw("[" * 100 + "]" * 100),
    Raw("{a: 1, a: 2}"),
    Raw("inf"),
    Raw("nan"),
    Raw("Infinity"),
    Raw("~"),
    Raw("|\n  x\n"),
    Raw('"\\ud800"'),
    Raw('"\\0"'),
    Raw('"a\\nb"'),
    Raw('"\\x1b[31m"'),
    Raw("@"),
    Raw("%"),
    Raw("`x"),
    Raw("? x"),
    Raw("'"),
    Raw("- x"),
    "日本",
    "\u202e",
    "é" * 300,
    "x" * 300,
    "x" * 30_000,
    "../..",
    "/",
    "/dev/null",
    "~",
    "a/b",
    "a.yaml",
    "hf://x",
    "hf://datasets/a/b",
    "USER/NAME@v1",
    "x.py:f",
    "1",
    "0.5",
    "nan",
    "{c}",
    "{seed}",
    "[VARIANT=]",
    "shapes:0",
    "shapes:nan",
    "shapes:1e400",
    "sha256:" + "0" * 64,
    "a" * 40,
    [],
    {},
    [[]],
    [None],
    [1, "a"],
    {"a": {"b": 1}},
    {"": 1},
    ["a"] * 50,
    list(range(2000)),
]
KEYS = ["", "nope", "seed", "stepz", "<<", "format", "extends", "1", "null", "name", "data", "x" * 300, "a.b", "日本"]
WORDS = [
    "",
    " ",
    "0",
    "-1",
    "1",
    "3",
    "1e3",
    "1e400",
    "nan",
    "inf",
    "-inf",
    "9" * 5000,
    "10000000000000000000",
    "x" * 300,
    "x" * 50_000,
    "\0",
    "a\0b",
    "\udcff",
    "\ud800",
    "a\nb",
    "\x1b[31m",
    "日本",
    "no",
    "null",
    "/",
    ".",
    "..",
    "~",
    "/dev/null",
    "/dev/full",
    "nope.yaml",
    "hf://",
    "hf://datasets/a/b",
    "a/b",
    "a/b@v1",
    "a/b#c",
    "shapes",
    "shapes-cip",
    "shapes=x",
    "=",
    "a=",
    "=b",
    "seed=1",
    "seed=.nan",
    "generate.steps=1e1",
    "generate.lr=1",
    "optimise.lr=.inf",
    "data.budget=1e3",
    "model.options={a: .nan}",
    "a.b.c.d.e.f.g=1",
    "prompt.negative=no",
    "caption=null",
    "source=1",
    "generate=[]",
    "store.quality=1e400",
    "..=1",
    "a..b=1",
    "--",
    "-",
    "--nope",
    "--set",
    "{seed}",
    "%s",
    "$HOME",
    "*",
]


def emit(value: Any) -> str:
    """YAML of a structure, raw pieces as they are; what `dump_flow` would refuse or quote is not asked of it."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{dump_flow(key)}: {emit(of)}" for key, of in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(emit, value)) + "]"
    return dump_flow(value)


def as_text(fields: Any) -> str:
    """A document with a line a key."""
    if not isinstance(fields, Mapping):
        return emit(fields)
    return "".join(f"{dump_flow(key)}: {emit(value)}\n" for key, value in fields.items())


def broken(value: Any, rng: random.Random) -> Any:
    """A structure with one place changed."""
    places = list(_places(value, ()))
    place = rng.choice(places)
    action = rng.randrange(6)

    def change(here: Any, path: tuple[Any, ...]) -> Any:
        if path:
            key, *rest = path
            if isinstance(here, dict):
                return {k: change(of, tuple(rest)) if k == key else of for k, of in here.items()}
            return [change(of, tuple(rest)) if i == key else of for i, of in enumerate(here)]
        if isinstance(here, dict) and here and action < 4:
            key = rng.choice(list(here))
            less = {k: of for k, of in here.items() if k != key}
            if action == 0:
                return less
            if action == 1:
                return {**here, rng.choice(KEYS): rng.choice(VALUES)}
            if action == 2:
                return {**less, key[:-1] + rng.choice("xyz_ "): here[key]}
        if isinstance(here, list) and action < 3:
            return [*here, *here, rng.choice(VALUES)]
        return rng.choice(VALUES)

    return change(value, place)


def _places(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, of in pairs:
        yield from _places(of, (*path, key))


_PIECES = [b"\0", b"\xff", b"\t", b"\r", b"\x85", b"%", b"---\n", b"\xed\xa0\x80"]


def scrambled(data: bytes, rng: random.Random) -> bytes:
    """Bytes with something done to them that editors, disks and copying do."""
    action, at = rng.randrange(12), rng.randrange(len(data) + 1)
    lines = data.splitlines(keepends=True) or [b""]
    line = rng.choice(lines)
    ways: list[Callable[[], bytes]] = [
        lambda: data[:at],
        lambda: data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :],
        lambda: data[:at] + rng.choice(_PIECES) + data[at:],
        lambda: data + line,
        lambda: rng.choice([b"%YAML 1.1\n---\n", b"%TAG ! x:\n---\n", b"---\n---\n", b"# \xff\n", b"\n" * 1000]) + data,
        lambda: data.decode("utf-8", "replace").encode(rng.choice(["utf-16", "utf-16-le", "utf-8-sig", "utf-32"])),
        lambda: data.replace(b": ", rng.choice([b":", b": - ", b" : ", b":\t", b": &a "]), 1),
        lambda: b"".join(rng.sample(lines, len(lines))),
        lambda: data.replace(b"\n", b"\r\n"),
        lambda: bytes(rng.randrange(256) for _ in range(200)),
        lambda: b"\x89PNG\r\n\x1a\n" + data,
        lambda: b"",
    ]
    return ways[action]()


# What is made of it -------------------------------------------------------------------------------------------------


def document(base: Any, rng: random.Random) -> bytes:
    """A YAML file that was sound."""
    value = base
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        value = broken(value, rng)
    data = as_text(value).encode("utf-8", "surrogatepass")
    return scrambled(data, rng) if rng.random() < 0.35 else data


def recipe_case(rng: random.Random) -> Case:
    base: Any = RECIPE if rng.random() < 0.7 else {"extends": "shapes-cip", "generate": {"steps": 3}, "seed": 1}
    file = rng.choice(["mine.yaml", "mine.yaml", "mine.yml", "deep/mine.yaml"])
    command = ["recipes", "show", file] if rng.random() < 0.7 else ["plan", file, "--limit", "1"]
    return Case("recipe", command, {file: document(base, rng)})


def fragment_case(rng: random.Random) -> Case:
    base = {"title": "t", "about": "a", "facts": {"source": "x"}, "caption": RECIPE["caption"]}
    return Case("captioner", ["captioners", "show", "mine.yaml"], {"mine.yaml": document(base, rng)})


def training_case(rng: random.Random) -> Case:
    return Case("training", ["train", "--config", "t.yaml", "--out", "o", "-q"], {"t.yaml": document(TRAINING, rng)})


def matrix_case(rng: random.Random) -> Case:
    return Case("matrix", ["bench", "m.yaml", "--out", "o", "-q"], {"m.yaml": document(MATRIX, rng)})


def class_map_case(rng: random.Random) -> Case:
    more = rng.choice([[], ["--json"], ["--classes"]])
    return Case("class map", ["variants", "info", "c.yaml", *more], {"c.yaml": document(CLASS_MAP, rng)})


def captions_case(rng: random.Random) -> Case:
    rows: Any = captions()
    for _ in range(rng.choice([0, 1, 1, 2])):
        rows = broken(rows, rng)
    ending = rng.choice(["jsonl", "csv", "parquet", "ndjson", "json", "txt", "JSONL", "tsv"])
    data = (_table if ending == "parquet" else _csv if ending in ("csv", "tsv") else _jsonl)(rows, rng)
    if rng.random() < 0.4:
        data = scrambled(data, rng)
    file = f"texts.{ending}"
    arguments = [
        "plan",
        "shapes-basic",
        "--limit",
        "1",
        "--strategy",
        "captions-file",
        "--set",
        f"prompt.captions_file={file}",
    ]
    missing = ["--set", "prompt.captions_missing=class-name"] if rng.random() < 0.5 else []
    return Case("captions", [*arguments, *missing], {file: data})


def _jsonl(rows: Any, rng: random.Random) -> bytes:
    lines = [_json(row) for row in (rows if isinstance(rows, list) else [rows])]
    if rng.random() < 0.2 and lines:
        lines[0] = lines[0].replace("{", '{"caption": "first", "caption": 1, ', 1)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _json(value: Any) -> str:
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)}: {_json(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_json, value)) + "]"
    return json.dumps(value)


def _csv(rows: Any, rng: random.Random) -> bytes:
    heading = rng.choice(["source_id,caption", "source_id,caption,caption", "caption,caption", "", "source_id;caption"])
    cells = [row.values() if isinstance(row, dict) else [row] for row in (rows if isinstance(rows, list) else [rows])]
    lines = [",".join('"' + str(cell).replace('"', rng.choice(['""', '"'])) + '"' for cell in row) for row in cells]
    return "\n".join([heading, *lines]).encode("utf-8", "surrogatepass")


def _table(rows: Any, rng: random.Random) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = [pa.string(), pa.large_string(), pa.binary(), pa.int64(), pa.float64(), pa.list_(pa.string()), pa.bool_()]
    names = rng.choice([["source_id", "caption"], ["source_id", "caption", "caption"], ["source_id"], ["a", "b"]])
    columns, rows = [], rows if isinstance(rows, list) else [rows]
    for name in names:
        kind = pa.string() if rng.random() < 0.7 else rng.choice(kinds)
        with contextlib.suppress(pa.ArrowException, UnicodeError, OverflowError):
            said = [str(row.get(name, "x")) if isinstance(row, dict) else "x" for row in rows]
            columns.append((name, pa.array(said, pa.string()).cast(kind)))
            continue
        columns.append((name, pa.nulls(len(rows), pa.string())))
    file = io.BytesIO()
    try:
        pq.write_table(pa.Table.from_arrays([c for _, c in columns], [n for n, _ in columns]), file)
    except pa.ArrowException:
        return b"PAR1"
    return file.getvalue()


SAFE: dict[tuple[str, ...], list[str]] = {
    ("plan",): ["shapes-cip", "--limit", "1"],
    ("build",): ["shapes-cip", "--out", "o"],
    ("recipes", "show"): ["shapes-cip"],
    ("recipes", "new"): ["mine"],
    ("variants", "info"): ["shapes"],
    ("variants", "peek"): ["shapes"],
    ("variants", "new"): ["mine", "--from", "photos"],
    ("strategies", "show"): ["basic", "--variant", "shapes", "--recipe", "shapes-cip"],
    ("captioners", "show"): ["builtin"],
    ("generators", "show"): ["builtin"],
    ("train",): ["--train-dataset", "shapes", "--out", "o"],
    ("evaluate",): ["test_resnet", "shapes"],
    ("bench",): ["m.yaml", "--out", "o"],
    ("report",): ["o"],
    ("status",): ["o"],
    ("finish",): ["o"],
    ("caption",): ["o"],
    ("generate",): ["o"],
    ("verify",): ["o"],
    ("diff",): ["o", "p"],
    ("reproduce",): ["o", "--sample-id", "x"],
    ("doctor",): ["shapes-cip"],
    ("demo",): [],
    ("fidelity",): ["o", "shapes"],
    ("membership",): ["m", "o", "shapes"],
    ("export-real",): ["o", "--out", "p"],
    ("publish",): ["o", "alice/o", "--version", "1.0.0"],
}
"""Commands and arguments with which they are sound, or refused because there is no such folder."""


def command_case(rng: random.Random) -> Case:
    """A command line with words changed, options added, or both."""
    names = rng.choice(list(SAFE))
    command: Any = cli
    for name in names:
        command = command.commands[name]
    words = list(SAFE[names])
    for _ in range(rng.choice([1, 1, 2])):
        options = [p for p in command.params if isinstance(p, click.Option) and not p.is_eager]
        if options and rng.random() < 0.7:
            option = rng.choice(options)
            words += [rng.choice(option.opts), *([] if option.is_flag else [rng.choice(WORDS)])]
        elif words:
            words[rng.randrange(len(words))] = rng.choice(WORDS)
    return Case("command", [*names, *words], {"m.yaml": as_text(MATRIX).encode()})


KINDS: dict[str, Callable[[random.Random], Case]] = {
    "recipe": recipe_case,
    "captioner": fragment_case,
    "training": training_case,
    "matrix": matrix_case,
    "class map": class_map_case,
    "captions": captions_case,
    "command": command_case,
}


def case_of(seed: int, number: int, only: str | None) -> Case:
    """The case of a number; the same for the same seed."""
    rng = random.Random(f"{seed}/{number}")
    kind = only or rng.choice(list(KINDS))
    return KINDS[kind](rng)
