"""Models of the true architecture and size with random weights: what speed and memory are measured on, offline.

    save_stable_diffusion(folder)            # SD 1.5 as its own configuration files say; 1.07 billion parameters
    save_sdxl(folder, size="tiny")           # the same parts and the same code, small enough for a test

The numbers of each configuration are those of the published checkpoints (`stable-diffusion-v1-5/stable-diffusion-v1-5`,
`stabilityai/stable-diffusion-xl-base-1.0`, `Salesforce/blip-image-captioning-base`, `Salesforce/blip2-opt-2.7b`),
written down from their configuration files; `EXPECTED` says what each must then weigh. Weights are random, so that
pictures and captions mean nothing, and captions never end before they are as long as they may be. Vocabularies are
made up, of the true size.
"""

from __future__ import annotations

import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

Size = Literal["full", "tiny"]

EXPECTED = {
    "stable-diffusion": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sdxl": {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
    "blip": {"model": 223_971_644},
    "blip2": {"model": 3_744_761_856},
}
"""Parameters of the published checkpoints' parts, weights that are shared counted once."""

_CLIP_L = {
    "vocab_size": 49_408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}
_CLIP_BIG_G = {
    "vocab_size": 49_408,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
_CLIP_TINY = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "projection_dim": 32,
}

_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "latent_channels": 4,
}
_VAE_TINY = {
    "block_out_channels": (8, 8, 16, 16),
    "layers_per_block": 1,
    "norm_num_groups": 8,
}  # four levels, so that 8 pixels are one latent, as in the full one

_UNET_15 = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "norm_num_groups": 32,
}
_UNET_15_TINY = {
    "sample_size": 8,
    "block_out_channels": (16, 32, 32, 32),
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "norm_num_groups": 8,
}
_UNET_XL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_UNET_XL_TINY = {
    "sample_size": 8,
    "block_out_channels": (16, 32, 32),
    "layers_per_block": 1,
    "attention_head_dim": (2, 4, 4),
    "transformer_layers_per_block": (1, 1, 2),
    "cross_attention_dim": 64,
    "norm_num_groups": 8,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 32,
}

_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

_VIT_BLIP = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 384,
    "patch_size": 16,
}
_BERT_BLIP = {
    "vocab_size": 30_524,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "encoder_hidden_size": 768,
}
_VIT_BLIP2 = {
    "hidden_size": 1408,
    "intermediate_size": 6144,
    "num_hidden_layers": 39,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
}
_QFORMER = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "encoder_hidden_size": 1408,
    "cross_attention_frequency": 2,
    "vocab_size": 30_522,
}
_OPT = {
    "vocab_size": 50_304,
    "hidden_size": 2560,
    "ffn_dim": 10_240,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "word_embed_proj_dim": 2560,
}
_TINY_ENCODER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
_TINY_VIT = {**_TINY_ENCODER, "image_size": 16, "patch_size": 8}
_TINY_BERT = {**_TINY_ENCODER, "vocab_size": 64, "max_position_embeddings": 64, "encoder_hidden_size": 16}
_TINY_OPT = {
    "vocab_size": 80,
    "hidden_size": 16,
    "ffn_dim": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
    "word_embed_proj_dim": 16,
}


@contextmanager
def _made(dtype: torch.dtype, device: str | None, seed: int) -> Iterator[None]:
    """New networks get this type and this device (None: the first GPU, if there is one), and weights by this seed."""
    before = torch.get_default_dtype()
    torch.manual_seed(seed)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")):
            yield
    finally:
        torch.set_default_dtype(before)


def _clip_tokenizer() -> Any:
    """Letters are its words, each as the inner part and the end of a word."""
    from transformers import CLIPTokenizer

    letters = [*string.ascii_lowercase, *string.digits, *",.'-"]
    names = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(names)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def _vocabulary(words: list[str], size: int) -> dict[str, int]:
    """Numbered words, filled up to `size`, so that every number that a language model says is a word."""
    return {word: number for number, word in enumerate([*words, *(f"w{n}" for n in range(size - len(words)))])}


def _clip(kind: str, numbers: dict[str, Any], tokenizer: Any, size: Size) -> Any:
    import transformers

    more = {**_CLIP_TINY, "vocab_size": len(tokenizer)} if size == "tiny" else {}
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return getattr(transformers, kind)(transformers.CLIPTextConfig(**{**numbers, **more, **ends})).eval()


def save_stable_diffusion(
    folder: Path, size: Size = "full", *, dtype: torch.dtype = torch.float16, device: str | None = None, seed: int = 0
) -> Path:
    """Stable Diffusion 1.5 without its safety checker, saved as `from_pretrained` reads it. Returns the folder."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    tokenizer, tiny = _clip_tokenizer(), size == "tiny"
    with _made(dtype, device, seed):
        pipe = StableDiffusionPipeline(
            unet=UNet2DConditionModel(**{**_UNET_15, **(_UNET_15_TINY if tiny else {})}).eval(),
            vae=AutoencoderKL(**{**_VAE, **(_VAE_TINY if tiny else {}), "sample_size": 64 if tiny else 512}).eval(),
            text_encoder=_clip("CLIPTextModel", _CLIP_L, tokenizer, size),
            tokenizer=tokenizer,
            scheduler=PNDMScheduler(**_NOISE, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.save_pretrained(folder)
    return folder


def save_sdxl(
    folder: Path, size: Size = "full", *, dtype: torch.dtype = torch.float16, device: str | None = None, seed: int = 0
) -> Path:
    """SDXL base 1.0: two text encoders, 1024 pixels, a VAE that is decoded in float32. Returns the folder."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    tokenizer, tiny = _clip_tokenizer(), size == "tiny"
    scale = {"sample_size": 64 if tiny else 1024, "scaling_factor": 0.13025, "force_upcast": True}
    with _made(dtype, device, seed):
        pipe = StableDiffusionXLPipeline(
            unet=UNet2DConditionModel(**{**_UNET_XL, **(_UNET_XL_TINY if tiny else {})}).eval(),
            vae=AutoencoderKL(**{**_VAE, **(_VAE_TINY if tiny else {}), **scale}).eval(),
            text_encoder=_clip("CLIPTextModel", _CLIP_L, tokenizer, size),
            tokenizer=tokenizer,
            text_encoder_2=_clip("CLIPTextModelWithProjection", _CLIP_BIG_G, tokenizer, size),
            tokenizer_2=tokenizer,
            scheduler=EulerDiscreteScheduler(**_NOISE, steps_offset=1, timestep_spacing="leading"),
            force_zeros_for_empty_prompt=True,
            add_watermarker=False,
        )
    pipe.save_pretrained(folder)
    return folder


def save_blip(
    folder: Path, size: Size = "full", *, dtype: torch.dtype = torch.float32, device: str | None = None, seed: int = 0
) -> Path:
    """BLIP-base for captions, 384 pixels. Returns the folder."""
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    tiny = size == "tiny"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *string.ascii_lowercase, "photo", "of"]
    vision = {**(_TINY_VIT if tiny else _VIT_BLIP), "initializer_range": 0.02}  # its own default is 1e-10
    text = {**(_TINY_BERT if tiny else _BERT_BLIP), "initializer_range": 0.02}
    tokenizer = BertTokenizer(vocab=_vocabulary(words, text["vocab_size"]))
    ends = {"bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    joint = {"projection_dim": 8, "image_text_hidden_size": 8} if tiny else {"projection_dim": 512}
    with _made(dtype, device, seed):
        model = BlipForConditionalGeneration(
            BlipConfig(vision_config=vision, text_config={**text, **ends}, **joint)
        ).eval()
    with torch.no_grad():
        model.text_decoder.get_output_embeddings().bias[ends["sep_token_id"]] = -10_000
    model.save_pretrained(folder)
    side = vision["image_size"]
    BlipProcessor(BlipImageProcessor(size={"height": side, "width": side}), tokenizer).save_pretrained(folder)
    return folder


def save_blip2(
    folder: Path, size: Size = "full", *, dtype: torch.dtype = torch.float16, device: str | None = None, seed: int = 0
) -> Path:
    """BLIP-2 with OPT-2.7b, 224 pixels and 32 queries. Returns the folder."""
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        BlipImageProcessor,
        GPT2Tokenizer,
    )

    tiny, queries = size == "tiny", 3 if size == "tiny" else 32
    names = [*string.ascii_letters, *string.digits, *":.,_-", "Ġ", "Ċ", "<|endoftext|>", "<pad>"]
    text = _TINY_OPT if tiny else _OPT
    # One number is left for "<image>", which the processor adds.
    special = {"pad_token": "<pad>", "unk_token": "<|endoftext|>"}
    tokenizer = GPT2Tokenizer(vocab=_vocabulary(names, text["vocab_size"] - 1), merges=[], **special)
    side = (_TINY_VIT if tiny else _VIT_BLIP2)["image_size"]
    processor = Blip2Processor(
        BlipImageProcessor(size={"height": side, "width": side}), tokenizer, num_query_tokens=queries
    )
    image = tokenizer.convert_tokens_to_ids("<image>")
    end = tokenizer.eos_token_id
    qformer = {**_TINY_ENCODER, "encoder_hidden_size": 16, "vocab_size": 8, "max_position_embeddings": 8}
    with _made(dtype, device, seed):
        model = Blip2ForConditionalGeneration(
            Blip2Config(
                vision_config={**(_TINY_VIT if tiny else _VIT_BLIP2), "initializer_range": 0.02},
                qformer_config=qformer if tiny else _QFORMER,
                text_config={
                    "model_type": "opt",
                    **text,
                    "bos_token_id": end,
                    "eos_token_id": end,
                    "pad_token_id": tokenizer.pad_token_id,
                },
                num_query_tokens=queries,
                image_token_index=image,
            )
        ).eval()
    with torch.no_grad():  # a row of zeros has the logit 0, and another one is above
        for token in (image, end):
            model.get_output_embeddings().weight[token] = 0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
