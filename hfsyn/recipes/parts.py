"""The parts of a recipe: every field with its unit, range and meaning, and which fields fit together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from builders.sources.rows import Source
from builders.variants.class_maps import own_variant
from hfsyn.errors import HfsynError
from hfsyn.recipes.loading import Count, Int, Part, Share, Text, Words
from hfsyn.recipes.strategies import Strategy, domain_of, get_strategy, is_user_strategy, user_function

Dtype = Literal["float32", "float16", "bfloat16"]
Scheduler = Literal[
    "default", "ddim", "pndm", "euler", "euler-trailing", "euler-ancestral", "dpm++", "dpm++-karras", "unipc", "lcm"
]
BY_CLASS = "lora_by_class.json"
"""Lists the LoRA of each class where a tuning has made one for each; named as ``lora_file``."""
BUILTIN = "builtin"  # the model name of the small trained models that come with hfsyn
HUB = "hf://datasets/"  # how a dataset on the Hub is named in place of a file


class SourcePart(Part):
    """Which real images are captioned, or counted if the strategy needs no caption."""

    variant: Text
    """A name of `hfsyn variants ls`, or the YAML file of a class map (`hfsyn variants new`)."""
    split: Text = "train"
    """The source's split, which is also the split of the result."""
    path: Text | None = None
    """A local folder or Parquet file that holds the variant; null streams it from the Hub."""
    revision: Text | None = None
    """Hub revision; null takes the newest and writes its commit sha into the run folder."""
    limit_per_class: Count | None = None
    """At most this many images per class (`--limit`), >= 1; null takes all."""
    definition: dict[str, Any] | None = None
    """The class map of a user's own variant, filled in from its file; `source.variant` names it by its content."""

    @model_validator(mode="after")
    def _defined(self) -> SourcePart:
        if self.definition is not None:
            own_variant(self.definition, name=self.variant)
        return self

    def open(self) -> Source:
        """The real images. Raises DataError if they are not there."""
        from builders.sources import open_source

        return open_source(
            self.variant, self.split, path=self.path, revision=self.revision, limit_per_class=self.limit_per_class
        )


class CaptionPart(Part):
    """How a real image is captioned; or, for a strategy with texts of a language model, how that model writes them."""

    model: Text
    """A Hub id, a local folder, `builtin`, or a Python class of your own: `path/to/file.py:Class`."""
    revision: Text | None = None
    """Hub revision; null is resolved to a commit sha when the run starts."""
    max_new_tokens: Annotated[Int, Field(ge=1, le=1024)] = 30
    """Length limit in tokens, 1 to 1024."""
    num_beams: Annotated[Int, Field(ge=1, le=32)] = 1
    """1 is greedy decoding, as in the paper; at most 32."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Draw each token from the likeliest that make up this probability, above 0 to 1; null takes the likeliest."""
    temperature: Annotated[float, Field(gt=0, le=10)] | None = None
    """Draw each token, the logits divided by this, above 0 to 10; null is 1 if top_p draws."""
    prompt: Words | None = None
    """Text that the captioner continues, the task of Florence-2, or the instruction of a chat or language model. `{c}`,
    `{definition}` and `{hypernym}` in it stand for those of the image's class.
    """
    dtype: Dtype = "float32"
    """Arithmetic of the captioner."""
    batch_size: Annotated[Int, Field(ge=1, le=4096)] = 32
    """Images per batch, 1 to 4096. Part of the recipe, because rounding depends on it."""

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn at random, by each image's own seed."""
        return self.top_p is not None or self.temperature is not None


class PromptPart(Part):
    """How a prompt is written."""

    strategy: Text
    """A name of `hfsyn strategies ls`, or a Python function of your own: `path/to/file.py:function`."""
    strategy_sha256: Text | None = None
    """Content of that file, 64 hex digits; null is filled in when the run starts."""
    domain: Text | None = None
    """The word of the strategy `domain`: pet, aircraft, satellite, ..."""
    captions_file: Text | None = None
    """Texts by source id instead of a captioner's: a JSON lines, CSV or Parquet file, or
    `hf://datasets/REPO_ID@REVISION`, with a column `source_id` and a column `caption` or `prompt`.
    """
    captions_revision: Text | None = None
    """Content of that file (`sha256:...`) or commit of that dataset; null is filled in when the run starts."""
    captions_missing: Literal["refuse", "class-name"] = "refuse"
    """What to do with images that it has no text for: `refuse` the run, or take the `class-name` alone."""
    pairing: Literal["own", "across-classes"] = "own"
    """Whose caption an image gets: its `own`, or one of another class (`across-classes`), in which the words for that
    class are replaced; this breaks the tie between classes and contexts that the real images have.
    """
    negative: Words | None = None
    """Negative prompt; null is the empty one."""
    images_per_caption: Annotated[Int, Field(ge=1, le=1000)] = 1
    """Synthetic images for each real one, 1 to 1000."""


class GeneratePart(Part):
    """How an image is made from a prompt."""

    model: Text
    """A Hub id, a local folder, or `builtin`."""
    revision: Text | None = None
    """Hub revision; null is resolved to a commit sha when the run starts."""
    variant: Annotated[str, Field(pattern=r"^[A-Za-z]\w{0,40}$")] | None = None
    """Which of the checkpoint's weights: `fp16`, ...; null is the plain ones or, where there are none, the only others;
    their name is filled in when the run starts.
    """
    tuned_on: Text | None = None
    """The real images that the model was tuned on, as its `tuning.json` says; filled in when the run starts."""
    scheduler: Scheduler = "default"
    """Sampler; `default` is the checkpoint's own."""
    steps: Annotated[Int, Field(ge=1, le=1000)] = 50
    """Denoising steps, 1 to 1000."""
    guidance_scale: Annotated[float, Field(ge=0, le=50)] = 2.0
    """Classifier-free guidance, 0 to 50; values up to 1 turn it off. 2.0 is the evidence-backed value for training
    data.
    """
    guidance_start: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the steps, 0 to 1, before which there is no guidance. SD 1.x, 2.x and SDXL only."""
    guidance_stop: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the steps, 0 to 1, from which on there is no guidance: 0.6 saves a fifth of the work, and changes the
    images. SD 1.x, 2.x and SDXL only.
    """
    entropy_weight: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """How strongly images are steered towards what a classifier is unsure of, >= 0; 0 is off, and changes no byte. SD
    1.x, 2.x and SDXL only. See `hfsyn/images/entropy.py`.
    """
    entropy_classifier: Text | None = None
    """That classifier: the folder of a training, a network of timm with weights, or `hf_hub:USER/NAME`."""
    entropy_revision: Text | None = None
    """Content of that classifier, `sha256:...`; null is filled in when the run starts."""
    entropy_start: Share = 0.0
    """Share of the steps, 0 to 1, before which nothing is steered towards entropy."""
    entropy_stop: Share = 1.0
    """Share of the steps, 0 to 1, from which on nothing is steered towards entropy."""
    entropy_every: Annotated[Int, Field(ge=1, le=1000)] = 5
    """Steer one step in this many of these, 1 to 1000. A steered step costs about five plain ones."""
    width: Annotated[Int, Field(ge=8, le=8192, multiple_of=8)] | None = None
    """Pixels, a multiple of 8; null is the model's own size."""
    height: Annotated[Int, Field(ge=8, le=8192, multiple_of=8)] | None = None
    """Pixels, a multiple of 8; null is the model's own size."""
    max_sequence_length: Annotated[Int, Field(ge=8, le=4096)] | None = None
    """Tokens of a prompt that T5 reads in SD 3, FLUX and PixArt, 8 to 4096; null is the pipeline's own number."""
    lora: Text | None = None
    """LoRA weights to add to the model: a Hub id, a local folder or a file. Safetensors only."""
    lora_file: Text | None = None
    """The file in that repository or folder; null is `pytorch_lora_weights.safetensors`, or `lora_by_class.json` if it
    has one, from `tune.per_class`: then each class is drawn with its own.
    """
    lora_revision: Text | None = None
    """Hub revision of the LoRA; null is resolved to a commit sha, or to the file's content, when the run starts."""
    lora_tuned_on: Text | None = None
    """The real images that the LoRA was tuned on, as its `tuning.json` says; filled in when the run starts."""
    lora_scale: Annotated[float, Field(ge=-10, le=10)] = 1.0
    """Factor of the LoRA, -10 to 10."""
    init: Literal["none", "source"] = "none"
    """Where an image starts from: `none` is noise alone; `source` is the real image behind its prompt (img2img), whose
    appearance carries over: less private, and the card says so.
    """
    strength: Annotated[float, Field(gt=0, le=1)] = 0.75
    """With `init: source`: the share of the steps that is done, above 0 to 1; more steps leave less of it."""
    dtype: Dtype = "bfloat16"
    """Arithmetic of the generator."""
    batch_size: Annotated[Int, Field(ge=1, le=1024)] = 16
    """Images per batch, 1 to 1024. Part of the recipe, because rounding depends on it."""
    safety_checker: bool = True
    """Run the checkpoint's safety checker, if it has one; flagged images are retried, then set aside."""
    max_retries: Annotated[Int, Field(ge=0, le=100)] = 3
    """Times that a flagged, NaN or flat image is made again with a new seed before it is set aside, 0 to 100."""

    @property
    def lora_by_class(self) -> bool:
        """Whether each class is drawn with a LoRA of its own, in batches of that class."""
        return self.lora is not None and self.lora_file == BY_CLASS

    @model_validator(mode="after")
    def _consistent(self) -> GeneratePart:
        if self.lora is None and any((self.lora_file, self.lora_revision, self.lora_tuned_on)):
            said = "generate.lora_file, lora_revision or lora_tuned_on is set, and no generate.lora."
            raise HfsynError(said, "Leave it out.")
        if self.entropy_weight and self.entropy_classifier is None:
            said = f"generate.entropy_weight is {self.entropy_weight:g}, and there is no generate.entropy_classifier."
            raise HfsynError(said, "Name one, such as --set generate.entropy_classifier=FOLDER of a training.")
        if self.entropy_revision is not None and self.entropy_classifier is None:
            said = "generate.entropy_revision is set, and no generate.entropy_classifier."
            raise HfsynError(said, "Leave it out.")
        if self.entropy_start >= self.entropy_stop:
            said = f"generate.entropy_start is {self.entropy_start:g} and its stop {self.entropy_stop:g}, "
            raise HfsynError(f"{said}which leaves no step.", "Start before the stop.")
        what = f"generate.strength {self.strength:g}"
        if self.init == "source" and int(self.steps * self.strength) < 1:
            raise HfsynError(f"{what} of {self.steps} steps is less than one step.", "Raise either.")
        # Some pipelines round the skipped steps down, and without any the image drowns in noise.
        if self.init == "source" and self.strength < 1 and int(self.steps - self.steps * self.strength) < 1:
            raise HfsynError(f"{what} spares none of {self.steps} steps: nothing of the image is left.", "Lower it.")
        return self


class StorePart(Part):
    """How pixels become stored bytes."""

    format: Literal["jpeg", "png", "webp"] = "jpeg"
    """`jpeg`; `png` and `webp` are lossless."""
    quality: Annotated[Int, Field(ge=1, le=100)] = 96
    """JPEG quality, 1 to 100; ImageNet's own files are mostly 96."""
    subsampling: Literal["4:4:4", "4:2:2", "4:2:0"] = "4:4:4"
    """JPEG chroma subsampling."""
    size: Annotated[Int, Field(ge=1, le=8192)] | None = None
    """Short side in pixels to which images are resized for storage; null keeps them as generated."""
    shard_rows: Annotated[Int, Field(ge=1, le=100_000)] = 1000
    """Rows per shard, 1 to 100,000."""
    mark: bool = False
    """Whether each image says in its metadata that a model made it, and which: XMP, by IPTC's standard."""


def strategy_of(part: PromptPart) -> Strategy:
    """The strategy of a recipe, with the recipe's domain. A user's function is loaded, and so its file is run."""
    strategy = get_strategy(part.strategy)
    if is_user_strategy(part.strategy):
        return replace(strategy, write=user_function(part.strategy, part.strategy_sha256))
    return replace(strategy, write=domain_of(part.domain)) if part.domain else strategy


def check_prompt(prompt: PromptPart, caption: CaptionPart | None) -> None:
    """Refuse a prompt part whose fields do not fit each other or the caption part."""
    strategy, file = get_strategy(prompt.strategy), prompt.captions_file
    name, own = strategy.name, is_user_strategy(strategy.name)
    check_domain(prompt)
    if prompt.captions_revision is not None and file is None:
        raise HfsynError("prompt.captions_revision is set, and there is no prompt.captions_file.", "Leave it out.")
    if prompt.strategy_sha256 is not None and not own:
        raise HfsynError(f"prompt.strategy_sha256 is set, and strategy {name!r} has no file.", "Leave it out.")
    if strategy.text_from == "file" and file is None:
        raise HfsynError(
            f"Strategy {name!r} needs the texts of a file, and prompt.captions_file is null.",
            '--set prompt.captions_file=texts.jsonl, lines such as {"source_id": "n01440764/0.jpg", "prompt": "..."}',
        )
    if file is not None and caption is not None:
        said = f"The captions come from {file}, and the recipe has a captioner too, {caption.model}."
        raise HfsynError(said, "Keep one of them: --set caption=null, or --set prompt.captions_file=null")
    if file is not None and not strategy.needs_caption and not own:
        said = f"prompt.captions_file is {file!r}, and strategy {name!r} has no place for its texts."
        raise HfsynError(said, "--strategy captions-file takes them as they are, cip puts the class before them.")
    if strategy.needs_caption and caption is None and file is None:
        what, hint = "captions", "e.g. `caption: {model: Salesforce/blip-image-captioning-base}`."
        if strategy.text_from == "class":
            what = "a language model that writes its texts"
            hint = "--captioner of `hfsyn captioners ls`, or prompt.captions_file."
        raise HfsynError(f"Strategy {name!r} needs {what}, and the recipe has no caption part.", f"Give it one: {hint}")
    if prompt.pairing != "own" and caption is None and file is None:
        problem = f"prompt.pairing is {prompt.pairing!r}, and the recipe has no texts to exchange: strategy {name!r}."
        raise HfsynError(problem, "--strategy cip puts captions into the prompts; or --set prompt.pairing=own")
    if caption is not None and caption.draws and caption.num_beams > 1:
        said = f"caption.num_beams is {caption.num_beams}, and caption.top_p or temperature draw tokens at random."
        raise HfsynError(said, "Set num_beams to 1, or top_p and temperature to null.")


def check_domain(prompt: PromptPart) -> None:
    """Refuse a domain for which the strategy has no place, and a strategy that lacks its domain."""
    name = prompt.strategy
    if name == "domain" and not prompt.domain:
        raise HfsynError("Strategy 'domain' needs a word, and prompt.domain is null.", "--set prompt.domain=pet")
    if name != "domain" and prompt.domain is not None:
        said = f"prompt.domain is {prompt.domain!r}, and strategy {name!r} has no place for it."
        raise HfsynError(said, "--set prompt.domain=null, or --strategy domain")


def refuse_idle(parts: Any, written: Callable[[str], bool]) -> None:
    """Refuse fields of a checked recipe that decide nothing, and would only give the same dataset another fingerprint.

    Stored and published recipes may have them: only fields are checked whose dotted name is `written` by the user now.
    """
    generate, store = parts.generate, parts.store
    lossless = f"store.format is {store.format!r}, which is lossless" if store.format != "jpeg" else ""
    scale = generate.guidance_scale
    unguided = f"generate.guidance_scale is {scale:g}, which turns guidance off" if scale <= 1 else ""
    plain = "" if generate.entropy_weight else "generate.entropy_weight is 0"
    idle = {
        **{f"generate.entropy_{name}": plain for name in ("classifier", "start", "stop", "every")},
        "prompt.negative": unguided,
        "generate.guidance_start": unguided,
        "generate.guidance_stop": unguided,
        "generate.lora": "generate.lora_scale is 0" if generate.lora_scale == 0 else "",
        "generate.strength": "generate.init is 'none'" if generate.init == "none" else "",
        "generate.lora_scale": "there is no generate.lora" if generate.lora is None else "",
        "store.quality": lossless,
        "store.subsampling": lossless,
    }
    for key, why in idle.items():
        part, _, name = key.partition(".")
        value = getattr(getattr(parts, part), name)
        default = type(getattr(parts, part)).model_fields[name].default
        if why and value != default and (written(key) or (written("generate.guidance_scale") and why == unguided)):
            hint = f"Leave it out, or --set {key}={'null' if default is None else default}"
            raise HfsynError(f"{key} is {value!r} and decides nothing, because {why}.", hint)
    start, stop = generate.guidance_start, generate.guidance_stop
    if start >= stop and (written("generate.guidance_start") or written("generate.guidance_stop")):
        said = f"generate.guidance_start is {start:g} and its stop {stop:g}, which leaves no step with guidance."
        raise HfsynError(said, "Start before the stop; to turn guidance off: --set generate.guidance_scale=1")
