"""Train the captioner on Flickr8k: OUT/captioner/{captioner.py, captioner.safetensors, words.txt, training.json}.

OUT/captioner/checkpoint.pt is written after each epoch; the same command goes on from there.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

from builders.files import atomic_text, atomic_write, sha256_of
from scripts.photographs import captioner as code
from scripts.photographs import features, settings
from scripts.photographs.captioner import BOS, EOS, PAD, UNKNOWN, Network
from scripts.photographs.photographs import Photograph, flickr


def parts(data: Path) -> tuple[list[Photograph], list[Photograph], list[Photograph]]:
    """Flickr8k's photographs that are tested on, that show how the training goes, and that are learnt."""
    every = flickr(data)
    tested, seen = settings.TESTED, settings.TESTED + settings.TUNED_ON
    return every[:tested], every[tested:seen], every[seen:]


def vocabulary(photographs: list[Photograph]) -> list[str]:
    """Words by number: four that stand for something else, then the commonest first."""
    counts = Counter(word for one in photographs for text in one.captions for word in text.split())
    kept = [word for word, count in counts.items() if count >= settings.FEWEST]
    return ["<pad>", "<begin>", "<end>", "<unknown>", *sorted(kept, key=lambda word: (-counts[word], word))]


class Lessons:
    """Features and captions of photographs, in batches."""

    def __init__(self, photographs: list[Photograph], folder: Path, words: list[str]) -> None:
        import numpy as np

        names, self.grid, self.pooled = features.load(folder)
        place = {name: number for number, name in enumerate(names)}
        self.rows = np.array([place[one.name] for one in photographs])
        number = {word: n for n, word in enumerate(words)}
        self.texts = [
            (row, [BOS, *(number.get(word, UNKNOWN) for word in text.split()[: settings.LONGEST]), EOS])
            for row, one in zip(self.rows, photographs, strict=True)
            for text in one.captions
        ]

    def order(self, draw: Any) -> list[Any]:
        """The numbers of the captions of each step of an epoch."""
        import numpy as np

        size, numbers = settings.CAPTIONS_A_STEP, draw.permutation(len(self.texts))
        steps = []
        for start in range(0, len(numbers), size * settings.ALIKE):
            some = sorted(numbers[start : start + size * settings.ALIKE], key=lambda n: len(self.texts[n][1]))
            steps += [np.array(some[first : first + size]) for first in range(0, len(some), size)]
        return [steps[n] for n in draw.permutation(len(steps))]

    def batch(self, chosen: Any, mirrored: Any) -> tuple[Any, Any, Any]:
        """Features and tokens of the chosen captions."""
        import torch

        texts = [self.texts[n] for n in chosen]
        rows = [row for row, _ in texts]
        grid, pooled = (torch.from_numpy(part[rows, mirrored]) for part in (self.grid, self.pooled))
        longest = max(len(text) for _, text in texts)
        return grid, pooled, torch.tensor([text + [PAD] * (longest - len(text)) for _, text in texts])


def loss_of(network: Network, batch: tuple[Any, Any, Any], smoothing: float) -> Any:
    """Mean cross-entropy of the next words, in nats."""
    import torch

    grid, pooled, tokens = batch
    with torch.autocast("cpu", torch.bfloat16):
        memory = network.look(grid, pooled)
        said = network.decoder(
            input_ids=tokens[:, :-1], attention_mask=(tokens[:, :-1] != PAD).long(), encoder_hidden_states=memory
        ).logits
    return torch.nn.functional.cross_entropy(
        said.float().flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=PAD, label_smoothing=smoothing
    )


def train(data: Path, out: Path) -> dict[str, Any]:
    """Train, or go on, and return what ``training.json`` holds."""
    import numpy as np
    import torch

    folder, epochs = out / "captioner", settings.EPOCHS
    if (folder / "training.json").is_file():
        return dict(json.loads((folder / "training.json").read_text(encoding="utf-8")))
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    _, watched, learnt = parts(data)
    words = vocabulary(learnt)
    lessons, watch = (Lessons(some, out / "features" / "flickr", words) for some in (learnt, watched))
    sizes = settings.CAPTIONER
    network = Network(len(words), sizes["width"], sizes["layers"], sizes["heads"], sizes["dropout"], settings.LONGEST)
    for name in ("grid", "pooled"):
        some = getattr(lessons, name)[lessons.rows[:2000], 0].astype("float32")
        axes = tuple(range(some.ndim - 1))
        getattr(network, f"{name}_mean").copy_(torch.from_numpy(some.mean(axes)))
        getattr(network, f"{name}_std").copy_(torch.from_numpy(some.std(axes) + 1e-3))
    decayed = [weight for weight in network.parameters() if weight.dim() > 1]
    rest = [weight for weight in network.parameters() if weight.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.CAPTIONER_DECAY}, {"params": rest, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
    )
    averaged = {name: value.clone() for name, value in network.state_dict().items()}
    an_epoch = len(lessons.order(np.random.default_rng(0)))
    log: list[dict[str, float]] = []
    spent = {"cpu_minutes": 0.0, "minutes": 0.0}
    if (folder / "checkpoint.pt").is_file():
        state = torch.load(folder / "checkpoint.pt", weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        averaged, log, spent = state["averaged"], state["log"], state["spent"]
    for epoch in range(len(log), epochs):
        # What an epoch draws depends on its number alone, so that a stopped training repeats none of it.
        draw = np.random.default_rng(epoch)
        torch.manual_seed(1000 + epoch)
        cpu, wall = time.process_time(), time.monotonic()
        network.train()
        total = 0.0
        for step, chosen in enumerate(lessons.order(draw), start=epoch * an_epoch):
            done, warm = step / (epochs * an_epoch), min(1.0, (step + 1) / settings.WARMUP)
            for group in optimizer.param_groups:
                group["lr"] = settings.CAPTIONER_LR * warm * 0.5 * (1 + math.cos(math.pi * done))
            loss = loss_of(network, lessons.batch(chosen, draw.integers(0, 2, len(chosen))), settings.SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            total += loss.item()
            share = min(settings.AVERAGING, (1 + step) / (10 + step))
            with torch.no_grad():
                for name, value in network.state_dict().items():
                    averaged[name].lerp_(value, 1 - share)
        spent["cpu_minutes"] += (time.process_time() - cpu) / 60
        spent["minutes"] += (time.monotonic() - wall) / 60
        now = network.state_dict()
        kept = {name: value.clone() for name, value in now.items()}
        network.load_state_dict(averaged)
        watched_loss = watched_loss_of(network, watch)
        network.load_state_dict(kept)
        log.append({"loss": total / an_epoch, "watched": watched_loss})
        print(f"epoch {epoch + 1}: {log[-1]}, {spent}", flush=True)
        state = {"network": kept, "optimizer": optimizer.state_dict(), "averaged": averaged, "log": log, "spent": spent}
        atomic_write(folder / "checkpoint.pt", lambda path, state=state: torch.save(state, path))
    return _keep(folder, averaged, words, {"epochs": log, **spent})


def watched_loss_of(network: Network, watch: Lessons) -> float:
    """The loss on photographs that are not learnt, without smoothing."""
    import numpy as np
    import torch

    network.eval()
    with torch.inference_mode():
        losses = [
            float(loss_of(network, watch.batch(chosen, np.zeros(len(chosen), dtype=int)), 0.0))
            for chosen in np.array_split(np.arange(len(watch.texts)), 20)
        ]
    return sum(losses) / len(losses)


def _keep(folder: Path, averaged: dict[str, Any], words: list[str], result: dict[str, Any]) -> dict[str, Any]:
    """Write the weights, the words and the code that says captions with them."""
    import torch
    from safetensors.torch import save_file

    sizes = [settings.CAPTIONER[name] for name in ("width", "layers", "heads")] + [settings.LONGEST]
    # The embedding of words is also the last layer; it is stored once, under each name.
    state = {name: value.clone().contiguous() for name, value in averaged.items()}
    state["sizes"] = torch.tensor(sizes)
    atomic_write(folder / "captioner.safetensors", lambda path: save_file(state, path))
    atomic_text(folder / "words.txt", "\n".join(words))
    said = Path(code.__file__).read_text(encoding="utf-8")
    digest = sha256_of(folder / "captioner.safetensors")
    atomic_text(folder / "captioner.py", re.sub('WEIGHTS_SHA256 = ""', f'WEIGHTS_SHA256 = "{digest}"', said, count=1))
    atomic_text(folder / "training.json", json.dumps(result, indent=1) + "\n")
    return result
