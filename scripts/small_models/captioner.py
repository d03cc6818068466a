"""Stage `captioner`: a small BLIP that says all four attributes of a drawing."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import (
    BertTokenizerFast,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    BlipTextConfig,
    BlipVisionConfig,
)

from builders.sources.drawing import BACKGROUNDS, COLOURS, SHAPES, parse_caption

from .common import Job, cosine, load, progress, save, set_rate
from .world import ATTRIBUTES, HELD_OUT, VALUES, caption_from_labels, drawings

STEPS, BATCH, RATE = 3200, 64, 1.2e-3
HEADS_WEIGHT = 0.3
SAVE_EVERY = 250
_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]")
_WORDS = ("a", "an", "on", "background", "plain", "gradient", "striped", "dotted", "checked", "photo", "of", "the", ",")


def new_processor() -> BlipProcessor:
    """Whole words of the drawn world; any other word becomes [UNK]."""
    words = dict.fromkeys([*_SPECIALS, *_WORDS, *SHAPES, *COLOURS, *BACKGROUNDS])
    tokenizer = BertTokenizerFast(vocab={word: number for number, word in enumerate(words)}, model_max_length=24)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    images = BlipImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5])
    return BlipProcessor(images, tokenizer)


def _waves(positions: int, width: int) -> torch.Tensor:
    """Sine and cosine waves over a square grid, (1, 1 + positions, width); the first row belongs to the class token."""
    side, quarter = math.isqrt(positions), width // 4
    speed = 1 / 100 ** (torch.arange(quarter) / quarter)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [axis.flatten()[:, None] * speed for axis in (x, y)]
    grid = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], 1)
    return torch.cat([torch.zeros(1, width), 0.5 * grid])[None]


def new_captioner(processor: BlipProcessor) -> BlipForConditionalGeneration:
    """The model, 1.2 M parameters; random weights."""
    tokenizer = processor.tokenizer
    width = 128
    text = BlipTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        encoder_hidden_size=width,
        intermediate_size=256,
        projection_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=24,
        # Left at their defaults these name tokens of BERT's own vocabulary.
        bos_token_id=tokenizer.convert_tokens_to_ids("[DEC]"),
        eos_token_id=tokenizer.sep_token_id,
        sep_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
        label_smoothing=0.0,
    )
    vision = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=320,
        projection_dim=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=32,
        patch_size=4,
        initializer_range=0.02,  # the default, 1e-10, is for pretrained weights: from scratch it never learns shapes
    )
    config = BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=64)
    model = BlipForConditionalGeneration(config)
    embeddings = model.vision_model.embeddings
    with torch.no_grad():
        embeddings.position_embedding.copy_(_waves(64, width))
        # Pixels of one patch add up to a signal as large as the positions'.
        nn.init.trunc_normal_(embeddings.patch_embedding.weight, std=0.06)
    return model


class Heads(nn.Module):
    """Linear readings of the attributes from the vision tower: they speed up its training and are dropped after it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(2 * width, len(VALUES[name])) for name in ATTRIBUTES])

    def forward(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The sum of the four cross-entropies; `hidden` is (b, 65, width), `labels` (b, 4)."""
        pooled = torch.cat([hidden[:, 0], hidden[:, 1:].mean(1)], 1)
        losses = [functional.cross_entropy(head(pooled), labels[:, i]) for i, head in enumerate(self.heads)]
        return torch.stack(losses).sum()


@torch.no_grad()
def caption_all(
    model: BlipForConditionalGeneration, processor: BlipProcessor, images: torch.Tensor, batch: int = 128
) -> list[str]:
    """Greedy captions of images (n, 3, 32, 32) in [-1, 1]."""
    model.eval()
    texts = []
    for part in images.split(batch):
        tokens = model.generate(pixel_values=part, max_new_tokens=16, num_beams=1, do_sample=False)
        texts += processor.batch_decode(tokens, skip_special_tokens=True)
    return [text.strip() for text in texts]


def score(texts: list[str], labels: torch.Tensor) -> dict[str, float]:
    """How often each attribute that a caption names is the true one, and how often all four are."""
    truth = [
        {name: VALUES[name][label] for name, label in zip(ATTRIBUTES, row, strict=True)} for row in labels.tolist()
    ]
    found = [parse_caption(text) for text in texts]
    result = {
        name: float(np.mean([a[name] == b[name] for a, b in zip(found, truth, strict=True)])) for name in ATTRIBUTES
    }
    return result | {"all": float(np.mean([a == b for a, b in zip(found, truth, strict=True)]))}


def evaluate(job: Job, model: BlipForConditionalGeneration, processor: BlipProcessor, count: int) -> dict[str, float]:
    """The scores of greedy captions of held-out drawings."""
    held_out = drawings(job.work_dir, HELD_OUT)
    texts = caption_all(model, processor, held_out.images(slice(0, count)).to(job.device))
    model.train()
    return score(texts, held_out.labels[:count])


def run(job: Job) -> None:
    """Train the captioner; `captioner.pt` is the result."""
    torch.manual_seed(job.seed + 5)
    data = drawings(job.work_dir)
    processor = new_processor()
    tokenizer = processor.tokenizer
    model = new_captioner(processor).to(job.device).train()
    heads = Heads(model.config.vision_config.hidden_size).to(job.device)
    learning = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(learning, lr=RATE, betas=(0.9, 0.98), weight_decay=0.03)
    steps, start, checkpoint = job.steps or STEPS, 0, job.path("captioner-part.pt")
    if checkpoint.exists():
        state = load(checkpoint)
        start = state["step"]
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        optimizer.load_state_dict(state["optimizer"])
    rng = np.random.default_rng([job.seed + 5, start])  # a continued run draws other batches
    known: dict[str, list[int]] = {}
    for step, figures in progress("captioner", start, steps, BATCH):
        set_rate(optimizer, RATE * cosine(step, steps, warm_up=200, hold=0.3))
        rows = np.sort(rng.integers(0, len(data), BATCH))
        labels = data.labels[rows]
        captions = [caption_from_labels(row) for row in labels.tolist()]
        for caption in set(captions) - known.keys():
            known[caption] = [model.config.text_config.bos_token_id, *tokenizer(caption)["input_ids"][1:]]
        # Every caption of the grammar has the same number of words, so there is no padding.
        tokens = torch.tensor([known[caption] for caption in captions], device=job.device)
        targets = tokens.clone()
        targets[:, 0] = -100
        images = data.images(rows).to(job.device)
        output = model(pixel_values=images, input_ids=tokens, labels=targets)
        read = heads(output.last_hidden_state, labels.to(job.device))
        loss = output.loss + HEADS_WEIGHT * read
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        figures["caption"], figures["heads"] = output.loss.item(), read.item()
        if (step + 1) % SAVE_EVERY == 0:
            state = {"model": model.state_dict(), "heads": heads.state_dict(), "optimizer": optimizer.state_dict()}
            save(state | {"step": step + 1}, checkpoint)
        if (step + 1) % (2 * SAVE_EVERY) == 0:
            print(f"[captioner] held out, n = 300: {evaluate(job, model, processor, 300)}", flush=True)
    result = evaluate(job, model, processor, 2000)
    print(f"[captioner] held out, n = 2000: {result}", flush=True)
    save({"model": model.state_dict(), "score": result, "n": 2000}, job.path("captioner.pt"))


def load_captioner(job: Job) -> BlipForConditionalGeneration:
    """The trained captioner; while training still runs, its latest checkpoint."""
    path = job.path("captioner.pt")
    model = new_captioner(new_processor())
    model.load_state_dict(load(path if path.exists() else job.path("captioner-part.pt"))["model"])
    return model.eval()


def export(job: Job, folder: Path) -> None:
    """Write model and processor in half precision, as `from_pretrained` reads them."""
    load_captioner(job).half().save_pretrained(folder)
    new_processor().save_pretrained(folder)
