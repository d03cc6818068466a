"""The rehearsal of a dataset of ImageNet-1K's kind, at a size that a machine of the suite bears."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def rehearse(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "rehearse.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_twenty_thousand_rows_go_from_the_source_to_the_second_version(tmp_path: Path) -> None:
    ended = rehearse("--rows", "20000", "--folder", str(tmp_path))
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["holds"]["no process above 2 GB"], found
    stages = {one["stage"]: one for one in found["stages"]}
    assert stages["publish"]["commits"] == stages["second: publish"]["commits"] == 1
    assert stages["publish"]["sent_mb"] > 1
    assert stages["verify the run"]["requests"] == 0

    again = rehearse("--rows", "20000", "--folder", str(tmp_path))  # nothing is left to do
    assert json.loads(again.stdout.splitlines()[-1]) == found
    other = rehearse("--rows", "20001", "--folder", str(tmp_path))
    assert other.returncode == 1
    assert "a rehearsal of 20000 rows" in other.stderr
