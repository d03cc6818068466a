"""Fakes for two of the three seams: a captioner and an image generator that remember what they were asked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from hfsyn.images.generator import Generated


class FakeCaptioner:
    """Names the mean colour of an image, so that a caption that belongs to another image is noticed."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    @staticmethod
    def describe(image: Image.Image) -> str:
        red, green, blue = (int(v) for v in np.asarray(image.convert("RGB")).reshape(-1, 3).mean(0).round())
        return f"mean {red} {green} {blue}"

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        self.batches.append(len(images))
        return [self.describe(image) for image in images]


class FakeGenerator:
    """Noise from the prompt and the seed. `problem_of` may spoil attempts, by prompt and seed."""

    max_tokens = 12

    def __init__(self, size: int = 8, problem_of: Callable[[str, int], str | None] = lambda prompt, seed: None) -> None:
        self.size = size
        self.asked: list[tuple[str, int]] = []
        self.problem_of = problem_of

    def count_tokens(self, prompts: Sequence[str]) -> list[int]:
        return [len(prompt.split()) + 2 for prompt in prompts]

    def start(self, prompts: Sequence[str], seeds: Sequence[int], size: int) -> Callable[[], list[Generated]]:
        assert 0 < len(prompts) <= size
        images = self.generate(prompts, seeds)
        return lambda: images

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Generated]:
        self.asked += list(zip(prompts, seeds, strict=True))
        return [Generated(self.draw(p, s), self.problem_of(p, s)) for p, s in zip(prompts, seeds, strict=True)]

    def draw(self, prompt: str, seed: int) -> np.ndarray:
        key = int.from_bytes(hashlib.sha256(f"{prompt}|{seed}".encode()).digest()[:8], "big")
        return np.random.default_rng(key).integers(0, 256, (self.size, self.size, 3), dtype=np.uint8)
