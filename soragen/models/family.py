"""The contract between the engine and a model family.

The engine knows no family: it lays a grid, asks a family for its three networks one after the other, and talks to them
in these terms only. A family differs from another in its configuration, its networks and in

- how the VAE compresses (`Compression`: strides, patch, whether the first frame stands alone);
- what its transformer predicts (a velocity, a noise, the clean latents): `Denoiser` always returns the clean estimate;
- how it takes known frames (`KnownFrames`: by per-frame timesteps, by extra channels, or not at all);
- how its decoder streams (causal, one latent frame at a time, or in runs that overlap by its receptive field).

Axis letters: B batch, C channels, T frames, H, W, L text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from soragen.diffusion.grid import Compression, Grid
from soragen.diffusion.guidance import Denoiser as Denoiser  # part of the contract
from soragen.diffusion.schedule import NoiseLevel
from soragen.models.lora import Targets
from soragen.models.offload import Residence
from soragen.models.weights import Change

NO_CHANGES: Mapping[str, Change] = MappingProxyType({})


@dataclass(frozen=True)
class Context:
    """A prompt as the transformer reads it.

    embeddings: [L, D]. mask: [L], True where there is text; a family that pads keeps the padding, as it was trained.
    """

    embeddings: Tensor
    mask: Tensor


@dataclass(frozen=True, eq=False)
class ImageCondition:
    """Given pictures as a checkpoint sees them that is conditioned on images: beside the noisy latents, not among them.

    channels: [1, C, T, H, W], joined to the latents. tokens: [L, D] of an image encoder, where the checkpoint has one.
    """

    channels: Tensor
    tokens: Tensor | None = None


class TextEncoder(Protocol):
    def encode(self, prompts: Sequence[str]) -> list[Context]: ...

    def dropped(self, prompt: str) -> str:
        """The words at the end of `prompt` for which the encoder has no room; "" when it reads them all."""
        ...


class Transformer(Protocol):
    def bind(self, context: Context, grid: Grid) -> Denoiser: ...


@dataclass(frozen=True, eq=False)
class Keyframe:
    """Known frames that were encoded on their own: latents [1, C, T, H, W], which begin at frame `frame` of the video.

    A picture, or the first two latent frames of a clip. What is encoded as part of the video is known in its place and
    needs none: see `soragen.diffusion.condition.KnownFrames`.
    """

    latents: Tensor
    frame: int


class KeyframeTransformer(Transformer, Protocol):
    """A transformer whose checkpoint was trained with keyframes."""

    def bind(self, context: Context, grid: Grid, keyframes: Sequence[Keyframe] = ()) -> Denoiser: ...


class ImageTransformer(Transformer, Protocol):
    """A transformer whose checkpoint is conditioned on images. It raises InputError when it gets none."""

    def bind(self, context: Context, grid: Grid, image: ImageCondition | None = None) -> Denoiser: ...


@runtime_checkable
class ExpertTransformer(Transformer, Protocol):
    """Two transformers that share the denoising, each with a guidance scale of its own."""

    def is_high(self, level: NoiseLevel) -> bool:
        """Whether the one for high noise takes the step at this level."""
        ...


@runtime_checkable
class RefiningTransformer(Transformer, Protocol):
    """A transformer that goes once more over what was denoised."""

    def refine(self, latents: Tensor, made: Tensor, num_cyclic: int = 0) -> Tensor:
        """Latents [1, C, T, H, W] of a whole timeline, refined where `made` [T] is True; the others stay.

        It may be done in place, as they grow with the duration: what was passed in is not to be used afterwards.

        num_cyclic: so many latent frames after the first come again at the end, where alone they are shown.
        """
        ...


@runtime_checkable
class DoubtingTransformer(Transformer, Protocol):
    """A transformer that is told of more noise than there is, so that it draws anew what its earlier steps made.

    Not where what lies below the noise is a video's own, as it was in training.
    """

    def told(self, level: NoiseLevel, given: bool) -> NoiseLevel:
        """What it is told at `level`. given: some frames are."""
        ...


class Vae(Protocol):
    def encode(self, frames: Iterable[Tensor]) -> Tensor:
        """Latents [1, C, T, H, W], normalised as the transformer expects, of chunks of frames [t, H, W, 3] in 0..1."""
        ...

    def decode(self, latents: Tensor, *, seed: int = 0) -> Iterator[Tensor]:
        """Frames, chunk by chunk, each [t, H, W, 3] float32 in 0..1 on the CPU, from latents [1, C, T, H, W].

        seed: the video's, for decoders that draw noise of their own; others pass over it.
        """
        ...


@dataclass(frozen=True)
class Work:
    """What a grid costs, computed from a checkpoint's config files for `pipeline/plan.py`.

    transformer_flops: of one forward. transformer_bytes, vae_bytes: activations in float32 where each has most of them,
    weights not counted; of a decoder that streams, those of one run of latent frames.
    """

    transformer_flops: float
    transformer_bytes: int
    vae_bytes: int


class Family(Protocol):
    """One folder under `soragen/families/`; the folder's name is `family` in weights.toml."""

    def compression(self, folder: Path) -> Compression:
        """How this checkpoint's pixels become tokens, read from its config files alone."""
        ...

    def latent_channels(self, folder: Path) -> int: ...

    def load_text_encoder(
        self,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        residence: Residence = Residence.RESIDENT,
        quantize: str | None = None,
    ) -> TextEncoder:
        """quantize: how the weights in its blocks are stored, see `soragen.models.quantize`; so of the transformer."""
        ...

    def load_transformer(
        self,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        residence: Residence = Residence.RESIDENT,
        changes: Mapping[str, Change] = NO_CHANGES,
        quantize: str | None = None,
    ) -> Transformer:
        """changes: of the weights as they are loaded, by the names of `lora_targets`."""
        ...

    def lora_targets(self, folder: Path) -> dict[str, Targets]:
        """What a LoRA may change: "" is the one transformer, or "high" and "low" are those for high and low noise."""
        ...

    def load_vae(self, folder: Path, device: torch.device, dtype: torch.dtype) -> Vae: ...

    def work(self, folder: Path, grid: Grid) -> Work: ...


@runtime_checkable
class ConfiguredFamily(Family, Protocol):
    """A family with checkpoints whose published config files do not say all that is built; the list of models does."""

    def with_config(self, config: Mapping[str, Any]) -> Family:
        """The family for a checkpoint whose files lack `config`: see `soragen.checkpoint.Checkpoint.config`.

        Raises InputError for a key that is not known.
        """
        ...

    def takes_attention(self, name: str) -> bool:
        """Whether attention of this name (`soragen.request.ATTENTIONS`) has a part in what is computed."""
        ...


@runtime_checkable
class ImageFamily(Family, Protocol):
    """A family with checkpoints that are conditioned on images. Those take given frames in no other way.

    The transformer of such a checkpoint is an `ImageTransformer`.
    """

    def takes_images(self, folder: Path) -> bool: ...

    def check_images(self, folder: Path, num_images: int) -> None:
        """Raises InputError for more or fewer given frames than the checkpoint was trained with. Loads nothing."""
        ...

    def read_images(
        self,
        folder: Path,
        images: Mapping[int, Tensor],
        grid: Grid,
        *,
        load_vae: Callable[[], Vae],
        device: torch.device,
        dtype: torch.dtype,
    ) -> ImageCondition:
        """What the transformer sees of given frames: number in the clip, from 0, to picture [H, W, 3] in 0..1.

        load_vae: is called when latents are needed. device, dtype: of a network that looks at the pictures; it is gone
        before that. Raises InputError for frames the checkpoint does not take.
        """
        ...


@runtime_checkable
class KeyframeFamily(Family, Protocol):
    """A family with checkpoints that take given frames past the first one as keyframes.

    The transformer of such a checkpoint is a `KeyframeTransformer`.
    """

    def takes_keyframes(self, folder: Path) -> bool: ...


class LatentUpsampler(Protocol):
    """Gives latents twice the height and width, for a second pass of a few steps."""

    def __call__(self, latents: Tensor) -> Tensor:
        """[1, C, T, 2H, 2W] float32 of [1, C, T, H, W], both of unit variance, as the transformer knows them."""
        ...


@runtime_checkable
class LatentUpsamplerFamily(Family, Protocol):
    """A family with checkpoints that have a latent upsampler, and steps for a second pass (`Defaults.second_pass`)."""

    def has_latent_upsampler(self, folder: Path) -> bool: ...

    def upsampler_bytes(self, folder: Path, grid: Grid) -> int:
        """Its weights and, for latents of `grid`, its activations; in float32."""
        ...

    def load_latent_upsampler(self, folder: Path, device: torch.device, dtype: torch.dtype) -> LatentUpsampler: ...


class Upscaler(Protocol):
    """Enlarges finished frames; a stream, so that a video of any length takes the memory of a chunk."""

    factor: int
    """How many times the width and the height."""

    def __call__(self, frames: Iterable[Tensor]) -> Iterator[Tensor]:
        """Chunks [t, factor * H, factor * W, 3] float32 in 0..1 on the CPU, one for each chunk [t, H, W, 3] in 0..1."""
        ...


@runtime_checkable
class UpscalerFamily(Family, Protocol):
    """A family with checkpoints that have an upscaler of their own, learned for what their decoder gives."""

    def upscale_factor(self, folder: Path) -> int:
        """How many times it enlarges height and width; 1 where the checkpoint's folder has none."""
        ...

    def load_upscaler(self, folder: Path, device: torch.device, dtype: torch.dtype) -> Upscaler | None:
        """None where the checkpoint's folder has none."""
        ...
