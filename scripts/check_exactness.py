#!/usr/bin/env python
"""Compare what hfsyn draws and says with what diffusers and transformers draw and say, bit for bit.

    python scripts/check_exactness.py
    python scripts/check_exactness.py --only schedulers --json
    python scripts/check_exactness.py --only captions --like paligemma

Every scheduler of diffusers with its settings, every family of pipelines, images to start from at several strengths,
LoRA weights in the formats of the tools that write them; every family of captioners with prompts, beams and kinds of
cache; language models. Models are true classes with tiny random weights, made in a temporary folder. No grey level and
no text may differ, and hfsyn refuses what the library refuses: exit code 1 where that is not so. What both refuse is
counted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exactness_images import Case

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "tests")]

GROUPS = ("schedulers", "families", "img2img", "loras", "captions", "texts")


@dataclass
class Line:
    """One line of the report."""

    group: str
    name: str
    cases: int = 0
    refused: list[str] = field(default_factory=list)
    differ: list[str] = field(default_factory=list)
    most: int = 0
    """The largest difference, in grey levels or texts."""

    def text(self) -> str:
        """For people."""
        unit = "texts" if self.group in ("captions", "texts") else "grey levels"
        refused = f", {len(self.refused)} refused" if self.refused else ""
        head = f"{self.group:10} {self.name:34} {self.cases:3} settings{refused}: {self.most} {unit} differ"
        return "\n".join([head, *(f"    differs: {told}" for told in self.differ)])


def check(
    only: Iterable[str] = GROUPS, like: str = "", every: int = 1, say: Callable[[str], None] = print
) -> list[Line]:
    """Make the comparisons.

    Args:
        only: some of `GROUPS`.
        like: only lines whose name holds this.
        every: one case of so many.
        say: told each line of the report as soon as it is known.
    """
    import diffusers
    import torch
    import transformers

    torch.set_num_threads(1)
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="hfsyn-exactness-") as root, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in islice(_cases(Path(root), frozenset(only), like), 0, None, every):
            if not lines or (lines[-1].group, lines[-1].name) != (case.group, case.line):
                if lines:
                    say(lines[-1].text())
                lines.append(Line(case.group, case.line))
            _judge(case, lines[-1])
    if lines:
        say(lines[-1].text())
    return lines


def _cases(root: Path, only: frozenset[str], like: str) -> Iterator[Case]:
    from exactness_images import Pictures
    from exactness_texts import Texts

    for maker in (Pictures(root / "images"), Texts(root / "texts")):
        maker.root.mkdir()
        yield from (case for case in maker.cases() if case.group in only and like in case.line)


def _judge(case: Case, line: Line) -> None:
    from exactness_images import BothRefuse

    line.cases += 1
    try:
        found = case.differ()
    except BothRefuse as error:
        line.refused.append(f"{case.name}: {error}")
    except Exception as error:  # a case that cannot be run does not hold
        line.differ.append(f"{case.name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
    else:
        line.most = max(line.most, found)
        if found:
            line.differ.append(f"{case.name}: {found}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=GROUPS, help="this group; may be given several times")
    parser.add_argument("--like", default="", metavar="WORDS", help="only lines whose name holds these words")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="one case of N: a quick look")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the lines")
    options = parser.parse_args()
    started = time.monotonic()
    told = (lambda line: print(line, file=sys.stderr, flush=True)) if options.json else None
    say = told or (lambda line: print(line, flush=True))
    lines = check(options.only or GROUPS, options.like, options.every, say)
    wrong = sum(len(line.differ) for line in lines)
    seconds = round(time.monotonic() - started)
    if options.json:
        print(json.dumps({"lines": [asdict(line) for line in lines], "differ": wrong, "seconds": seconds}, indent=1))
    else:
        counts = [f"{sum(line.cases for line in lines if line.group == group)} {group}" for group in GROUPS]
        refused = sum(len(line.refused) for line in lines)
        print(f"{', '.join(counts)}: {wrong} differ, {refused} refused, in {seconds} s")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
