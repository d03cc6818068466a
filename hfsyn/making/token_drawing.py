"""New tokens of captioners and language models: the likeliest, beams, or drawn by a generator of each row's own.

*Drawing.* transformers draws all rows of a batch from one stream of chance, so that a text would depend on its
companions. Here a row has ``torch.Generator("cpu").manual_seed(s)``, with s made by the rule of the seed (see
`hfsyn.making.specs`) from ``hfsyn-caption-v1``, the recipe's seed and the source id. For each token it gives one number
in [0, 1), and the token is the first, in the vocabulary's order, up to which the probabilities sum to more than that.
They are the softmax of the logits over the temperature; with top_p, of the fewest likeliest tokens that make up that
much of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hfsyn.errors import HfsynError
from hfsyn.making.recipe import CaptionPart


class DrawEach:
    """A logits processor after which the likeliest token of each row is the drawn one.

    Args:
        seeds: one for each row.
        top_p: above 0 to 1.
        temperature: above 0.
    """

    def __init__(self, seeds: Sequence[int], *, top_p: float, temperature: float) -> None:
        import torch

        self._generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        self._top_p = top_p
        self._temperature = temperature

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Scores (rows x vocabulary) of which all but the drawn token's are minus infinity."""
        import torch

        # Float64, which some devices do not have, so that the last bits of a sum decide as little as can be.
        logits = scores if scores.device.type in ("cpu", "cuda") else scores.cpu()
        likely = torch.softmax(logits.double() / self._temperature, dim=-1)
        if self._top_p < 1:
            sizes, order = likely.sort(dim=-1, descending=True, stable=True)
            beyond = sizes.cumsum(-1) - sizes >= self._top_p  # what stands before a token is enough without it
            likely = likely.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), 0)
        chance = torch.stack([torch.rand(1, generator=g, dtype=torch.float64) for g in self._generators])
        sums = likely.cumsum(-1)
        tokens = torch.searchsorted(sums, chance.to(sums.device) * sums[:, -1:], right=True)
        tokens = tokens.clamp(max=scores.shape[1] - 1).to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens, 0)


class _FirstStep:
    """Notes how many tokens stand before the first new one.

    Models differ in what `generate` gives back of its prompt (all of it, all but its last token, none, a start token);
    what decoding starts from is the same everywhere.
    """

    def __init__(self) -> None:
        self.given = 0
        self._seen = False

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if not self._seen:
            self.given, self._seen = input_ids.shape[1], True
        return scores


def ready(model: Any, inputs: dict[str, Any], *, pin: bool = True) -> dict[str, Any]:
    """The tensors among the inputs as the model takes them, still on the CPU; may be called in any thread.

    Args:
        model: with its weights.
        inputs: by name, on the CPU; what is no tensor is left out.
        pin: for an NVIDIA GPU, copy into memory from which it reads by itself.
    """
    import torch

    tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    cast = {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in tensors.items()}
    if not pin or model.device.type != "cuda":
        return cast
    # Which GPU is the current one is told to each thread by itself; one that was told nothing would begin on the first.
    with torch.cuda.device(model.device):
        return {name: value.pin_memory() for name, value in cast.items()}


def new_tokens(
    model: Any, inputs: dict[str, Any], part: CaptionPart, seeds: Sequence[int] | None, **options: Any
) -> Any:
    """What a model of transformers says after its inputs: a tensor, rows x new tokens.

    Args:
        model: with its weights.
        inputs: tensors by name; all other values are left out.
        part: beams, length, top_p and temperature.
        seeds: one for each row; only needed where the recipe draws tokens.
        options: for ``generate``.

    Raises:
        HfsynError: the inputs are longer than the model's context.
    """
    import torch

    moved = {
        # Nobody waits for the copy of pinned memory; work on the device is done in order.
        name: value.to(model.device, non_blocking=value.is_pinned())
        for name, value in ready(model, inputs, pin=False).items()
    }
    watch = _FirstStep()
    steps: list[Any] = [watch]
    if part.draws:
        if seeds is None:
            raise ValueError("a recipe that draws tokens needs a seed for each row")
        top_p, temperature = (1.0 if value is None else value for value in (part.top_p, part.temperature))
        steps.append(DrawEach(seeds, top_p=top_p, temperature=temperature))
    with torch.inference_mode():
        out = model.generate(
            **moved,
            max_new_tokens=_room(model, moved, part),
            num_beams=part.num_beams,
            do_sample=False,
            logits_processor=steps,
            **options,
        )
    return out[:, watch.given :]


def _room(model: Any, inputs: dict[str, Any], part: CaptionPart) -> int:
    """New tokens that fit behind the inputs: a decoder with learned positions fails beyond its last one."""
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if positions is None:
        return part.max_new_tokens
    asked = inputs["input_ids"].shape[1] if "input_ids" in inputs else 1
    if asked >= positions:
        what = "caption.prompt" if part.prompt else f"What is asked of {part.model}"
        raise HfsynError(
            f"{what} makes {asked} tokens, and {part.model} takes at most {positions - 1}.",
            "Shorten it." if part.prompt else "Name a model that takes more.",
        )
    # The decoder of a model that encodes its inputs starts at its own first position.
    return min(part.max_new_tokens, positions - (1 if model.config.is_encoder_decoder else asked))


def loaded(auto: Any, where: str, part: CaptionPart, kind: str, options: dict[str, Any]) -> Any:
    """A model with its weights, through an auto class of transformers.

    Raises:
        HfsynError: it has lost so many weights that its texts would be random.
    """
    import torch

    model, report = auto.from_pretrained(where, dtype=getattr(torch, part.dtype), output_loading_info=True, **options)
    missing = sorted(report["missing_keys"])
    # Old checkpoints may lack a buffer or a pooler that generation never uses; a tenth is another architecture, whose
    # texts would be random, which transformers only warns of.
    if len(missing) * 10 > len(model.state_dict()):
        raise HfsynError(
            f"{part.model} has no weights for {len(missing)} parameters of its {kind}, such as {missing[0]}.",
            "Name a complete checkpoint.",
        )
    return model
