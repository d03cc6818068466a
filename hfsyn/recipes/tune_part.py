"""How a generator is tuned: the part ``tune`` of a recipe, which decides no byte of a dataset."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hfsyn.errors import HfsynError
from hfsyn.recipes.loading import Amount, Count, Int, Part, Share, Text


class TunePart(Part):
    """How `hfsyn tune` teaches the generator captioned real images. No part of a dataset's fingerprint: that has the
    content of the LoRA that comes out. Defaults are those of diffusers' training scripts, or have another source here.
    """

    dataset: Text | None = None
    """Images and texts in place of the recipe's: a folder, a file or USER/NAME[@REVISION][#CONFIG], as `load_dataset`
    reads it; a folder of image files has its texts in `metadata.jsonl`.
    """
    dataset_revision: Text | None = None
    """Commit of that dataset on the Hub; null is filled in when the tuning starts."""
    split: Text = "train"
    """Of the dataset."""
    image_column: Text | None = None
    """Of the dataset; null finds it."""
    text_column: Text | None = None
    """Of the dataset; null finds it. It may hold lists of texts: one is drawn each time the image is shown, so that a
    text that is in the list twice is shown twice as often.
    """
    enlarge: bool = False
    """Show images that are smaller than the resolution enlarged, instead of leaving them out."""
    per_class: bool = False
    """Make a LoRA for each class, of its images alone, as DataDream does; with `generate.lora` each class gets its own.
    """
    shots: Count | None = None
    """At most this many images of each class, the first in the plan's order; null takes all that are captioned."""
    full: bool = False
    """Train all weights of the network that draws, and keep a whole checkpoint, instead of a LoRA."""
    from_config: bool = False
    """With `full`: begin with random weights, by the seed. Of the network that draws, only the configuration is read;
    a text encoder that is trained and has no weights begins so, too.
    """
    text_encoder: bool = False
    """Train the CLIP text encoders as well: all of their weights, or with a LoRA of their attention."""
    rank: Annotated[Int, Field(ge=1, le=1024)] = 16
    """Of the LoRA, 1 to 1024; its alpha is the same. 16 as in DataDream (arXiv 2407.10910)."""
    targets: Annotated[tuple[Text, ...], Field(min_length=1, strict=False)] | None = None
    """Ends of the names of the layers that get a LoRA; null is the attention's projections."""
    steps: Count = 1000
    """Steps of the optimizer, >= 1."""
    batch_size: Annotated[Int, Field(ge=1, le=10**6)] = 16
    """Images of a step, over all processes and accumulated parts."""
    lr: Annotated[float, Field(gt=0, le=10)] = 1e-4
    """Learning rate of AdamW, above 0 to 10."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Course of the learning rate after the warm-up."""
    decay_from: Share = 0.0
    """With `cosine`: the share of the steps after which the learning rate falls, 0 to 1."""
    warmup_steps: Annotated[Int, Field(ge=0, le=10**9)] = 0
    """Steps of linear warm-up from zero."""
    weight_decay: Amount = 1e-2
    """Of AdamW, on all weights that are trained."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Of AdamW: how slowly its squared gradients are forgotten, 0 to below 1."""
    clip_grad: Amount = 1.0
    """Largest norm of the gradient; 0 is no limit."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Keep an average of the weights over the steps, which forgets as slowly as this, above 0 and below 1 (0.999), and
    fast at the beginning; samples are drawn with it. null keeps the last weights.
    """
    dtype: Literal["float32", "bfloat16"] | None = None
    """Arithmetic of the steps; null is bfloat16 if generate.dtype has 16 bits. Trained weights are float32 anyway."""
    caption_dropout: Share = 0.1
    """Chance that an image is shown with the empty prompt, which guidance needs (arXiv 2207.12598)."""
    uniform: Share | None = None
    """Share of the timesteps that is drawn evenly; the others are from a logit-normal distribution (arXiv 2403.03206).
    null is 1, and 0 for flow matching.
    """
    logit_mean: Annotated[float, Field(ge=-10, le=10)] | None = None
    """Of that distribution, -10 to 10: below 0 there is less noise. null is 0, and for flow matching the logarithm of
    the sampler's fixed shift (1.1 for SD 3, whose shift is 3).
    """
    logit_std: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Of that distribution, above 0 to 10."""
    min_snr: Annotated[float, Field(gt=0, le=1000)] | None = 5.0
    """Gamma of Min-SNR weighting (arXiv 2303.09556), above 0; null, as flow matching, weighs all timesteps alike."""
    crops: Annotated[Int, Field(ge=1, le=100)] = 1
    """Crops of each image that is not of the resolution's shape, at equal distances along its longer side, 1 to 100:
    one is drawn each time the image is shown, and each takes its place in the cache. 1 is the middle alone.
    """
    flip: bool = True
    """Mirror half of the images."""
    prior_images: Annotated[Int, Field(ge=0, le=10**6)] = 0
    """Images that the generator draws as it is, before it is tuned; each step shows as many of them as real ones, so
    that it keeps what it knew (the prior preservation of DreamBooth, arXiv 2208.12242). 0 is none.
    """
    prior_prompts: Annotated[tuple[Text, ...], Field(min_length=1, strict=False)] | None = None
    """What those images are drawn from, in turn; null is the names of the classes: `a photo of {class}`."""
    prior_weight: Amount = 1.0
    """Weight of their loss."""

    @model_validator(mode="after")
    def _consistent(self) -> TunePart:
        if self.from_config and not self.full:
            raise HfsynError("tune.from_config is true, and tune.full is not.", "A LoRA needs weights: set both.")
        if self.dataset is None and any((self.dataset_revision, self.image_column, self.text_column)):
            said = "tune.dataset_revision, image_column or text_column is set, and there is no tune.dataset."
            raise HfsynError(said, "Leave it out.")
        if self.per_class and (self.full or self.dataset is not None):
            what = "tune.full" if self.full else "tune.dataset"
            said = f"tune.per_class is true, and {what} is set."
            raise HfsynError(said, "A LoRA for each class is made of a recipe's classes: leave one of the two out.")
        if self.dataset is not None and self.shots is not None:
            said = f"tune.shots is {self.shots} images of each class, and tune.dataset has no classes."
            raise HfsynError(said, "Leave it out.")
        if self.from_config and self.prior_images:
            said = f"tune.prior_images is {self.prior_images}, and tune.from_config begins with random weights."
            raise HfsynError(said, "There is nothing to keep: leave tune.prior_images out.")
        return self
