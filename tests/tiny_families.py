"""The families of generators, shrunken but otherwise true: classes, parts and settings of their checkpoints.

`FAMILIES` says for each how it is saved, the recipe fields that it is drawn with, and what its text encoders take.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tiny_models import (
    _NOISE,
    SIDE,
    _clip_images,
    _clip_text,
    _clip_tokenizer,
    _randomise,
    _safety_checker,
    _unet,
    _vae,
)


@dataclass(frozen=True)
class Family:
    """One family of generators."""

    save: Callable[[Path], Path]
    limit: int
    """Tokens that the text encoder takes that takes the most."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Of the recipe's generate part."""
    size: tuple[int, int] = (SIDE, SIDE)
    starts_from_images: bool = True


def _t5(length: int, seed: int, width: int = 32) -> tuple[Any, Any]:
    """T5's tokenizer, for which letters are its words, and its encoder."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    letters = [*string.ascii_lowercase, *string.digits, *",.'-"]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in letters)]
    tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=length)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    model = T5EncoderModel(config).eval()
    _randomise(model, seed)
    return tokenizer, model


def stable_diffusion_2(folder: Path, seed: int = 0) -> Path:
    """SD 2.1: OpenCLIP's text encoder, linear projections, velocity prediction, DDIM; no safety checker."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    tokenizer = _clip_tokenizer()
    StableDiffusionPipeline(
        vae=_vae(seed),
        tokenizer=tokenizer,
        text_encoder=_clip_text(tokenizer, seed=seed),
        unet=_unet(seed, use_linear_projection=True, attention_head_dim=(2, 4)),
        scheduler=DDIMScheduler(
            **_NOISE, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def sd_turbo(folder: Path, seed: int = 0) -> Path:
    """SD 2.1's parts with Euler's trailing steps."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline

    tokenizer = _clip_tokenizer()
    StableDiffusionPipeline(
        vae=_vae(seed),
        tokenizer=tokenizer,
        text_encoder=_clip_text(tokenizer, seed=seed),
        unet=_unet(seed, use_linear_projection=True, attention_head_dim=(2, 4)),
        scheduler=EulerDiscreteScheduler(**_NOISE, timestep_spacing="trailing"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def _xl(folder: Path, scheduler: Any, seed: int = 0) -> Path:
    from diffusers import StableDiffusionXLPipeline

    tokenizer = _clip_tokenizer()
    unet = _unet(
        seed,
        cross_attention_dim=64,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
        use_linear_projection=True,
        attention_head_dim=(2, 4),
    )
    StableDiffusionXLPipeline(
        vae=_vae(seed, scaling_factor=0.13025, force_upcast=True),
        unet=unet,
        scheduler=scheduler,
        text_encoder=_clip_text(tokenizer, seed=seed),
        tokenizer=tokenizer,
        text_encoder_2=_clip_text(tokenizer, "CLIPTextModelWithProjection", seed + 1),
        tokenizer_2=tokenizer,
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


def sdxl_base(folder: Path) -> Path:
    from diffusers import EulerDiscreteScheduler

    return _xl(folder, EulerDiscreteScheduler(**_NOISE, steps_offset=1, timestep_spacing="leading"))


def sdxl_turbo(folder: Path) -> Path:
    from diffusers import EulerAncestralDiscreteScheduler

    return _xl(folder, EulerAncestralDiscreteScheduler(**_NOISE, timestep_spacing="trailing"))


def lcm(folder: Path, seed: int = 0) -> Path:
    """SD 1.5's parts, whose guidance is an input of the network."""
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler

    tokenizer = _clip_tokenizer()
    LatentConsistencyModelPipeline(
        vae=_vae(seed),
        tokenizer=tokenizer,
        text_encoder=_clip_text(tokenizer, seed=seed),
        unet=_unet(seed, time_cond_proj_dim=32),
        scheduler=LCMScheduler(**_NOISE),
        safety_checker=_safety_checker(False),
        feature_extractor=_clip_images(),
        requires_safety_checker=True,
    ).save_pretrained(folder)
    return folder


def sd3_medium(folder: Path, seed: int = 0) -> Path:
    """With its third text encoder."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    tokenizer = _clip_tokenizer()
    t5, encoder = _t5(512, seed + 2, width=64)
    torch.manual_seed(seed)
    transformer = SD3Transformer2DModel(
        sample_size=SIDE // 2,
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
        pos_embed_max_size=32,
    ).eval()
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(seed, scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=_clip_text(tokenizer, "CLIPTextModelWithProjection", seed),
        tokenizer=tokenizer,
        text_encoder_2=_clip_text(tokenizer, "CLIPTextModelWithProjection", seed + 1),
        tokenizer_2=tokenizer,
        text_encoder_3=encoder,
        tokenizer_3=t5,
    ).save_pretrained(folder)
    return folder


def flux_schnell(folder: Path, seed: int = 0) -> Path:
    """CLIP's summary and T5; no guidance embedding, shift 1."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    tokenizer = _clip_tokenizer()
    t5, encoder = _t5(512, seed + 2)
    torch.manual_seed(seed)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=False,
        axes_dims_rope=(4, 6, 6),
    ).eval()
    with torch.no_grad():  # a fresh one all but ignores its text
        transformer.context_embedder.weight.mul_(6)
        for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
            for name, parameter in block.named_parameters():
                if "attn" in name and parameter.dim() == 2:
                    parameter.mul_(3)
    FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        vae=_vae(seed, scaling_factor=0.3611, shift_factor=0.1159),
        tokenizer=tokenizer,
        text_encoder=_clip_text(tokenizer, seed=seed),
        tokenizer_2=t5,
        text_encoder_2=encoder,
    ).save_pretrained(folder)
    return folder


def _pixart(folder: Path, kind: str, length: int, seed: int = 0) -> Path:
    import diffusers

    t5, encoder = _t5(length, seed)
    torch.manual_seed(seed)
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=32,
        patch_size=2,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=32,
        caption_channels=32,
    ).eval()
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=256,
    ).eval()
    getattr(diffusers, kind)(
        transformer=transformer,
        vae=vae,
        tokenizer=t5,
        text_encoder=encoder,
        scheduler=diffusers.DPMSolverMultistepScheduler(**_NOISE, algorithm_type="dpmsolver++"),
    ).save_pretrained(folder)
    return folder


def pixart_alpha(folder: Path) -> Path:
    return _pixart(folder, "PixArtAlphaPipeline", 120)


def pixart_sigma(folder: Path) -> Path:
    return _pixart(folder, "PixArtSigmaPipeline", 300)


def stable_diffusion_1(folder: Path) -> Path:
    from tiny_models import stable_diffusion

    return stable_diffusion(folder, flags=False)


_SMALL = {"width": 32, "height": 32}
FAMILIES: dict[str, Family] = {
    "sd-1.5": Family(stable_diffusion_1, 77),
    "sd-2.1": Family(stable_diffusion_2, 77),
    "sdxl": Family(sdxl_base, 77),
    "sd-turbo": Family(sd_turbo, 77, {"guidance_scale": 0.0}),
    "sdxl-turbo": Family(sdxl_turbo, 77, {"guidance_scale": 0.0}),
    "sdxl-lightning": Family(sdxl_base, 77, {"guidance_scale": 0.0, "scheduler": "euler-trailing"}),
    "lcm": Family(lcm, 77, {"guidance_scale": 8.0}),
    "sd-3-medium": Family(sd3_medium, 256),
    "flux-schnell": Family(flux_schnell, 256, {**_SMALL, "guidance_scale": 0.0, "max_sequence_length": 256}, (32, 32)),
    "pixart": Family(pixart_alpha, 120, _SMALL, (32, 32), starts_from_images=False),
    "pixart-sigma": Family(pixart_sigma, 300, _SMALL, (32, 32), starts_from_images=False),
}
