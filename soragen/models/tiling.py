"""Frames too large for a VAE at once: it works on tiles of them, which overlap and are blended.

A tile passes as a whole clip, one after the other, so that memory is that of one tile however many there are. What is
waiting for the last tile lies in temporary files. The numbers are not those of whole frames, as a tile knows less of
the picture. Where two of them overlap, the weight of one falls in a line as that of the other rises.

Axis letters: B batch, C channels, T frames, H, W pixels; h, w latents.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from typing import IO, Protocol, runtime_checkable

import torch
from torch import Tensor

from soragen.errors import ResourceError
from soragen.models.family import Vae

OVERLAP, MARGIN = 8, 3
"""Latents that two neighbours share at least, and those at either end of them that do not count: next to its edge a
tile sees the zeros beside it, not the picture. Between the margins one tile fades into the next."""


def fit_tile(height: int, width: int, area: int) -> tuple[int, int] | None:
    """The tile (h, w) of at most `area` latents that cuts `height` x `width` of them into the fewest; None if none.

    A tile is at least two overlaps long where it is cut, so that each place lies in two tiles on an axis at most.
    """
    longest = max(height, width)
    sides = [(rows, columns) for rows in range(1, longest) for columns in range(1, longest // rows + 1)]
    for rows, columns in sorted(sides, key=lambda count: (count[0] * count[1], sum(count))):
        tile = side_of(height, rows), side_of(width, columns)
        is_long = (rows == 1 or tile[0] >= 2 * OVERLAP) and (columns == 1 or tile[1] >= 2 * OVERLAP)
        if is_long and math.prod(tile) <= area:
            return tile
    return None


def side_of(length: int, count: int) -> int:
    """How long `count` tiles are that cover `length` latents together."""
    return -(-(length + (count - 1) * OVERLAP) // count)


def lay_tiles(length: int, tile: int) -> list[slice]:
    """Where tiles of `tile` latents lie on an axis of `length`: from end to end, evenly spaced."""
    if tile >= length:
        return [slice(0, length)]
    count = -(-(length - OVERLAP) // (tile - OVERLAP))
    starts = [round(index * (length - tile) / (count - 1)) for index in range(count)]
    return [slice(start, start + tile) for start in starts]


def lay_weights(tiles: list[slice], stride: int) -> list[Tensor]:
    """What each tile counts along its axis, in pixels of `stride` a latent: at every place they add up to 1."""
    length, margin, ramp = tiles[-1].stop * stride, MARGIN * stride, (OVERLAP - 2 * MARGIN) * stride
    weights = []
    for tile in (scaled(tile, stride) for tile in tiles):
        place = torch.arange(tile.start, tile.stop) + 0.5
        rise = (place - tile.start - margin) / ramp if tile.start else torch.ones(len(place))
        fall = (tile.stop - margin - place) / ramp if tile.stop < length else torch.ones(len(place))
        weights.append(torch.minimum(rise, fall).clamp(0, 1))
    total = torch.zeros(length)
    for tile, weight in zip(tiles, weights, strict=True):
        total[scaled(tile, stride)] += weight
    return [weight / total[scaled(tile, stride)] for tile, weight in zip(tiles, weights, strict=True)]


def scaled(tile: slice, stride: int) -> slice:
    """A tile of latents in pixels."""
    return slice(tile.start * stride, tile.stop * stride)


@dataclass(frozen=True)
class Place:
    """Where a tile lies in the picture, in latents; height, width: of the whole of it."""

    rows: slice
    columns: slice
    height: int
    width: int

    def cut(self, whole: Tensor, stride: int) -> Tensor:
        """The tile of `whole` [..., H, W], which has `stride` values a latent."""
        return whole[..., scaled(self.rows, stride), scaled(self.columns, stride)]


@runtime_checkable
class TwoPartVae(Vae, Protocol):
    """A VAE whose decoder is cut after its layers at the size of the latents: they see far and take little memory.

    Tiles are cut between the two parts. decode is finish(begin(latents)).
    """

    def begin(self, latents: Tensor, *, generator: torch.Generator) -> Iterator[Tensor]:
        """Chunks [1, D, t, h, w] in height and width of the latents. generator: of what is drawn, not used yet."""
        ...

    def finish(self, features: Iterable[Tensor], *, generator: torch.Generator, place: Place) -> Iterator[Tensor]:
        """Chunks of frames as those of `decode`, of the tile at `place`. generator: as `begin` left it."""
        ...


@runtime_checkable
class JoiningVae(Vae, Protocol):
    """A VAE that looks at whole frames to join what it decoded. decode is join(decode_apart(latents))."""

    def decode_apart(self, latents: Tensor) -> Iterator[Tensor]: ...

    def join(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]: ...


class TiledVae:
    """See `soragen.models.family.Vae`. A decoder that draws noise while it makes frames larger draws that of the whole
    frame for each tile, and cuts it.

    tile: latents (h, w) that the VAE takes at once. stride: pixels of a latent, (height, width). Raises ResourceError
    when the folder for temporary files is full.
    """

    def __init__(self, vae: Vae, tile: tuple[int, int], stride: tuple[int, int]) -> None:
        self.vae, self.tile, self.stride = vae, tile, stride

    def encode(self, frames: Iterable[Tensor]) -> Tensor:
        """Latents [1, C, T, h, w] of chunks of frames [t, H, W, 3] in 0..1."""
        with ExitStack() as files:
            clip = Spool((chunk.half() for chunk in frames), files)
            height, width = (side // stride for side, stride in zip(clip.shape[1:3], self.stride, strict=True))
            rows, columns = lay_tiles(height, self.tile[0]), lay_tiles(width, self.tile[1])
            latents: Tensor | None = None
            for (row, y), (column, x) in product(weighted(rows, 1), weighted(columns, 1)):
                inside = (slice(None), scaled(row, self.stride[0]), scaled(column, self.stride[1]))
                part = self.vae.encode(chunk[inside].float() for chunk in clip)
                if latents is None:
                    latents = part.new_zeros((*part.shape[:3], height, width))
                latents[..., row, column] += part * (y[:, None] * x).to(part)
            assert latents is not None
            return latents

    def decode(self, latents: Tensor, *, seed: int = 0) -> Iterator[Tensor]:
        """Chunks of frames [t, H, W, 3] float32 in 0..1 on the CPU, of latents [1, C, T, h, w].

        The first one comes when all tiles but the last have passed.
        """
        frames = self._blend(latents, seed)
        return self.vae.join(frames) if isinstance(self.vae, JoiningVae) else frames

    def _blend(self, latents: Tensor, seed: int) -> Iterator[Tensor]:
        height, width = latents.shape[3:]
        rows, columns = lay_tiles(height, self.tile[0]), lay_tiles(width, self.tile[1])
        tiles = list(product(weighted(rows, self.stride[0]), weighted(columns, self.stride[1])))
        with ExitStack() as files:
            decode = self._decoder(latents, seed, files)
            streams: list[Iterator[Tensor]] = []
            for (row, _), (column, _) in tiles:
                stream = decode(row, column)
                is_last = len(streams) == len(tiles) - 1
                streams.append(stream if is_last else iter(Spool((chunk.half() for chunk in stream), files)))
            for chunks in zip(*streams, strict=True):
                sides = (height * self.stride[0], width * self.stride[1])
                frames = torch.zeros(len(chunks[0]), *sides, 3)  #        [t, H, W, 3]
                for chunk, ((row, y), (column, x)) in zip(chunks, tiles, strict=True):
                    inside = frames[:, scaled(row, self.stride[0]), scaled(column, self.stride[1])]
                    inside += chunk * (y[:, None] * x)[..., None]
                yield frames.clamp_(0, 1)

    def _decoder(self, latents: Tensor, seed: int, files: ExitStack) -> Callable[[slice, slice], Iterator[Tensor]]:
        """Decodes the tile in some rows and columns."""
        vae = self.vae
        if isinstance(vae, JoiningVae):
            return lambda row, column: vae.decode_apart(latents[..., row, column])
        if not isinstance(vae, TwoPartVae):
            return lambda row, column: vae.decode(latents[..., row, column], seed=seed)
        generator = torch.Generator("cpu").manual_seed(seed)
        features, left = Spool(vae.begin(latents, generator=generator), files), generator.get_state()

        def finish(row: slice, column: slice) -> Iterator[Tensor]:
            generator = torch.Generator("cpu")
            generator.set_state(left)
            place = Place(row, column, *latents.shape[3:])
            return vae.finish((chunk[..., row, column] for chunk in features), generator=generator, place=place)

        return finish


def weighted(tiles: list[slice], stride: int) -> list[tuple[slice, Tensor]]:
    return list(zip(tiles, lay_weights(tiles, stride), strict=True))


class Spool:
    """Tensors in a temporary file, to be read any number of times.

    Frames are put there in 16 bits, a sixteenth of a step of 8-bit colour at worst.
    """

    def __init__(self, chunks: Iterable[Tensor], files: ExitStack) -> None:
        """Reads all of `chunks`. The file goes when `files` are closed."""
        self._file: IO[bytes] = files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (`files` close it)
        self._kinds: list[tuple[torch.Size, torch.dtype]] = []
        for chunk in chunks:
            try:
                self._file.write(chunk.cpu().contiguous().view(torch.uint8).numpy().data)
            except OSError as error:
                raise ResourceError(
                    f"tiles of the frames cannot be kept in {tempfile.gettempdir()}: {error.strerror}",
                    "free some space there, or set TMPDIR to a folder with more",
                ) from error
            self._kinds.append((chunk.shape, chunk.dtype))

    @property
    def shape(self) -> torch.Size:
        """Of the first one. Raises ValueError when there is none."""
        if not self._kinds:
            raise ValueError("no frames")
        return self._kinds[0][0]

    def __iter__(self) -> Iterator[Tensor]:
        place = 0
        for shape, dtype in self._kinds:
            self._file.seek(place)
            values = bytearray(self._file.read(math.prod(shape) * dtype.itemsize))
            place += len(values)
            yield torch.frombuffer(values, dtype=dtype).view(shape)
