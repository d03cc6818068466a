"""What a run has pinned stands, even if others commit to the places that its recipe names while it is at work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_client import Client
from hub_server import Hub

from builders.sources import open_source

LORA = "pytorch_lora_weights.safetensors"
SMALL = ("source.limit_per_class=1", "store.shard_rows=4", "generate.batch_size=4", "generate.steps=2", "name=pinned")
OPEN = {
    "captions": ("prompt.strategy=captions-file", "prompt.captions_file=hf://datasets/alice/texts"),
    "lora": ("generate.lora=alice/lora",),
    "lora of a branch": ("generate.lora=alice/lora", "generate.lora_revision=main"),
}
START = """
from fakes import FakeCaptioner, FakeGenerator
from hfsyn.errors import HfsynError
from hfsyn.captions.caption_stage import caption
from hfsyn.images.generate_stage import generate
from hfsyn.runs.finish import finish
from hfsyn.recipes.recipe import load_recipe
from hfsyn.runs.prepare import prepare
from hfsyn.publishing.working import continue_from

recipe = load_recipe("shapes-basic", {overrides!r})
def said(call):
    try:
        return str(call())
    except HfsynError as error:
        return f"refused: {{error}}"
"""


def lines(word: str) -> bytes:
    entries = [entry.source_id for entry in open_source("shapes", "train").index()][:10]
    return "".join(json.dumps({"source_id": i, "prompt": f"{word} {i}"}) + "\n" for i in entries).encode()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Client, Path]]:
    folder = tmp_path_factory.mktemp("pins")
    with Hub(folder / "hub") as hub:
        hub.add_repo("dataset", "alice/texts", {"texts.jsonl": lines("first")})
        hub.add_repo("model", "alice/lora", {LORA: b"first"})
        (folder / "client").mkdir()
        with Client(hub, folder / "client") as client:
            yield hub, client, folder


def finished(client: Client, out: Path, overrides: tuple[str, ...]) -> Any:
    return client.python(
        START.format(overrides=[*SMALL, *overrides])
        + f"""
run = prepare(recipe, {str(out)!r}).folder
caption(run, captioner=FakeCaptioner(), quiet=True)
generate(run, generator=FakeGenerator(), quiet=True)
finish(run)
result = None
"""
    )


def commit_to_both(hub: Hub, word: str) -> None:
    hub.add_commit("dataset", "alice/texts", {"texts.jsonl": lines(word)})
    hub.add_commit("model", "alice/lora", {LORA: word.encode()})


@pytest.mark.parametrize("what", ["captions", "lora"])
def test_a_run_that_continues_on_another_machine_keeps_what_it_began_with(
    world: tuple[Hub, Client, Path], what: str
) -> None:
    hub, client, folder = world
    here, there, repo = folder / f"{what}-1", folder / f"{what}-2", f"alice/{what}"
    finished(client, here, OPEN[what])
    done = client.hfsyn("publish", here, repo, "--version", "1.0.0", "-q")
    assert done.code == 0, done.err
    commit_to_both(hub, f"second for {what}")
    brought = client.python(
        START.format(overrides=[*SMALL, *OPEN[what]])
        + f"told = []\ncontinue_from(recipe, {str(there)!r}, {repo!r}, say=told.append)\nresult = told"
    )
    assert brought == [f"6 finished shards were brought back from {repo}"]


@pytest.mark.parametrize("what", OPEN)
def test_the_same_command_continues_a_run_whose_places_have_not_moved(
    world: tuple[Hub, Client, Path], what: str
) -> None:
    _, client, folder = world
    out = str(folder / f"again {what}")
    again = START.format(overrides=[*SMALL, *OPEN[what]]) + f"result = said(lambda: prepare(recipe, {out!r}).folder)"
    assert [client.python(again) for _ in range(2)] == [out, out]


def test_build_plan_and_doctor_look_at_the_pins_of_the_run_that_is_there(world: tuple[Hub, Client, Path]) -> None:
    hub, client, folder = world
    out = folder / "looked at"
    words = [word for override in (*SMALL, *OPEN["captions"]) for word in ("--set", override)]
    finished(client, out, OPEN["captions"])
    commit_to_both(hub, "third")
    planned = client.hfsyn("plan", "shapes-basic", *words, "--out", out)
    assert planned.code == 0, planned.err
    assert "third" not in planned.out
    checked = client.hfsyn("doctor", "shapes-basic", *words, "--out", out)
    assert "holds a run of this recipe, which is continued" in checked.out
    again = client.python(
        START.format(overrides=[*SMALL, *OPEN["captions"]])
        + f"result = said(lambda: prepare(recipe, {str(out)!r}).folder)"
    )
    assert again == str(out)


def test_a_branch_that_has_moved_since_is_said_with_both_commits(world: tuple[Hub, Client, Path]) -> None:
    hub, client, folder = world
    out = str(folder / "moved")
    again = (
        START.format(overrides=[*SMALL, *OPEN["lora of a branch"]])
        + f"result = said(lambda: prepare(recipe, {out!r}).folder)"
    )
    assert client.python(again) == out
    before = hub.refs("model", "alice/lora")
    commit_to_both(hub, "fourth")
    after = hub.refs("model", "alice/lora")
    refused = client.python(again)
    old, new = (next(sha for ref, sha in refs.items() if ref.endswith("main")) for refs in (before, after))
    assert f"generate.lora_revision is '{old}' there, '{new}' here" in refused
