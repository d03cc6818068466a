"""Training: what it is shown belongs to the seed, a killed one ends as an uninterrupted one, mistakes are one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawn_tables import NAMES, WNIDS, rows_of, write_table
from safetensors.torch import load_file

from hfsyn.errors import HfsynError
from hfsyn.judging.classifier import state_sha256
from hfsyn.judging.measures.evaluate import evaluate
from hfsyn.judging.preprocessing import Preprocessing
from hfsyn.judging.sets.batches import Augmented, Order, derive, local_positions, seeded, share_out
from hfsyn.judging.sets.image_set import open_images
from hfsyn.judging.starting import new_classifier
from hfsyn.judging.train.checkpoints import found_checkpoints
from hfsyn.judging.train.feeds import open_feed
from hfsyn.judging.train.loop import RunOptions, train
from hfsyn.judging.train.timm_parts import make_loss, make_schedule, try_training
from hfsyn.progress import Progress
from hfsyn.recipes.training_recipe import TRAINING_RECIPES, load_train_config

TINY: dict[str, Any] = {
    "data.train": ["shapes"],
    "data.limit_per_class": 4,
    "model.name": "test_resnet",
    "model.image_size": 32,
    "optimise.epochs": 3,
    "optimise.batch_size": 8,
    "optimise.warmup_epochs": 1,
}
"""40 drawings, 5 steps an epoch."""
QUIET = RunOptions(device="cpu", quiet=True)
OVERWRITE = RunOptions(device="cpu", overwrite=True, quiet=True)


def config(changes: Mapping[str, Any] | None = None, **parts: Any) -> Any:
    """TINY with changes by dotted key, which may be written with __ for the dot."""
    named = {key.replace("__", "."): value for key, value in parts.items()}
    return load_train_config(None, (), {**TINY, **(changes or {}), **named})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


# What is shown when


@pytest.mark.parametrize(
    ("budget", "shares", "found"),
    [(10, [1, 1], [5, 5]), (10, [1, 0.5], [7, 3]), (7, [1, 1, 1], [3, 2, 2]), (1, [1, 3], [0, 1])],
)
def test_a_budget_is_shared_out_whole_in_proportion(budget: int, shares: list[float], found: list[int]) -> None:
    assert share_out(budget, shares) == found


def test_every_image_of_a_set_is_shown_once_in_each_epoch_and_in_another_order() -> None:
    order = Order((20,), (20,), seed=3)
    epochs = [[order[e * 20 + i] for i in range(20)] for e in range(3)]
    assert all(sorted(shown) == [(0, i) for i in range(20)] for shown in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    other = Order((20,), (20,), seed=4)
    assert [other[i] for i in range(20)] != epochs[0]


def test_a_mixture_keeps_its_shares_and_goes_through_all_of_the_larger_set() -> None:
    order = Order((30, 4), (10, 6), seed=0)
    epochs = [[order[e * 16 + i] for i in range(16)] for e in range(3)]
    for shown in epochs:
        assert sum(number == 0 for number, _ in shown) == 10
    assert {image for shown in epochs for number, image in shown if number == 0} == set(range(30))
    assert {image for number, image in epochs[0] if number == 1} == set(range(4))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_divide_a_step_and_keep_the_pairs_that_mixup_makes(world: int) -> None:
    shares = [local_positions(100, 16, rank, world) for rank in range(world)]
    assert sorted(position for share in shares for position in share) == list(range(100, 116))
    pairs = {frozenset((a, b)) for share in shares for a, b in zip(share, share[::-1], strict=True)}
    assert pairs == {frozenset((100 + i, 115 - i)) for i in range(16)}


def test_an_augmentation_belongs_to_the_position_and_leaves_the_global_generators_alone() -> None:
    from hfsyn.judging.starting import new_classifier
    from hfsyn.judging.train.timm_parts import Augmentation

    recipe = config(augment__auto_augment="rand-m5-n2-inc1", augment__random_erasing=0.5)
    feed = open_feed(recipe)
    transform = Augmentation(new_classifier(recipe, feed.classes, feed.names).preprocessing, recipe.augment)
    images = open_images("shapes", "train", limit=4)
    labels = {wnid: number for number, wnid in enumerate(feed.classes)}
    items = Augmented([images], Order((40,), (40,), 0), labels, transform, seed=0)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    forwards = [items[i][0] for i in range(6)]
    backwards = [items[i][0] for i in reversed(range(6))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))
    assert torch.equal(before, torch.get_rng_state())
    assert derive(0, "augment", 1) != derive(0, "augment", 2)


@pytest.mark.parametrize("strength", [0.4, 1.5])
def test_augmented_pixels_are_those_of_timms_own_transform(strength: float) -> None:
    from PIL import Image
    from timm.data import create_transform

    from hfsyn.judging.train.timm_parts import Augmentation

    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    ours = Augmentation(Preprocessing(48, mean, std), config(augment__color_jitter=strength).augment)
    theirs = create_transform(
        48, is_training=True, color_jitter=strength, interpolation="bilinear", mean=mean, std=std, use_prefetcher=True
    )
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    for seed in range(24):
        with seeded(seed):
            mine = ours(noise)
        with seeded(seed):
            expected = theirs(noise)
        assert torch.equal(mine.permute(2, 0, 1), expected)
        floats = expected.float().div(255).sub(torch.tensor(mean).view(3, 1, 1)).div(torch.tensor(std).view(3, 1, 1))
        assert (ours.finish(mine[None])[0] - floats).abs().max() < 1e-5


def test_an_image_that_cannot_be_decoded_is_passed_over_and_counted(tmp_path: Path) -> None:
    table = write_table(tmp_path / "train.parquet", rows_of(40), bad={1, 2, 17})
    result = train(config(data__train=[str(table)], data__limit_per_class=1000), tmp_path / "out", QUIET)
    assert result["training"]["undecodable_seen"] == 3  # each in three epochs, and as often as it might have stood in
    assert result["training"]["images_seen"] == 120


# The same result whatever runs it


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nothing disturbed: with mixup, dropout and an average of the weights."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    train(mixed(), folder, QUIET)
    return folder


def mixed() -> Any:
    return config(
        augment__mixup=0.2, augment__cutmix=0.5, model__drop_path=0.1, model__ema_decay=0.9, test__dataset="shapes"
    )


def interrupt_after(monkeypatch: pytest.MonkeyPatch, images: int) -> None:
    """Let the first training that counts that many images end as Ctrl-C would."""
    seen = []

    def add(self: Progress, count: int) -> None:
        seen.append(count)
        if sum(seen) == images:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "add", add)


def test_a_training_killed_in_mid_epoch_and_resumed_ends_in_the_same_weights(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = RunOptions(device="cpu", checkpoint_steps=3, keep_checkpoints=2, quiet=True)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 8 * 8)  # after step 8; the last checkpoint is of step 6, in mid-epoch
        with pytest.raises(KeyboardInterrupt):
            train(mixed(), tmp_path / "out", options)
    assert [p.name for p in found_checkpoints(tmp_path / "out" / "checkpoints")] == ["step-00000003", "step-00000006"]
    result = train(mixed(), tmp_path / "out", options)
    assert result["training"]["history"] == [{"step": 6, "resumed": True}]
    assert same(tmp_path / "out", whole)
    there = json.loads((whole / "results.json").read_text())
    assert result["test"]["metrics"] == there["test"]["metrics"]


def test_a_checkpoint_that_a_killed_training_did_not_come_to_delete_goes(whole: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "out"))
    for name in ("results.json", "model.safetensors", "model.json"):
        (out / name).unlink()
    checkpoints = found_checkpoints(out / "checkpoints")
    shutil.copytree(checkpoints[-1], out / "checkpoints" / "step-00000001")
    shutil.copytree(checkpoints[-1], out / "checkpoints" / "step-00000002")
    train(mixed(), out, RunOptions(device="cpu", keep_checkpoints=len(checkpoints), quiet=True))
    assert found_checkpoints(out / "checkpoints") == [out / "checkpoints" / path.name for path in checkpoints]
    assert same(out, whole)


def test_workers_do_not_change_the_weights(whole: Path, tmp_path: Path) -> None:
    train(mixed(), tmp_path / "out", RunOptions(device="cpu", num_workers=2, quiet=True))
    assert same(tmp_path / "out", whole)


def test_a_finished_training_is_left_as_it_is(whole: Path) -> None:
    before = (whole / "model.safetensors").stat().st_mtime_ns
    assert train(mixed(), whole, QUIET) == json.loads((whole / "results.json").read_text())
    assert (whole / "model.safetensors").stat().st_mtime_ns == before


def test_another_test_of_a_finished_training_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = str(write_table(tmp_path / "test.parquet", rows_of(10, split="test")))
    first = train(config(optimise__epochs=1), tmp_path / "out", QUIET)
    before = weights(tmp_path / "out")
    monkeypatch.setattr("hfsyn.judging.train.loop._Training.fit", None)
    changed = config({"test.dataset": table, "test.crop": 0.5}, optimise__epochs=1)
    with pytest.raises(HfsynError, match="has no split 'nothing'"):  # what is there stays until the test is done
        train(config({"test.dataset": "shapes", "test.split": "nothing"}, optimise__epochs=1), tmp_path / "out", QUIET)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == first
    again = train(changed, tmp_path / "out", QUIET)
    assert (again["training"], again["test"]["n"], again["test"]["overlap"]) == (first["training"], 10, 0)
    assert again["test"]["preprocessing"]["crop"] == 0.5
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == json.loads(json.dumps(again))
    after = weights(tmp_path / "out")
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert evaluate(tmp_path / "out", table, device="cpu", quiet=True)["metrics"] == again["test"]["metrics"]
    assert train(changed, tmp_path / "out", QUIET) == json.loads(json.dumps(again))


def test_a_test_on_what_was_trained_on_is_said_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = str(write_table(tmp_path / "three.parquet", rows_of(40)))
    recipe = config(
        data__train=[table], data__limit_per_class=3, optimise__epochs=1, test__dataset=table, test__split="validation"
    )
    result = train(recipe, tmp_path / "out", RunOptions(device="cpu"))
    assert (result["test"]["n"], result["test"]["overlap"]) == (40, 30)
    assert "30 of the 40 images" in capsys.readouterr().err
    assert evaluate(tmp_path / "out", table, limit_per_class=3, device="cpu")["overlap"] == 30
    assert "All 30 images" in capsys.readouterr().err
    assert evaluate(tmp_path / "out", table, split="train", device="cpu", quiet=True)["overlap"] == 30
    assert evaluate(tmp_path / "out", "shapes", limit_per_class=1, device="cpu", quiet=True)["overlap"] == 0
    Path(table).unlink()
    unknown = evaluate(tmp_path / "out", "shapes", limit_per_class=1, device="cpu", quiet=True)
    assert unknown["overlap"] is None
    assert "not checked" in unknown.text()


def test_accumulated_parts_change_a_network_without_batch_norm_by_rounding_only(tmp_path: Path) -> None:
    recipe = config({"model.name": "test_vit", "optimise.lr": 0.01})
    train(recipe, tmp_path / "one", QUIET)
    train(recipe, tmp_path / "two", RunOptions(device="cpu", accumulation=2, quiet=True))
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(one[key], two[key], atol=1e-5) for key in one)


def test_a_stream_is_trained_on_and_resumes_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # `datasets` waits that many seconds at the end of every pass over Parquet files.
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    rows = rows_of(60)
    for number in range(3):
        table = tmp_path / "data" / f"train-{number:05d}-of-00003.parquet"
        write_table(table, rows[number * 20 : number * 20 + 20], bad={5})
    recipe = config(
        data__train=[str(tmp_path / "data")],
        data__limit_per_class=None,
        data__streaming=True,
        data__budget=60,
        data__shuffle_mb=1,
    )
    result = train(recipe, tmp_path / "whole", QUIET)
    assert result["training"]["undecodable_seen"] > 0
    options = RunOptions(device="cpu", checkpoint_steps=4, quiet=True)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 8 * 10)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "out", options)
    train(recipe, tmp_path / "out", options)
    assert same(tmp_path / "out", tmp_path / "whole")


def test_real_and_drawn_sets_mix_by_weight(tmp_path: Path) -> None:
    table = write_table(tmp_path / "train.parquet", rows_of(30, first=100), names=NAMES[::-1])
    result = train(config(data__train=["shapes", f"{table}:0.5"], data__budget=24), tmp_path / "out", QUIET)
    assert [made["share"] for made in result["training"]["sets"]] == [16, 8]


def test_it_learns(tmp_path: Path) -> None:
    test = write_table(tmp_path / "test.parquet", rows_of(100, split="test"))
    recipe = config(
        data__limit_per_class=20,
        test__dataset=str(test),
        optimise__epochs=15,
        optimise__batch_size=20,
        optimise__optimizer="adamw",
        optimise__lr=0.003,
        augment__scale=(0.7, 1.0),
        augment__color_jitter=0,
    )
    result = train(recipe, tmp_path / "out", QUIET)
    assert result["test"]["metrics"]["top1"]["low"] > 0.13  # chance is 0.1


# Mistakes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.name": "resnet5O"}, "Did you mean 'resnet50'"),
        ({"model.options": {"depth": 3}}, "unexpected keyword argument 'depth'"),
        ({"optimise.optimizer": "adamv"}, "Did you mean 'adam"),
        ({"optimise.batch_size": 9, "augment.mixup": 0.1}, "Make --batch-size a multiple of 2"),
        ({"optimise.batch_size": 500}, "fewer than one batch"),
        ({"data.train": ["shapes", "shapes-context"]}, "--budget 80"),
        ({"data.streaming": True, "data.limit_per_class": None}, "no known size"),
        ({"test.dataset": "shapes", "test.split": "validation"}, "no split 'validation'"),
        ({"model.options": {"output_stride": 7}}, "The network test_resnet cannot be created"),
        ({"model.options": {"in_chans": 1}}, "cannot be trained on 8 colour images of 32 pixels"),
        ({"model.name": "test_vit", "model.image_size": 33}, "test_vit"),
        ({"optimise.batch_size": 1, "model.image_size": 16}, "cannot be trained on 1 colour image of 16 pixels"),
        ({"augment.auto_augment": "foo"}, "auto_augment is 'foo'"),
        ({"data.train": ["shapes:1e308", "shapes-context:1e308"], "data.budget": 20}, "cannot be added up"),
        (
            {
                "data.train": ["shapes:1e308", "shapes:1e308"],
                "data.budget": 20,
                "data.streaming": True,
                "data.limit_per_class": None,
            },
            "cannot be added up",
        ),
    ],
)
def test_a_mistake_in_the_recipe_is_said_before_any_training(
    tmp_path: Path, changes: Mapping[str, Any], said: str
) -> None:
    with pytest.raises(HfsynError) as error:
        train(config(changes), tmp_path / "out", QUIET)
    train(config(optimise__epochs=1), tmp_path / "out", QUIET)  # the corrected command finds no trace of it
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimise.epoch": 3}, "Did you mean 'optimise.epochs'"),
        ({"optimise.epochs": 0}, "greater than or equal to 1"),
        ({"augment.scale": [0.1]}, "augment.scale"),
        ({"data.train": []}, "nothing to train on"),
        ({"seed.x": 3}, "holds no keys"),
        ({"trian": 3}, "Allowed here"),
    ],
)
def test_a_recipe_that_is_none_is_refused_with_the_field(changes: Mapping[str, Any], said: str) -> None:
    with pytest.raises(HfsynError) as error:
        load_train_config(None, (), {"seed": 1, **TINY, **changes})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_step_goes_no_further_than_the_length_to_which_its_gradient_is_clipped(tmp_path: Path) -> None:
    plain = {"optimise.optimizer": "momentum", "optimise.momentum": 0, "optimise.weight_decay": 0, "optimise.epochs": 1}
    begun = new_classifier(config(plain), WNIDS, dict(zip(WNIDS, NAMES, strict=True))).network
    moved = {}
    for length in (1e-6, 0.0):  # 0 is not at all
        train(config(plain, optimise__clip_grad=length), tmp_path / str(length), QUIET)
        there = weights(tmp_path / str(length))
        moved[length] = max(float((there[name] - start).abs().max()) for name, start in begun.named_parameters())
    assert moved[1e-6] < 1e-5 < moved[0.0]


def test_every_shipped_training_recipe_loads_and_needs_only_images() -> None:
    assert "tiny-imagenet-10" in TRAINING_RECIPES.names()
    for name in TRAINING_RECIPES.names():
        assert load_train_config(name, ["data.train=[shapes]"]).data.train == ("shapes",)
        with pytest.raises(HfsynError, match="nothing to train on"):
            load_train_config(name)
    with pytest.raises(HfsynError, match="Did you mean 'tiny-imagenet-10'"):
        load_train_config("tiny-imagenet10")


def test_a_recipe_may_be_that_of_another_but_for_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: rsb-a3-imagenet-1k\noptimise: {batch_size: 64}\n")
    mine, theirs = (
        load_train_config(name, ["data.train=[shapes]"]) for name in (str(tmp_path / "mine.yaml"), "rsb-a3-imagenet-1k")
    )
    assert (mine.optimise.batch_size, theirs.optimise.batch_size) == (64, 2048)
    assert mine.augment == theirs.augment
    assert (mine.optimise.loss, mine.optimise.lr, mine.test.image_size) == ("bce", 0.008, 224)


def test_the_rate_falls_in_steps_of_epochs() -> None:
    steps = config(
        optimise__epochs=6,
        optimise__schedule="step",
        optimise__decay_epochs=2,
        optimise__decay_rate=0.2,
        optimise__warmup_epochs=0,
    )
    network = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=steps.optimise.lr)
    schedule = make_schedule(optimizer, steps, 30, 5)
    rates = []
    for step in range(30):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1] * 10 + [0.02] * 10 + [0.004] * 10)


@pytest.mark.parametrize("mixes", [False, True])
def test_binary_cross_entropy_takes_each_class_by_itself(mixes: bool) -> None:
    changes: dict[str, Any] = {"optimise.loss": "bce", "augment.label_smoothing": 0.0, "optimise.bce_threshold": 0.2}
    mix, loss = make_loss(config(changes, augment__mixup=1.0 if mixes else 0.0), 3)
    logits, labels = torch.tensor([[2.0, -1.0, 0.0], [0.0, 1.0, -3.0]]), torch.tensor([0, 1])
    _, targets = mix(torch.zeros(2, 3, 4, 4), labels, 0, 0)
    wanted = torch.nn.functional.one_hot(labels, 3).float()
    if mixes:
        assert 0.2 < float(targets.max()) < 1  # mixed, of which more than a fifth counts as whole
        wanted = (targets > 0.2).float()
    found = loss(logits, targets)
    assert float(found) == pytest.approx(float(torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted)))


def test_a_network_may_be_tested_at_another_size_than_it_is_trained_at(tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = train(config(test__dataset="shapes", test__limit_per_class=2, test__image_size=48), out, QUIET)
    assert found["test"]["preprocessing"]["image_size"] == 48
    assert evaluate(out, "shapes", limit_per_class=2, quiet=True)["preprocessing"]["image_size"] == 48
    assert found["config"]["model"]["image_size"] == 32
    fixed = {"model.name": "test_vit", "model.image_size": None, "test.image_size": 8}
    with pytest.raises(HfsynError, match=r"cannot be trained on .* of 8 pixels"):
        train(config(fixed), tmp_path / "fixed", QUIET)
    assert not (tmp_path / "fixed" / "checkpoints").exists()


def test_a_set_may_lack_classes_of_the_first_one_and_not_have_others(tmp_path: Path) -> None:
    rows = [row for row in rows_of(20) if row[0] != NAMES[0]]
    table = write_table(tmp_path / "train.parquet", rows)
    assert len(open_feed(config(data__train=["shapes", str(table)], data__budget=20)).classes) == 10
    with pytest.raises(HfsynError, match="differ in 1 classes: only shapes has 'n"):
        open_feed(config(data__train=[str(table), "shapes"], data__budget=20))


def test_a_test_set_with_other_classes_is_refused_before_the_training(tmp_path: Path) -> None:
    table = write_table(tmp_path / "train.parquet", [row for row in rows_of(20) if row[0] in NAMES[:3]])
    other = write_table(tmp_path / "test.parquet", [row for row in rows_of(20) if row[0] in NAMES[3:]])
    with pytest.raises(HfsynError, match=r"7 of the 7 classes of .* are not among the 3"):
        train(config(data__train=[str(table)], test__dataset=str(other)), tmp_path / "out", QUIET)
    assert not (tmp_path / "out" / "model.json").exists()


def test_a_test_set_with_more_classes_is_tested_on_those_that_were_trained(tmp_path: Path) -> None:
    table = write_table(tmp_path / "train.parquet", [row for row in rows_of(20) if row[0] in NAMES[:3]])
    found = train(config(data__train=[str(table)], test__dataset="shapes"), tmp_path / "out", QUIET)
    tested = found["test"]["dataset"]
    assert (tested["classes"], tested["part_of"]["classes"]) == (3, 10)
    assert found["test"]["n"] == tested["images"] == tested["part_of"]["images"] * 3 // 10


def test_the_folder_of_another_training_is_refused_with_the_field_that_differs(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(HfsynError, match=r"optimise\.lr was 0\.1 there and is 0\.2 now"):
        train(mixed().model_copy(update={"optimise": mixed().optimise.model_copy(update={"lr": 0.2})}), whole, QUIET)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(HfsynError, match=r"holds other things \(thesis.txt\)"):
        train(mixed(), tmp_path, RunOptions(device="cpu", overwrite=True, quiet=True))


def test_a_checkpoint_of_other_images_or_a_damaged_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_table(tmp_path / "train.parquet", rows_of(40))
    recipe = config(data__train=[str(table)], data__limit_per_class=100)
    options = RunOptions(device="cpu", checkpoint_steps=3, quiet=True)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 8 * 4)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "out", options)
    write_table(table, rows_of(44))
    with pytest.raises(HfsynError, match="images have changed since"):
        train(recipe, tmp_path / "out", options)
    write_table(table, rows_of(40))
    (checkpoint,) = found_checkpoints(tmp_path / "out" / "checkpoints")
    (checkpoint / "optimizer.bin").write_bytes(b"torn")
    with pytest.raises(HfsynError, match="is damaged"):
        train(recipe, tmp_path / "out", options)


def test_a_finished_training_whose_images_have_changed_is_not_returned(tmp_path: Path) -> None:
    table = write_table(tmp_path / "train.parquet", rows_of(40))
    recipe = config(data__train=[str(table)], data__limit_per_class=100, optimise__epochs=1)
    train(recipe, tmp_path / "out", QUIET)
    write_table(table, rows_of(60))
    with pytest.raises(HfsynError, match=r"images have changed since .* was finished"):
        train(recipe, tmp_path / "out", QUIET)
    assert train(recipe, tmp_path / "out", OVERWRITE)["training"]["sets"][0]["images"] == 60


def test_what_a_training_met_before_it_was_killed_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = write_table(tmp_path / "train.parquet", rows_of(40), bad={1, 2, 17})
    recipe = config(data__train=[str(table)], data__limit_per_class=100, test__dataset="shapes", test__every_epochs=1)
    monkeypatch.setattr(
        "hfsyn.judging.train.loop.open_images", lambda *_, **more: open_images("shapes", "test", limit=1)
    )
    options = RunOptions(device="cpu", checkpoint_steps=6, quiet=True)
    whole = train(recipe, tmp_path / "whole", options)["training"]
    with monkeypatch.context() as patch:
        interrupt_after(patch, 8 * 8 + 10)  # after step 8 and the ten images of the test after step 5
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "out", options)
    (checkpoint,) = found_checkpoints(tmp_path / "out" / "checkpoints")
    facts = json.loads((checkpoint / "checkpoint.json").read_text())
    facts["tally"] |= {"seconds": 1000.0, "cpu_seconds": 2000.0}
    (checkpoint / "checkpoint.json").write_text(json.dumps(facts))
    found = train(recipe, tmp_path / "out", options)["training"]
    assert found["undecodable_seen"] == whole["undecodable_seen"] > 0
    assert [entry for entry in found["history"] if "resumed" not in entry] == whole["history"]
    assert found["seconds"] > 1000
    assert found["cpu_seconds"] > 2000


@pytest.mark.parametrize("workers", [0, 1])
def test_a_set_without_a_readable_image_is_said_in_one_line_whoever_finds_it(tmp_path: Path, workers: int) -> None:
    table = write_table(tmp_path / "train.parquet", rows_of(10), bad=range(10))
    recipe = config(data__train=[str(table)], data__limit_per_class=100)
    with pytest.raises(HfsynError, match=r"No image of .* can be decoded") as error:
        train(recipe, tmp_path / "out", RunOptions(device="cpu", num_workers=workers, quiet=True))
    assert (error.value.hint, "\n" in str(error.value)) == ("Look at its files, or leave the class out.", False)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_row_of_no_class_in_a_stream_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    table = write_table(tmp_path / "train.parquet", rows_of(16))
    there = pq.read_table(table)
    labels = pa.array([len(NAMES), *there.column("label").to_pylist()[1:]], pa.int64())
    pq.write_table(there.set_column(there.schema.get_field_index("label"), "label", labels).cast(there.schema), table)
    recipe = config(data__train=[str(table)], data__limit_per_class=None, data__streaming=True, data__budget=16)
    with pytest.raises(HfsynError, match="label that is not one of its classes") as error:
        train(recipe, tmp_path / "out", RunOptions(device="cpu", num_workers=workers, quiet=True))
    assert "\n" not in str(error.value)


def test_a_trial_of_the_training_changes_nothing() -> None:
    recipe = config(augment__auto_augment="rand-m5-n2-inc1")
    classifier = new_classifier(recipe, tuple(sorted(WNIDS)), dict(zip(WNIDS, NAMES, strict=True)))
    before, random = state_sha256(classifier.network), torch.get_rng_state()
    try_training(classifier, recipe, 8)
    assert state_sha256(classifier.network) == before
    assert torch.equal(random, torch.get_rng_state())


def test_a_batch_that_cannot_be_divided_names_one_that_can() -> None:
    from hfsyn.judging.classifier import check_division

    check_division(64, 2, 4)
    with pytest.raises(HfsynError, match="--batch-size 63"):
        check_division(64, 1, 3)
    check_division(64, 2, 4, of=2, why="Mixup pairs images")
    with pytest.raises(HfsynError, match=r"has 1 in each.*16 can be"):
        check_division(8, 2, 4, of=2, why="Mixup pairs images")


def test_a_tracker_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HfsynError, match="Unknown tracker"):
        train(config(), tmp_path / "out", RunOptions(device="cpu", log_with="pen", quiet=True))


def test_numbers_reach_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(config(), tmp_path / "out", RunOptions(device="cpu", log_with="tensorboard", quiet=True))
    assert list((tmp_path / "out" / "logs").rglob("events.out.tfevents.*"))
    train(config(), tmp_path / "out", RunOptions(device="cpu", log_with="tensorboard", overwrite=True, quiet=True))
    assert list((tmp_path / "out" / "logs").rglob("events.out.tfevents.*"))


@pytest.mark.parametrize(("epochs", "warmup", "warned"), [(2, 1, True), (3, 5, True), (3, 1, False), (2, 0, False)])
def test_a_warm_up_as_long_as_half_of_the_training_is_warned_of(
    epochs: int, warmup: int, warned: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = config(optimise__epochs=epochs, optimise__warmup_epochs=warmup)
    train(recipe, tmp_path / "out", RunOptions(device="cpu"))
    said = capsys.readouterr().err
    assert (f"the learning rate rises for {warmup} of {epochs} epochs" in said) == warned
    assert ("--set optimise.warmup_epochs=0" in said) == warned
