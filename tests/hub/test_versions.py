"""Versions: read in one way, sorted as numbers, told apart from other people's tags."""

from __future__ import annotations

import pytest

from hfsyn.errors import HfsynError
from hfsyn.hub.versions import Version, parse_version, versions_among


def test_a_version_is_read_with_and_without_its_letter() -> None:
    assert parse_version("1.2.3") == parse_version("v1.2.3") == Version(1, 2, 3)
    assert (str(Version(1, 2, 3)), Version(1, 2, 3).tag) == ("1.2.3", "v1.2.3")


@pytest.mark.parametrize("text", ["1.2", "1.2.3.4", "01.2.3", "1.2.3-rc1", "V1.2.3", " 1.2.3", "1.2.3\n", "", "latest"])
def test_what_is_not_a_version_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(HfsynError, match=r"is not MAJOR\.MINOR\.PATCH"):
        parse_version(text)


def test_versions_among_tags_are_sorted_as_numbers_and_other_tags_are_left_alone() -> None:
    tags = ["v1.10.0", "v1.9.0", "v10.0.0", "v2.0.0", "1.0.0", "v1.9", "stable", "v01.0.0"]
    assert [str(version) for version in versions_among(tags)] == ["1.9.0", "1.10.0", "2.0.0", "10.0.0"]
