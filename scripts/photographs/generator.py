"""The generator before it is trained: a folder that diffusers loads, whose UNet is random.

Its text encoder is pre-trained: it tells which of many photographs a caption of Flickr8k, or a class of ImageNette,
is of, by EfficientNet-Lite0's features and the colours of 4 x 4 cells. `hfsyn tune` trains it on with the UNet.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from builders.files import atomic_text
from builders.variants import get_variant
from scripts.photographs import features, latents, settings
from scripts.photographs.photographs import flickr, thirds, words
from scripts.photographs.train_captioner import parts, vocabulary
from scripts.small_models import text
from scripts.small_models.common import cosine, set_rate
from scripts.small_models.unet import new_scheduler, new_unet

FRESH, AUTOENCODER = "fresh", "autoencoder"


def class_prompts() -> dict[str, str]:
    """The prompt of a class, by wnid."""
    return {info.wnid: f"a photo of {info.name}" for info in get_variant("imagenette").classes}


def autoencoder(data: Path, out: Path) -> None:
    """Make and train the autoencoder: OUT/autoencoder, with what it reaches in figures.json."""
    if (out / AUTOENCODER / "figures.json").is_file():
        return
    small = latents.small(data, out)
    images = np.concatenate([small["first"], small["flickr"]])
    vae = latents.new_autoencoder(images)
    found = latents.train_decoder(vae, images, small["val"])
    vae.save_pretrained(out / AUTOENCODER)
    atomic_text(out / AUTOENCODER / "figures.json", json.dumps(found) + "\n")


def tokenizer(data: Path) -> Any:
    """A word that the captioner knows is one token, and so are the words of the prompts of the classes."""
    spoken = vocabulary(parts(data)[2])[4:]
    named = [word for prompt in class_prompts().values() for word in words(prompt).split()]
    return text.new_tokenizer(["a", "photo", "of", *named, *spoken])


def fresh(data: Path, out: Path) -> None:
    """Pre-train the text encoder and write the whole pipeline: OUT/fresh, with what it reaches in figures.json."""
    import torch
    from diffusers import AutoencoderTiny, StableDiffusionPipeline

    if (out / FRESH / "figures.json").is_file():
        return
    torch.manual_seed(0)
    tokens = tokenizer(data)
    encoder = text.new_text_encoder(tokens)
    figures = _pretrain(encoder, tokens, *_pairs(data, out))
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderTiny.from_pretrained(out / AUTOENCODER),
        text_encoder=encoder.eval(),
        tokenizer=tokens,
        unet=new_unet(settings.LATENT_CHANNELS),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(out / FRESH)
    atomic_text(out / FRESH / "figures.json", json.dumps(figures) + "\n")


def _pairs(data: Path, out: Path) -> tuple[Any, list[tuple[str, ...]]]:
    """What is seen of the photographs that are learnt from, float32 (n, values), and the texts of each."""
    held_out = {one.name for some in parts(data)[:2] for one in some}
    texts, seen = [], []
    small = latents.small(data, out)
    prompts = class_prompts()
    for name, set_of, told in (
        ("flickr", flickr(data), lambda one: one.captions),
        ("first", thirds(data)[0], lambda one: (prompts[one.wnid],)),
    ):
        places, _, pooled = features.load(out / "features" / ("flickr" if name == "flickr" else "imagenette"))
        place = {known: number for number, known in enumerate(places)}
        colours = small[name].reshape(-1, 4, 8, 4, 8, 3).mean((2, 4)).reshape(len(small[name]), -1) / 64
        for number, one in enumerate(set_of):
            if one.name not in held_out:
                seen.append(np.concatenate([pooled[place[one.name], 0].astype("float32"), colours[number]]))
                texts.append(told(one))
    values = np.stack(seen).astype("float32")
    return (values - values.mean(0)) / (values.std(0) + 1e-3), texts


def _pretrain(encoder: Any, tokens: Any, seen: Any, texts: list[tuple[str, ...]]) -> dict[str, float]:
    """Train the text encoder and a linear map of the photographs to agree; returns the share that agrees in a batch."""
    import torch
    from torch import nn

    draw, size = np.random.default_rng(0), settings.PAIRS_A_STEP
    look, tell = nn.Linear(seen.shape[1], text.WIDTH), nn.Linear(text.WIDTH, text.WIDTH)
    warmth = nn.Parameter(torch.tensor(2.0))
    learning = [*encoder.parameters(), *look.parameters(), *tell.parameters(), warmth]
    optimizer = torch.optim.AdamW(learning, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.1)
    encoder.train()
    right, began = 0.0, time.process_time()
    for step in range(settings.TEXT_STEPS):
        set_rate(optimizer, settings.TEXT_LR * cosine(step, settings.TEXT_STEPS, warm_up=100))
        rows = draw.integers(0, len(texts), size)
        told = [str(draw.choice(texts[row])) for row in rows]
        numbers = text.tokenize(tokens, told)
        with torch.autocast("cpu", torch.bfloat16):
            said = tell(encoder(numbers).pooler_output).float()
        images = look(torch.from_numpy(seen[rows]))
        alike = nn.functional.normalize(said, dim=1) @ nn.functional.normalize(images, dim=1).T * warmth.exp()
        # Equal texts, as those of a class are, are right for each other's photographs.
        same = torch.tensor([[a == b for b in told] for a in told], dtype=torch.float32)
        target = same / same.sum(1, keepdim=True)
        loss = sum(nn.functional.cross_entropy(x, target) for x in (alike, alike.T))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        hit = same.gather(1, alike.argmax(1, keepdim=True)).mean().item()
        right = 0.98 * right + 0.02 * hit
        if step % 100 == 99:
            print(
                f"text: step {step + 1}, {right:.3f} right of {size}, {time.process_time() - began:.0f} s", flush=True
            )
    return {"right": right, "of": size, "cpu_minutes": (time.process_time() - began) / 60}
