"""Stage `vae`: the autoencoder between 32 x 32 pixels and the 8 x 8 latents in which the generator works.

First encoder and decoder together; then the decoder alone on slightly noisy latents, as the generator's will be, with
the features of the sibling classifier in the loss, so that what tells the shapes apart is drawn sharply.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional

from .common import Job, cosine, load, progress, save, set_rate
from .judge import AttributeClassifier, load_classifier, read, shares
from .world import HELD_OUT, TRAIN, drawings

LATENT_CHANNELS = 8
STEPS, DECODER_STEPS, BATCH = 2600, 1000, 32
RATE, DECODER_RATE = 2e-3, 1.5e-3
KL_WEIGHT = 2e-4  # a mean over latent elements; at 1e-3 of a larger sum, two channels of eight went unused
PERCEPTION_WEIGHT = 0.1
LATENT_NOISE = 0.08  # of the latents' unit standard deviation, in the decoder's own training
SAVE_EVERY = 200


def new_vae() -> AutoencoderKL:
    """The autoencoder, 0.75 M parameters; random weights."""
    return AutoencoderKL(
        block_out_channels=(16, 48, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=32,
        scaling_factor=1.0,
    )


def _slopes(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return images[..., 1:, :] - images[..., :-1, :], images[..., 1:] - images[..., :-1]


def pixel_loss(drawn: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """L1 + squared error + half an L1 on the differences of neighbouring pixels."""
    slopes = [functional.l1_loss(a, b) for a, b in zip(_slopes(drawn), _slopes(truth), strict=True)]
    return functional.l1_loss(drawn, truth) + functional.mse_loss(drawn, truth) + 0.5 * torch.stack(slopes).mean()


def perception_loss(classifier: AttributeClassifier, drawn: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Distance of the classifier's features, each block's relative to the size of its features on the real images."""
    with torch.no_grad():
        wanted = classifier.features(truth)
    parts = [
        functional.l1_loss(found, want) / (want.mean() + 1e-3)
        for found, want in zip(classifier.features(drawn), wanted, strict=True)
    ]
    return torch.stack(parts[1:]).mean()


@torch.no_grad()
def encode_all(vae: AutoencoderKL, images: torch.Tensor, batch: int = 128) -> torch.Tensor:
    """Posterior means (n, 8, 8, 8), not yet scaled."""
    return torch.cat([vae.encode(part).latent_dist.mean for part in images.split(batch)])


@torch.no_grad()
def decode_all(vae: AutoencoderKL, latents: torch.Tensor, batch: int = 128) -> torch.Tensor:
    """Images (n, 3, 32, 32) in [-1, 1] from unscaled latents."""
    return torch.cat([vae.decode(part).sample.clamp(-1, 1) for part in latents.split(batch)])


def evaluate(job: Job, vae: AutoencoderKL, count: int = 1000) -> dict[str, float]:
    """PSNR, and what the judge reads from reconstructions of held-out drawings."""
    held_out = drawings(job.work_dir, HELD_OUT)
    images = held_out.images(slice(0, count)).to(job.device)
    vae.eval()
    again = decode_all(vae, encode_all(vae, images))
    vae.train()
    error = functional.mse_loss(again, images).item() / 4
    return {"psnr": -10 * np.log10(error), **shares(read(load_classifier(job), again), held_out.labels[:count])}


def run(job: Job) -> None:
    """Train the autoencoder, then its decoder alone; `vae.pt` is the result."""
    _train(job, "vae-both", decoder_only=False)
    _train(job, "vae", decoder_only=True)


def _train(job: Job, name: str, *, decoder_only: bool) -> None:
    torch.manual_seed(job.seed + 3 + decoder_only)
    data = drawings(job.work_dir, TRAIN)
    vae = new_vae()
    if decoder_only:
        vae.load_state_dict(load(job.path("vae-both.pt"))["model"])
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    vae.to(job.device).train()
    perception = load_classifier(job, "perception") if decoder_only else None
    rate, steps = (DECODER_RATE, DECODER_STEPS) if decoder_only else (RATE, STEPS)
    steps = job.steps or steps
    learning = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    start, checkpoint = 0, job.path(f"{name}-part.pt")
    if checkpoint.exists():
        state = load(checkpoint)
        start = state["step"]
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    rng = np.random.default_rng([job.seed + 3 + decoder_only, start])  # a continued run draws other batches
    spread = _spread(job, vae) if decoder_only else 0.0
    for step, figures in progress(name, start, steps, BATCH):
        set_rate(optimizer, rate * cosine(step, steps, hold=0.3))
        truth = data.images(np.sort(rng.integers(0, len(data), BATCH))).to(job.device)
        if decoder_only:
            with torch.no_grad():
                latents = vae.encode(truth).latent_dist.mean
            # A different strength for each image, none for some: the generator's errors differ as well.
            strength = LATENT_NOISE * spread * torch.rand(len(truth), 1, 1, 1, device=job.device) * 2
            latents = latents + strength * torch.randn_like(latents)
            drawn = vae.decode(latents).sample
            loss = pixel_loss(drawn, truth)
            assert perception is not None
            figures["perception"] = (felt := perception_loss(perception, drawn, truth)).item()
            loss = loss + PERCEPTION_WEIGHT * felt
        else:
            posterior = vae.encode(truth).latent_dist
            drawn = vae.decode(posterior.sample()).sample
            loss = pixel_loss(drawn, truth)
            kl = 0.5 * (posterior.mean.pow(2) + posterior.var - 1 - posterior.logvar).mean()
            figures["kl"] = kl.item()
            loss = loss + KL_WEIGHT * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        figures["loss"], figures["l1"] = loss.item(), functional.l1_loss(drawn.detach(), truth).item()
        if (step + 1) % SAVE_EVERY == 0:
            save({"model": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, checkpoint)
    score = evaluate(job, vae) if job.path("judge.pt").exists() else {}
    print(f"[{name}] reconstructions of held-out drawings, n = 1000: {score}", flush=True)
    save({"model": vae.state_dict(), "score": score, "spread": _spread(job, vae)}, job.path(f"{name}.pt"))


def _spread(job: Job, vae: AutoencoderKL) -> float:
    """Standard deviation of the latents: its inverse is the scaling factor of the finished pipeline."""
    latents = encode_all(vae, drawings(job.work_dir, TRAIN).images(slice(0, 1000)).to(job.device))
    return float(latents.std())


def load_vae(job: Job) -> AutoencoderKL:
    """The trained autoencoder with its scaling factor set, in evaluation mode."""
    state = load(job.path("vae.pt") if job.path("vae.pt").exists() else job.path("vae-both.pt"))
    vae = new_vae()
    vae.load_state_dict(state["model"])
    # Set from the encoder alone, so it is the same before and after the decoder's own training.
    vae.register_to_config(scaling_factor=1 / state["spread"])
    return vae.eval().requires_grad_(False).to(job.device)
