"""What would stop a run is found before it begins, and each finding names what fixes it."""

from __future__ import annotations

import json
import shutil
import warnings
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import run_folder
from hub_client import Client, Done
from hub_server import Hub

from hfsyn.outlook import doctor as checkup
from hfsyn.outlook.doctor import Check, doctor
from hfsyn.recipes.recipe import load_recipe

# Beside the parts of a pipeline often lie copies for other programs, which nobody fetches.
GENERATOR = {
    "model_index.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": b"x" * 3_000_000,
    "unet/diffusion_pytorch_model.fp16.safetensors": b"y" * 1_500_000,
    "all-in-one.safetensors": b"z" * 4_000_000,
}
CAPTIONER = {"config.json": b"{}", "model.safetensors": b"x" * 2_000_000}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub(tmp_path_factory.mktemp("hub")) as hub:
        hub.add_repo("model", "bob/captioner", CAPTIONER)
        hub.add_repo("model", "bob/generator", GENERATOR, gated=True)
        hub.add_repo("model", "bob/open-generator", GENERATOR)
        hub.add_repo("dataset", "ILSVRC/imagenet-1k", {"data/train-00000-of-00001.parquet": b"?"}, gated=True)
        yield hub


@pytest.fixture(scope="module")
def client(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with Client(hub, tmp_path_factory.mktemp("client")) as client:
        yield client


def ask(client: Client, *more: str, captioner: str = "bob/captioner", generator: str = "bob/generator") -> Done:
    models = ("--set", f"caption.model={captioner}", "--set", f"generate.model={generator}")
    return client.hfsyn("doctor", "imagenet-1k-cip", "--limit", "1", *models, *more)


def failures(done: Done) -> list[str]:
    return [line.removeprefix("FAILED  ") for line in done.out.splitlines() if line.startswith("FAILED")]


def test_every_gate_is_tried_and_named_with_its_page(client: Client, hub: Hub) -> None:
    done = ask(client)
    images, model = failures(done)
    assert done.code == 3
    assert "ILSVRC/imagenet-1k is gated, and you have no access" in images
    assert images.endswith("hf auth login.")
    assert "bob/generator is gated, and this account has no access" in model
    assert model.endswith(f"Accept its terms at {hub.url}/bob/generator, then: hf auth login")
    assert "The model bob/captioner is open; up to 2.0 MB to fetch. hf download bob/captioner" in done.out
    hub.store.set(hub.store.repos["dataset", "ILSVRC/imagenet-1k"], grant="alice")
    hub.store.set(hub.store.repos["model", "bob/generator"], grant="alice")
    opened = ask(client)
    assert (opened.code, failures(opened)) == (0, []), opened.out
    assert "The model bob/generator is open; up to 3.0 MB to fetch" in opened.out
    # A thousand images of 512 x 512 pixels at 0.53 bytes a pixel, counted without the source.
    assert "The run takes about 139 MB, its models 5.0 MB (estimate)" in opened.out


def test_what_is_not_there_fails_with_the_way_out(client: Client, hub: Hub) -> None:
    done = ask(client, captioner="bob/nobody", generator="bob/open-generator")
    (model,) = [line for line in failures(done) if "bob/nobody" in line]
    assert done.code == 3
    assert "is not there, or not for you" in model
    assert model.endswith("hf auth login.")
    offline = client.hfsyn(
        "doctor",
        "imagenet-1k-cip",
        "--set",
        "caption.model=bob/captioner",
        "--generator",
        "builtin",
        HF_HUB_OFFLINE="1",
    )
    assert offline.code == 3
    assert any(line.endswith("HF_HUB_OFFLINE=0 hf download bob/captioner") for line in failures(offline))
    assert any(line.endswith("--set source.path=FOLDER") for line in failures(offline))


def test_a_model_that_is_cached_is_said_to_be(client: Client) -> None:
    client.python("from huggingface_hub import snapshot_download\nresult = snapshot_download('bob/open-generator')")
    done = ask(client, generator="bob/open-generator")
    assert "The model bob/open-generator is open, and in the cache." in done.out


def test_lora_weights_are_models_too(client: Client, hub: Hub) -> None:
    hub.add_repo(
        "model", "bob/lora", {"a.safetensors": b"a" * 1_000_000, "b.safetensors": b"b" * 9_000_000}, gated=True
    )
    chosen = ("--set", "generate.lora=bob/lora", "--set", "generate.lora_file=a.safetensors")
    assert any("bob/lora is gated" in line for line in failures(ask(client, *chosen)))
    hub.store.set(hub.store.repos["model", "bob/lora"], grant="alice")
    assert "The model bob/lora is open; up to 1.0 MB to fetch" in ask(client, *chosen).out


def test_captions_from_a_dataset_are_behind_a_gate_too(client: Client, hub: Hub) -> None:
    hub.add_repo("dataset", "bob/texts", {"texts.jsonl": b'{"source_id": "a", "caption": "b"}\n'}, gated=True)
    words = ("--set", "caption=null", "--set", "prompt.captions_file=hf://datasets/bob/texts@main/texts.jsonl")
    (line,) = [line for line in failures(client.hfsyn("doctor", "shapes-cip", *words)) if "bob/texts" in line]
    assert line.endswith(f"Accept the terms at {hub.url}/datasets/bob/texts, then: hf auth login")
    hub.store.set(hub.store.repos["dataset", "bob/texts"], grant="alice")
    assert "The captions of bob/texts are open." in client.hfsyn("doctor", "shapes-cip", *words).out


def test_texts_and_functions_of_ones_own_must_be_there_and_be_what_they_should(tmp_path: Path) -> None:
    words = ["caption=null", "prompt.strategy=captions-file", f"prompt.captions_file={tmp_path / 'texts.jsonl'}"]
    assert "texts.jsonl" in said(found("shapes-cip", *words), "failed")[0]
    (tmp_path / "texts.jsonl").write_text('{"source_id": "a"}\n')
    assert "line 1" in said(found("shapes-cip", *words), "failed")[0]
    (tmp_path / "texts.jsonl").write_text('{"source_id": "a", "caption": "b"}\n')
    assert not said(found("shapes-cip", *words), "failed")
    own = tmp_path / "own.py"
    words = [f"prompt.strategy={own}:write"]
    assert "own.py" in said(found("shapes-cip", *words), "failed")[0]
    own.write_text("def write(class_info, caption, rng):\n    return f'{class_info.name}, {caption}'\n")
    assert any(line.endswith(f"The strategy {own}:write is here.") for line in said(found("shapes-cip", *words), "ok"))


def test_options_need_a_recipe_and_the_findings_are_json_too(client: Client) -> None:
    done = client.hfsyn("doctor", "--limit", "3")
    assert done.code == 2
    assert "Name one" in done.err
    done = client.hfsyn("doctor", "shapes-cip", "--json")
    rows = json.loads(done.out)
    assert done.code == 0
    assert {row["state"] for row in rows} <= {"ok", "warning"}
    assert "generate.model comes with hfsyn." in [row["text"] for row in rows]


# --- without a Hub ----------------------------------------------------------------------------------------------------


def found(recipe: str, *overrides: str, out: Path | None = None) -> list[Check]:
    return doctor(load_recipe(recipe, overrides), out)


def said(checks: list[Check], state: str) -> list[str]:
    return [check.line() for check in checks if check.state == state]


def test_the_folder_of_another_recipe_is_refused(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    (line,) = said(found("shapes-cip", "generate.steps=9", out=run), "failed")
    assert "generate.steps is 12 there, 9 here" in line
    assert "--overwrite" in line
    same = found(str(run / "recipe.yaml"), out=run)
    assert not said(same, "failed")
    assert any("holds a run of this recipe" in check.text for check in same)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("?")
    assert "thesis.tex" in said(found("shapes-cip", out=tmp_path / "mine"), "failed")[0]


def test_room_on_the_disk_is_compared_with_what_is_still_to_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    needs = 5000 * (32 * 32 * 1.5 + 300)  # PNG files of 32 x 32 pixels
    for free, state in ((0.9 * needs, "failed"), (1.05 * needs, "warning"), (2 * needs, "ok")):
        monkeypatch.setattr(checkup.shutil, "disk_usage", lambda path, free=free: usage(0, 0, free))
        (check,) = [check for check in found("shapes-cip", out=tmp_path / "new") if "The run takes" in check.text]
        assert check.state == state
        assert bool(check.hint) == (state != "ok")
    monkeypatch.undo()
    run = run_folder(tmp_path)
    whole = checkup.disk_needed(load_recipe(str(run / "recipe.yaml")), run)
    shutil.copy(run / "source.parquet", run / "data.parquet")
    assert checkup.disk_needed(load_recipe(str(run / "recipe.yaml")), run) < whole


def smi(folder: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """A driver that tells of these GPUs."""
    folder.mkdir()
    (folder / "nvidia-smi").write_text("#!/bin/sh\nprintf '%s\\n' " + " ".join(f"'{line}'" for line in lines) + "\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(str(number) for number in range(len(lines))))


def test_the_memory_of_the_smallest_device_is_compared_with_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi(tmp_path / "a", monkeypatch, "NVIDIA H100 80GB HBM3, 81559, 9.0", "Tesla T4, 8192, 7.5")
    warnings = said(found("imagenette-cip"), "warning")
    (memory,) = [line for line in warnings if "The generator takes" in line]
    assert "about 12.9 GB (estimate); a Tesla T4 has 8.6 GB." in memory
    assert memory.endswith("--batch-size auto")
    assert any(line.endswith("--set caption.dtype=float16 --set generate.dtype=float16") for line in warnings)
    smi(tmp_path / "b", monkeypatch, "NVIDIA H100 80GB HBM3, 81559, 9.0")
    assert not any("(estimate)" in line for line in said(found("imagenette-cip"), "warning"))


@pytest.mark.parametrize("usable", [False, True])
def test_gpus_that_torch_cannot_use_are_no_gpus(usable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a driver that is too old their device files are there all the same."""

    def is_available() -> bool:
        if not usable:
            warnings.warn("The NVIDIA driver on your system is too old", stacklevel=1)
        return usable

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr("torch.cuda.is_available", is_available)
    with warnings.catch_warnings(action="error"):
        (finding,) = [check for check in checkup._devices() if "GPU" in check.text]
    assert finding.state == ("ok" if usable else "failed")
    assert finding.text.startswith("2 GPUs visible, but torch cannot use" if not usable else "2 GPUs visible, ")
    assert usable or finding.hint == "Update the driver, or --device cpu."
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [check.state for check in checkup._devices()] == ["warning"]


def test_versions_that_hfsyn_was_not_made_for_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not [check for check in doctor() if "not made for" in check.text]
    wanted = ["torch>=99", "nowhere-at-all>=1", "pillow>=1", "pytest>=99; extra == 'dev'"]
    monkeypatch.setattr(checkup, "requires", lambda name: wanted)
    lines = said(doctor(), "warning")
    assert any("torch is " in line and line.endswith("pip install --upgrade hfsyn torch") for line in lines)
    assert any("nowhere-at-all is missing" in line for line in lines)
    assert not any("pillow" in line or "pytest" in line for line in lines)


def test_a_source_that_is_not_there_fails(tmp_path: Path) -> None:
    (line, *_) = said(found("imagenette-cip", f"source.path={tmp_path / 'nowhere'}"), "failed")
    assert "There is no folder" in line
