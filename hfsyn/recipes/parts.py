"""The parts of a recipe: every field with its unit, range and meaning."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hfsyn.errors import HfsynError
from hfsyn.recipes.extending import check_class_map
from hfsyn.recipes.loading import Count, Int, Part, Text, Words

Dtype = Literal["float32", "float16", "bfloat16"]
Scheduler = Literal[
    "default", "ddim", "pndm", "euler", "euler-trailing", "euler-ancestral", "dpm++", "dpm++-karras", "unipc", "lcm"
]
BUILTIN = "builtin"
"""The model name of the small trained models that come with hfsyn."""


class SourcePart(Part):
    """Which real images are captioned, or counted where the strategy needs no caption."""

    variant: Text
    """A name of `hfsyn variants ls`, or the YAML file of a class map (`hfsyn variants new`)."""
    split: Text = "train"
    """The source's split, which is also the split of the result."""
    path: Text | None = None
    """A local folder or Parquet file that holds the variant; null streams it from the Hub."""
    revision: Text | None = None
    """Hub revision; null takes the newest and writes its commit sha into the run folder."""
    limit_per_class: Count | None = None
    """At most so many images a class (`--limit`), >= 1; null takes all."""
    definition: dict[str, Any] | None = None
    """The class map of a variant of one's own, filled in from its file; `source.variant` names it by its content."""

    @model_validator(mode="after")
    def _defined(self) -> SourcePart:
        if self.definition is not None:
            check_class_map(self.variant, self.definition)
        return self


class CaptionPart(Part):
    """How a real image is described; or, for a strategy whose texts a language model writes, how that model does."""

    model: Text
    """A Hub id, a local folder, or `builtin`."""
    revision: Text | None = None
    """Hub revision; null is resolved to a commit sha when the run starts."""
    max_new_tokens: Annotated[Int, Field(ge=1, le=1024)] = 30
    """Length limit in tokens, 1 to 1024."""
    num_beams: Annotated[Int, Field(ge=1, le=32)] = 1
    """1 is greedy decoding, as in the paper; at most 32."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Draw each token from the likeliest that make up this probability, above 0 to 1; null is the likeliest token."""
    temperature: Annotated[float, Field(gt=0, le=10)] | None = None
    """Draw each token, the logits divided by this, above 0 to 10; null is 1 where top_p draws."""
    prompt: Words | None = None
    """Text that the captioner continues, the task of Florence-2, or the instruction of a chat or language model. `{c}`,
    `{definition}` and `{hypernym}` in it stand for those of the image's class.
    """
    dtype: Dtype = "float32"
    """Arithmetic of the captioner."""
    batch_size: Annotated[Int, Field(ge=1, le=4096)] = 32
    """Images a batch, 1 to 4096. Part of the recipe, because rounding depends on it."""

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn at random, each image by its own seed."""
        return self.top_p is not None or self.temperature is not None


class PromptPart(Part):
    """How a prompt is written."""

    strategy: Text
    """A name of `hfsyn strategies ls`, or a Python function of one's own: `path/to/file.py:function`."""
    strategy_sha256: Text | None = None
    """Content of that file, 64 hex digits; null is filled in when the run starts."""
    domain: Text | None = None
    """The word of the strategy `domain`: pet, aircraft, satellite, ..."""
    captions_file: Text | None = None
    """Texts by source id in place of a captioner's: a JSON lines, CSV or Parquet file, or
    `hf://datasets/REPO_ID@REVISION`, with a column `source_id` and a column `caption` or `prompt`.
    """
    captions_revision: Text | None = None
    """Content of that file (`sha256:...`) or commit of that dataset; null is filled in when the run starts."""
    captions_missing: Literal["refuse", "class-name"] = "refuse"
    """What becomes of images that it has no text for: `refuse` the run, or take the `class-name` alone."""
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
    """Which of the checkpoint's weights: `fp16`, ...; null is the plain ones, or without those the only others,
    whose name is filled in when the run starts.
    """
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
    width: Annotated[Int, Field(ge=8, le=8192, multiple_of=8)] | None = None
    """Pixels, a multiple of 8; null is the model's own size."""
    height: Annotated[Int, Field(ge=8, le=8192, multiple_of=8)] | None = None
    """Pixels, a multiple of 8; null is the model's own size."""
    max_sequence_length: Annotated[Int, Field(ge=8, le=4096)] | None = None
    """Tokens of a prompt that T5 reads in SD 3, FLUX and PixArt, 8 to 4096; null is the pipeline's own number."""
    lora: Text | None = None
    """LoRA weights that are added to the model: a Hub id, a local folder or file. Safetensors only."""
    lora_file: Text | None = None
    """The file in that repository or folder; null is `pytorch_lora_weights.safetensors`."""
    lora_revision: Text | None = None
    """Hub revision of the LoRA; null is resolved to a commit sha, or to the file's content, when the run starts."""
    lora_scale: Annotated[float, Field(ge=-10, le=10)] = 1.0
    """What the LoRA is multiplied with, -10 to 10."""
    init: Literal["none", "source"] = "none"
    """Where an image starts from: `none` is noise alone; `source` is the real image behind its prompt (img2img), whose
    looks are then carried over: less private, and the card says so.
    """
    strength: Annotated[float, Field(gt=0, le=1)] = 0.75
    """With `init: source`: the share of the steps that is done, above 0 to 1, and so how little is left of it."""
    dtype: Dtype = "bfloat16"
    """Arithmetic of the generator."""
    batch_size: Annotated[Int, Field(ge=1, le=1024)] = 16
    """Images a batch, 1 to 1024. Part of the recipe, because rounding depends on it."""
    safety_checker: bool = True
    """Run the checkpoint's safety checker where it has one; a hit is retried, then set aside."""
    max_retries: Annotated[Int, Field(ge=0, le=100)] = 3
    """How often a flagged, NaN or flat image is made again with a new seed before it is set aside, 0 to 100."""

    @model_validator(mode="after")
    def _lora_is_named(self) -> GeneratePart:
        if self.lora is None and (self.lora_file is not None or self.lora_revision is not None):
            raise HfsynError(
                "The recipe has generate.lora_file or generate.lora_revision, and no generate.lora.",
                "Name the LoRA weights, or leave both out.",
            )
        return self

    @model_validator(mode="after")
    def _steps_from_source(self) -> GeneratePart:
        if self.init == "source" and int(self.steps * self.strength) < 1:
            raise HfsynError(
                f"generate.strength {self.strength:g} of {self.steps} steps is less than one step.",
                "Set more steps, or more strength.",
            )
        # Some pipelines round the steps that are spared down, and without one the image is drowned in noise.
        if self.init == "source" and self.strength < 1 and int(self.steps - self.steps * self.strength) < 1:
            raise HfsynError(
                f"generate.strength {self.strength:g} spares none of {self.steps} steps, so that nothing of the real "
                "image would be left.",
                "Set more steps, or less strength.",
            )
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
    """Short side in pixels to which images are resized before they are stored; null keeps them as generated."""
    shard_rows: Annotated[Int, Field(ge=1, le=100_000)] = 1000
    """Rows a shard, 1 to 100,000."""


PARTS: dict[str, type[Part]] = {
    "source": SourcePart,
    "caption": CaptionPart,
    "prompt": PromptPart,
    "generate": GeneratePart,
    "store": StorePart,
}
