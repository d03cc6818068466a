"""The script for Hugging Face Jobs: what it says of itself, and that one job continues another's work."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import hub_buckets
import pytest
from conftest import ROOT, parquet_bytes
from hub_client import Client
from hub_server import Hub
from test_docs import commands

import hfsyn
from builders.runs.layout import finished_shards, sidecar_of

SCRIPT = ROOT / "scripts" / "hf_jobs.py"
SMALL = (
    "source.limit_per_class=2",
    "store.shard_rows=5",
    "generate.batch_size=5",
    "caption.batch_size=5",
    "generate.steps=4",
)
REPO = "alice/shapes"


def settings() -> list[str]:
    return [word for override in SMALL for word in ("--set", override)]


def test_its_table_is_what_uv_and_the_jobs_client_read() -> None:
    from huggingface_hub.cli._uv_script_header import parse_uv_script_header

    text = SCRIPT.read_text(encoding="utf-8")
    header = parse_uv_script_header(text)
    assert header is not None
    assert (header.secrets, header.volumes) == (["HF_TOKEN"], ["dist:/wheels"])
    table = tomllib.loads("".join(line[2:] for line in text.partition('# ///\n"""')[0].splitlines(True)[1:]))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert table["requires-python"] == project["requires-python"]
    assert table["dependencies"] == [project["name"]]
    # The package comes from the mounted folder and from no index, where somebody else may have its name.
    (index,) = table["tool"]["uv"]["index"]
    assert table["tool"]["uv"]["sources"] == {project["name"]: {"index": index["name"]}}
    assert (index["url"], index["explicit"]) == (header.volumes[0].partition(":")[2], True)
    # It ends by itself before it is ended.
    (hours,) = [parameter.default for parameter in script().job.params if parameter.name == "hours"]
    assert header.timeout is not None
    assert 0 < float(header.timeout.removesuffix("h")) - hours <= 1


def script() -> object:
    spec = importlib.util.spec_from_file_location("hf_jobs", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub(tmp_path_factory.mktemp("hub")) as found:
        yield found


@pytest.fixture(scope="module")
def client(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with Client(hub, tmp_path_factory.mktemp("client")) as found:
        yield found


def run_script(client: Client, *words: str, scratch: Path | str = "") -> tuple[int, str, str]:
    """Exit code, output and error output of the script."""
    code, out, err = client.python(
        f"""
import os, runpy, sys
os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})  # one core: one process
sys.argv = ["hf_jobs.py", *{words!r}]
try:
    runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
except SystemExit as stop:
    result = [stop.code, sys.stdout.getvalue(), sys.stderr.getvalue()]
""",
        HFSYN_SCRATCH=str(scratch),
    )
    return code, out, err


def test_a_job_on_a_new_machine_continues_what_an_earlier_one_sent(hub: Hub, client: Client, tmp_path: Path) -> None:
    first, second, alone = (tmp_path / name / "run" for name in ("first", "second", "alone"))
    words = ["shapes-cip", REPO, "--version", "1.0.0", *settings()]
    hfsyn.build("shapes-cip", alone, overrides=SMALL, num_processes=1, quiet=True)
    # A job that came as far as its first shard of images, and to the end of its hours.
    shutil.copytree(alone, first)
    (first / "manifest.json").unlink()
    for shard in list(finished_shards(first / "data"))[1:]:
        shard.unlink()
        sidecar_of(shard).unlink()
    ended, _, _ = run_script(client, *words, "--hours", "1e-9", "--out", str(first))
    assert ended == 4
    work = hub.files("dataset", REPO, "hfsyn-work/default")
    assert work.keys() >= {"data/train-00000-of-00004.parquet", "recipe.yaml"}
    assert "data/train-00001-of-00004.parquet" not in work
    assert hub.files("dataset", REPO, "main").keys() == {".gitattributes"}
    assert set(hub.refs("dataset", REPO)) == {"refs/heads/main", "refs/heads/hfsyn-work/default"}

    ended, out, err = run_script(client, *words, "--out", str(second))
    assert ended == 0, err
    assert out.splitlines()[-1] == f"{REPO}@v1.0.0"
    assert "5 finished shards were brought back" in err
    assert set(hub.refs("dataset", REPO)) == {"refs/heads/main", "refs/tags/v1.0.0"}
    for folder in ("captions", "data"):
        for shard in finished_shards(first / folder):
            # With its sidecar, which says how long it took whom: it was not made again.
            mark = sidecar_of(shard)
            assert mark.read_bytes() == (second / mark.relative_to(first)).read_bytes()
    assert parquet_bytes(second) == parquet_bytes(alone)
    published = hub.files("dataset", REPO, "v1.0.0")
    assert {name: published[name] for name in parquet_bytes(alone)} == parquet_bytes(alone)


@pytest.mark.slow
def test_jobs_that_share_a_bucket_go_on_where_others_stopped_and_one_publishes(tmp_path: Path) -> None:
    with Hub(tmp_path / "hub", xet=True) as hub, Client(hub, tmp_path / "client") as client:
        hub_buckets.add_bucket(hub, "alice/runs")
        words = ["shapes-cip", "alice/shared", "--version", "1.0.0", *settings(), "--bucket", "alice/runs/cip"]
        ended, _, err = run_script(client, *words, "--hours", "1e-9", scratch=tmp_path / "first")
        assert ended == 4, err
        part = ("hf://buckets/alice/runs/cip", "--shards", "0:2", "--num-processes", "1", "--quiet")
        assert client.hfsyn("caption", *part, HFSYN_SCRATCH=str(tmp_path / "first")).code == 0
        there = hub_buckets.files_of(hub, "alice/runs")
        assert len([name for name in there if name.startswith("cip/sidecars/captions/")]) == 2
        assert "cip/manifest.json" not in there
        ended, out, err = run_script(client, *words, scratch=tmp_path / "second")
        assert (ended, out.splitlines()[-1]) == (0, "alice/shared@v1.0.0"), err
        after = hub_buckets.files_of(hub, "alice/runs")
        assert {name: after[name] for name in there if name.endswith(".parquet")}.items() <= there.items()
        published = hub.files("dataset", "alice/shared", "v1.0.0")
        shards = [name for name in after if name.endswith(".parquet")]
        root = hub.store.root / "buckets" / "alice" / "runs"
        for name in shards:
            assert published[name.removeprefix("cip/")] == (root / after[name]["xetHash"]).read_bytes()


def test_shards_of_another_recipe_and_damaged_ones_are_made_anew(hub: Hub, client: Client, tmp_path: Path) -> None:
    name = "alice/other"
    other = tmp_path / "other"
    client.hfsyn("build", "shapes-cip", *settings(), "--num-processes", "1", "--quiet", "--out", other)
    assert client.hfsyn("publish", other, name, "--version", "1.0.0").code == 0
    code = """
from hfsyn.recipes.recipe import load_recipe
from hfsyn.publishing.working import continue_from
said = []
run = continue_from(load_recipe("shapes-cip", {overrides!r}), {out!r}, {name!r}, say=said.append)
result = [len(list(run.folder.rglob("train-*.json"))), said]
"""
    count, said = client.python(
        code.format(overrides=[*SMALL, "generate.steps=5"], out=str(tmp_path / "steps"), name=name)
    )
    assert (count, said) == (0, [f"{name} holds shards of another recipe, which are not used here"])
    # The commit is what was published but for one file, which was changed since.
    client.python(
        f"""
from huggingface_hub import HfApi
HfApi().upload_file(
    path_or_fileobj=b"PAR1", path_in_repo="data/train-00002-of-00004.parquet", repo_id={name!r}, repo_type="dataset"
)
result = None
"""
    )
    count, said = client.python(code.format(overrides=list(SMALL), out=str(tmp_path / "same"), name=name))
    assert (count, said) == (
        7,
        [
            f"{name}: train-00002-of-00004.parquet has other bytes than its sidecar states; it is created again",
            f"7 finished shards were brought back from {name}",
        ],
    )


@pytest.mark.parametrize("command", [c for c in commands("sh") if c[:2] == ["hf", "jobs"]], ids=" ".join)
def test_the_commands_of_the_readme_parse(command: list[str], hub: Hub, tmp_path: Path) -> None:
    """The real client of Jobs, which prints what it would start."""
    (tmp_path / "dist").mkdir()
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    program = Path(sys.executable).parent / "hf"
    done = subprocess.run(
        [str(program), *command[1:4], "--dry-run", *command[4:]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=hub.env(token="hf_alice_write", home=tmp_path) | {"PATH": os.environ["PATH"]},
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    job = script().job  # type: ignore[attr-defined]
    assert isinstance(job.make_context("job", command[command.index("scripts/hf_jobs.py") + 1 :]), click.Context)
