"""Recipes, training recipes, matrices, class maps, captions files and options, as people write them: read alike
everywhere, and refused in one line that says where.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import run_folder

from builders.runs import layout
from builders.variants.class_maps import read_variant
from hfsyn.cli import cli, main
from hfsyn.errors import HfsynError
from hfsyn.judging.bench.matrix import Matrix, load_matrix
from hfsyn.recipes.recipe import Recipe, load_recipe
from hfsyn.recipes.training_recipe import TrainConfig, load_train_config

TRAIN = "data: {train: [shapes]}\n"
MATRIX = "name: m\narms: {a: {train: [shapes]}}\nmodels: [test_resnet]\ntests: {t: {dataset: shapes}}\n"
CLASSES = "name: pets\nsplits: {train: 1}\nclasses: [{id: dog, name: dog}]\n"
Read = Callable[[Path], Any]
READERS: dict[str, tuple[str, Read]] = {
    "recipe": ("extends: shapes-cip\n", load_recipe),
    "training recipe": (TRAIN, load_train_config),
    "matrix": (MATRIX, load_matrix),
    "class map": (CLASSES, lambda path: read_variant(path)[0]),
    "captioner": ("caption: {model: builtin}\n", lambda path: load_recipe("shapes-cip", captioner=str(path))),
}


def answer(call: Callable[[], Any]) -> Any:
    """What a call gives, or the line in which it refuses; any other error by its kind."""
    try:
        return call()
    except HfsynError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}, which is not a refusal"


def said(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int | str, str]:
    """Exit code and standard error of a command in this process."""
    code: int | str = 0
    try:
        main([*map(str, words)])
    except SystemExit as stop:
        code = int(stop.code or 0)
    except Exception as error:
        code = type(error).__name__
    return code, capsys.readouterr().err


def written(folder: Path, data: str | bytes, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


# --- YAML -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", READERS)
def test_a_key_that_is_said_twice_is_refused_at_every_depth(tmp_path: Path, kind: str) -> None:
    sound, read = READERS[kind]
    first = sound.partition(":")[0]
    twice = answer(lambda: read(written(tmp_path, f"{sound}{first}: 1\n")))
    number = sound.count("\n") + 1
    assert f"mine.yaml, line {number}, column 1: the key '{first}' is defined twice" in str(twice)
    deeper = answer(lambda: read(written(tmp_path, f"{sound}more: {{a: [{{b: 1, b: 2}}]}}\n")))
    assert f"mine.yaml, line {number}, column 19: the key 'b' is defined twice" in str(deeper)


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("%YAML 1.1\n---\n{}", "directives"),
        ("{}x: !!python/object:os.system rm\n", "the tag"),
        ("{}x: !mine 1\n", "the tag"),
        ("{}--- \na: 1\n", "another document begins here"),
        ("{}x: " + "[" * 3000 + "\n", "nested more than 64 levels deep"),
        ("{}x: " + "9" * 6000 + "\n", "a number of 6,000 digits is too long"),
        ("{}x: .inf\n", ".inf is not a finite number"),
        ("{}x: -1e999\n", "-1e999 is too large"),
        ("{}x: &a [1, *a]\n", "the alias 'a'"),
        ("{}x: \x00\n", "the character 0x00 is not allowed"),
        ('{}x: "\\0"\n', "the character 0x00 is not allowed"),
        ('{}x: "\\ud800"\n', "the character 0xd800 is not allowed"),
        ("{}x: [\n", "line"),
    ],
)
def test_yaml_that_may_mean_anything_is_refused_by_line(tmp_path: Path, kind: str, text: str, words: str) -> None:
    sound, read = READERS[kind]
    found = answer(lambda: read(written(tmp_path, text.replace("{}", sound))))
    assert "mine.yaml, line " in str(found)
    assert words in str(found)


@pytest.mark.parametrize("kind", READERS)
def test_a_file_that_is_no_text_is_said_to_be_what_it_is(tmp_path: Path, kind: str) -> None:
    sound, read = READERS[kind]
    found = {
        "latin-1": answer(lambda: read(written(tmp_path, sound.encode() + b"x: \xe9\n", "a.yaml"))),
        "utf-16": answer(lambda: read(written(tmp_path, sound.encode("utf-16"), "b.yaml"))),
        "empty": answer(lambda: read(written(tmp_path, "# nothing\n", "c.yaml"))),
        "list": answer(lambda: read(written(tmp_path, "- a\n", "d.yaml"))),
        "missing": answer(lambda: read(tmp_path / "e.yaml")),
    }
    (tmp_path / "f.yaml").mkdir()
    found["folder"] = answer(lambda: read(tmp_path / "f.yaml"))
    line = sound.count("\n") + 1
    for case, words in {
        "latin-1": f"a.yaml is not UTF-8: line {line} has the byte 0xe9",
        "utf-16": "b.yaml is UTF-16 text",
        "empty": "c.yaml is empty",
        "list": "d.yaml holds a list",
        "missing": "There is no",
        "folder": "f.yaml is a folder",
    }.items():
        assert words in str(found[case]), case


def test_aliases_that_multiply_are_refused_and_others_are_read(tmp_path: Path) -> None:
    bomb = "".join(f"k{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))
    found = answer(lambda: load_train_config(written(tmp_path, f"{TRAIN}k0: &a0 [x, x, x, x, x]\n{bomb}")))
    assert "aliases repeat more than 100,000 values" in str(found)
    shared = "arms: {a: &a {train: [shapes]}, b: {<<: *a, split: train}}"
    matrix = answer(lambda: load_matrix(written(tmp_path, MATRIX.replace("arms: {a: {train: [shapes]}}", shared))))
    assert isinstance(matrix, Matrix), matrix
    assert (matrix.arms["b"].train, matrix.arms["b"].split) == (("shapes",), "train")


def test_words_and_numbers_mean_the_same_in_files_and_in_options(tmp_path: Path) -> None:
    """As YAML 1.2 has it: `no` is a text, 1e-3 a number; and 1e3 is a whole number where one is asked for."""
    fields = {
        "generate.steps": ("1e1", 10),
        "generate.guidance_scale": ("15e-1", 1.5),
        "prompt.negative": ("no", "no"),
        "caption.prompt": ("2024-01-01", "2024-01-01"),
        "store.subsampling": ("4:4:4", "4:4:4"),
        "seed": ("1e3", 1000),
    }
    training = {
        "data.budget": ("1e3", 1000),
        "optimise.lr": ("1e-3", 0.001),
        "optimise.mixed_precision": ("no", "no"),
        "optimise.epochs": ("2.0", 2),
        "seed": ("1e2", 100),
    }

    def values(config: Any, wanted: Mapping[str, Any]) -> Any:
        if isinstance(config, str):
            return config
        dumped = config.model_dump()
        return {
            key: dumped[a][b] if (a := key.partition(".")[0]) != (b := key.rpartition(".")[2]) else dumped[a]
            for key in wanted
        }

    def text(wanted: Mapping[str, tuple[str, Any]]) -> str:
        parts: dict[str, list[str]] = {}
        for key, (spelt, _) in wanted.items():
            part, _, name = key.rpartition(".")
            parts.setdefault(part, []).append(f"{name}: {spelt}")
        lines = (f"{part}: {{{', '.join(pairs)}}}" if part else pairs[0] for part, pairs in parts.items())
        return "\n".join(lines) + "\n"

    for wanted, start, load in (
        (fields, "extends: shapes-cip\n", lambda source, sets: load_recipe(source or "shapes-cip", sets)),
        (training, "", lambda source, sets: load_train_config(source, [*sets, "data.train=[shapes]"])),
    ):
        meant = {key: value for key, (_, value) in wanted.items()}
        sets = [f"{key}={spelt}" for key, (spelt, _) in wanted.items()]
        assert values(answer(lambda load=load, sets=sets: load(None, sets)), wanted) == meant
        file = written(tmp_path, start + text(wanted))
        assert values(answer(lambda load=load, file=file: load(file, [])), wanted) == meant
    matrix = answer(lambda: load_matrix(written(tmp_path, f"{MATRIX}budgets: [1e3, null]\nseeds: [1e0]\n")))
    assert isinstance(matrix, Matrix), matrix
    assert (matrix.budgets, matrix.seeds) == ((1000, None), (1,))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: load_train_config(None, ["data.train=[shapes]", "data.streaming=yes"]), "Write true: 'yes' is a text"),
        (lambda: load_recipe("shapes-cip", ["generate.safety_checker=off"]), "Write false: 'off' is a text"),
        (lambda: load_train_config({"data": {"train": ["shapes"]}, "optimise": {"epochs": "3"}}), "epochs is '3'"),
        (lambda: load_train_config({"data": {"train": ["shapes"]}, "seed": True}), "seed is True"),
        (lambda: load_matrix({"name": "m", "arms": {"a": {"train": "shapes"}}, "models": ["x"], "tests": {}}), "train"),
        (lambda: load_train_config(None, ["data.train=[shapes]", "optimise.epoch=3"]), "mean 'optimise.epochs'"),
    ],
)
def test_another_kind_of_value_is_refused_with_what_to_write(call: Callable[[], Any], words: str) -> None:
    assert words in str(answer(call))


def test_a_text_of_digits_needs_no_quotes_where_a_text_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(lambda: load_recipe("imagenette-cip", ["generate.revision=1234567", "source.revision=12e45678"]))
    assert isinstance(found, Recipe), found
    assert (found.generate.revision, found.source.revision) == ("1234567", "12e45678")


# --- numbers and options ----------------------------------------------------------------------------------------------


def numeric(model: Any, above: str = "") -> Iterator[str]:
    """Dotted names of the fields that take a number, of all parts."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        inner = next((c for c in (kind, *getattr(kind, "__args__", ())) if hasattr(c, "model_fields")), None)
        if inner is not None and not str(kind).startswith("dict"):
            yield from numeric(inner, f"{above}{name}.")
        elif "int" in repr(kind) or "float" in repr(kind):
            yield f"{above}{name}"


def test_no_number_of_a_recipe_or_training_recipe_may_be_infinite_or_out_of_proportion() -> None:
    recipes, trainings = [*numeric(Recipe)], [*numeric(TrainConfig)]
    assert len(recipes) > 20
    assert len(trainings) > 20
    taken = []
    for value in (float("inf"), float("nan"), 1e300, 10**30):
        for key in recipes:
            part, _, name = key.rpartition(".")
            base = load_recipe("shapes-cip").model_dump()
            base = {**base, part: {**(base[part] or {}), name: value}} if part else {**base, name: value}
            taken += [(key, value)] if isinstance(answer(lambda base=base: load_recipe(base)), Recipe) else []
        for key in trainings:
            part, _, name = key.rpartition(".")
            fields: dict[str, Any] = {"data": {"train": ["shapes"]}}
            fields = {**fields, part: {**fields.get(part, {}), name: value}} if part else {**fields, name: value}
            done = answer(lambda fields=fields: load_train_config(fields))
            taken += [(key, value)] if isinstance(done, TrainConfig) else []
    assert taken == []


@pytest.mark.parametrize(
    "override",
    [
        "optimise.lr=.inf",
        "optimise.lr=1e400",
        "optimise.weight_decay=.inf",
        "augment.mixup=.inf",
        "test.crop=0",
        "optimise.warmup_epochs=.nan",
        "model.ema_decay=1",
        "model.dropout=1",
        "augment.scale=[1.0, 0.1]",
        "model.options={output_stride: .inf}",
        "augment.ratio=[0, 0]",
    ],
)
def test_a_value_with_which_nothing_can_be_trained_is_refused_by_its_key(override: str) -> None:
    found = str(answer(lambda: load_train_config(None, ["data.train=[shapes]", override])))
    assert override.partition("=")[0] in found


def options(command: Any = cli, name: str = "hfsyn") -> Iterator[tuple[str, click.Parameter]]:
    for parameter in command.params:
        yield f"{name} {parameter.opts[-1]}", parameter
    for below, inner in getattr(command, "commands", {}).items():
        yield from options(inner, f"{name} {below}")


def test_no_option_takes_an_empty_text_or_one_that_no_file_can_be_called() -> None:
    taken = []
    for name, parameter in options():
        if getattr(parameter, "is_flag", False) or name == "hfsyn strategies show --caption":
            continue
        numbers = () if is_text(parameter) else ("nan", "inf", "9" * 5000)
        for value in ("", " ", "a\0b", "\udcff", *numbers):
            try:
                parameter.type.convert(value, parameter, None)
            except click.UsageError:
                continue
            except ValueError:
                pass  # which no user reads
            taken.append((name, value[:10]))
    assert taken == []


def is_text(parameter: click.Parameter) -> bool:
    return not any(word in type(parameter.type).__name__ for word in ("Int", "Float", "Whole", "Finite", "Choice"))


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (("build", "shapes-cip", "--out", "a\0b"), "--out"),
        (("build", "shapes-cip", "--out", ""), "--out"),
        (("plan", "shapes-cip", "--set", "generate.steps=" + "9" * 6000), "--set generate.steps"),
        (("plan", "shapes-cip", "--set", "generate=" + "[" * 3000), "--set generate"),
        (("plan", "shapes-cip", "--limit", "9" * 30), "--limit"),
        (("plan", "shapes-cip", "--set", "a.b.c.d.e.f.g.h=1"), "a.b.c.d.e.f.g.h"),
        (("plan", "\0"), "RECIPE"),
        (("recipes", "show", "x" * 300), "xxx"),
    ],
)
def test_an_absurd_word_of_a_command_is_refused_by_its_option(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], place: str
) -> None:
    code, err = said(capsys, *words)
    assert (code, err.count("\n"), err.startswith("Error: ")) == (2, 1, True)
    assert place in err


KINDS = {
    "class map": "name: mine\nsplits: {train: 1}\nclasses: [{id: cat, name: cat}]\n",
    "matrix": "name: x\narms: {a: {train: [shapes]}}\nmodels: [test_resnet]\ntests: {t: {dataset: shapes}}\n",
    "recipe": "source: {variant: shapes}\nprompt: {strategy: basic}\ngenerate: {model: builtin}\n",
    "training recipe": "optimise: {epochs: 1}\nmodel: {name: test_resnet}\n",
}
TAKERS = {
    "recipe": ("plan", "FILE", "--set", "generate.steps=3"),
    "training recipe": (
        *("train", "--config", "FILE", "--train-dataset", "shapes", "--model", "test_resnet"),
        *("--out", "out"),
    ),
    "matrix": ("bench", "FILE", "--out", "out"),
}


@pytest.mark.parametrize(("given", "wanted"), [(g, w) for g in KINDS for w in TAKERS if g != w])
def test_a_file_of_another_kind_is_called_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: str, wanted: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(KINDS[given])
    code, err = said(capsys, *("mine.yaml" if word == "FILE" else word for word in TAKERS[wanted]))
    assert code == 2
    assert err.startswith(f"Error: mine.yaml is a {given}, not a {wanted}. What takes it: hfsyn ")
    assert not Path("out").exists()


@pytest.mark.parametrize(("key", "wanted"), [("model", "recipe"), ("source", "training recipe"), ("prompt", "matrix")])
def test_a_stray_key_of_another_kind_is_still_an_unknown_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, wanted: str
) -> None:
    file = written(tmp_path, f"{KINDS[wanted]}{key}: {{}}\n", "mine.yaml")
    code, err = said(capsys, *(file if word == "FILE" else word for word in TAKERS[wanted]))
    assert code == 2
    assert f"Unknown key '{key}'" in err


def test_empty_captions_are_refused_before_anything_is_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, err = said(capsys, "build", "shapes-cip", "--out", written(tmp_path, "", "file"), "--captions", "")
    assert code == 2
    assert "'--captions': it is empty" in err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prompt: {strategy: cip, captions_revision: abc}", "there is no prompt.captions_file"),
        ("prompt: {strategy_sha256: abc}", "strategy 'cip' has no file"),
        ("generate: {lora_revision: main}", "no generate.lora"),
        ("generate: " + "[" * 3000, "line 2"),
        ("seed: " + "9" * 6000, "line 2"),
        ("extends: nope", "line 2"),
        ("source: {split: 7}", "source.split is 7"),
    ],
)
def test_an_extending_recipe_with_a_slip_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    code, err = said(capsys, "plan", written(tmp_path, f"extends: shapes-cip\n{text}\n"), "--limit", "1")
    assert (code, err.count("\n")) == (2, 1)
    assert words in err


# --- captions files ---------------------------------------------------------------------------------------------------


def test_a_column_of_a_captions_file_that_is_there_twice_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    csv = written(tmp_path, "source_id,caption,caption\na,b,c\n", "texts.csv")
    jsonl = written(tmp_path, '{"source_id": "a", "caption": "b", "caption": "c"}\n', "texts.jsonl")
    parquet = tmp_path / "texts.parquet"
    names = ["source_id", "caption", "caption"]
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 3, names), parquet)
    deep = written(tmp_path, "[" * 100_000 + "\n", "deep.jsonl")
    for file, place in ((csv, "the heading"), (jsonl, "line 1"), (parquet, "its schema"), (deep, "line 1")):
        words = ("plan", "shapes-basic", "--limit", "1", "--strategy", "captions-file", "--set")
        code, err = said(capsys, *words, f"prompt.captions_file={file}")
        assert (code, err.count("\n")) == (2, 1), file
        assert f"{file.name} cannot be used: {place} " in err
        assert "'caption' more than once" in err or file == deep


# --- formats ----------------------------------------------------------------------------------------------------------


def test_a_run_of_another_format_is_refused_with_both_numbers_and_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path)
    recipe = run / layout.RECIPE
    text = recipe.read_text()
    recipe.write_text(text.replace("format: 3\n", ""))
    for command in ("status", "caption", "generate", "finish"):
        code, err = said(capsys, command, run)
        assert code == 2
        assert "recipe.yaml is of format 1, and this hfsyn reads format 3. Build it again" in err
    recipe.write_text(text.replace("format: 3\n", "format: 4\n"))
    assert "is of format 4, and this hfsyn reads format 3. A newer hfsyn reads it" in said(capsys, "status", run)[1]
    manifest = {"format": 1, "name": "x", "split": "train", "fingerprint": "f" * 64, "rows": 0, "recipe": {}}
    found = str(answer(lambda: layout.load_manifest(json.dumps(manifest), "manifest.json of alice/set")))
    assert "manifest.json of alice/set is of format 1, and this hfsyn reads format 3" in found
