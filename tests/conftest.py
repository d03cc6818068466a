"""What all tests share: an empty home, no network, and the recipe and runs that most of them start from."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEST_FOLDERS = (ROOT / "tests", *sorted(path for path in (ROOT / "tests").iterdir() if any(path.glob("test_*.py"))))
"""From which a process that runs tests, or what they share, imports."""
PHOTOGRAPHS = ROOT.parent / "shared" / "data" / "tiny-imagenet-10"

# Before any Hugging Face library is imported: they read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# Started in the background by a script, this process would ignore SIGINT, and so would every process that a test starts
# in order to interrupt it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

needs_photographs = pytest.mark.skipif(
    not PHOTOGRAPHS.is_dir(), reason="the photographs of ../shared/data/tiny-imagenet-10 are not here"
)


@pytest.fixture(autouse=True)
def _empty_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the user's is read or written, and no launcher's variables leak in."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(home / "datasets"))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "HFSYN_LAUNCHED"):
        monkeypatch.delenv(name, raising=False)


Hfsyn = Callable[..., subprocess.CompletedProcess[str]]


@cache
def processes() -> Any:
    """Where commands run in processes of their own that have imported everything already: most of their time else."""
    from hub_client import Forks

    home = Path(tempfile.mkdtemp(prefix="hfsyn-tests-"))
    found = Forks(None, home, "models")
    atexit.register(lambda: (found.close(), shutil.rmtree(home, ignore_errors=True)))
    return found


def command(
    *arguments: str | Path, cwd: Path, timeout: float = 280, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the real command in a process of its own."""
    around = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    return processes().run(arguments, cwd, around, timeout)


@pytest.fixture
def hfsyn(tmp_path: Path) -> Hfsyn:
    """Run the real command in a process of its own, in `tmp_path`."""
    return partial(command, cwd=tmp_path)


def parquet_bytes(run: Path) -> dict[str, bytes]:
    """Every Parquet file of a run folder by its path within."""
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*.parquet"))}


def run_folder(tmp_path: Path, *overrides: str, recipe: str = "shapes-cip", name: str = "run") -> Path:
    """A prepared run folder of a shipped recipe, small unless the overrides say otherwise."""
    from hfsyn.recipes.recipe import load_recipe
    from hfsyn.runs.prepare import prepare

    small: Sequence[str] = ("source.limit_per_class=3", "store.shard_rows=8", "generate.batch_size=4")
    return prepare(load_recipe(recipe, [*small, *overrides]), tmp_path / name).folder


def finished_run(tmp_path: Path, *overrides: str, recipe: str = "shapes-cip", name: str = "run") -> Path:
    """A finished run folder, made by fakes in no time."""
    from fakes import FakeCaptioner, FakeGenerator

    from hfsyn.captions.caption_stage import caption
    from hfsyn.images.generate_stage import generate
    from hfsyn.runs.finish import finish

    run = run_folder(tmp_path, *overrides, recipe=recipe, name=name)
    caption(run, captioner=FakeCaptioner(), quiet=True)
    generate(run, generator=FakeGenerator(), quiet=True)
    return finish(run).folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Hub on loopback; files that need more of it have one of their own."""
    from hub_server import Hub

    with Hub(tmp_path_factory.mktemp("hub")) as found:
        yield found


@pytest.fixture(scope="module")
def alice(hub: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of that Hub, in a process of its own."""
    from hub_client import Client

    with Client(hub, tmp_path_factory.mktemp("alice")) as found:
        yield found


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the tests that are marked slow, too")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--all"):
        os.environ["HFSYN_TEST_ALL"] = "1"  # for those that do more of the same, as well as for their processes


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--all"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="takes long: ./scripts/test --all runs it"))
