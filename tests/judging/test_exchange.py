"""The exchange rate: recovered where it is known, refused where curves do not cross; and the axes behind it."""

from __future__ import annotations

import json
import math
import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import ROOT

from hfsyn.cli import cli
from hfsyn.errors import HfsynError
from hfsyn.judging.bench.cells import bench
from hfsyn.judging.bench.exchange import exchange_rates, rate_of, rate_sentence
from hfsyn.judging.bench.matrix import EXAMPLES, cell_config, cells, load_matrix
from hfsyn.judging.bench.page import write_page

REAL, SYNTHETIC, SEEDS = (0, 5, 10, 20, 40), (0, 20, 40, 80), range(5)
MATRIX: dict[str, Any] = {
    "name": "exchange",
    "config": {"model": {"image_size": 32}, "optimise": {"epochs": 1, "batch_size": 8}},
    "arms": {"captions": {"train": ["runs/cip-{seed}"]}, "names": {"train": ["runs/basic-{seed}"]}},
    "models": ["test_resnet"],
    "seeds": [0, 1],
    "real": {"dataset": "shapes", "numbers": [0, 5, 10]},
    "synthetic": [0, 10, 20],
    "budgets": [50],
    "tests": {"drawings": {"dataset": "shapes", "split": "test"}},
}


def accuracy(images: float) -> float:
    return 0.9 - 0.8 * math.exp(-images / 15)


def made_up(
    rate: float | None, noise: float = 0.012, first: int = 7, count: int = len(SEEDS)
) -> tuple[dict[int, Any], dict[tuple[int, int], Any]]:
    """Accuracies of a world in which a real image is worth that many synthetic ones; None: they are worth nothing."""
    draw = random.Random(first)

    def seeds(images: float) -> dict[int, float]:
        return {seed: accuracy(images) + draw.gauss(0, noise) for seed in range(count)}

    alone = {real: seeds(real) for real in REAL if real}
    mixed = {(r, s): seeds(r + (s / rate if rate else 0)) for r in REAL for s in SYNTHETIC if s}
    return alone, mixed


@pytest.mark.parametrize("rate", [2.5, 4.0, 10.0])
def test_a_planted_rate_is_recovered_within_its_interval(rate: float) -> None:
    found = rate_of(*made_up(rate), chance=0.1)
    assert found["low"] < rate < found["high"]
    assert found["rate"] == pytest.approx(rate, rel=0.2)
    assert found["low"] <= found["rate"] <= found["high"]
    near = next(one for one in found["equal"] if (one["real"], one["synthetic"]) == (10, 20))
    assert near["is"] == pytest.approx(10 + 20 / rate, abs=2)


def test_nineteen_of_twenty_intervals_from_three_seeds_hold_the_rate() -> None:
    stated = [rate_of(*made_up(4.0, first=number, count=3), chance=0.1) for number in range(300)]
    holding = sum(found["rate"] is not None and found["low"] <= 4.0 <= found["high"] for found in stated)
    assert 280 <= holding <= 290
    # Where seeds differ more than images are worth, most say nothing, and none a rate without bounds.
    noisy = [rate_of(*made_up(40.0, noise=0.03, first=number, count=3), chance=0.1) for number in range(60)]
    there = [found for found in noisy if found["rate"] is not None]
    assert 0 < len(there) < 30
    assert all(0 < found["low"] <= found["rate"] <= found["high"] for found in there)


def test_what_images_with_wrong_labels_are_worth_is_recovered() -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    from check_exchange import SHARES, Edges, check_edges

    lines = check_edges(Edges(pool=150, tested=400), matrices=4, seeds=(3,), of_reference=20)
    planted = [line for line in lines if line.measured is not None]
    assert [line.share for line in planted] == list(SHARES)
    assert 1 < planted[0].measured < planted[1].measured < planted[2].measured
    for line in planted:  # what was measured with other seeds is near what theory says of such labels
        assert line.measured == pytest.approx(line.formula, rel=0.3)
    assert sum(line.holding for line in planted) >= 10  # of 12 intervals at 95 %
    worthless, flat = (line for line in lines if line.measured is None)
    assert worthless.holding == flat.holding == 4  # not measurable


def test_worthless_images_and_flat_curves_have_no_rate() -> None:
    nothing = rate_of(*made_up(None), chance=0.1)
    assert nothing["rate"] is None
    assert "includes nothing" in nothing["why"]
    flat = {n: {seed: 0.5 + 0.01 * ((seed + n) % 3) for seed in SEEDS} for n in (5, 10)}
    found = rate_of(flat, {(5, 20): dict.fromkeys(SEEDS, 0.6)}, chance=0.1)
    assert "more real images do not clearly help here, from 5 to 10" in found["why"]
    alone, _ = made_up(4)
    above = rate_of(alone, {(40, 80): dict.fromkeys(SEEDS, 0.99)}, chance=0.1)
    assert "between 5 and 40" in above["why"]
    one_seed = {n: {0: accuracy(n)} for n in (5, 10)}
    assert rate_of(one_seed, {(5, 20): {0: 0.6}}, chance=0.1)["rate"] is None
    assert "not measurable here" in rate_sentence({**nothing, "test": "t", "arm": "a"})


def test_the_number_at_which_accuracy_turns_is_said() -> None:
    alone = {10: {0: 0.5, 1: 0.52}}
    mixed = {(10, 20): {0: 0.6, 1: 0.61}, (10, 80): {0: 0.55, 1: 0.5}}
    (best,) = rate_of(alone, mixed, chance=0.1)["best"]
    assert (best["real"], best["synthetic"]) == (10, 20)
    assert best["share"] == pytest.approx(2 / 3)
    assert best["added"]["mean"] == pytest.approx(0.095)


def test_cells_hold_each_pair_of_numbers_once_and_train_on_both_sets() -> None:
    matrix = load_matrix(MATRIX)
    found = list(cells(matrix))
    assert len(found) == 2 * (2 * 3 * 2 + 2)  # seeds x (arms x real x synthetic, and real images alone once)
    assert len({cell.folder for cell in found}) == len(found)
    assert not [cell for cell in found if not cell.real and not cell.synthetic]
    both = next(cell for cell in found if (cell.arm, cell.real, cell.synthetic, cell.seed) == ("names", 5, 20, 1))
    data = cell_config(matrix, both).data
    assert (data.train, data.limits, data.budget) == (("shapes:5", "runs/basic-1:20"), (5, 20), 50)
    alone = next(cell for cell in found if cell.synthetic == 0)
    assert cell_config(matrix, alone).data.limits == (5,)


def test_rates_and_recipes_are_axes_too() -> None:
    fields = {key: value for key, value in MATRIX.items() if key not in ("real", "synthetic", "config")}
    matrix = load_matrix({**fields, "lrs": [0.1, 0.01], "recipes": ["shapes"], "seeds": [0]})
    found = [cell_config(matrix, cell) for cell in cells(matrix)]
    assert [config.optimise.lr for config in found] == [0.1, 0.1, 0.01, 0.01]
    assert {config.optimise.optimizer for config in found} == {"adamw"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"synthetic": None}, "has the axis real and no synthetic"),
        ({"real": None}, "has the axis synthetic and no real"),
        ({"limits": [5]}, "say how many images there are"),
        ({"budgets": [None]}, "budgets is null"),
        ({"recipes": ["shapes"]}, "both config and recipes"),
        ({"synthetic": [-1]}, "synthetic"),
        ({"real": {"dataset": "shapes", "numbers": []}}, "numbers"),
    ],
)
def test_axes_that_do_not_fit_are_refused_in_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(HfsynError, match=said) as refused:
        load_matrix({**MATRIX, **changes})
    assert "\n" not in str(refused.value)


def test_limits_must_be_one_for_each_set() -> None:
    from hfsyn.recipes.training_recipe import load_train_config

    with pytest.raises(HfsynError, match="1 numbers for 2 sets"):
        load_train_config({"data": {"train": ["shapes", "shapes-context"], "limits": [3]}})


def made_up_train(config: Any, out: Path) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    limits = [*config.data.limits]
    real = limits.pop(0) if config.data.train[0].startswith("shapes") else 0
    (out / "worth").write_text(str(real + sum(limits) / 4))
    return {"training": {}}


def made_up_evaluate(model: Path, dataset: str, split: str | None) -> dict[str, Any]:
    seed = int(model.parent.name.partition("-")[2])
    top1 = accuracy(float((model / "worth").read_text())) + 0.001 * seed
    value = {"value": top1, "low": top1, "high": top1}
    metrics = {"top1": value, "top5": value, "ece": value, "classes": 10}
    metrics["per_class"] = [{"wnid": "n1", "name": "star", "n": 10, "top1": value}]
    return {"n": 100, "metrics": metrics, "dataset": {}, "device": "cpu"}


def test_a_bench_ends_in_rates_and_a_page_with_lines_of_equal_accuracy(tmp_path: Path) -> None:
    found = bench(MATRIX, tmp_path / "out", train=made_up_train, evaluate=made_up_evaluate, quiet=True)
    assert not found["failed"]
    rates = {rate["arm"]: rate for rate in found["exchange"]}
    assert set(rates) == {"captions", "names"}
    assert rates["captions"]["rate"] == pytest.approx(4, rel=0.1)
    assert found["verdict"][0] == rate_sentence(found["exchange"][0])
    page = write_page(tmp_path / "out").read_text()
    assert "are worth one more real image" in page
    assert "Lines of equal accuracy: names" in page
    names = {path.name for path in (tmp_path / "out" / "plots").glob("*.png")}
    assert {f"exchange-exchange-{arm}{of}.png" for arm in rates for of in ("", "-curves")} < names
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["exchange"] == found["exchange"]
    # The figure of an arm is its rate; accuracies stand in one table an arm, real images by synthetic ones.
    assert re.search(r"<strong>captions</strong>\s*<span class=\"big\">4\.\d for one real image</span>", page)
    assert page.count("synthetic</th></tr></thead>") == 2
    (ten,) = re.findall(r"images of captions, .*?(<tr><th scope=\"row\">10 real.*?</tr>)", page, re.DOTALL)
    assert [f"{100 * accuracy(10 + s / 4) + 0.05:.1f} [" in ten for s in (0, 10, 20)] == [True] * 3
    (none,) = re.findall(r"images of captions, .*?(<tr><th scope=\"row\">0 real.*?</tr>)", page, re.DOTALL)
    assert '<td data-label="0 synthetic">–</td>' in none


def test_the_page_of_one_arm_shows_no_single_point_of_the_grid(tmp_path: Path) -> None:
    arm = {"captions": MATRIX["arms"]["captions"]}
    found = bench({**MATRIX, "arms": arm}, tmp_path, train=made_up_train, evaluate=made_up_evaluate, quiet=True)
    assert found["verdict"] == [rate_sentence(found["exchange"][0])]
    page = write_page(tmp_path).read_text()
    assert "Accuracy by arm" not in page
    assert "Accuracy by class" not in page
    assert "Real images beside those of “captions”" in page
    assert "tested on drawings, test_resnet, 50 images per epoch; both numbers" in page


def test_the_example_is_a_matrix() -> None:
    printed = CliRunner().invoke(cli, ["bench", "--example", "exchange"]).output
    assert printed == EXAMPLES["exchange"]
    assert "cip-{seed}" in printed
    assert CliRunner().invoke(cli, ["bench", "--example"]).output == EXAMPLES["small"]


def test_rows_without_the_axes_have_no_rates() -> None:
    assert exchange_rates([{"real": None, "arm": "a"}]) == []
