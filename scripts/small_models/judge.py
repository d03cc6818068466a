"""Stage `judge`: two small CNNs that read the four attributes off an image.

The first is the judge, which measures what the captioner and the generator can do. The second has another seed and only
lends its features to the autoencoder's loss: a judge whose features had been trained against would be a partial one.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from .common import Job, cosine, load, progress, save, set_rate
from .world import ATTRIBUTES, HELD_OUT, VALUES, drawings

STEPS, BATCH, RATE = 1200, 128, 4e-3


class AttributeClassifier(nn.Module):
    """Images (b, 3, 32, 32) in [-1, 1] to four tensors of logits, one for each of ATTRIBUTES. 0.28 M parameters."""

    def __init__(self) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, stride: int) -> nn.Module:
            convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

        self.blocks = nn.ModuleList(
            [block(3, 32, 1), block(32, 48, 2), block(48, 64, 1), block(64, 96, 2), block(96, 96, 1), block(96, 96, 2)]
        )
        self.heads = nn.ModuleList([nn.Linear(2 * 96, len(VALUES[name])) for name in ATTRIBUTES])

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The outputs of the blocks, finest first."""
        found = []
        for block in self.blocks:
            images = block(images)
            found.append(images)
        return found

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        last = self.features(images)[-1]
        pooled = torch.cat([last.mean((2, 3)), last.amax((2, 3))], 1)
        return [head(pooled) for head in self.heads]


@torch.no_grad()
def read(classifier: AttributeClassifier, images: torch.Tensor, batch: int = 256) -> torch.Tensor:
    """The attributes of images (n, 3, 32, 32) in [-1, 1]: int64 (n, 4)."""
    classifier.eval()
    parts = [torch.stack([logits.argmax(1) for logits in classifier(part)], 1) for part in images.split(batch)]
    return torch.cat(parts)


def shares(found: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    """How often each attribute, and all four, are right: (n, 4) against (n, 4)."""
    right = found.cpu() == truth.cpu()
    result = {name: right[:, column].float().mean().item() for column, name in enumerate(ATTRIBUTES)}
    return result | {"all": right.all(1).float().mean().item()}


def train(job: Job, name: str, seed: int) -> None:
    """Train one classifier and keep it as `<name>.pt`, with its held-out accuracy beside the weights."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    data = drawings(job.work_dir)
    classifier = AttributeClassifier().to(job.device)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=RATE, weight_decay=0.02)
    steps = job.steps or STEPS
    for step, figures in progress(name, 0, steps, BATCH):
        set_rate(optimizer, RATE * cosine(step, steps, floor=0.005))
        rows = np.sort(rng.integers(0, len(data), BATCH))
        images, labels = data.images(rows).to(job.device), data.labels[rows].to(job.device)
        # A little noise and a small gain, so that it does not hang on the exact levels of the palette.
        images = images * (1 + 0.05 * torch.randn(len(images), 1, 1, 1, device=job.device))
        images = images + 0.05 * torch.randn_like(images)
        losses = [functional.cross_entropy(logits, labels[:, i]) for i, logits in enumerate(classifier(images))]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        figures["loss"] = loss.item()
    held_out = drawings(job.work_dir, HELD_OUT)
    score = shares(read(classifier, held_out.images(slice(None)).to(job.device)), held_out.labels)
    print(f"[{name}] held out, n = {len(held_out)}: {score}", flush=True)
    save({"model": classifier.state_dict(), "score": score, "n": len(held_out)}, job.path(f"{name}.pt"))


def load_classifier(job: Job, name: str = "judge") -> AttributeClassifier:
    """A trained classifier in evaluation mode, its parameters frozen."""
    classifier = AttributeClassifier()
    classifier.load_state_dict(load(job.path(f"{name}.pt"))["model"])
    return classifier.eval().requires_grad_(False).to(job.device)


def run(job: Job, only: str | None = None) -> None:
    """Train the judge and its sibling, unless they are there."""
    for name, seed in (("judge", job.seed + 1), ("perception", job.seed + 2)):
        if only in (None, name) and not job.path(f"{name}.pt").exists():
            train(job, name, seed)
