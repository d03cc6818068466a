"""Which files `load_dataset` takes is said here without a network, and exactly as `datasets` finds them."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders.sources.cards import Card, files_loaded

FILES = (
    "README.md",
    "data/train-00000-of-00002.parquet",
    "data/train-00001-of-00002.parquet",
    "data/train-mine.parquet",
    "data/train-x-of-00002.parquet",
    "data/test-00000-of-00001.parquet",
    "data/.hidden.parquet",
    "data/notes.md",
    "data/train.csv",
    "data/train-1.parquet.gz",
    ".secret/train.parquet",
    "__special__/a.parquet",
    "basic/data/a.parquet",
    "basic/data/__b__/a.parquet",
    "basic/config.json",
    "a b.parquet",
    "manifest.json",
    "x/y/z/deep.parquet",
    "preview/samples.png",
    "plan.parquet",
)
PATTERNS = (
    "data/train-*-of-00002.parquet",
    "data/train-*.parquet",
    "data/*",
    "data/**",
    "**",
    "**/*.parquet",
    "*.parquet",
    "basic/**",
    ".secret/*",
    "__special__/*",
    "data/.h*",
    "**/data/*.parquet",
    "data/train-0000[01]-of-00002.parquet",
    "x/*/*/deep.parquet",
    "data/train-0000?-of-*.parquet",
    "*/*.json",
    "nothing/*",
    "data/train-mine.parquet",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("files")
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def loaded(**config: object) -> dict[str, list[str]]:
    return files_loaded(Card({"one": config}), "one", FILES, "here")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_means_the_files_that_datasets_takes(pattern: str, folder: Path) -> None:
    from datasets.data_files import DataFilesList
    from datasets.packaged_modules import _ALL_ALLOWED_EXTENSIONS

    found = DataFilesList.from_patterns([pattern], str(folder), _ALL_ALLOWED_EXTENSIONS)
    assert loaded(data_files=pattern) == {"train": [Path(path).relative_to(folder).as_posix() for path in found]}


def test_splits_folders_repetitions_and_paths_that_are_not_there_are_as_the_card_says() -> None:
    files = [
        {"split": "a", "path": ["data/train-mine.parquet", "data/train-m*"]},
        {"split": "b", "path": "gone.parquet"},
    ]
    assert loaded(data_files=files) == {"a": ["data/train-mine.parquet"] * 2, "b": ["gone.parquet"]}
    assert loaded(data_dir="basic", data_files="data/*.parquet") == {"train": ["basic/data/a.parquet"]}
    assert loaded(data_files="https://elsewhere/a.parquet") == {"train": ["https://elsewhere/a.parquet"]}


def test_without_configurations_the_names_of_files_say_the_splits() -> None:
    named = [name for name in FILES if "mine" not in name and "-x-" not in name]
    assert files_loaded(Card(), None, named, "here") == {
        "train": ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
        "test": ["data/test-00000-of-00001.parquet"],
    }
