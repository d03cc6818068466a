"""The weights that a tuning trains: a LoRA beside some layers, or all of a network; in float32, by name."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from hfsyn.errors import HfsynError
from hfsyn.images.denoising_loss import DenoisingLoss
from hfsyn.recipes.recipe import TunePart
from hfsyn.rules import seed_of

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
JOINT = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""Projections of the attention; those of the text's stream in transformers that have one."""
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")
"""Those of CLIP's text encoders."""


def trained_networks(loss: DenoisingLoss, part: TunePart) -> dict[str, Any]:
    """The networks that are trained, by the prefix of their weights' names; that of the one that draws is empty.

    Raises HfsynError if the text encoders are to be trained, and none is CLIP's.
    """
    texts = loss.text_encoders if part.text_encoder else {}
    if part.text_encoder and not texts:
        said = f"tune.text_encoder is true, and the {type(loss.pipe).__name__} has no text encoder of CLIP."
        raise HfsynError(said, "Leave it out.")
    return {"": loss.network, **{f"{name}.": network for name, network in texts.items()}}


def trained_weights(loss: DenoisingLoss, part: TunePart, seed: int) -> dict[str, Any]:
    """Make the networks ready to be tuned, and return the weights that are trained, float32, by name.

    Raises HfsynError if `part.targets` match no layer.
    """
    import torch

    for rest in loss.pipe.components.values():
        if isinstance(rest, torch.nn.Module):
            rest.requires_grad_(False)
    found: dict[str, Any] = {}
    for prefix, network in trained_networks(loss, part).items():
        network.requires_grad_(part.full)
        network.train()
        if part.full:
            network.float()
        else:
            _add_lora(network, part, seed, prefix)
        weights = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
        found |= {f"{prefix}{name}": weight for name, weight in weights.items()}
    return found


def check_targets(loss: DenoisingLoss, part: TunePart) -> None:
    """Refuse networks that `trained_weights` refuses, before anything is spent."""
    for prefix, network in trained_networks(loss, part).items():
        if not part.full:
            _targets(network, part, prefix)


def _targets(network: Any, part: TunePart, prefix: str) -> list[str]:
    names = TEXT if prefix else part.targets or (*ATTENTION, *JOINT)
    layers = [name for name, layer in network.named_modules() if _is_target(name, names) and _has_rank(layer)]
    if not layers:
        some = sorted({name.rsplit(".", 1)[-1] for name, layer in network.named_modules() if _has_rank(layer)})
        said = f"tune.targets {', '.join(names)} match no layer of the {type(network).__name__}."
        raise HfsynError(said, f"It has, for instance: {', '.join(some[:8])}.")
    return layers


def _add_lora(network: Any, part: TunePart, seed: int, prefix: str) -> None:
    import torch
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    layers = _targets(network, part, prefix)
    torch.manual_seed(seed_of(seed, f"{prefix}weights", purpose="tune"))
    rank = part.rank
    network.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers, init_lora_weights="gaussian"))
    cast_training_params(network, dtype=torch.float32)


def _is_target(name: str, ends: Sequence[str]) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in ends)


def _has_rank(layer: Any) -> bool:
    """Whether a LoRA can stand beside a layer."""
    import torch

    return isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)


def without_lora(loss: DenoisingLoss, part: TunePart) -> None:
    """Take the LoRA off again, so that the networks are as they were."""
    from diffusers.utils import recurse_remove_peft_layers

    for network in trained_networks(loss, part).values():
        recurse_remove_peft_layers(network)
        del network.peft_config
        network._hf_peft_config_loaded = False


def lora_layers(loss: DenoisingLoss, part: TunePart) -> dict[str, dict[str, Any]]:
    """The LoRA's weights as arguments of the pipeline's own `save_lora_weights`: float32 tensors on the CPU."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    found = {}
    for prefix, network in trained_networks(loss, part).items():
        layers = get_peft_model_state_dict(network)
        if prefix or loss.schedule is not None:
            named = convert_state_dict_to_diffusers(layers)
            # It knows the attention alone, and of a file in both spellings diffusers reads only one.
            layers = layers if any(".lora_A." in name for name in named) else named
        which = prefix.rstrip(".") or ("unet" if loss.schedule is not None else "transformer")
        found[f"{which}_lora_layers"] = {
            name: tensor.detach().float().cpu().contiguous() for name, tensor in layers.items()
        }
    return found


class Average:
    """An average of the weights over the steps, or none."""

    def __init__(self, weights: Mapping[str, Any], decay: float | None) -> None:
        from diffusers.training_utils import EMAModel

        self._weights = list(weights.values())
        self._model = EMAModel(self._weights, decay=decay, foreach=True) if decay is not None else None

    def step(self) -> None:
        """Take up the weights as they are after a step."""
        if self._model is not None:
            self._model.step(self._weights)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Meanwhile the network has the average for its weights."""
        if self._model is None:
            yield
            return
        self._model.store(self._weights)
        self._model.copy_to(self._weights)
        try:
            yield
        finally:
            self._model.restore(self._weights)

    def state(self) -> dict[str, Any] | None:
        """For a checkpoint."""
        return None if self._model is None else self._model.state_dict()

    def load(self, state: dict[str, Any] | None) -> None:
        """Take up what `state` gave."""
        if self._model is not None and state is not None:
            self._model.load_state_dict(state)
            self._model.to(self._weights[0].device)
