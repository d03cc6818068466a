"""Tiny models with random weights, saved as their real counterparts are: what the model seams are tested on.

Each function writes one folder with `save_pretrained` and returns it. Weights depend on the seed alone. The words are
lower case and few; a random language model babbles them, which is enough to tell one image's caption from another's.
"""

from __future__ import annotations

import string
from pathlib import Path

import torch

WORDS = [f"w{chr(97 + a)}{chr(97 + b)}" for a in range(8) for b in range(8)] + [
    "a",
    "photo",
    "of",
    "goldfish",
    "describe",
]
SIDE = 16


def _randomise(model: torch.nn.Module, seed: int, seeing: float = 3.0) -> None:
    """Weights that keep activations near 1, so that outputs depend on the inputs; images count `seeing` times."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2:
                continue
            scale = 1.0 if "embed" in name or "wte" in name else parameter[0].numel() ** -0.5
            if any(part in name for part in ("cross", "projection", "projector", "q_proj", "k_proj", "v_proj")):
                scale *= seeing
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def _mute(model: torch.nn.Module, token: int) -> None:
    """The model never says this token: its logit is 0, and another one's is above."""
    with torch.no_grad():
        model.get_output_embeddings().weight[token] = 0


def _vision(**more: object) -> dict[str, object]:
    return {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 8,
        **more,
    }


# --- captioners -----------------------------------------------------------------------------------------------------


def _bert_tokenizer():
    from transformers import BertTokenizer

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *WORDS]
    return BertTokenizer(vocab={word: number for number, word in enumerate(names)})


def _gpt2_tokenizer(*special: str):
    """Letters are its words: a byte-pair tokenizer without merges, whose texts are plain ASCII."""
    from transformers import GPT2Tokenizer

    names = [*string.ascii_letters, *string.digits, *":.,_-", "Ġ", "Ċ", "<|endoftext|>", "<pad>", *special]
    tokenizer = GPT2Tokenizer(
        vocab={word: number for number, word in enumerate(names)},
        merges=[],
        pad_token="<pad>",
        unk_token="<|endoftext|>",
    )
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer


def blip(folder: Path, seed: int = 0) -> Path:
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    tokenizer = _bert_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "encoder_hidden_size": 16,
        "bos_token_id": 5,
        "eos_token_id": 3,
        "sep_token_id": 3,
        "pad_token_id": 0,
        "projection_dim": 8,
    }
    model = BlipForConditionalGeneration(
        BlipConfig(
            text_config=text, vision_config=_vision(projection_dim=8), projection_dim=8, image_text_hidden_size=8
        )
    )
    _randomise(model, seed)
    model.save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": SIDE, "width": SIDE}), tokenizer).save_pretrained(folder)
    return folder


def blip2(folder: Path, seed: int = 0) -> Path:
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, BlipImageProcessor

    tokenizer = _gpt2_tokenizer()
    processor = Blip2Processor(BlipImageProcessor(size={"height": SIDE, "width": SIDE}), tokenizer, num_query_tokens=3)
    text = {
        "model_type": "opt",
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "ffn_dim": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 128,
        "word_embed_proj_dim": 16,
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    qformer = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "encoder_hidden_size": 16,
        "vocab_size": 8,
        "max_position_embeddings": 8,
    }
    model = Blip2ForConditionalGeneration(
        Blip2Config(
            vision_config=_vision(),
            qformer_config=qformer,
            text_config=text,
            num_query_tokens=3,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        )
    )
    _randomise(model, seed)
    _mute(model, tokenizer.convert_tokens_to_ids("<image>"))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def vit_gpt2(folder: Path, seed: int = 0) -> Path:
    """An image processor and a tokenizer beside the weights, and no processor class."""
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTImageProcessor,
        ViTModel,
    )

    tokenizer = _gpt2_tokenizer()
    end = tokenizer.eos_token_id
    decoder = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=64,
        is_decoder=True,
        add_cross_attention=True,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = VisionEncoderDecoderModel(
        encoder=ViTModel(ViTConfig(**_vision()), add_pooling_layer=False), decoder=GPT2LMHeadModel(decoder)
    )
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id, config.eos_token_id = end, end
        config.pad_token_id = tokenizer.pad_token_id
    _randomise(model, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def git(folder: Path, seed: int = 0) -> Path:
    from transformers import CLIPImageProcessor, GitConfig, GitForCausalLM, GitProcessor

    tokenizer = _bert_tokenizer()
    model = GitForCausalLM(
        GitConfig(
            vision_config=_vision(),
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=64,
            bos_token_id=2,
            eos_token_id=3,
            pad_token_id=0,
        )
    )
    _randomise(model, seed)
    model.save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    GitProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def llava(folder: Path, seed: int = 0) -> Path:
    """A chat model: its template asks for an image and a text."""
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    tokenizer = _gpt2_tokenizer("<image>")
    template = (
        "{% for m in messages %}{{ m.role }}: {% for c in m.content %}"
        "{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %}{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    )
    text = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=_vision(model_type="clip_vision_model", projection_dim=16),
            text_config=text,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
        )
    )
    _randomise(model, seed)
    _mute(model, tokenizer.convert_tokens_to_ids("<image>"))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def idefics3(folder: Path, seed: int = 0) -> Path:
    """A chat model that cuts an image into tiles: large images make longer prompts, which are padded in a batch."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessor, Idefics3Processor

    tokenizer = _gpt2_tokenizer(
        "<image>",
        "<fake_token_around_image>",
        "<end_of_utterance>",
        "<global-img>",
        *[f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)],
    )
    template = (
        "{% for m in messages %}{{ m.role }}: {% for c in m.content %}"
        "{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}"
    )
    processor = Idefics3Processor(
        Idefics3ImageProcessor(size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE}),
        tokenizer,
        image_seq_len=1,
        chat_template=template,
    )
    ends = {
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        **ends,
    }
    model = Idefics3ForConditionalGeneration(
        Idefics3Config(
            vision_config=_vision(),
            text_config=text,
            scale_factor=2,
            **ends,
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        )
    )
    _randomise(model, seed)
    _mute(model, tokenizer.convert_tokens_to_ids("<image>"))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def florence2(folder: Path, seed: int = 0) -> Path:
    """An encoder-decoder that is given a task: its processor writes the question, around the places of the image."""
    from transformers import (
        BartTokenizer,
        CLIPImageProcessor,
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2Processor,
    )

    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *string.ascii_letters, *string.digits, *":.,_-?", "Ġ", "Ċ"]
    tokenizer = BartTokenizer(
        vocab={word: number for number, word in enumerate(names)},
        merges=[],
        extra_special_tokens={"image_token": "<image>"},
    )
    images = CLIPImageProcessor(
        size={"height": 64, "width": 64}, do_center_crop=False, crop_size={"height": 64, "width": 64}
    )
    images.image_seq_length = 5  # 2 x 2 patches of 32 pixels, and their mean
    processor = Florence2Processor(images, tokenizer, post_processor_config={"pure_text": {}})
    vision = {
        "depths": (1, 1, 1, 1),
        "embed_dim": (8, 8, 16, 16),
        "num_heads": (1, 1, 2, 2),
        "num_groups": (1, 1, 2, 2),
        "window_size": 2,
        "projection_dim": 16,
        "drop_path_rate": 0.0,
    }
    text = {
        "model_type": "bart",
        "vocab_size": len(tokenizer),
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "max_position_embeddings": 128,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "decoder_start_token_id": tokenizer.eos_token_id,
    }
    model = Florence2ForConditionalGeneration(
        Florence2Config(
            vision_config=vision,
            text_config=text,
            image_token_id=tokenizer.image_token_id,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.eos_token_id,
        )
    )
    _randomise(model, seed)
    _mute(model, tokenizer.image_token_id)
    _mute(model, tokenizer.mask_token_id)
    model.generation_config.num_beams = 3  # as the published ones have it: the recipe's number must win
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def smolvlm(folder: Path, seed: int = 0) -> Path:
    """SmolVLM2: as idefics3, with a processor of its own that knows videos too."""
    from transformers import (
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    tokenizer, template, text = _tiled_chat()
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE}),
        tokenizer,
        SmolVLMVideoProcessor(size={"longest_edge": SIDE}),
        image_seq_len=1,
        chat_template=template,
    )
    image = tokenizer.convert_tokens_to_ids("<image>")
    model = SmolVLMForConditionalGeneration(
        SmolVLMConfig(
            vision_config=_vision(),
            text_config=text,
            scale_factor=2,
            image_token_id=image,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    _randomise(model, seed)
    _mute(model, image)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _tiled_chat():
    """Tokenizer, template and language model of a chat model that cuts an image into tiles."""
    tokenizer = _gpt2_tokenizer(
        "<image>",
        "<fake_token_around_image>",
        "<end_of_utterance>",
        "<global-img>",
        *[f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)],
    )
    template = (
        "{% for m in messages %}{{ m.role }}: {% for c in m.content %}"
        "{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}"
    )
    text = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return tokenizer, template, text


def qwen2_vl(folder: Path, seed: int = 0) -> Path:
    """A chat model whose images take as many places as they are large, told apart by position."""
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = _gpt2_tokenizer("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    template = (
        "{% for m in messages %}{{ m.role }}: {% for c in m.content %}{% if c.type == 'image' %}"
        "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}{{ '\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    sizes = {"shortest_edge": 8 * 8 * 4, "longest_edge": 32 * 32}
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(patch_size=4, merge_size=2, size=sizes),
        tokenizer,
        Qwen2VLVideoProcessor(patch_size=4, merge_size=2),
        chat_template=template,
    )
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{word}|>")
        for name, word in (
            ("image", "image_pad"),
            ("video", "video_pad"),
            ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
        )
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
    }
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 1, "patch_size": 4}
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **ids))
    _randomise(model, seed)
    for number in ids.values():
        _mute(model, number)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


# --- language models ------------------------------------------------------------------------------------------------


def chat_model(folder: Path, seed: int = 0) -> Path:
    """A causal language model with a chat template."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _gpt2_tokenizer("<|turn|>")
    tokenizer.chat_template = (
        "{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>assistant: {% endif %}"
    )
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            bos_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    _randomise(model, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def plain_model(folder: Path, seed: int = 0) -> Path:
    """A causal language model that only continues texts, with learned positions and without a token for padding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = _gpt2_tokenizer()
    tokenizer.pad_token = None
    end = tokenizer.eos_token_id
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_embd=16,
            n_layer=1,
            n_head=2,
            n_positions=1024,
            bos_token_id=end,
            eos_token_id=end,
        )
    )
    _randomise(model, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def t5(folder: Path, seed: int = 0) -> Path:
    """An encoder-decoder for texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    names = ["<pad>", "</s>", "<unk>", *WORDS, "tench", "circle", "square", "triangle", "star", "heart"]
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(names),
            d_model=16,
            d_kv=8,
            d_ff=16,
            num_layers=1,
            num_heads=2,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        )
    )
    _randomise(model, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# --- generators -----------------------------------------------------------------------------------------------------


def _clip_tokenizer(length: int = 77):
    """Letters are its words, each as the inner part and the end of a word."""
    from transformers import CLIPTokenizer

    letters = [*string.ascii_lowercase, *string.digits, *",.'-"]
    names = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(names)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=length)


def _clip_text(tokenizer, kind: str = "CLIPTextModel", seed: int = 0):
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    model = getattr(transformers, kind)(config).eval()
    _randomise(model, seed)
    return model


def _vae(seed: int = 0, **more: object):
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=SIDE,
        **more,
    ).eval()


def _unet(seed: int = 0, **more: object):
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    model = UNet2DConditionModel(
        **{
            "sample_size": SIDE // 2,
            "block_out_channels": (16, 32),
            "norm_num_groups": 8,
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 32,
            "attention_head_dim": 8,
            **more,
        }
    ).eval()
    with torch.no_grad():  # a fresh network all but ignores its text
        for name, parameter in model.named_parameters():
            if ".attn2." in name and name.endswith("weight"):
                parameter.mul_(6)
    return model


_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def stable_diffusion(folder: Path, seed: int = 0, *, flags: bool | None = None) -> Path:
    """SD 1.5's parts at 16 px; `flags` adds a safety checker that flags everything (True) or nothing (False)."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    tokenizer = _clip_tokenizer()
    pipe = StableDiffusionPipeline(
        vae=_vae(seed),
        text_encoder=_clip_text(tokenizer, seed=seed),
        tokenizer=tokenizer,
        unet=_unet(seed),
        scheduler=PNDMScheduler(**_NOISE, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False),
        safety_checker=None if flags is None else _safety_checker(flags),
        feature_extractor=None if flags is None else _clip_images(),
        requires_safety_checker=flags is not None,
    )
    pipe.save_pretrained(folder)
    return folder


def _clip_images():
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


def _safety_checker(flags: bool):
    """Cosines lie in [-1, 1]: a threshold of -2 is always passed, one of 2 never."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    model = StableDiffusionSafetyChecker(
        CLIPConfig(vision_config=_vision(), text_config={"num_hidden_layers": 1}, projection_dim=8)
    )
    _randomise(model, 0)
    with torch.no_grad():
        model.concept_embeds_weights.fill_(-2 if flags else 2)
        model.special_care_embeds_weights.fill_(2)
    return model.eval()


def sdxl(folder: Path, seed: int = 0) -> Path:
    """Two text encoders, pooled embeddings and time ids."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    tokenizer = _clip_tokenizer()
    unet = _unet(
        seed,
        cross_attention_dim=64,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
    )
    pipe = StableDiffusionXLPipeline(
        vae=_vae(seed),
        unet=unet,
        scheduler=EulerDiscreteScheduler(**_NOISE),
        text_encoder=_clip_text(tokenizer, seed=seed),
        tokenizer=tokenizer,
        text_encoder_2=_clip_text(tokenizer, "CLIPTextModelWithProjection", seed + 1),
        tokenizer_2=tokenizer,
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipe.save_pretrained(folder)
    return folder


def sd3(folder: Path, seed: int = 0) -> Path:
    """A flow-matching transformer with a call of its own; without its optional third text encoder."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    tokenizer = _clip_tokenizer()
    torch.manual_seed(seed)
    transformer = SD3Transformer2DModel(
        sample_size=SIDE // 2,
        patch_size=1,
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
    pipe = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(seed, scaling_factor=1.5, shift_factor=0.06),
        text_encoder=_clip_text(tokenizer, "CLIPTextModelWithProjection", seed),
        tokenizer=tokenizer,
        text_encoder_2=_clip_text(tokenizer, "CLIPTextModelWithProjection", seed + 1),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipe.save_pretrained(folder)
    return folder


def paligemma(folder: Path, seed: int = 0, *, cache: str | None = None) -> Path:
    """A captioner that needs a prompt, which it reads in both directions at once: its processor numbers the segments.

    `cache` is what its generation settings say of the cache.
    """
    from transformers import (
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        PaliGemmaProcessor,
        SiglipImageProcessor,
    )

    tokenizer = _gpt2_tokenizer("<image>")
    images = SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
    images.image_seq_length = 4
    processor = PaliGemmaProcessor(images, tokenizer)
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = {
        "model_type": "gemma",
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        **ends,
    }
    image = tokenizer.convert_tokens_to_ids("<image>")
    model = PaliGemmaForConditionalGeneration(
        PaliGemmaConfig(
            vision_config=_vision(model_type="siglip_vision_model", projection_dim=16),
            text_config=text,
            image_token_id=image,
            projection_dim=16,
            tie_word_embeddings=False,
            **ends,
        )
    )
    _randomise(model, seed)
    words = [tokenizer.convert_tokens_to_ids(letter) for letter in string.ascii_letters]
    with torch.no_grad():  # places and segments are not words of a caption
        embeddings = model.get_output_embeddings().weight
        embeddings[[n for n in range(len(embeddings)) if n not in words]] = 0
    model.generation_config.cache_implementation = cache
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def clip(folder: Path, seed: int = 0) -> Path:
    """A model of images and texts, as CLIP's authors made it."""
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor

    tokenizer = _clip_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=_vision(hidden_size=32), projection_dim=16))
    _randomise(model, seed)
    model.save_pretrained(folder)
    CLIPProcessor(_clip_images(), tokenizer).save_pretrained(folder)
    return folder


def siglip(folder: Path, seed: int = 0) -> Path:
    """Its successor with a sigmoid and a bias; the tokenizer is CLIP's, whose letters serve as well."""
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    tokenizer = _clip_tokenizer(64)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=_vision()))
    _randomise(model, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    SiglipImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder
