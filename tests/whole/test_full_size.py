"""The script that checks models of full size, run on tiny ones; and that the full ones would be of full size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

import check_full_size
import full_size_models

from hfsyn.images.tuning import PLAIN, Tuning

SCRIPT = ROOT / "scripts" / "check_full_size.py"


def test_every_model_makes_its_32_on_the_tiny_configurations(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["check_full_size.py", "--tiny"])
    with pytest.raises(SystemExit) as ended:
        check_full_size.main()
    out = capsys.readouterr().out
    assert ended.value.code == 0, out
    *lines, last = out.splitlines()
    assert [line.split()[0] for line in lines] == ["stable-diffusion", "blip", "sdxl", "blip2"]
    assert all(line.endswith(": holds") for line in lines)
    found = json.loads(last)
    assert [model["made"] for model in found["models"]] == [32] * 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, on which the script would run")
def test_a_cpu_is_refused_with_the_reason() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr.startswith("There is no GPU here")
    assert len(done.stderr.splitlines()) == 1


def test_the_readme_states_the_memory_that_is_allowed() -> None:
    readme = (ROOT / "scripts" / "README.md").read_text(encoding="utf-8")
    names = {"stable-diffusion": "Stable Diffusion 1.5", "sdxl": "SDXL", "blip": "BLIP-base", "blip2": "BLIP-2"}
    for case in check_full_size.CASES:
        assert f"| {names[case.name]}" in readme
        assert f"| {case.dtype} | {case.batch_size} | {case.allowed_gb:g} GB |" in readme


def test_what_does_not_hold_is_told() -> None:
    case = check_full_size.CASES[0]
    found = check_full_size.Found(case.name, 1, 32, ("flat",), 1.0, 16, 1.0)
    assert not found.holds
    assert "does not hold: flat" in check_full_size.line(found)
    assert not check_full_size.Found(case.name, 1, 32, (), 17.0, 16, 1.0).holds
    assert not check_full_size.Found(case.name, 1, 31, (), 1.0, 16, 1.0).holds
    assert check_full_size.Found(case.name, 1, 32, (), 1.0, 16, 1.0).holds


def test_what_there_was_no_time_for_is_named_and_the_file_is_whole_after_every_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "full.json"
    report = check_full_size.Report(list(check_full_size.CASES[:2]), "cpu", False, out)
    report.add(check_full_size.Found("stable-diffusion", 1, 32, (), 1.0, 16, 1.0))
    assert json.loads(out.read_text())["left_out"] == ["blip"]
    report.finish()
    assert report.code == 4
    assert "LEFT OUT, as the minutes were over: blip" in capsys.readouterr().out
    report.add(check_full_size.Found("blip", 1, 32, (), 7.0, 6, 1.0))
    assert report.code == 1, "a model that takes too much is told even where another one is left out"
    assert json.loads(out.read_text())["left_out"] == []


@pytest.mark.parametrize("where", ["images", "captions"])
def test_memory_that_runs_out_is_told_of_that_model_alone(
    where: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has none.")

    monkeypatch.setattr(check_full_size, "images", lambda *given: (1, [None] * 32))
    monkeypatch.setattr(check_full_size, "captions", lambda *given: (1, [None] * 32))
    monkeypatch.setattr(check_full_size, where, full)
    monkeypatch.setattr(sys, "argv", ["check_full_size.py", "--tiny", "--only", "stable-diffusion", "--only", "blip"])
    with pytest.raises(SystemExit) as ended:
        check_full_size.main()
    assert ended.value.code == 1
    *lines, last = capsys.readouterr().out.splitlines()
    words = "does not hold: out of memory (CUDA out of memory. Tried to allocate 2.00 GiB)"
    assert [line.endswith(words) for line in lines] == [where == "images", where == "captions"]
    assert [len(model["faults"]) for model in json.loads(last)["models"]].count(1) == 1


def test_images_are_computed_as_users_compute_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU in channels last."""
    asked: list[Tuning] = []

    class Drawn(Exception):
        pass

    def load(*given: object, tuning: Tuning = PLAIN) -> None:
        asked.append(tuning)
        raise Drawn

    monkeypatch.setattr("hfsyn.images.generator.DiffusersGenerator", load)
    for device in ("cuda", "cpu"):
        with pytest.raises(Drawn):
            check_full_size.images(check_full_size.CASES[0], "nowhere", "bfloat16", device)
    assert asked == [Tuning(channels_last=True), PLAIN]


def test_the_full_configurations_have_the_parameters_of_the_published_models() -> None:
    """Built without memory: on the meta device."""
    import transformers
    from diffusers import AutoencoderKL, UNet2DConditionModel

    m = full_size_models
    with torch.device("meta"):
        clip = transformers.CLIPTextModel(transformers.CLIPTextConfig(**m._CLIP_L))
        vae = AutoencoderKL(**m._VAE)
        found = {
            "stable-diffusion": {"unet": UNet2DConditionModel(**m._UNET_15), "vae": vae, "text_encoder": clip},
            "sdxl": {
                "unet": UNet2DConditionModel(**m._UNET_XL),
                "vae": vae,
                "text_encoder": clip,
                "text_encoder_2": transformers.CLIPTextModelWithProjection(
                    transformers.CLIPTextConfig(**m._CLIP_BIG_G)
                ),
            },
        }
        blip = transformers.BlipConfig(vision_config=m._VIT_BLIP, text_config=m._BERT_BLIP, projection_dim=512)
        found["blip"] = {"model": transformers.BlipForConditionalGeneration(blip)}
        blip2 = transformers.Blip2Config(
            vision_config=m._VIT_BLIP2,
            qformer_config=m._QFORMER,
            text_config={"model_type": "opt", **m._OPT},
            num_query_tokens=32,
            image_token_index=50_265,
        )
        found["blip2"] = {"model": transformers.Blip2ForConditionalGeneration(blip2)}
    counts = {name: {key: check_full_size.count_of([part]) for key, part in p.items()} for name, p in found.items()}
    assert counts == full_size_models.EXPECTED
