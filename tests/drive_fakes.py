"""A worker process with fakes in place of the models, for tests that kill it: ``python drive_fakes.py RUN``.

Each batch takes a moment, so that a kill lands in every stage; nothing else differs from a real worker.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from fakes import FakeCaptioner, FakeGenerator
from PIL import Image

from hfsyn.captions.caption_stage import caption
from hfsyn.images.generate_stage import generate
from hfsyn.images.generator import Generated


class SlowCaptioner(FakeCaptioner):
    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        time.sleep(0.02)
        return super().caption(images)


class SlowGenerator(FakeGenerator):
    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Generated]:
        time.sleep(0.02)
        return super().generate(prompts, seeds)


if __name__ == "__main__":
    caption(sys.argv[1], captioner=SlowCaptioner(), quiet=True)
    generate(sys.argv[1], generator=SlowGenerator(problem_of=lambda p, s: "flat" if s % 7 == 0 else None), quiet=True)
