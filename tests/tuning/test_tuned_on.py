"""What a LoRA was tuned on: published with it, pinned with it, on the card of what is drawn with it, and compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import run_folder
from fakes import FakeCaptioner, FakeGenerator
from hub_client import Client
from hub_server import Hub

import hfsyn
from hfsyn.captions.caption_stage import caption
from hfsyn.images.generate_stage import generate
from hfsyn.recipes.recipe import dump_recipe, fingerprint, load_recipe
from hfsyn.runs.finish import finish
from hfsyn.runs.run import load_run

FILE = "pytorch_lora_weights.safetensors"


def told(folder: Path, reference: str) -> Path:
    """A LoRA that says what it was tuned on; the generators of these tests do not read its weights."""
    folder.mkdir()
    (folder / FILE).write_bytes(b"weights")
    seen = {"reference": reference, "title": "photographs", "page": None, "licence": "unknown"}
    (folder / "tuning.json").write_text(json.dumps({"tuned_on": seen}))
    return folder


def drawn(tmp_path: Path, *overrides: str) -> Path:
    """A finished run that was drawn with it."""
    run = run_folder(tmp_path, *overrides)
    caption(run, captioner=FakeCaptioner(), quiet=True)
    generate(run, generator=FakeGenerator(), quiet=True)
    finish(run)
    return run


def test_a_set_says_on_its_card_what_its_lora_was_tuned_on_and_is_the_same_set_without_that(tmp_path: Path) -> None:
    run = drawn(tmp_path, f"generate.lora={told(tmp_path / 'lora', 'alice/photographs@v1.0.0')}")
    recipe = load_run(run).recipe
    assert recipe.generate.lora_tuned_on == "alice/photographs@v1.0.0"
    assert fingerprint(recipe.with_fields("generate", lora_tuned_on=None)) == fingerprint(recipe)
    card = (run / "README.md").read_text()
    assert "| LoRA tuned on | real images of `alice/photographs@v1.0.0` |" in card
    assert "Drawn with weights that were tuned on real images** (`alice/photographs@v1.0.0`)" in card
    # The same recipe, which does not say it, goes on with the run.
    again = run_folder(tmp_path, f"generate.lora={tmp_path / 'lora'}")
    assert load_run(again).recipe == recipe
    other = run_folder(tmp_path, name="plain")
    assert "lora_tuned_on" not in (other / "recipe.yaml").read_text()


def test_a_set_says_the_same_of_a_whole_generator_that_was_tuned(tmp_path: Path) -> None:
    (told(tmp_path / "model", "shapes-context") / "model_index.json").write_text("{}")
    run = drawn(tmp_path, f"generate.model={tmp_path / 'model'}")
    recipe = load_run(run).recipe
    assert recipe.generate.tuned_on == "shapes-context"
    assert fingerprint(recipe.with_fields("generate", tuned_on=None)) == fingerprint(recipe)
    card = (run / "README.md").read_text()
    assert "| generator tuned on | real images of `shapes-context` |" in card
    assert "Drawn with weights that were tuned on real images** (`shapes-context`)" in card
    found = hfsyn.fidelity(str(run), "shapes", features="random:test_resnet", limit=2, device="cpu")
    assert (found["tuned_on"], "against_tuned_on" in found["duplicates"]) == ("shapes-context", True)
    # What is said of a model or a LoRA goes with it.
    (tmp_path / "own.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(str(tmp_path / "own.yaml"), ["generate.model=builtin"]).generate.tuned_on is None
    lora = recipe.with_fields("generate", lora="a/b", lora_tuned_on="shapes")
    (tmp_path / "own.yaml").write_text(dump_recipe(lora))
    assert load_recipe(str(tmp_path / "own.yaml"), ["generate.lora=null"]).generate.lora_tuned_on is None


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("shapes", r"tuned on shapes: copies of real images are copies of these"),
        ("shapes-context", r"its model was tuned on shapes-context"),
        ("shapes, split test", r"its model was tuned on shapes, split test"),
        ("nobody/nothing@v1.0.0", r"tuned on nobody/nothing@v1\.0\.0, which is not compared with: "),
        ("./shapes", r"tuned on \./shapes, which is not compared with: it is a folder"),
        ("shapes=./mine", r"tuned on shapes=\./mine, which is not compared with: it is a folder"),
    ],
)
def test_fidelity_compares_with_what_a_lora_was_tuned_on_by_itself(tmp_path: Path, reference: str, said: str) -> None:
    run = drawn(tmp_path, f"generate.lora={told(tmp_path / 'lora', reference)}")
    compared = ("shapes-context", "shapes, split test")
    found = hfsyn.fidelity(str(run), "shapes", features="random:test_resnet", limit=2, device="cpu")
    assert said.replace("\\", "") in " ".join([*found.remarks(), *(row["means"] for row in found.rows())])
    assert ("against_tuned_on" in found["duplicates"]) == (reference in compared)
    assert found["tuned_on"] == reference


def test_weights_are_published_with_a_card_and_pinned_from_there_with_what_they_were_tuned_on(tmp_path: Path) -> None:
    how = ("tune.steps=2", "tune.batch_size=2", "generate.steps=2")
    words: list[str | Path] = [word for one in how for word in ("--set", one)]
    with Hub(tmp_path / "hub") as hub, Client(hub, tmp_path) as client:
        tuning: list[str | Path] = ["tune", "shapes-cip", "--limit", "1", *words, "--out", tmp_path / "tuned", "-q"]
        done = client.hfsyn(*tuning, "--device", "cpu", "--samples", "0", "--push-to-hub", "alice/lora")
        assert done.code == 0, done.err
        files = hub.files("model", "alice/lora")
        assert {FILE, "README.md", "loss.png", "tuning.json"} <= set(files)
        card = files["README.md"].decode()
        assert 'pipe.load_lora_weights("alice/lora")' in card
        assert str(tmp_path) not in card
        pinned: Any = client.python(
            "from hfsyn.models.loras import pin_lora\nfrom hfsyn.recipes.recipe import load_recipe\n"
            "part = pin_lora(load_recipe('shapes-cip', ['generate.lora=alice/lora']).generate)\n"
            "result = [part.lora_revision, part.lora_tuned_on]"
        )
        assert pinned == [hub.head("model", "alice/lora"), "shapes"]
        refused = client.hfsyn(*tuning, "--push-to-hub", "nobody")
        assert (refused.code, "'nobody' is not a name on the Hub" in refused.err) == (2, True)


def test_loras_by_class_are_pinned_from_where_they_are_published_and_taken_from_there(tmp_path: Path) -> None:
    listed = {"star": {"file": f"classes/star/{FILE}", "sha256": "0" * 64}}
    seen = {"tuned_on": {"reference": "shapes"}}
    with Hub(tmp_path / "hub") as hub, Client(hub, tmp_path) as client:
        files = {"lora_by_class.json": json.dumps(listed).encode(), "tuning.json": json.dumps(seen).encode()}
        hub.add_repo("model", "alice/lora")
        head = hub.add_commit("model", "alice/lora", files)
        hub.add_repo("model", "alice/empty")
        hub.add_commit("model", "alice/empty", {"README.md": b""})
        code = (
            "from hfsyn.models.loras import ClassLoras, pin_lora\nfrom hfsyn.recipes.recipe import load_recipe\n"
            "part = pin_lora(load_recipe('shapes-cip', ['generate.lora=alice/lora']).generate)\n"
            "files = ClassLoras(None, part)._files\n"
            "result = [part.lora_file, part.lora_by_class, part.lora_revision, part.lora_tuned_on, list(files)]"
        )
        assert client.python(code) == ["lora_by_class.json", True, head, "shapes", ["star"]]
        assert client.python(code, HF_HUB_OFFLINE="1")[:3] == ["lora_by_class.json", True, head]
        refused = client.hfsyn("build", "shapes-cip", "--set", "generate.lora=alice/empty", "--out", tmp_path / "x")
        assert (refused.code, "has no file pytorch_lora_weights.safetensors or lora_by" in refused.err) == (2, True)
