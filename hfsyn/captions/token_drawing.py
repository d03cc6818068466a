"""What captioners and language models have in common: loading, a first try, and how new tokens are chosen.

transformers draws all rows of a batch from one stream of random numbers, so that a text would depend on the other rows.
Here a row has ``torch.Generator("cpu").manual_seed(s)``, with s made by the rule of the seed (see
`hfsyn.rules`) from ``hfsyn-caption-v1``, the recipe's seed and the source id. For each token it gives one number
in [0, 1), and the token is the first, in the vocabulary's order, up to which the probabilities sum to more than that.
They are the softmax of the logits over the temperature; with top_p, of the fewest likeliest tokens that make up that
much of it.
"""

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from builders.errors import first_line
from hfsyn.errors import HfsynError
from hfsyn.images.trial import global_states
from hfsyn.images.tuning import BatchSize
from hfsyn.models.finding import loading, unloadable
from hfsyn.recipes.recipe import CaptionPart

Kind = Literal["captioner", "language model"]

FEW = 2  # new tokens with which a model is tried
NOT_FINITE = "the values that the model computes are not finite"


class Refused(HfsynError):  # noqa: N818 (a verdict on what was asked)
    """A model cannot do what it is asked, though it may be able to do other things; `reason` says why in a few words,
    without the model's name.
    """

    def __init__(self, reason: str, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.args = (reason, message, hint)
        self.reason = reason


class DrawEach:
    """A logits processor after which the likeliest token of each row is the one drawn with its seed."""

    def __init__(self, seeds: Sequence[int], *, top_p: float, temperature: float) -> None:
        import torch

        self._generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        self._top_p = top_p
        self._temperature = temperature

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Scores (rows x vocabulary) of which all but the drawn token's are minus infinity."""
        import torch

        # Float64, which some devices do not have, so that the last bits of a sum decide as little as possible.
        logits = scores if scores.device.type in ("cpu", "cuda") else scores.cpu()
        likely = torch.softmax(logits.double() / self._temperature, dim=-1)
        if self._top_p < 1:
            sizes, order = likely.sort(dim=-1, descending=True, stable=True)
            beyond = sizes.cumsum(-1) - sizes >= self._top_p  # the tokens before it are enough
            likely = likely.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), 0)
        chance = torch.stack([torch.rand(1, generator=g, dtype=torch.float64) for g in self._generators])
        sums = likely.cumsum(-1)
        tokens = torch.searchsorted(sums, chance.to(sums.device) * sums[:, -1:], right=True)
        tokens = tokens.clamp(max=scores.shape[1] - 1).to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens, 0)


class _Watch:
    """Notes how many tokens come before the first new one, and whether all scores were finite.

    Models differ in what `generate` gives back of its prompt (all of it, all but its last token, none, a start token);
    what decoding starts from is the same everywhere.
    """

    def __init__(self) -> None:
        self.given: int | None = None
        self.finite: Any = True
        """After the first step a tensor of one truth value, so that the device is not waited for at each."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        # Forbidden tokens have a score of minus infinity; the likeliest one is finite, or NaN if any is.
        finite = scores.amax(-1).isfinite().all()
        if self.given is None:
            self.given = input_ids.shape[1]
        self.finite = finite & self.finite
        return scores


def ready(model: Any, inputs: dict[str, Any], *, pin: bool = True) -> dict[str, Any]:
    """The tensors among the inputs in the model's dtype, still on the CPU; may be called in any thread. With `pin` they
    are copied into memory from which an NVIDIA GPU reads by itself.
    """
    import torch

    tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    cast = {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in tensors.items()}
    if not pin or model.device.type != "cuda":
        return cast
    # Each thread has its own current GPU, which is the first one until it is set.
    with torch.cuda.device(model.device):
        return {name: value.pin_memory() for name, value in cast.items()}


def taken(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """What of a processor's or tokenizer's output goes into ``generate``: all but what only training reads, and the
    segment ids that some tokenizers make though the model has no segments.
    """
    known = inspect.signature(model.forward).parameters
    unread = {"labels"} | ({"token_type_ids"} - known.keys())
    return {name: value for name, value in inputs.items() if name not in unread}


def new_tokens(
    model: Any,
    inputs: dict[str, Any],
    part: CaptionPart,
    seeds: Sequence[int] | None,
    most: int,
    *,
    watches: Sequence[Any] = (),
    **options: Any,
) -> Any:
    """What a model of transformers says after its inputs (all but tensors are left out): a tensor, rows x at most
    `most` new tokens; see `room`. `options` are for ``generate``. There is a seed for each row, which is only needed if
    the recipe draws tokens. `watches` are logits processors that see the scores of every step.

    Raises Refused if the model computed values that are not finite.
    """
    import torch

    moved = {
        # The copy of pinned memory is not waited for; the device works in order.
        name: value.to(model.device, non_blocking=value.is_pinned())
        for name, value in ready(model, inputs, pin=False).items()
    }
    watch = _Watch()
    steps: list[Any] = [watch, *watches]
    if part.draws:
        if seeds is None:
            raise ValueError("a recipe that draws tokens needs a seed for each row")
        top_p, temperature = (1.0 if value is None else value for value in (part.top_p, part.temperature))
        steps.append(DrawEach(seeds, top_p=top_p, temperature=temperature))
    with torch.inference_mode():
        out = model.generate(
            **moved,
            max_new_tokens=most,
            num_beams=part.num_beams,
            do_sample=False,
            logits_processor=steps,
            # A checkpoint's own settings may ask for several answers, for more than tokens, or hide what is not finite.
            num_return_sequences=1,
            return_dict_in_generate=False,
            remove_invalid_values=False,
            **options,
        )
    if not bool(watch.finite):
        raise Refused(
            NOT_FINITE,
            f"{part.model} computes values that are not finite, in {part.dtype}.",
            "Set caption.dtype to bfloat16 or float32." if part.dtype == "float16" else "Name another caption.model.",
        )
    return out[:, watch.given :]


def room(model: Any, part: CaptionPart, asked: int) -> int:
    """New tokens, at most those of the recipe, that fit behind `asked` ones: a decoder with learned positions fails
    beyond its last one.

    Raises Refused if there is no room for any.
    """
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if positions is None:
        return part.max_new_tokens
    if asked >= positions:
        what = "caption.prompt" if part.prompt else f"What is asked of {part.model}"
        raise Refused(
            f"{asked} tokens, of at most {positions - 1}",
            f"{what} makes {asked} tokens, and {part.model} takes at most {positions - 1}.",
            "Shorten it." if part.prompt else "Name a model that takes more.",
        )
    # The decoder of a model that encodes its inputs starts at its own first position.
    return min(part.max_new_tokens, positions - (1 if model.config.is_encoder_decoder else asked))


@dataclass(frozen=True, slots=True)
class Idle:
    """Names of weights that are not used for what a model says."""

    unused: Sequence[str]  # in the checkpoint, and the network has no place for them
    missing: Sequence[str]  # in the network, not in the checkpoint, and nothing that was said so far depends on them

    def counts(self) -> dict[str, int]:
        """How many there are of each kind, without zeros."""
        kinds = {"not used": self.unused, "missing, and not needed": self.missing}
        return {kind: len(names) for kind, names in kinds.items() if names}


def loaded(
    part: CaptionPart, kind: Kind, parts: Callable[[str, dict[str, Any]], tuple[Any, Any]], *, allow_pickle: bool
) -> tuple[Any, Any, Idle]:
    """The processor or tokenizer of a model, its network with the weights, and which of these are not used.

    transformers fills in random numbers for what a checkpoint lacks. Here they become NaN, so that a text that depends
    on one of them is noticed, when the model is tried or, at the latest, when the text is made.

    `parts` loads the processor or tokenizer from a place with options, and names the network's auto class. Raises
    HfsynError if it cannot be loaded, or lacks weights, so that its texts would be random.
    """
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    where, options = loading(part.model, part.revision, kind, allow_pickle=allow_pickle)
    try:
        processor, auto = parts(where, {name: value for name, value in options.items() if name != "use_safetensors"})
        model, report = auto.from_pretrained(
            where, dtype=getattr(torch, part.dtype), output_loading_info=True, **options
        )
    except HfsynError:
        raise
    except Exception as error:  # each library has its own exception for what is wrong with a model's files
        raise unloadable(part.model, kind, error) from error
    missing = sorted(report["missing_keys"])
    # Old checkpoints may lack a pooler that generation never uses; a tenth is another architecture.
    if len(missing) * 10 > len(model.state_dict()):
        raise _lacking(part, kind, missing)
    parameters = dict(model.named_parameters())
    empty = [name for name in missing if name in parameters]  # buffers are computed, and always the same
    with torch.no_grad():
        for name in empty:
            parameters[name].fill_(torch.nan)
    return processor, model, Idle(sorted(report["unexpected_keys"]), empty)


def _lacking(part: CaptionPart, kind: Kind, missing: Sequence[str]) -> HfsynError:
    said = f"{part.model} has no weights for {len(missing)} parameters of its {kind}, such as {missing[0]}."
    return HfsynError(said, "Name a complete checkpoint.")


def tried(ask: Callable[[], Any], part: CaptionPart, kind: Kind, idle: Idle, *, first: bool = False) -> None:
    """Let a model say a little, so that it fails before anything costly is done.

    Raises HfsynError if it fails, or if it draws random numbers of its own; this is seen the `first` time, when no
    other thread is at work.
    """
    before = global_states() if first else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a few tokens, where its settings want more
            BatchSize(1).run(lambda _: ask())
    except HfsynError as error:
        if idle.missing and isinstance(error, Refused) and error.reason == NOT_FINITE:
            raise _lacking(part, kind, idle.missing) from None
        raise
    except Exception as error:  # of any kind: each library has its own
        said = f"{part.model} fails as a {kind} in a first try: {type(error).__name__}: {first_line(error)[:200]}"
        raise HfsynError(said, "See whether transformers itself runs it; name another caption.model.") from error
    if before is not None and global_states() != before:
        raise HfsynError(
            f"{part.model} draws random numbers that no image's seed decides: its texts would differ from run to run.",
            "Name another caption.model.",
        )
