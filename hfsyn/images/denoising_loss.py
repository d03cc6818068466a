"""The denoising loss of a text-to-image model: how badly it predicts the noise on a real image, told a prompt.

What the model was trained to lower: the mean squared error of its prediction (noise, velocity or flow) on a latent to
which a known noise was added. With the same noise, a prompt that tells more about the image gives a lower loss. Its
parts are those of a training step, too: `hfsyn.tuning` puts them together again.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from builders.errors import brief
from hfsyn.errors import HfsynError
from hfsyn.images.encoding import fitted
from hfsyn.images.guidance import is_stable_diffusion
from hfsyn.models.pipelines import load_pipeline, size_of
from hfsyn.recipes.recipe import GeneratePart

Conditions = Mapping[str, Any]
"""What a network is told of some prompts: tensors whose first dimension is the prompts."""
Encode = Callable[[Sequence[str]], Conditions]
Predict = Callable[[Any, Any, Conditions], Any]
"""``predict(noisy latents, shares of noise, conditions)``: what the network predicts, of the latents' shape."""


class OtherFamilyError(HfsynError):
    """The denoising loss of the generator cannot be measured: it is of another family."""


class DenoisingLoss:
    """Of a recipe's generator: Stable Diffusion 1, 2 and XL (noise or velocity), Stable Diffusion 3 and FLUX (flow).

    `fresh` names parts that begin with random weights, as in `load_pipeline`; `negative` is the recipe's negative
    prompt, of which only matters whether there is one. Raises HfsynError if the model cannot be
    loaded, and OtherFamilyError if it is of another family.
    """

    def __init__(
        self,
        recipe: GeneratePart,
        device: str,
        *,
        allow_pickle: bool = False,
        fresh: Mapping[str, int] | None = None,
        negative: str | None = None,
    ) -> None:
        pipe, _ = load_pipeline(recipe, None, allow_pickle=allow_pickle, fresh=fresh)
        families: dict[str, Callable[[], tuple[Encode, Predict]]] = {
            "StableDiffusion3Pipeline": self._sd3,
            "FluxPipeline": self._flux,
        }
        kind = type(pipe).__name__
        if not is_stable_diffusion(pipe) and kind not in families:
            said = f"The denoising loss of {brief(recipe.model)}, a {kind}, cannot be measured."
            raise OtherFamilyError(said, "It can for Stable Diffusion 1, 2 and 3, SDXL and FLUX.")
        # Guidance by SDXL itself draws away from zeros, and not from the text that is empty.
        self._empty_is_zero = negative is None and getattr(pipe.config, "force_zeros_for_empty_prompt", False)
        self._size = size_of(pipe, recipe, whole=True)
        self._pipe, self._recipe, self.device = pipe.to(device), recipe, device
        self._schedule = _training_schedule(pipe) if is_stable_diffusion(pipe) else None
        self._encode, self._predict = self._unet() if is_stable_diffusion(pipe) else families[kind]()

    def fit(self, image: Any, at: float = 0.5) -> Any:
        """A real image (RGB, of any size) as `latents` takes it: cropped and resized as the recipe's images are; `at`
        as of `fitted`.
        """
        return fitted(image, self._size["width"], self._size["height"], at)

    def latents(self, images: Sequence[Any]) -> Any:
        """Images of `fit` as latents: batch x channels x height/8 x width/8, in the model's dtype on its device.

        The mode of the autoencoder is taken, in float32, since SDXL's overflows in half precision.
        """
        import torch
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents

        vae, dtype = self._pipe.vae, self.network.dtype
        pixels = self._pipe.image_processor.preprocess(list(images))
        before, config = vae.dtype, vae.config
        with torch.inference_mode():
            vae.to(dtype=torch.float32)
            try:
                found = retrieve_latents(vae.encode(pixels.to(self.device, torch.float32)), sample_mode="argmax")
            finally:
                vae.to(dtype=before)
            mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
            if self._schedule is not None and mean is not None and std is not None:
                mean, std = (torch.tensor(x).view(1, -1, 1, 1).to(found) for x in (mean, std))
                found = (found - mean) / std
            else:
                found = found - (getattr(config, "shift_factor", None) or 0.0)
            return (found * config.scaling_factor).to(dtype)

    def losses(self, latents: Any, noise: Any, share: float, prompts: Sequence[str]) -> list[float]:
        """The mean squared error for each image.

        Args:
            latents: of `latents`.
            noise: standard normal, of the same shape.
            share: of the way from the image to pure noise, above 0 and below 1: the timestep.
            prompts: what the model is told, one for each image.
        """
        import torch

        with torch.inference_mode():
            shares = torch.full((len(latents),), share, dtype=torch.float64)
            error = self.errors(latents, noise.to(latents), shares, self.encode(prompts))
            return [float(value) for value in error.cpu()]

    def encode(self, prompts: Sequence[str], *, gradients: bool = False) -> Conditions:
        """What the network is told of these prompts; a row depends on its own prompt alone, but for rounding."""
        import torch

        with torch.set_grad_enabled(gradients):
            return self._encode(prompts)

    def errors(self, latents: Any, noise: Any, shares: Any, conditions: Conditions) -> Any:
        """The mean squared error of each image, (n,), with gradients where they are asked for.

        Args:
            latents: of `latents`.
            noise: standard normal, of the same shape, dtype and device.
            shares: float64 (n,) on the CPU: of the way from each image to pure noise, from 0 to below 1.
            conditions: of `encode`, one prompt for each image.
        """
        import torch

        if self._schedule is None:
            share = shares.to(latents).view(-1, 1, 1, 1)
            noisy, target = (1 - share) * latents + share * noise, noise - latents
        else:
            steps = self.steps(shares).to(latents.device)
            noisy = self._schedule.add_noise(latents, noise, steps)
            kind = self._schedule.config.prediction_type
            target = {"epsilon": noise, "sample": latents}.get(kind)
            target = self._schedule.get_velocity(latents, noise, steps) if target is None else target
        wide = torch.promote_types(latents.dtype, torch.float32)
        error = (self._predict(noisy, shares, conditions).to(wide) - target.to(wide)) ** 2
        return error.flatten(1).mean(1)

    @property
    def schedule(self) -> Any:
        """The schedule of noise that the model was trained with, a `DDPMScheduler`; None for flow matching."""
        return self._schedule

    @property
    def network(self) -> Any:
        """The network that predicts: a UNet, or a transformer."""
        return self._pipe.unet if is_stable_diffusion(self._pipe) else self._pipe.transformer

    @property
    def pipe(self) -> Any:
        """The whole pipeline."""
        return self._pipe

    @property
    def text_encoders(self) -> dict[str, Any]:
        """CLIP's text encoders in the pipeline, by name, without T5."""
        parts = self._pipe.components.items()
        return {name: part for name, part in parts if type(part).__name__.startswith("CLIPText")}

    def rest_to(self, device: str, staying: Sequence[Any] = ()) -> None:
        """Move all networks of the pipeline but the one that predicts, and those that are `staying`."""
        import torch

        for part in self._pipe.components.values():
            if isinstance(part, torch.nn.Module) and not any(part is one for one in (self.network, *staying)):
                part.to(device)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of its images, in pixels."""
        return self._size["width"], self._size["height"]

    def steps(self, shares: Any) -> Any:
        """The timesteps of the model's own schedule at these shares of noise, int64 (n,)."""
        assert self._schedule is not None
        return (shares * self._schedule.config.num_train_timesteps).long()

    def _unet(self) -> tuple[Encode, Predict]:
        pipe = self._pipe

        def encode(prompts: Sequence[str]) -> Conditions:
            embeddings, _, *pooled = pipe.encode_prompt(
                list(prompts), device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
            )
            found = {"embeddings": embeddings, **({"pooled": pooled[0]} if pooled else {})}
            if self._empty_is_zero:
                told = [float(bool(prompt)) for prompt in prompts]
                found = {k: part * part.new_tensor(told).view(-1, *[1] * (part.dim() - 1)) for k, part in found.items()}
            return found

        def predict(noisy: Any, shares: Any, conditions: Conditions) -> Any:
            import torch

            embeddings, pooled = conditions["embeddings"], conditions.get("pooled")
            scale, channels, added = None, pipe.unet.config.time_cond_proj_dim, None
            if channels is not None:  # the guidance scale is an input of a network that was distilled to take it
                scales = torch.full((len(noisy),), self._recipe.guidance_scale - 1)
                scale = pipe.get_guidance_scale_embedding(scales, embedding_dim=channels).to(noisy)
            if pooled is not None:  # SDXL is also told the size, as that of the original image, uncropped
                size = self._size["height"], self._size["width"]
                told = pipe._get_add_time_ids(
                    size, (0, 0), size, embeddings.dtype, text_encoder_projection_dim=pooled.shape[-1]
                )
                added = {"text_embeds": pooled, "time_ids": told.to(noisy.device).repeat(len(noisy), 1)}
            return pipe.unet(
                noisy,
                self.steps(shares).to(noisy.device),
                encoder_hidden_states=embeddings,
                timestep_cond=scale,
                added_cond_kwargs=added,
                return_dict=False,
            )[0]

        return encode, predict

    def _sd3(self) -> tuple[Encode, Predict]:
        pipe = self._pipe

        def encode(prompts: Sequence[str]) -> Conditions:
            embeddings, _, pooled, _ = pipe.encode_prompt(
                list(prompts), None, None, device=self.device, do_classifier_free_guidance=False, **self._tokens()
            )
            return {"embeddings": embeddings, "pooled": pooled}

        def predict(noisy: Any, shares: Any, conditions: Conditions) -> Any:
            return pipe.transformer(
                hidden_states=noisy,
                timestep=(1000 * shares).float().to(noisy.device),
                encoder_hidden_states=conditions["embeddings"],
                pooled_projections=conditions["pooled"],
                return_dict=False,
            )[0]

        return encode, predict

    def _flux(self) -> tuple[Encode, Predict]:
        pipe = self._pipe

        def encode(prompts: Sequence[str]) -> Conditions:
            embeddings, pooled, _ = pipe.encode_prompt(list(prompts), device=self.device, **self._tokens())
            return {"embeddings": embeddings, "pooled": pooled}

        def predict(noisy: Any, shares: Any, conditions: Conditions) -> Any:
            import torch

            rows, channels, height, width = noisy.shape
            embeddings = conditions["embeddings"]
            guidance = None
            if pipe.transformer.config.guidance_embeds:
                guidance = torch.full((rows,), self._recipe.guidance_scale, device=noisy.device)
            packed = pipe.transformer(
                hidden_states=pipe._pack_latents(noisy, rows, channels, height, width),
                timestep=shares.to(noisy),
                guidance=guidance,
                pooled_projections=conditions["pooled"],
                encoder_hidden_states=embeddings,
                txt_ids=torch.zeros(embeddings.shape[1], 3).to(embeddings),  # as the pipeline numbers them
                img_ids=pipe._prepare_latent_image_ids(rows, height // 2, width // 2, noisy.device, noisy.dtype),
                return_dict=False,
            )[0]
            return pipe._unpack_latents(packed, self._size["height"], self._size["width"], pipe.vae_scale_factor)

        return encode, predict

    def _tokens(self) -> dict[str, int]:
        limit = self._recipe.max_sequence_length
        return {} if limit is None else {"max_sequence_length": limit}


def _training_schedule(pipe: Any) -> Any:
    """The schedule of noise that the model was trained with, which its sampler's configuration describes."""
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(pipe.scheduler.config)
