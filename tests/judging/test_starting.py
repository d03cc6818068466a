"""How a training begins: weights of another, parts that stay as they are, layers that learn less, statistics apart."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.layers.split_batchnorm import SplitBatchNorm2d

import hfsyn
from builders.files import sha256_of
from hfsyn.errors import HfsynError
from hfsyn.judging.sets.batches import Halves, local_halves
from hfsyn.judging.train.feeds import Slice, open_feed
from hfsyn.judging.train.timm_parts import make_optimizer, make_schedule, prepared
from hfsyn.recipes.training_recipe import load_train_config

SMALL: dict[str, Any] = {
    "model": "test_resnet",
    "image_size": 32,
    "epochs": 1,
    "batch_size": 10,
    "device": "cpu",
    "quiet": True,
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("begun") / "real"
    hfsyn.train(folder, train_dataset="shapes", limit=2, seed=7, **SMALL)
    return folder


def state(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def started(folder: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((folder / "model.json").read_text())["started_from"]
    return found


def test_a_training_starts_from_anothers_weights_and_records_them(begun: Path, tmp_path: Path) -> None:
    # At a learning rate of nothing, what comes out is what went in.
    words = {"train_dataset": "shapes", "limit": 2, "lr": 1e-12, **SMALL}
    hfsyn.train(tmp_path / "same", overrides=[f"model.init_from={begun}"], **words)
    old, new = state(begun), state(tmp_path / "same")
    assert all(torch.allclose(old[name], new[name]) for name in old if "running" not in name and "num_" not in name)
    weights = sha256_of(begun / "model.safetensors")
    assert started(tmp_path / "same") == {"name": str(begun), "sha256": weights, "head": "kept"}


def test_the_last_layer_is_new_if_the_classes_are_others_or_not_known(
    begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"train_dataset": "shapes", "limit": 2, "lr": 1e-12, **SMALL, "quiet": False}
    torch.save({"state_dict": {f"module.{k}": v for k, v in state(begun).items()}}, tmp_path / "mine.pth")
    hfsyn.train(tmp_path / "file", overrides=[f"model.init_from={tmp_path / 'mine.pth'}"], **words)
    old, new = state(begun), state(tmp_path / "file")
    assert torch.allclose(old["layer4.0.conv1.weight"], new["layer4.0.conv1.weight"])
    assert not torch.allclose(old["fc.weight"], new["fc.weight"])
    assert started(tmp_path / "file")["head"] == "new"
    assert f"starts from {tmp_path / 'mine.pth'}: its last layer is new" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.name": "test_vit"}, "holds the weights of a test_resnet, and the network to train is a test_vit"),
        ({"model.init_from": "/nowhere"}, "is neither the folder of a finished training nor a file of weights"),
        ({"model.pretrained": True}, "both say where the weights are from"),
        ({"model.freeze": ["layer9"]}, "No parameter is called 'layer9'. Did you mean 'layer4'"),
        ({"model.freeze": ["*"]}, "leaves nothing to be trained"),
        ({"model.split_bn": True}, "is for two training sets"),
    ],
)
def test_what_cannot_begin_is_refused_before_anything_is_written(
    begun: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    values = {"model.name": "test_resnet", "model.init_from": str(begun), **changes}
    overrides = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    with pytest.raises(HfsynError) as refused:
        hfsyn.train(tmp_path / "out", train_dataset="shapes", limit=2, batch_size=4, device="cpu", overrides=overrides)
    assert said in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_frozen_parts_keep_their_values_and_their_statistics(begun: Path, tmp_path: Path) -> None:
    overrides = [f"model.init_from={begun}", "model.freeze=[conv1,bn1,'layer[12].*']"]
    hfsyn.train(tmp_path / "out", train_dataset="shapes", limit=2, overrides=overrides, **SMALL)
    old, new = state(begun), state(tmp_path / "out")
    parts = ("conv1.", "bn1.", "layer1.", "layer2.")
    for name in old:
        if name.startswith(parts):
            assert torch.equal(old[name], new[name]), name
    changed = {name.split(".")[0] for name in old if not torch.equal(old[name], new[name])}
    assert changed == {"layer3", "layer4", "fc"}


def test_the_backbone_is_all_but_the_last_layer() -> None:
    config = load_train_config(None, ["model.name=test_resnet", "model.freeze=[backbone]"], {"data.train": ["shapes"]})
    network = prepared(timm.create_model("test_resnet", num_classes=10), config)
    assert [name for name, one in network.named_parameters() if one.requires_grad] == ["fc.weight", "fc.bias"]


def test_each_layer_learns_at_a_share_of_the_rate_of_the_next() -> None:
    overrides = ["optimise.layer_decay=0.5", "optimise.lr=1.0", "optimise.warmup_epochs=0", "optimise.optimizer=sgd"]
    config = load_train_config(None, overrides, {"data.train": ["shapes"]})
    network = timm.create_model("test_vit", num_classes=10)
    optimizer = make_optimizer(network, config)
    make_schedule(optimizer, config, 10, 1.0).step_update(0)
    rate = {id(one): group["lr"] for group in optimizer.param_groups for one in group["params"]}
    named = {name: rate[id(one)] for name, one in network.named_parameters()}
    assert named["head.weight"] == pytest.approx(1.0)
    blocks = [named[f"blocks.{number}.attn.qkv.weight"] for number in range(len(network.blocks))]
    assert [b / a for a, b in pairwise(blocks)] == pytest.approx([2.0] * (len(blocks) - 1))
    assert named["patch_embed.proj.weight"] < blocks[0]


TWO = {"train_dataset": ["shapes", "shapes-context"], "limit": 4, "budget": 80, **SMALL}


@pytest.mark.parametrize(("world", "parts"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_half_of_every_part_of_a_batch_is_of_either_set_whoever_takes_it(world: int, parts: int) -> None:
    """Real first, then synthetic, in each process and each part; all together as one process would show them."""
    order, size = Halves((30, 7), (20, 20), seed=3), 16
    shown: list[tuple[int, int]] = []
    for step in range(4):
        for part in range(parts):
            for rank in range(world):
                mine = local_halves(step * size + part * (size // parts), size // parts, rank, world)
                found = [order[position] for position in mine]
                half = len(mine) // 2
                assert [number for number, _ in found] == [0] * half + [1] * half
                shown += found
    assert sorted(shown) == sorted(order[position] for position in range(4 * size))
    assert len({image for number, image in shown if number == 0}) == 30  # all, before any comes again
    assert all(sum(pair == (1, image) for pair in shown) in (4, 5) for image in range(7))


def test_the_batches_of_a_feed_hold_the_real_half_before_the_synthetic_one(tmp_path: Path) -> None:
    """Told apart by their colours: the first set is red, the second blue."""
    for name, colour in (("real", "red"), ("synthetic", "blue")):
        for wnid in ("n01440764", "n02102040"):
            (tmp_path / name / "train" / wnid).mkdir(parents=True)
            for number in range(5):
                Image.new("RGB", (8, 8), colour).save(tmp_path / name / "train" / wnid / f"{number}.png")
    sets = [str(tmp_path / name) for name in ("real", "synthetic")]
    config = load_train_config(None, ["model.split_bn=true", "data.budget=16"], {"data.train": sets})
    batches = open_feed(config).batches(lambda picture: torch.tensor(picture.getpixel((0, 0))), Slice(0, 3, 16, 2))
    colours = [pixels.tolist() for pixels, _ in batches]
    assert colours == [[[255, 0, 0]] * 4 + [[0, 0, 255]] * 4] * 6


def test_the_statistics_of_the_first_set_are_kept_and_the_weights_load_in_timm(tmp_path: Path) -> None:
    from hfsyn.judging.train import timm_parts

    made: list[Any] = []
    plain = timm_parts.prepared

    def watched(network: Any, config: Any) -> Any:
        made.append(plain(network, config))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm_parts, "prepared", watched)
        hfsyn.train(tmp_path / "out", overrides=["model.split_bn=true"], **TWO)
    trained = made[-1]
    split = [module for module in trained.modules() if isinstance(module, SplitBatchNorm2d)]
    assert split
    assert not any(torch.equal(module.running_mean, module.aux_bn[0].running_mean) for module in split)
    network = timm.create_model("test_resnet", num_classes=10)
    network.load_state_dict(state(tmp_path / "out"), strict=True)
    assert torch.equal(network.bn1.running_mean, trained.bn1.running_mean)
    pixels = torch.rand(3, 3, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(network.eval()(pixels), trained.eval()(pixels), atol=1e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"train_dataset": ["shapes", "shapes-context:2"]}, "takes as many images of either set"),
        ({"batch_size": 9}, "Each set has half of a part"),
        ({"model": "test_vit"}, "has no batch normalisation"),
    ],
)
def test_halves_that_cannot_be_are_refused(tmp_path: Path, words: dict[str, Any], said: str) -> None:
    given = {**TWO, "overrides": ["model.split_bn=true"], **words}
    given = {**given, **({"image_size": None} if "model" in words else {})}
    with pytest.raises(HfsynError) as refused:
        hfsyn.train(tmp_path / "out", **given)
    assert said in str(refused.value)
