"""Text-to-image pipelines of diffusers: loaded as the recipe says, with LoRA and scheduler, and checked to fit it."""

import functools
import inspect
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from builders.errors import brief
from hfsyn.errors import HfsynError
from hfsyn.models.finding import checked_variant, files_of, loading, unloadable
from hfsyn.models.loras import fuse_lora
from hfsyn.models.token_limits import SEQUENCES
from hfsyn.recipes.recipe import GeneratePart

_TREES = ("DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler")
"""Schedulers whose noise comes from one Brownian tree for a whole batch, and not from each sample's generator."""
NETWORKS = ("unet", "transformer")
"""Names of the part of a pipeline that draws."""
OWN_CLASS = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
"""Pipelines that `AutoPipelineForText2Image` would choose for themselves, after it has imported all that there are."""
_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-trailing": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpm++-karras": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}


def load_pipeline(
    recipe: GeneratePart, negative: str | None, *, allow_pickle: bool = False, fresh: Mapping[str, int] | None = None
) -> tuple[Any, dict[str, int]]:
    """The recipe's pipeline on the CPU, in the recipe's dtype, with its LoRA and its scheduler; quiet, and without a
    watermark. And how many weights of the checkpoint and the LoRA were left out, by what they belong to.

    Parts that `fresh` names begin with random weights, from that seed, in float32: the network that draws in any case,
    another one if the model has no weights for it. Raises HfsynError if the model cannot be loaded, or does not support
    the scheduler, the steps or the negative prompt.
    """
    import diffusers
    import torch
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    where, options = loading(recipe.model, recipe.revision, "generator", allow_pickle=allow_pickle)
    try:
        index = diffusers.DiffusionPipeline.load_config(where, revision=options.get("revision"))
        # A part that a checkpoint leaves out (SD3 without its third encoder) must be left out by name.
        options |= {name: None for name, entry in index.items() if entry == [None, None]}
        if not recipe.safety_checker and "safety_checker" in index:
            options |= {"safety_checker": None, "requires_safety_checker": False}
            options |= {"feature_extractor": None} if "feature_extractor" in index else {}
        parts = {name: tuple(of) for name, of in index.items() if isinstance(of, list) and name not in options}
        _check_classes(recipe, index, parts)
        variant, files = recipe.variant, files_of(recipe.model, recipe.revision, "generator")
        options |= {
            name: _random(parts.pop(name), where, name, options.get("revision"), seed)
            for name, seed in (fresh or {}).items()
            if name in parts and (name in NETWORKS or not _has_weights(files, name))
        }
        if files:
            variant = checked_variant(recipe.model, "generator", files, list(parts), variant, allow_pickle=allow_pickle)
        options |= {} if variant is None else {"variant": variant}
        with _scheduler_instead(recipe, parts), _reports() as reports:
            kind = _text_to_image_class(index)
            pipe = kind.from_pretrained(where, dtype=getattr(torch, recipe.dtype), **options)
    except HfsynError:
        raise
    except Exception as error:  # each library has its own exceptions for what is wrong with a model's files
        raise unloadable(recipe.model, "generator", error) from error
    # The libraries announce changes to come in calls that they make themselves.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"diffusers\.")
    left_out = _check_weights(pipe, recipe.model, reports)
    _check_call(pipe, recipe, negative)
    left_out |= fuse_lora(pipe, recipe)
    pipe.scheduler = _scheduler(recipe, pipe.scheduler)
    _limit_tokens(pipe)
    return _quiet(pipe), left_out


def _has_weights(files: Sequence[str], part: str) -> bool:
    return any(name.startswith(f"{part}/") and name.endswith((".safetensors", ".bin")) for name in files)


def _random(kind: Sequence[Any], where: str, part: str, revision: str | None, seed: int) -> Any:
    """A network of a pipeline with random weights, float32, as its configuration describes it."""
    import diffusers
    import torch
    import transformers

    library, name = kind
    made = getattr(diffusers if library == "diffusers" else transformers, name)
    torch.manual_seed(seed)
    if library == "diffusers":
        return made.from_config(made.load_config(where, subfolder=part, revision=revision))
    return made(made.config_class.from_pretrained(where, subfolder=part, revision=revision))


def _text_to_image_class(index: Mapping[str, Any]) -> Any:
    """What loads a checkpoint with this index for text to image: its own class, or diffusers' choice for others."""
    import diffusers

    name = index.get("_class_name")
    return getattr(diffusers, name if name in OWN_CLASS else "AutoPipelineForText2Image")


def _limit_tokens(pipe: Any) -> None:
    """A tokenizer that was not told of a limit states an absurd one, to which pipelines would pad: its text encoder has
    only that many positions.
    """
    for name, tokenizer in pipe.components.items():
        encoder = getattr(pipe, name.replace("tokenizer", "text_encoder"), None)
        positions = getattr(getattr(encoder, "config", None), "max_position_embeddings", None)
        if "tokenizer" in name and tokenizer is not None and isinstance(positions, int):
            tokenizer.model_max_length = min(tokenizer.model_max_length, positions)


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    if getattr(pipe, "watermark", None) is not None:
        pipe.watermark = None
    return pipe


@contextmanager
def _scheduler_instead(recipe: GeneratePart, parts: Mapping[str, Sequence[Any]]) -> Iterator[None]:
    """Load another class with the same noise schedule in place of a scheduler that the recipe replaces anyway: without
    its optional library it could not even be loaded.
    """
    import diffusers

    kind = parts.get("scheduler", ("", ""))[1]
    if kind not in _TREES:
        yield
        return
    if recipe.scheduler == "default":
        said = f"{recipe.model} comes with a {kind}, with which no image could be made again from its seed."
        raise HfsynError(said, "Name another: --set generate.scheduler=dpm++ (or ddim, euler, unipc, ...)")
    own = getattr(diffusers, kind)
    setattr(diffusers, kind, diffusers.DPMSolverMultistepScheduler)
    try:
        yield
    finally:
        setattr(diffusers, kind, own)


def _check_classes(recipe: GeneratePart, index: Mapping[str, Any], parts: Mapping[str, Sequence[Any]]) -> None:
    """Refuse a pipeline or a part whose class the installed libraries do not have."""
    import diffusers
    import transformers

    for library, kind in [("diffusers", index.get("_class_name")), *parts.values()]:
        module = {"diffusers": diffusers, "transformers": transformers}.get(str(library))
        if module is not None and isinstance(kind, str) and not hasattr(module, kind):
            raise HfsynError(
                f"{recipe.model} is made with a {kind}, which {library} {module.__version__} does not have.",
                f"Install a newer {library} (pip install -U {library}), or name another generate.model.",
            )


@contextmanager
def _reports() -> Iterator[list[tuple[Any, Mapping[str, Any]]]]:
    """Each network that is loaded meanwhile, with what its library reports about its weights. Pipelines do not pass
    that on, and transformers fills missing weights with random numbers.
    """
    import diffusers
    import transformers

    found: list[tuple[Any, Mapping[str, Any]]] = []
    kinds: tuple[Any, ...] = (diffusers.ModelMixin, transformers.PreTrainedModel)
    originals = [vars(kind)["from_pretrained"] for kind in kinds]

    def reporting(original: Any) -> Any:
        @functools.wraps(original.__func__)
        def from_pretrained(cls: Any, *args: Any, **options: Any) -> Any:
            asked = options.pop("output_loading_info", False)
            loaded = original.__func__(cls, *args, output_loading_info=True, **options)
            if not isinstance(loaded, tuple):
                return loaded
            found.append(loaded)
            return loaded if asked else loaded[0]

        return classmethod(from_pretrained)

    for kind, original in zip(kinds, originals, strict=True):
        kind.from_pretrained = reporting(original)
    try:
        yield found
    finally:
        for kind, original in zip(kinds, originals, strict=True):
            kind.from_pretrained = original


def _check_weights(pipe: Any, model: str, reports: Sequence[tuple[Any, Mapping[str, Any]]]) -> dict[str, int]:
    """Refuse a network that lacks some of its weights; count those of the checkpoint that no network has."""
    left_out = {}
    for name, network in pipe.components.items():
        report: Mapping[str, Any] = next((said for one, said in reports if one is network), {})
        missing = set(report.get("missing_keys", ()))
        weights = dict(network.named_parameters()) if hasattr(network, "named_parameters") else {}
        if empty := [key for key, value in weights.items() if value.is_meta or key in missing]:
            problem = f"{model} has no weights for {len(empty)} parameters of its {name}, such as {empty[0]}."
            raise HfsynError(problem, "Name a complete checkpoint.")
        # Old checkpoints store positions, which are 0, 1, 2, ...
        if unused := [key for key in report.get("unexpected_keys", ()) if not key.endswith("position_ids")]:
            left_out[f"weight of the checkpoint's {name} that {type(network).__name__} does not have"] = len(unused)
    return left_out


def _parameters(pipe: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(type(pipe).__call__).parameters


def starting_from_images(pipe: Any, recipe: GeneratePart) -> Any:
    """The image-to-image pipeline with the same parts; raises HfsynError if diffusers has none with a strength."""
    import diffusers

    try:
        found = diffusers.AutoPipelineForImage2Image.from_pipe(pipe)
    except ValueError:
        said = f"{recipe.model} is a {type(pipe).__name__}, which starts from noise alone."
        raise HfsynError(said, "Set generate.init to none.") from None
    if "strength" not in _parameters(found):
        raise HfsynError(f"{recipe.model} is a {type(found).__name__}, which has no strength.", "Name another model.")
    return _quiet(found)


def call_options(pipe: Any, recipe: GeneratePart, negative: str | None, rows: int) -> dict[str, Any]:
    """What else a pipeline is called with, if it has a parameter for it: guidance, a negative prompt for each of the
    rows, the length of prompts.
    """
    found: dict[str, Any] = {"guidance_scale": recipe.guidance_scale}
    if _has_true_guidance(pipe):
        # It takes a negative prompt, and the text encoders of such pipelines do not all take an empty one.
        found = {"true_cfg_scale": max(1.0, recipe.guidance_scale)}
        negative = (" " if negative is None else negative) if recipe.guidance_scale > 1 else None
    if negative is not None:
        found["negative_prompt"] = [negative] * rows
    if "clean_caption" in _parameters(pipe):  # otherwise the prompt depends on which libraries are installed
        found["clean_caption"] = False
    if recipe.max_sequence_length is not None:
        found["max_sequence_length"] = recipe.max_sequence_length
    return found


def _has_true_guidance(pipe: Any) -> bool:
    """Whether a pipeline has classifier-free guidance under another name: its `guidance_scale` is an input of networks
    that were distilled, and its own was not.
    """
    network = getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)
    distilled = getattr(getattr(network, "config", None), "guidance_embeds", False)
    return "true_cfg_scale" in _parameters(pipe) and not distilled


def size_of(pipe: Any, recipe: GeneratePart, *, whole: bool = False) -> dict[str, int]:
    """Width and height in pixels, or nothing for the pipeline's own; with `whole` both in any case.

    Given only one of them, pipelines ignore it: the other is filled in.
    """
    size = {key: value for key in ("width", "height") if (value := getattr(recipe, key)) is not None}
    if len(size) == 2 or not (size or whole):
        return size
    network = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    own = getattr(pipe, "default_sample_size", None) or getattr(getattr(network, "config", None), "sample_size", None)
    factor = getattr(pipe, "vae_scale_factor", None)
    if not isinstance(own, int) or not isinstance(factor, int):
        has = f"generate has a {next(iter(size))} only" if size else "generate has no width and no height"
        raise HfsynError(f"{has}, and {recipe.model} does not say its size.", "Set generate.width and generate.height.")
    return dict.fromkeys(("width", "height"), own * factor) | size


def _check_call(pipe: Any, recipe: GeneratePart, negative: str | None) -> None:
    """Refuse a pipeline that has no parameter for what the recipe says, before it is moved to the device."""
    given = {"negative_prompt": negative} | {
        name: getattr(recipe, name) for name in ("width", "height", "max_sequence_length")
    }
    wanted = {"prompt", "generator", "num_inference_steps", "output_type"}
    wanted |= {name for name, value in given.items() if value is not None}
    wanted |= set() if _has_true_guidance(pipe) else {"guidance_scale"}
    if lacking := sorted(wanted - _parameters(pipe).keys()):
        hints = {
            "negative_prompt": "Set prompt.negative to null.",
            "max_sequence_length": "Set generate.max_sequence_length to null.",
        }
        said = f"{recipe.model} is a {type(pipe).__name__}, which takes no {' and no '.join(lacking)}."
        raise HfsynError(said, hints.get(" ".join(lacking), "Name another generate.model."))


def tokenizer_of(pipe: Any, model: str, longest: int | None = None) -> tuple[Any, int]:
    """The tokenizer of the text encoder that takes the most tokens, and how many; at most `longest`, or what the
    pipeline passes on.
    """
    parameter = _parameters(pipe).get("max_sequence_length")
    limit = SEQUENCES.get(type(pipe).__name__, sys.maxsize)
    if parameter is not None and isinstance(parameter.default, int):
        limit = parameter.default
    limit = longest or limit
    found = [part for name, part in pipe.components.items() if "tokenizer" in name and part is not None]
    if not found:
        raise HfsynError(f"{model} is a {type(pipe).__name__} without a tokenizer.", "Name another generate.model.")
    best = max(found, key=lambda tokenizer: min(tokenizer.model_max_length, limit))
    return best, int(min(best.model_max_length, limit))


def _scheduler(recipe: GeneratePart, own: Any) -> Any:
    """The named scheduler with the checkpoint's own noise schedule; checked to take the recipe's steps."""
    import diffusers

    # Flow matching has no betas, and a diffusion sampler would run on it and paint noise.
    diffusion = "beta_start" in own.config and not own.config.get("use_flow_sigmas")
    chosen = own
    if recipe.scheduler != "default":
        if not diffusion:
            raise HfsynError(
                f"generate.scheduler is {recipe.scheduler!r}, and {recipe.model} only works with {type(own).__name__}.",
                "Set generate.scheduler to default.",
            )
        kind, options = _SCHEDULERS[recipe.scheduler]
        chosen = getattr(diffusers, kind).from_config(own.config, **options)
    if diffusion:
        try:
            chosen.set_timesteps(recipe.steps)
        except ValueError as error:
            said = f"generate.steps is {recipe.steps}, which scheduler {recipe.scheduler} refuses: {brief(error)}"
            raise HfsynError(said, "Set fewer steps, or another scheduler.") from error
    return chosen
