"""What a run holds in memory at most, and what is done where that is more than there is.

A part that is too large is streamed, block by block; frames that are too large are decoded in tiles. What does not fit
even so is refused, before anything is loaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open

from soragen.diffusion.grid import Grid
from soragen.errors import ResourceError, WeightsError
from soragen.models.device import memory_budget
from soragen.models.family import Work
from soragen.models.offload import Residence, measure
from soragen.models.t5 import TABLES
from soragen.models.tiling import fit_tile
from soragen.models.weights import own_names, weight_files
from soragen.pipeline.handover import held_bytes
from soragen.pipeline.timeline import Timeline
from soragen.request import Request
from soragen.video.read import chunk_frames

PARTS = ("text_encoder", "transformer", "vae")
STREAMED = {"text_encoder": "text", "transformer": "denoise"}
"""Parts whose blocks may come one at a time, and the stages in which they work."""
SOME = ("transformer_2", "image_encoder", "refiner")
"""Parts that only some checkpoints have."""
READ_DTYPE = torch.float32
"""What given frames are encoded in, by the VAE and by an image encoder, whatever decodes: an error in them is in every
step after (docs/precision.md)."""
TURNS = {"transformer_2": "transformer"}
"""Of those, the ones that are never in memory together with that part."""
FIXED_BYTES = 375_000_000
"""Python, torch and its buffers, before any weights: measured, as are those of ffmpeg, on two cores."""
FFMPEG_BYTES, FFMPEG_BYTES_PER_PIXEL = 50_000_000, 170
"""Of the process that encodes: H.264 looks forty frames ahead."""
QUANTIZED_BYTES = 1.02
"""Of a weight in 8 bits, with the scale of its row and the few numbers of a block that stay as they are."""
CLIPS_HELD = 2
"""Copies of the largest given clip, in float32, that are there for a moment as it is read or encoded."""
LATENTS_HELD = 8
"""Copies of a window's latents while it is denoised: noise, known ones, both estimates, the solver's past and next."""


@dataclass(frozen=True)
class Machine:
    """Where the networks run, and in which type each of them."""

    device: torch.device
    text_encoder: torch.dtype
    transformer: torch.dtype
    vae: torch.dtype


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Of a plan, all that counts in memory.

    folder: of the checkpoint. timeline: what is rendered, of what is given, and what the file is made of. grid: of the
    whole video; window_grid: of what is denoised at once. work: of one window, in float32. weight_bytes: of each
    network as it is computed with; of two that take turns in memory, those of the larger; of one that is streamed, what
    of it is there at once; a refiner is there beside the transformer. residence: of those parts that are not resident.
    tile: latents (height, width) that the VAE takes at once; None is all of them. upsampler_bytes: of the network that
    upsamples the latents of a first pass, beside the transformer, in float32; 0 where there is none.
    """

    request: Request
    folder: Path
    machine: Machine
    timeline: Timeline
    grid: Grid
    window_grid: Grid
    latent_channels: int
    work: Work
    weight_bytes: dict[str, int]
    residence: dict[str, Residence] = field(default_factory=dict)
    tile: tuple[int, int] | None = None
    upsampler_bytes: int = 0

    @property
    def latent_shape(self) -> tuple[int, int, int, int, int]:
        """[1, C, T, H, W] of the whole video."""
        return (1, self.latent_channels, *self.grid.latent_shape)

    @property
    def latent_bytes(self) -> int:
        """Of the latents of the whole video, in memory as on disk."""
        return 4 * math.prod(self.latent_shape)

    @property
    def peak_bytes(self) -> dict[str, int]:
        """What each stage holds at most: one network at a time. "encode" is ffmpeg's, beside "decode".

        "read" is there where frames are given. An image encoder is gone before the VAE works, but where a list shares
        the VAE that waits meanwhile.
        """
        window = self.latent_bytes * self.window_grid.latent_shape[0] // self.grid.latent_shape[0]
        transformer = self.work.transformer_bytes * self.machine.transformer.itemsize // 4
        upsampler = self.upsampler_bytes * self.machine.vae.itemsize // 4
        vae = FIXED_BYTES + self.weight_bytes["vae"]
        work = max(self.weight_bytes["image_encoder"], self.vae_bytes(self.tile, READ_DTYPE))
        read = FIXED_BYTES + self.read_vae_bytes + work + 2 * self.latent_bytes
        return {
            "text": FIXED_BYTES + self.weight_bytes["text_encoder"],
            **({"read": read + self.given_bytes} if self.given_bytes else {}),
            "denoise": FIXED_BYTES
            + self.weight_bytes["transformer"]
            + self.weight_bytes["refiner"]
            + max(transformer, upsampler)
            + 2 * self.latent_bytes
            + LATENTS_HELD * window,
            "decode": vae
            + self.vae_bytes(self.tile, self.machine.vae)
            + self.latent_bytes
            + held_bytes(self.timeline, self.request.size),
            "encode": FFMPEG_BYTES + FFMPEG_BYTES_PER_PIXEL * self.request.size.area,
        }

    def residence_of(self, part: str) -> Residence:
        return self.residence.get(part, Residence.RESIDENT)

    @property
    def given_bytes(self) -> int:
        """Of given frames as floats, and of the copies of them; 0 where there are none."""
        counts = [given.count for given in self.timeline.given]
        if self.timeline.from_source:  # it streams, one chunk being made while the one before is in use
            counts += [min(self.grid.num_frames, chunk_frames(self.grid.size.area))] * 2
        return 4 * 3 * self.grid.width * self.grid.height * (sum(counts) + CLIPS_HELD * max(counts, default=0))

    @property
    def read_vae_bytes(self) -> int:
        """Of the VAE's weights where it encodes."""
        return self.weight_bytes["vae"] * READ_DTYPE.itemsize // self.machine.vae.itemsize

    def vae_bytes(self, tile: tuple[int, int] | None, dtype: torch.dtype) -> int:
        """Activations of the VAE, on whole frames or on tiles of them, with the frames that are blended.

        They are counted for the decoder. The encoder's are fewer: 0.45 to 0.96 of them beside their latents, at the
        widths of the published checkpoints (a test).
        """
        whole = self.work.vae_bytes * dtype.itemsize // 4
        if tile is None:
            return whole
        chunk = 4 * 3 * self.grid.compression.stride[0] * self.grid.width * self.grid.height
        return whole * math.prod(tile) // math.prod(self.grid.latent_shape[1:]) + 3 * chunk

    def memory_notes(self) -> list[str]:
        """A line for everything that is done where memory is short."""
        lines = []
        for part, residence in self.residence.items():
            origin = "the machine's memory" if residence is Residence.PINNED else "their file"
            lines.append(
                f"too little memory for the whole {part.replace('_', ' ')}: its blocks come one at a time "
                f"from {origin}, which is slower"
            )
        if self.tile is not None:
            _, down, across = self.grid.compression.stride
            what = "encode and decode" if self.given_bytes else "decode"
            sides = f"{self.tile[1] * across}x{self.tile[0] * down}"
            lines.append(f"too little memory to {what} whole frames: in tiles of {sides}, which is slower")
        return lines


Fitted = TypeVar("Fitted", bound=Footprint)


def fit_memory(plan: Fitted) -> Fitted:
    """The plan with whatever it takes to stay within the memory there is. Raises ResourceError where nothing does."""
    device = plan.machine.device
    available = memory_budget(device).available
    peaks = plan.peak_bytes
    encode = 0 if device.type == "cuda" else peaks["encode"]  # a card of its own is not shared with ffmpeg
    for part in (part for part, stage in STREAMED.items() if peaks[stage] > available):
        if plan.request.quantize is not None:
            needs = f"{peaks[STREAMED[part]] / 1e9:.1f} GB of memory in {plan.request.quantize}"
            raise ResourceError(
                f"the {part.replace('_', ' ')} needs about {needs}, {available / 1e9:.1f} GB are free",
                "leave --quantize out: then its blocks come one at a time, at their own type",
            )
        plan = stream(plan, part)
    for needed, dtype in ((peaks["decode"] + encode, plan.machine.vae), (peaks.get("read", 0), READ_DTYPE)):
        if (excess := needed - available) > 0:
            plan = _cut(plan, excess, dtype)
    peaks = {**plan.peak_bytes, "decode": plan.peak_bytes["decode"] + encode, "encode": 0}
    stage, needed = max(peaks.items(), key=lambda item: item[1])
    if needed > available:
        less = f"{'leave --direct out, or ' if plan.request.direct else ''}ask for a smaller --size"
        looking = FIXED_BYTES + plan.read_vae_bytes + plan.weight_bytes["image_encoder"]
        is_weights = stage == "text" or (stage == "read" and looking > available)
        raise ResourceError(
            f"{stage} needs about {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are free",
            "close other programs" if is_weights else f"{less} or fewer --seconds",
        )
    return plan


def stream(plan: Fitted, part: str) -> Fitted:
    """The plan with the blocks of a part one at a time on the device, and one more where the next is copied meanwhile.

    They wait in page-locked memory, which the system cannot take back: it is left a fifth of what is free.
    """
    on_card, width = plan.machine.device.type == "cuda", getattr(plan.machine, part).itemsize
    sizes = [measure(plan.folder / part, TABLES if part == "text_encoder" else ())]
    sizes += [measure(plan.folder / second) for second, of in TURNS.items() if of == part and has(plan.folder, second)]
    held = width * max(rest + (2 if on_card else 1) * block for _, block, rest in sizes)
    waiting = width * max(blocks for blocks, _, _ in sizes)
    is_pinned = on_card and waiting + FIXED_BYTES <= 0.8 * memory_budget().available
    return replace(
        plan,
        weight_bytes={**plan.weight_bytes, part: held},
        residence={**plan.residence, part: Residence.PINNED if is_pinned else Residence.MAPPED},
    )


def _cut(plan: Fitted, excess: int, dtype: torch.dtype) -> Fitted:
    """The plan with frames cut into the fewest tiles that need `excess` bytes less than whole ones; as it is where none
    do, or where its tiles are smaller already.
    """
    _, height, width = plan.grid.latent_shape
    whole = plan.vae_bytes(None, dtype)
    area = (whole - excess - plan.vae_bytes((0, 0), dtype)) * height * width // max(1, whole)
    tile = fit_tile(height, width, area)
    is_smaller = tile is not None and (plan.tile is None or math.prod(tile) < math.prod(plan.tile))
    return replace(plan, tile=tile) if is_smaller else plan


def weigh(folder: Path, machine: Machine, quantize: str | None = None) -> dict[str, int]:
    """`Footprint.weight_bytes` of the checkpoint in `folder`, from the headers of its files. Raises WeightsError."""
    widths = {
        **{part: getattr(machine, part).itemsize for part in PARTS},
        "image_encoder": READ_DTYPE.itemsize,
        "refiner": machine.transformer.itemsize,
    }
    found = dict.fromkeys(widths, 0)
    for part in (*PARTS, *(part for part in SOME if has(folder, part))):
        counts_as = TURNS.get(part, part)
        width = widths[counts_as]
        is_quantized = quantize is not None and counts_as in STREAMED
        size = _quantized_bytes(folder / part, width) if is_quantized else width * _num_weights(folder / part)
        found[counts_as] = max(found[counts_as], size)
    return found


def has(folder: Path, part: str) -> bool:
    return (folder / part).is_dir()


def _quantized_bytes(folder: Path, width: int) -> int:
    """Of a network with blocks in 8 bits, and room for one block that is read or multiplied with, `width` a weight."""
    blocks, block, rest = measure(folder)
    return math.ceil(QUANTIZED_BYTES * blocks) + width * (block + rest)


def _num_weights(folder: Path) -> int:
    """Numbers in a network's files, from their headers. Raises WeightsError."""
    total = 0
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="np") as file:  # headers alone; torch maps no file larger than memory
                total += sum(math.prod(file.get_slice(key).get_shape()) for key in own_names(folder, file.keys()))
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path} is not a whole safetensors file ({error})", "fetch it again") from error
    return total
