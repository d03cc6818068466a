"""Stage `unet`: the denoiser, trained on stored latents with v-prediction, in one process or several.

Several processes hold equal copies, draw different batches and average their gradients, so they stay equal. The text
encoder and the autoencoder are frozen: a step costs the UNet alone.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as distributed
import torch.multiprocessing as multiprocessing
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel

from . import text
from .common import Average, Job, cosine, load, progress, save, set_rate
from .judge import load_classifier, read, shares
from .vae import LATENT_CHANNELS, encode_all, load_vae
from .world import HELD_OUT, TRAIN, caption_from_labels, drawings

SAMPLES, BATCH, RATE = 1_000_000, 64, 1.2e-3  # BATCH is one process's
AVERAGE_DECAY = 0.999
LATENT_COUNT = 60_000  # of the training drawings; encoding them takes a few minutes of one core
UNIFORM_SHARE = 0.3  # of the time steps; the others are drawn more from the middle, where the shape is decided
ROUGH_SHARE = 0.75  # of the training, in mixed precision
SAVE_SECONDS, EVALUATE_SECONDS = 90.0, 420.0
SAMPLING_STEPS, GUIDANCE = 12, 2.5


def new_unet(channels: int = LATENT_CHANNELS) -> UNet2DConditionModel:
    """The denoiser of latents with that many channels, 3.6 M parameters; random weights.

    Attention only at 4 x 4, where it is cheap. The prompt also reaches every residual block as a pooled vector
    (`addition_embed_type`, applied as scale and shift): a class then is learned about as fast as in a class-conditional
    model, several times faster than through cross-attention alone.
    """
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        cross_attention_dim=text.WIDTH,
        attention_head_dim=(2, 4),
        norm_num_groups=16,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


_NOISE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "prediction_type": "v_prediction",
    "steps_offset": 1,  # without effect on trailing steps; StableDiffusionPipeline warns of any other value
}


def new_scheduler() -> DPMSolverMultistepScheduler:
    """The sampler that the saved pipeline carries."""
    return DPMSolverMultistepScheduler(**_NOISE, timestep_spacing="trailing")


def new_pipeline(job: Job, unet: UNet2DConditionModel) -> StableDiffusionPipeline:
    """The whole generator around a UNet."""
    pipeline = StableDiffusionPipeline(
        vae=load_vae(job),
        text_encoder=text.load_text_encoder(job),
        tokenizer=text.new_tokenizer(),
        unet=unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(
    pipeline: StableDiffusionPipeline,
    prompts: list[str],
    *,
    seed: int = 0,
    steps: int = SAMPLING_STEPS,
    guidance: float = GUIDANCE,
    batch: int = 50,
) -> torch.Tensor:
    """Images (n, 3, 32, 32) in [-1, 1], one generator a sample."""
    parts = []
    for first in range(0, len(prompts), batch):
        some = prompts[first : first + batch]
        generators = [torch.Generator().manual_seed(seed * 1_000_003 + first + k) for k in range(len(some))]
        images = pipeline(
            some,
            num_inference_steps=steps,
            guidance_scale=guidance,
            width=32,
            height=32,
            generator=generators,
            output_type="pt",
        ).images
        # Through eight bits, as a stored image goes.
        parts.append((images * 255).round() / 127.5 - 1)
    return torch.cat(parts)


def evaluate(
    job: Job, unet: UNet2DConditionModel, count: int, template: str = "a photo of {name}, {caption}", **settings: float
) -> dict[str, float]:
    """What the judge reads from images generated for the true captions of held-out drawings."""
    held_out = drawings(job.work_dir, HELD_OUT)
    rows = held_out.labels[:count]
    prompts = [
        template.format(name=text.SHAPES[labels[0]], caption=caption_from_labels(labels)) for labels in rows.tolist()
    ]
    images = generate(new_pipeline(job, unet), prompts, **settings)  # type: ignore[arg-type]
    return shares(read(load_classifier(job), images.to(job.device)), rows)


def stored_latents(job: Job) -> torch.Tensor:
    """Scaled latents of the first LATENT_COUNT training drawings, float16 (n, 8, 8, 8); encoded once."""
    path = job.path("latents.pt")
    if not path.exists():
        vae, data = load_vae(job), drawings(job.work_dir, TRAIN)
        parts = [
            (encode_all(vae, data.images(slice(first, first + 1000)).to(job.device)) * vae.config.scaling_factor).cpu()
            for first in range(0, LATENT_COUNT, 1000)
        ]
        save({"latents": torch.cat(parts).half()}, path)
    return load(path)["latents"]


def draw_times(count: int) -> torch.Tensor:
    """Time steps in 0..999."""
    middle = torch.sigmoid(torch.randn(count) * 0.9 - 0.7)
    uniform = torch.rand(count)
    return (torch.where(torch.rand(count) < UNIFORM_SHARE, uniform, middle) * 1000).long().clamp(0, 999)


def _average_gradients(parameters: list[torch.nn.Parameter], world: int) -> None:
    flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    distributed.all_reduce(flat)
    flat /= world
    offset = 0
    for p in parameters:
        if p.grad is not None:
            p.grad.copy_(flat[offset : offset + p.numel()].view_as(p))
            offset += p.numel()


def run(job: Job) -> None:
    """Train the denoiser; `unet.pt` is the result."""
    stored_latents(job)
    if job.processes > 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29511")
        multiprocessing.spawn(_train, args=(job.processes, job), nprocs=job.processes)
    else:
        _train(0, 1, job)


def _train(rank: int, world: int, job: Job) -> None:
    if job.device == "cpu":
        torch.set_num_threads(1)  # two threads on busy cores are several times slower than one
    if world > 1:
        distributed.init_process_group("gloo", rank=rank, world_size=world)
    torch.manual_seed(job.seed + 7)
    unet = new_unet().to(job.device).train()
    average = Average(unet, AVERAGE_DECAY)
    parameters = list(unet.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    total, start, checkpoint = SAMPLES, 0, job.path("unet-part.pt")
    if job.steps:
        total = job.steps * BATCH * world
    if checkpoint.exists():
        state = load(checkpoint)
        start = state["samples"]
        unet.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.restore(state["average"])
    # Each process, and each continuation of a run, draws other batches.
    torch.manual_seed(hash_of(job.seed + 8, rank, start))
    rng = random.Random(hash_of(job.seed + 9, rank, start))
    numbers = np.random.default_rng([job.seed + 10, rank, start])
    latents, labels = stored_latents(job), drawings(job.work_dir, TRAIN).labels.tolist()
    prompts = text.Prompts(text.new_tokenizer(), text.load_text_encoder(job))
    noising = DDPMScheduler(**_NOISE)
    saved = evaluated = time.monotonic()
    # Counted in samples, so that a run may go on with another number of processes.
    left = -(-(total - start) // (BATCH * world))
    for step, figures in progress(f"unet {rank}", 0, left, BATCH * world, every=60 if rank == 0 else 1e9):
        seen = start + (step + 1) * BATCH * world
        set_rate(optimizer, RATE * cosine(seen, total, warm_up=10_000, hold=0.5))
        rows = numbers.integers(0, len(latents), BATCH)
        clean = latents[torch.from_numpy(rows)].float().to(job.device)
        hidden = prompts([text.make_prompt(labels[row], rng)[0] for row in rows])
        times, noise = draw_times(BATCH).to(job.device), torch.randn_like(clean)
        noisy = noising.add_noise(clean, noise, times)
        # bfloat16 is 1.4 times faster on CPUs that have it; the last steps, at small rates, keep full precision.
        rough = seen < ROUGH_SHARE * total
        with torch.autocast(job.device, torch.bfloat16, enabled=rough):
            predicted = unet(noisy, times, hidden).sample.float()
        loss = (predicted - noising.get_velocity(clean, noise, times)).pow(2).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if world > 1:
            _average_gradients(parameters, world)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        figures["loss"] = loss.item()
        if rank == 0:
            average.update(unet)
            now = time.monotonic()
            if now - saved > SAVE_SECONDS:
                state = {"model": unet.state_dict(), "optimizer": optimizer.state_dict(), "average": average.state()}
                save(state | {"samples": seen}, checkpoint)
                saved = now
            if now - evaluated > EVALUATE_SECONDS:
                result = evaluate(job, averaged(average, job), 200)
                print(f"[unet] {seen} samples seen, n = 200: {result}", flush=True)
                evaluated = time.monotonic()
    if rank == 0:
        save({"model": averaged(average, job).state_dict(), "samples": total}, job.path("unet.pt"))
    if world > 1:
        distributed.barrier()
        distributed.destroy_process_group()


def hash_of(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def averaged(average: Average, job: Job) -> UNet2DConditionModel:
    """A copy of the model with the averaged weights, in evaluation mode."""
    unet = new_unet().to(job.device)
    average.copy_to(unet)
    return unet.eval()


def load_unet(job: Job) -> UNet2DConditionModel:
    """The trained denoiser; while training still runs, the average of its latest checkpoint."""
    if job.path("unet.pt").exists():
        unet = new_unet()
        unet.load_state_dict(load(job.path("unet.pt"))["model"])
        return unet.eval().to(job.device)
    average = Average(new_unet(), AVERAGE_DECAY)
    average.restore(load(job.path("unet-part.pt"))["average"])
    return averaged(average, job)


def export(job: Job, folder: Path) -> None:
    """Write the whole pipeline in half precision, as `from_pretrained` reads it."""
    pipeline = new_pipeline(job, load_unet(job))
    pipeline.to("cpu", torch.float16).save_pretrained(folder)
