"""Fixed parts of scripts/sweep_kills.py and race_publishers.py: kills on the way to the Hub, and rivals there."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from conftest import ROOT
from hub_client import Client

sys.path.insert(0, str(ROOT / "scripts"))

from race_publishers import Races
from sweep_publishing import PUBLISHING, Place, PublishSweep


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    found = Place(tmp_path_factory.mktemp("place"))
    yield found
    found.close()


@pytest.mark.parametrize(
    "name", ["publish", *(pytest.param(n, marks=pytest.mark.slow) for n in PUBLISHING if n != "publish")]
)
def test_a_kill_at_what_changes_the_hub_leaves_what_the_same_command_finishes(name: str, place: Place) -> None:
    sweep = PublishSweep(name, place)
    deeds = [
        number
        for number, operation in enumerate(sweep.operations, 1)
        if operation.startswith(("ask", "answered"))
        and any(word in operation for word in (":commit:", ":tag:", ":merge", ":branch:", ":discussions", ":create"))
        and " GET " not in operation
    ]
    assert len(deeds) >= 10
    chosen = deeds[1 :: len(deeds) // 3][:3]
    assert {sweep.operations[number - 1]: found for number in chosen if (found := sweep.point(number))} == {}


def test_no_version_is_anything_but_its_manifest_whoever_writes_there_too(
    place: Place, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("races")
    races = Races(folder, place.hub)
    with Client(place.hub, tmp_path_factory.mktemp("reader")) as reader:
        results = [races.run(number, 0, place.forks, reader, whole=number == 3) for number in (2, 3)]
    assert [result for result in results if result["problems"]] == []
    assert any(0 in result["codes"] for result in results)
