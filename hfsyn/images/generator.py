"""From prompts and seeds to images: the ImageGenerator protocol, and any text-to-image pipeline of diffusers.

Each sample has its own CPU random generator, so that its noise depends on its seed alone; a batch always has the
recipe's size, so that rounding does not depend on how much work was left.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hfsyn.errors import HfsynError
from hfsyn.images.encoding import fitted
from hfsyn.images.entropy import EntropyGuidance
from hfsyn.images.guidance import guided_steps, is_guided, is_limited, is_stable_diffusion, limited_options
from hfsyn.images.latents import Levels, fetch
from hfsyn.images.tokens import TokenCounter
from hfsyn.images.trial import PROMPT, OwnNoise, Sketch, size_refused, try_out
from hfsyn.images.tuning import PLAIN, Tuning, kernels, tune
from hfsyn.models.loras import ClassLoras
from hfsyn.models.pipelines import call_options, load_pipeline, size_of, starting_from_images
from hfsyn.recipes.recipe import GeneratePart

FLAT_RANGE = 4
"""An image whose grey levels all lie within this range in each channel shows nothing, as a broken decoder's do."""


@dataclass(frozen=True, slots=True)
class Generated:
    """One image, or why there is none to keep."""

    pixels: npt.NDArray[np.uint8]  # height x width x 3, RGB
    problem: str | None = None  # None, ``safety`` (the checkpoint's checker hit), ``nan`` or ``flat``


Pending = Callable[[], list[Generated]]
"""Waits for a batch and gives its images in order; can be called in a different thread from the one that started it."""


class ImageGenerator(Protocol):
    """Something that draws prompts."""

    def start(
        self, prompts: Sequence[str], seeds: Sequence[int], size: int, *, images: Sequence[Any] | None = None
    ) -> Pending:
        """Give the device one batch to draw, without waiting for it: an image for each prompt and its seed, and for
        each real image (RGB, of Pillow) if the recipe starts from these.

        There are 1 to `size` prompts; a short batch is padded, so that rounding does not depend on how much was left.
        Raises torch.OutOfMemoryError if the device has too little memory for a batch of this size.
        """
        ...

    def count_tokens(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each prompt with the markers at its ends, before any truncation."""
        ...

    @property
    def max_tokens(self) -> int:
        """How many tokens the text encoder takes; what is beyond is cut off."""
        ...


def fitting(generator: ImageGenerator) -> Callable[[Any], Any]:
    """How a real image is brought to a generator that starts from it: a copy of it, where that has no `fit`."""
    return getattr(generator, "fit", lambda image: image.copy())


def for_class(generator: ImageGenerator, wnid: str) -> None:
    """Let a generator draw its next batches for a class, if it has a LoRA for each."""
    if isinstance(generator, DiffusersGenerator):
        generator.take_class(wnid)


class DiffusersGenerator:
    """Any text-to-image pipeline that ``AutoPipelineForText2Image`` loads.

    An image depends on its prompt, its seed, the recipe (and the real image that it starts from, if the recipe says so)
    and, in the last bits, the size of its batch; the other images make no difference. The initial noise is drawn on the
    CPU in the recipe's dtype. SDXL's invisible watermark is never added. A `negative` prompt of None is the pipeline's
    own default (the empty text, or zeros for SDXL). `variant` has the classes of entropy guidance, if there is any.

    Raises HfsynError if the model cannot be loaded or cannot draw, or has no use for a field of the recipe.
    """

    left_out: Mapping[str, int]  # how many weights of the checkpoint and the LoRA are not used, by what they are of

    def __init__(
        self,
        recipe: GeneratePart,
        negative: str | None,
        device: str,
        *,
        allow_pickle: bool = False,
        tuning: Tuning = PLAIN,
        variant: str = "",
    ) -> None:
        if recipe.entropy_weight and tuning.compiled:
            raise HfsynError(
                "--compile cannot compile entropy guidance, which takes gradients.", "Leave --compile out."
            )
        pipe, self.left_out = load_pipeline(recipe, negative, allow_pickle=allow_pickle)
        self._recipe, self._negative, self.device = recipe, negative, device
        self._checker = _own_checker(pipe, device)
        self._image_pipe = starting_from_images(pipe, recipe) if recipe.init == "source" else None
        self._check_guidance(pipe)
        self._signed = _left_as_decoded(self._image_pipe or pipe)
        self._size = size_of(pipe, recipe, whole=recipe.init == "source")
        if recipe.dtype == "float32":
            import torch

            torch.backends.cudnn.allow_tf32 = False  # convolutions would take ten bits of the 23
        self._pipe = pipe.to(device)
        called = self._image_pipe or self._pipe
        self._entropy = EntropyGuidance(called, recipe, variant, device) if recipe.entropy_weight else None
        self._tokens = TokenCounter(self._pipe, recipe)
        self._noise = OwnNoise(pipe)
        self.tuning = PLAIN
        self._try()
        self.tuning = tuning
        tune(self._pipe, tuning)
        self._noise.attach()
        self._loras = ClassLoras(self._pipe, recipe) if recipe.lora_by_class else None

    def take_class(self, wnid: str) -> None:
        """Draw the next batches for a class, if each has a LoRA of its own."""
        if self._loras is not None:
            self._loras.take(wnid)

    def _check_guidance(self, pipe: Any) -> None:
        """Refuse limits of the guidance if there is none to limit, or no step lies within them."""
        recipe = self._recipe
        if not is_limited(recipe):
            return
        start, stop, why = recipe.guidance_start, recipe.guidance_stop, ""
        if not is_stable_diffusion(pipe):
            why = f"{recipe.model} is a {type(pipe).__name__}, whose guidance cannot be limited to some of the steps"
        elif not is_guided(pipe, recipe):
            why = f"{recipe.model} has no guidance to limit at generate.guidance_scale {recipe.guidance_scale:g}"
        elif not any(guided_steps(self._image_pipe or pipe, recipe)):
            why = f"none of the {recipe.steps} steps lies between generate.guidance_start {start:g} and stop {stop:g}"
        if why:
            raise HfsynError(f"{why}.", "Set generate.guidance_start to 0 and generate.guidance_stop to 1.")

    def _try(self) -> None:
        pipe = self._pipe
        # Whole, since none of its few steps may lie within the limits of the guidance.
        limits = {"guidance_start": 0.0, "guidance_stop": 1.0, "entropy_start": 0.0, "entropy_stop": 1.0}
        whole = self._recipe.model_copy(update={**limits, "entropy_every": 1})
        if is_stable_diffusion(pipe):
            taken = pipe.unet.config.in_channels
            made = getattr(getattr(pipe.vae, "config", None), "latent_channels", taken)
            if taken != made:
                raise HfsynError(
                    f"{self._recipe.model} has a unet for {taken} channels, and its vae makes {made}: it is made to "
                    "fill in or to edit images, and not to draw from text alone.",
                    "Name another generate.model.",
                )
        # The safety checker may flag so small a picture, and paints what it flags black.
        pipes: list[Any] = [pipe, self._image_pipe]
        checking = [one for one in pipes if getattr(one, "safety_checker", None) is not None]
        checkers = [one.safety_checker for one in checking]
        for one in checking:
            one.safety_checker = None
        self._noise.attach()
        try:
            try_out(pipe, Sketch(whole, self._negative, self._size), self._sketched)
        finally:
            self._noise.detach()
            for one, checker in zip(checking, checkers, strict=True):
                one.safety_checker = checker

    def _sketched(self, sketch: Sketch) -> tuple[Any, list[str | None]]:
        import torch
        from PIL import Image

        prompts, starts = [PROMPT] * len(sketch.seeds), None
        if self._image_pipe is not None:
            grey = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 20).convert("RGB")
            starts = [fitted(grey, sketch.size["width"], sketch.size["height"])] * len(prompts)
        with torch.no_grad() if self._entropy else torch.inference_mode():
            drawn, flagged = self._draw(prompts, sketch.seeds, starts, sketch)
            images, levels = drawn.float().cpu(), fetch(drawn, len(prompts), signed=self._signed)()
        return images * (127.5 if self._signed else 255), [image.problem for image in _judged(levels, flagged)]

    @property
    def max_tokens(self) -> int:
        """See `ImageGenerator`."""
        return self._tokens.most

    @property
    def parameters(self) -> int:
        """Of all networks of the pipeline."""
        parts = [*self._pipe.components.values(), self._checker]
        networks = [part for part in parts if hasattr(part, "parameters")]
        return sum(weights.numel() for network in networks for weights in network.parameters())

    @property
    def starts_from_images(self) -> bool:
        """Whether `start` needs the real images."""
        return self._image_pipe is not None

    def fit(self, image: Any) -> Any:
        """A real image as `start` takes it: at the size of what is drawn, all that need be kept of a photograph."""
        return fitted(image, self._size["width"], self._size["height"])

    def count_tokens(self, prompts: Sequence[str]) -> list[int]:
        """See `ImageGenerator`."""
        return self._tokens.count(prompts)

    def start(
        self, prompts: Sequence[str], seeds: Sequence[int], size: int, *, images: Sequence[Any] | None = None
    ) -> Pending:
        """See `ImageGenerator`. Raises HfsynError if the pipeline refuses the recipe's size."""
        import torch

        wanted = len(prompts)
        if not 0 < wanted == len(seeds) <= size:
            raise ValueError(f"{wanted} prompts and {len(seeds)} seeds for a batch of {size}")
        if (images is None) != (self._image_pipe is None) or (images is not None and len(images) != wanted):
            raise ValueError(f"{0 if images is None else len(images)} images for {wanted} prompts")
        short = size - wanted
        prompts, seeds = [*prompts, *[prompts[-1]] * short], [*seeds, *[seeds[-1]] * short]
        starts = None if images is None else [*images, *[images[-1]] * short]
        with torch.no_grad() if self._entropy else torch.inference_mode(), kernels(self.tuning):
            try:
                drawn, flagged = self._draw(prompts, seeds, starts)
            except ValueError as error:
                raise size_refused(self._recipe.model, error) from error
            arrive = fetch(drawn, wanted, signed=self._signed)

        def settle() -> list[Generated]:
            levels = arrive()
            return _judged(levels, flagged if self._checker is None else self._flagged(levels.pixels))

        return settle

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], images: Sequence[Any] | None = None
    ) -> list[Generated]:
        """The images at once, in one batch of the recipe's size; `images` are real ones of any size."""
        starts = None if images is None else [self.fit(image) for image in images]
        return self.start(prompts, seeds, self._recipe.batch_size, images=starts)()

    def _draw(
        self, prompts: Sequence[str], seeds: Sequence[int], starts: Sequence[Any] | None, sketch: Sketch | None = None
    ) -> tuple[Any, list[bool]]:
        """Images on the device, batch x 3 x height x width (see `_left_as_decoded`), and a pipeline's own verdicts."""
        import torch

        wanted = sketch or Sketch(self._recipe, self._negative, self._size)
        recipe = wanted.recipe
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        pipe: Any = self._pipe
        more: dict[str, Any] = dict(wanted.size)
        if sketch is not None and "use_resolution_binning" in inspect.signature(type(pipe).__call__).parameters:
            more["use_resolution_binning"] = False  # it would draw large, and make that small
        if starts is not None:
            pipe = self._image_pipe
            known = inspect.signature(type(pipe).__call__).parameters
            more = {key: value for key, value in more.items() if key in known}
            more |= {"image": list(starts), "strength": recipe.strength}
        # Pipelines that decode by themselves (DeepFloyd IF) give tensors of another range, past their safety checker.
        form = "pt" if hasattr(pipe, "image_processor") else "np"
        steering = nullcontext() if self._entropy is None else self._entropy.steering(recipe)
        with self._noise.of(generators), steering:
            if is_limited(recipe):
                given = limited_options(pipe, recipe, prompts, wanted.negative)
            else:
                given = {"prompt": list(prompts), **call_options(pipe, recipe, wanted.negative, len(prompts))}
            out = pipe(**given, generator=generators, num_inference_steps=recipe.steps, output_type=form, **more)
        images = out.images if form == "pt" else torch.from_numpy(out.images).permute(0, 3, 1, 2)
        hits = getattr(out, "nsfw_content_detected", None) or getattr(out, "nsfw_detected", None)
        return images, [bool(hit) for hit in hits or [False] * len(prompts)]

    def _flagged(self, pixels: npt.NDArray[np.uint8]) -> list[bool]:
        """The own checker's verdict on each image, outside the thread that feeds the device."""
        import torch
        from PIL import Image

        assert self._checker is not None
        with torch.inference_mode():
            looked_at = self._pipe.feature_extractor([Image.fromarray(image) for image in pixels], return_tensors="pt")
            # It paints over what it is given as images, which is why it gets none of ours.
            _, hits = self._checker(
                images=np.zeros((len(pixels), 1, 1, 3)),
                clip_input=looked_at.pixel_values.to(self.device, self._pipe.unet.dtype),
            )
        return [bool(hit) for hit in hits]


def _own_checker(pipe: Any, device: str) -> Any:
    """Stable Diffusion's safety checker, taken out of a pipeline, which would make the device wait for it."""
    checker: Any = getattr(pipe, "safety_checker", None)
    if type(checker).__name__ != "StableDiffusionSafetyChecker":
        return None
    pipe.safety_checker = None
    return checker.to(device)


def _left_as_decoded(pipe: Any) -> bool:
    """Let a pipeline give what it decodes, of -1 to 1, and whether it does so; else its images are of 0 to 1.

    It would clamp them, and so hide infinite ones, before the thread that feeds the device could go on.
    """
    processor: Any = getattr(pipe, "image_processor", None)
    checked = getattr(pipe, "safety_checker", None) is not None  # which looks at finished images
    if checked or type(processor).__name__ != "VaeImageProcessor" or not processor.config.do_normalize:
        return False
    processor.postprocess = lambda images, *args, **options: images
    return True


def _judged(levels: Levels, flagged: Sequence[bool]) -> list[Generated]:
    return [
        Generated(pixels, problem_of(int(levels.span[i]), finite=bool(levels.finite[i]), flagged=flagged[i]))
        for i, pixels in enumerate(levels.pixels)
    ]


def problem_of(span: int, *, finite: bool, flagged: bool) -> str | None:
    """Why an image must not be kept; see `Levels` and the safety checker's verdict."""
    if flagged:
        return "safety"
    if not finite:
        return "nan"
    return "flat" if span < FLAT_RANGE else None
