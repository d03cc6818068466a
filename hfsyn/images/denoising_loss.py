"""The denoising loss of a text-to-image model: how badly it predicts the noise on a real image, told a prompt.

What the model was trained to lower: the mean squared error of its prediction (noise, velocity or flow) on a latent to
which a known noise was added. With the same noise, a prompt that tells more about the image gives a lower loss.
"""

from collections.abc import Callable, Sequence
from typing import Any

from builders.errors import brief
from hfsyn.errors import HfsynError
from hfsyn.images.encoding import fitted
from hfsyn.images.guidance import is_stable_diffusion
from hfsyn.models.pipelines import load_pipeline, size_of
from hfsyn.recipes.recipe import GeneratePart

Predict = Callable[[Any, float, Sequence[str]], Any]
"""``predict(noisy latents, share of noise, prompts)``: what the network predicts, of the latents' shape."""


class OtherFamilyError(HfsynError):
    """The denoising loss of the generator cannot be measured: it is of another family."""


class DenoisingLoss:
    """Of a recipe's generator: Stable Diffusion 1, 2 and XL (noise or velocity), Stable Diffusion 3 and FLUX (flow).

    Raises HfsynError if the model cannot be loaded, and OtherFamilyError if it is of another family.
    """

    def __init__(self, recipe: GeneratePart, device: str, *, allow_pickle: bool = False) -> None:
        pipe, _ = load_pipeline(recipe, None, allow_pickle=allow_pickle)
        families: dict[str, Callable[[], Predict]] = {"StableDiffusion3Pipeline": self._sd3, "FluxPipeline": self._flux}
        kind = type(pipe).__name__
        if not is_stable_diffusion(pipe) and kind not in families:
            said = f"The denoising loss of {brief(recipe.model)}, a {kind}, cannot be measured."
            raise OtherFamilyError(said, "It can for Stable Diffusion 1, 2 and 3, SDXL and FLUX.")
        self._size = size_of(pipe, recipe, whole=True)
        self._pipe, self._recipe, self.device = pipe.to(device), recipe, device
        self._schedule = _training_schedule(pipe) if is_stable_diffusion(pipe) else None
        self._predict = self._unet() if is_stable_diffusion(pipe) else families[kind]()

    def fit(self, image: Any) -> Any:
        """A real image (RGB, of any size) as `latents` takes it: cropped and resized as the recipe's images are."""
        return fitted(image, self._size["width"], self._size["height"])

    def latents(self, images: Sequence[Any]) -> Any:
        """Images of `fit` as latents: batch x channels x height/8 x width/8, in the model's dtype on its device.

        The mode of the autoencoder is taken, in float32, since SDXL's overflows in half precision.
        """
        import torch
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents

        vae, dtype = self._pipe.vae, self._network().dtype
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
            noise = noise.to(latents)
            if self._schedule is None:
                noisy, target = (1 - share) * latents + share * noise, noise - latents
            else:
                step = torch.full((len(latents),), self._step(share), device=latents.device)
                noisy = self._schedule.add_noise(latents, noise, step)
                kind = self._schedule.config.prediction_type
                target = {"epsilon": noise, "sample": latents}.get(kind)
                target = self._schedule.get_velocity(latents, noise, step) if target is None else target
            error = (self._predict(noisy, share, prompts).float() - target.float()) ** 2
            return [float(value) for value in error.flatten(1).mean(1).cpu()]

    def _network(self) -> Any:
        return self._pipe.unet if self._schedule is not None else self._pipe.transformer

    def _step(self, share: float) -> int:
        assert self._schedule is not None
        return int(share * self._schedule.config.num_train_timesteps)

    def _unet(self) -> Predict:
        pipe = self._pipe

        def predict(noisy: Any, share: float, prompts: Sequence[str]) -> Any:
            import torch

            embeddings, _, *pooled = pipe.encode_prompt(
                list(prompts), device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
            )
            scale, channels, added = None, pipe.unet.config.time_cond_proj_dim, None
            if channels is not None:  # the guidance scale is an input of a network that was distilled to take it
                scales = torch.full((len(noisy),), self._recipe.guidance_scale - 1)
                scale = pipe.get_guidance_scale_embedding(scales, embedding_dim=channels).to(noisy)
            if pooled:  # SDXL is also told the size, as that of the original image, uncropped
                size = self._size["height"], self._size["width"]
                told = pipe._get_add_time_ids(
                    size, (0, 0), size, embeddings.dtype, text_encoder_projection_dim=pooled[0].shape[-1]
                )
                added = {"text_embeds": pooled[0], "time_ids": told.to(noisy.device).repeat(len(noisy), 1)}
            return pipe.unet(
                noisy,
                self._step(share),
                encoder_hidden_states=embeddings,
                timestep_cond=scale,
                added_cond_kwargs=added,
                return_dict=False,
            )[0]

        return predict

    def _sd3(self) -> Predict:
        pipe = self._pipe

        def predict(noisy: Any, share: float, prompts: Sequence[str]) -> Any:
            import torch

            embeddings, _, pooled, _ = pipe.encode_prompt(
                list(prompts), None, None, device=self.device, do_classifier_free_guidance=False, **self._tokens()
            )
            return pipe.transformer(
                hidden_states=noisy,
                timestep=torch.full((len(noisy),), 1000 * share, device=noisy.device),
                encoder_hidden_states=embeddings,
                pooled_projections=pooled,
                return_dict=False,
            )[0]

        return predict

    def _flux(self) -> Predict:
        pipe = self._pipe

        def predict(noisy: Any, share: float, prompts: Sequence[str]) -> Any:
            import torch

            rows, channels, height, width = noisy.shape
            embeddings, pooled, text_ids = pipe.encode_prompt(list(prompts), device=self.device, **self._tokens())
            guidance = None
            if pipe.transformer.config.guidance_embeds:
                guidance = torch.full((rows,), self._recipe.guidance_scale, device=noisy.device)
            packed = pipe.transformer(
                hidden_states=pipe._pack_latents(noisy, rows, channels, height, width),
                timestep=torch.full((rows,), share, device=noisy.device, dtype=noisy.dtype),
                guidance=guidance,
                pooled_projections=pooled,
                encoder_hidden_states=embeddings,
                txt_ids=text_ids,
                img_ids=pipe._prepare_latent_image_ids(rows, height // 2, width // 2, noisy.device, noisy.dtype),
                return_dict=False,
            )[0]
            return pipe._unpack_latents(packed, self._size["height"], self._size["width"], pipe.vae_scale_factor)

        return predict

    def _tokens(self) -> dict[str, int]:
        limit = self._recipe.max_sequence_length
        return {} if limit is None else {"max_sequence_length": limit}


def _training_schedule(pipe: Any) -> Any:
    """The schedule of noise that the model was trained with, which its sampler's configuration describes."""
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(pipe.scheduler.config)
