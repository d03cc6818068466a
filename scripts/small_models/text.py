"""Stage `text`: the generator's tokenizer, its text encoder, and the prompts that both are trained on.

The text encoder learns beforehand to keep the four attributes apart: linear heads read them from every position after
the text's end. The UNet then starts from separated features and the text encoder stays frozen, so that each prompt is
encoded only once. (A text encoder trained from scratch together with the UNet learned the shapes very slowly.)
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from builders.sources.drawing import BACKGROUNDS, COLOURS, SHAPES

from .common import Job, cosine, load, progress, save, set_rate
from .world import ATTRIBUTES, TRAIN, VALUES, caption_from_labels, drawings

STEPS, BATCH, RATE = 1000, 64, 2e-3  # every attribute is told rightly after 200 already
WIDTH, POSITIONS = 128, 32
_WORDS = (
    "a",
    "an",
    "the",
    "of",
    "on",
    "in",
    "with",
    "and",
    "photo",
    "picture",
    "image",
    "drawing",
    "background",
    "plain",
    "gradient",
    "striped",
    "dotted",
    "checked",
)

UNCONDITIONAL_SHARE = 0.10
CLASS_ONLY_SHARE = 0.25
FOREIGN_SHARE = 0.03
"""Prompts of a class name and words that no drawing has, as a dictionary's definition would be."""
_CLASS_ONLY = ("a photo of {name}", "a photo of a {name}", "a photo of an {name}", "{name}", "a picture of a {name}")
_WITH_CAPTION = ("a photo of {name}, {caption}", "a photo of {name}, {caption}", "{caption}", "{name}, {caption}")


def byte_symbols() -> list[str]:
    """The 256 printable stand-ins of byte-level BPE for bytes: a byte's own character where that is printable."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in own]
    return [chr(byte) for byte in own] + [chr(256 + number) for number in range(len(others))]


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Merges after which each word is one token.

    Each word is first split by the merges found so far, then its leading pair is merged until one token is left. A
    merge that is appended ranks below all earlier ones, so it cannot break up a word that was complete before.
    """
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pairs = list(itertools.pairwise(parts))
            best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks) + 1))
            if best not in ranks:
                best = pairs[0]
                ranks[best] = len(ranks)
            place = pairs.index(best)
            parts[place : place + 2] = [best[0] + best[1]]
    return list(ranks)


def new_tokenizer(words: Iterable[str] = (*_WORDS, *SHAPES, *COLOURS, *BACKGROUNDS)) -> CLIPTokenizer:
    """Byte-level BPE: every text can be encoded, and these words, by default the drawn world's, are one token each."""
    symbols = byte_symbols()
    merges = _merges(list(dict.fromkeys(words)))
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *(a + b for a, b in merges)]
    tokens = list(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=POSITIONS)


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The text encoder, 0.4 M parameters; random weights."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=POSITIONS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> torch.Tensor:
    """Token numbers (b, 32), padded and cut exactly as the pipeline does it."""
    return tokenizer(
        prompts, padding="max_length", max_length=POSITIONS, truncation=True, return_tensors="pt"
    ).input_ids


def _foreign_words(rng: random.Random) -> str:
    syllables = ("ta", "mon", "e", "lis", "ru", "ck", "par", "in", "gol", "d", "fi", "sh", "ur", "ing", "o", "ter", "s")
    return " ".join("".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(rng.randint(1, 6)))


_FOREIGN = [_foreign_words(random.Random(number)) for number in range(200)]


def make_prompt(labels: list[int], rng: random.Random) -> tuple[str, list[int]]:
    """A prompt for a drawing and, per attribute, the value that it states (or the number of values: not stated).

    The class name always agrees with the caption.
    """
    unstated = [len(VALUES[name]) for name in ATTRIBUTES]
    name, dice = SHAPES[labels[0]], rng.random()
    if dice < UNCONDITIONAL_SHARE:
        return "", unstated
    if dice < UNCONDITIONAL_SHARE + CLASS_ONLY_SHARE:
        prompt = rng.choice(_CLASS_ONLY).format(name=name)
        if rng.random() < FOREIGN_SHARE / CLASS_ONLY_SHARE:
            prompt = f"{prompt}, {rng.choice(_FOREIGN)}"
        return prompt, [labels[0], *unstated[1:]]
    return rng.choice(_WITH_CAPTION).format(name=name, caption=caption_from_labels(labels)), labels


class Prompts:
    """A frozen text encoder that encodes each prompt once."""

    def __init__(self, tokenizer: CLIPTokenizer, encoder: CLIPTextModel) -> None:
        self.tokenizer, self.encoder = tokenizer, encoder
        self._known: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def __call__(self, prompts: list[str]) -> torch.Tensor:
        """Last hidden states (b, 32, 128)."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if new:
            hidden = self.encoder(tokenize(self.tokenizer, new).to(self.encoder.device)).last_hidden_state
            # Half precision: all prompts of the mix together are some 15 thousand.
            self._known.update(zip(new, hidden.half(), strict=True))
        return torch.stack([self._known[prompt] for prompt in prompts]).float()


def run(job: Job) -> None:
    """Train the text encoder to tell the attributes; `text.pt` is the result."""
    torch.manual_seed(job.seed + 6)
    rng = random.Random(job.seed + 6)
    labels = drawings(job.work_dir, TRAIN).labels.tolist()
    tokenizer = new_tokenizer()
    encoder = new_text_encoder(tokenizer).to(job.device).train()
    heads = nn.ModuleList([nn.Linear(WIDTH, len(VALUES[name]) + 1) for name in ATTRIBUTES]).to(job.device)
    learning = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(learning, lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    steps, right = job.steps or STEPS, 0.0
    for step, figures in progress("text", 0, steps, BATCH):
        set_rate(optimizer, RATE * cosine(step, steps, warm_up=100))
        prompts, stated = zip(*(make_prompt(rng.choice(labels), rng) for _ in range(BATCH)), strict=True)
        tokens = tokenize(tokenizer, list(prompts)).to(job.device)
        hidden = encoder(tokens).last_hidden_state
        # The end of the text and all the padding behind it.
        after = (tokens == tokenizer.eos_token_id).nonzero(as_tuple=True)
        targets = torch.tensor(stated, device=job.device)[after[0]]
        logits = [head(hidden[after]) for head in heads]
        loss = torch.stack([functional.cross_entropy(x, targets[:, i]) for i, x in enumerate(logits)]).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        right = float((torch.stack([x.argmax(1) for x in logits], 1) == targets).all(1).float().mean())
        figures["loss"], figures["all right"] = loss.item(), right
    save({"model": encoder.state_dict(), "all_right": right}, job.path("text.pt"))


def load_text_encoder(job: Job) -> CLIPTextModel:
    """The trained text encoder, frozen."""
    encoder = new_text_encoder(new_tokenizer())
    encoder.load_state_dict(load(job.path("text.pt"))["model"])
    return encoder.eval().requires_grad_(False).to(job.device)
