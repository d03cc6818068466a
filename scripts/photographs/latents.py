"""The generator's autoencoder: principal components of 4 x 4 pixels one way, a small trained decoder the other.

At 32 pixels no encoder has to be learnt: 16 of the 48 principal components of a patch keep all but 1.5 % of its
variance. An `AutoencoderTiny` of diffusers without activations in its encoder can be given exactly this projection as
its weights, so that the model is an ordinary folder that plain diffusers loads.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from builders.files import atomic_write
from scripts.photographs import settings
from scripts.photographs.photographs import Photograph, flickr, imagenette, thirds
from scripts.small_models.common import Average, cosine, set_rate
from scripts.small_models.vae import pixel_loss


def small(data: Path, out: Path) -> dict[str, Any]:
    """The photographs at 32 pixels, uint8 (n, 32, 32, 3), by set: ``first``, ``last``, ``val``, ``flickr``."""
    path = out / "small.npz"
    if not path.is_file():
        first, last = thirds(data)
        sets = {"first": first, "last": last, "val": imagenette(data, "val"), "flickr": flickr(data)}
        found = {name: np.stack([_shrunk(one) for one in some]) for name, some in sets.items()}
        path.parent.mkdir(parents=True, exist_ok=True)

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                np.savez(file, **found)

        atomic_write(path, write)
    with np.load(path) as stored:
        return dict(stored)


def _shrunk(one: Photograph) -> Any:
    from PIL import Image

    side = settings.PIXELS
    return np.asarray(one.image().resize((side, side), Image.Resampling.LANCZOS))


def new_autoencoder(images: Any) -> Any:
    """An `AutoencoderTiny` whose encoder projects onto the principal components of these images' patches."""
    import torch
    from diffusers import AutoencoderTiny

    kept, side = settings.LATENT_CHANNELS, settings.PIXELS
    vae = AutoencoderTiny(
        encoder_block_out_channels=(48, 48, 48),
        num_encoder_blocks=(0, 0, 0),
        decoder_block_out_channels=(settings.DECODER_WIDTH,) * 3,
        num_decoder_blocks=settings.DECODER_BLOCKS,
        latent_channels=kept,
        scaling_factor=settings.LATENT_SCALE,
    )
    # Patches as two halvings of the size order them: of each channel the four quarters, of each of these the pixels.
    cells = (images.astype("float32") / 255).reshape(-1, side // 4, 2, 2, side // 4, 2, 2, 3)
    patches = cells.transpose(0, 1, 4, 7, 3, 6, 2, 5).reshape(-1, 48)
    mean = patches.mean(0)
    variances, axes = np.linalg.eigh(np.cov(patches - mean, rowvar=False))
    variances, axes = variances[::-1][:kept], axes[:, ::-1][:, :kept]
    # Components that vary less are as hard to draw: each is divided by the fourth root of its variance.
    weights = (axes / variances**0.25).T
    weights /= (
        np.sqrt(((weights @ np.cov(patches - mean, rowvar=False)) * weights).sum(1).mean()) * settings.LATENT_SCALE
    )
    layers = vae.encoder.layers
    with torch.no_grad():
        for layer in layers:
            layer.weight.zero_()
            if layer.bias is not None:
                layer.bias.zero_()
        for channel in range(3):
            layers[0].weight[channel, channel, 1, 1] = 1
        for layer, channels in ((layers[1], 3), (layers[2], 12)):
            for channel in range(channels):
                for place in range(4):
                    layer.weight[channel * 4 + place, channel, 1 + place // 2, 1 + place % 2] = 1
        layers[3].weight[:, :, 1, 1] = torch.from_numpy(weights.astype("float32"))
        layers[3].bias.copy_(torch.from_numpy((-weights @ mean).astype("float32")))
    return vae


def train_decoder(vae: Any, images: Any, held_out: Any) -> dict[str, float]:
    """Train the decoder on slightly noisy latents, as the generator's will be; returns decibels on others."""
    import torch

    torch.manual_seed(0)
    draw, steps = np.random.default_rng(0), settings.DECODER_STEPS
    decoder = vae.decoder.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=settings.DECODER_LR, weight_decay=1e-4)
    average = Average(decoder, 0.998)
    began = time.process_time()
    for step in range(steps):
        set_rate(optimizer, settings.DECODER_LR * cosine(step, steps))
        truth = pixels(images[draw.integers(0, len(images), settings.DECODER_BATCH)])
        with torch.no_grad():
            latents = vae.encode(truth).latents
            latents = latents + torch.randn_like(latents) * settings.LATENT_NOISE / settings.LATENT_SCALE
        with torch.autocast("cpu", torch.bfloat16):
            drawn = decoder(latents.to(memory_format=torch.channels_last))
        loss = pixel_loss(drawn.float(), truth)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        average.update(decoder)
        if step % 100 == 99:
            print(f"decoder: step {step + 1}, loss {loss.item():.4f}, {time.process_time() - began:.0f} s", flush=True)
    average.copy_to(decoder)
    vae.eval()
    return {"decibels": decibels(vae, held_out), "cpu_minutes": (time.process_time() - began) / 60}


def decibels(vae: Any, images: Any) -> float:
    """Peak signal-to-noise ratio of images that went through the autoencoder, in dB."""
    import torch

    errors = []
    with torch.inference_mode():
        for start in range(0, len(images), 200):
            truth = pixels(images[start : start + 200])
            drawn = vae.decode(vae.encode(truth).latents).sample.clamp(-1, 1)
            errors.append(((drawn - truth) / 2).pow(2).mean((1, 2, 3)))
    return float(-10 * torch.cat(errors).mean().log10())


def pixels(images: Any) -> Any:
    """Images as a tensor (n, 3, height, width) of -1 to 1."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
