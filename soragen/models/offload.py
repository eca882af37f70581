"""Networks larger than the memory there is: their blocks come one at a time and go again.

Transformers and text encoders are a list of blocks, each of which is done before the next one begins. Streamed, a block
is on the device while a loop over the list is at it, and without memory otherwise. The numbers are those of the whole
network on the device, bit for bit: what is computed does not change, only when its weights are there.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import safe_open
from torch import Tensor, nn

from soragen.errors import InputError
from soragen.models.quantize import quantised
from soragen.models.weights import Network, Weights, find_weights, load_module, own_names, ready, weight_files

CPU, META = torch.device("cpu"), torch.device("meta")
ALIGNMENT = 256
"""Bytes between the starts of tensors on a device, a multiple of what any kernel asks for."""
SMALLEST_PIECE = 2**22
"""Bytes. torch rounds page-locked memory up to a power of two, so that it is asked for in pieces that are one."""


class Residence(Enum):
    """Where the blocks of a network are between two uses."""

    RESIDENT = "resident"
    """On the device, with all the rest."""
    PINNED = "pinned"
    """In page-locked memory of the machine; each is copied to the CUDA device while the one before it is at work."""
    MAPPED = "mapped"
    """In their file, of which the system keeps in memory what there is room for."""


class Sizes(NamedTuple):
    """Numbers in a network's files: in all blocks, in the largest of them, and in what is not part of a block."""

    blocks: int
    block: int
    rest: int


def measure(files: Path, tables: tuple[str, ...] = ()) -> Sizes:
    """The sizes of the network in `files`, from its headers. Its blocks are the largest of its numbered lists.

    tables: ends of the names of tensors that stay in the file, and do not count. Raises WeightsError.
    """
    lists: defaultdict[str, defaultdict[int, int]] = defaultdict(lambda: defaultdict(int))
    rest = 0
    for path in weight_files(files):
        with safe_open(path, framework="np") as file:  # headers alone, see `weights.open_file`
            for key in own_names(files, file.keys()):
                count = math.prod(file.get_slice(key).get_shape())
                if numbered := re.match(r"(.+?)\.(\d+)\.", key):
                    lists[numbered[1]][int(numbered[2])] += count
                elif not key.endswith(tables):
                    rest += count
    totals = {name: sum(blocks.values()) for name, blocks in lists.items()}
    if not totals:
        return Sizes(0, 0, rest)
    largest = max(totals, key=lambda name: totals[name])
    return Sizes(totals[largest], max(lists[largest].values()), rest + sum(totals.values()) - totals[largest])


def load_network(
    build: Callable[[], Network],
    files: Path,
    *,
    residence: Residence,
    blocks: str,
    table: str | None = None,
    quantize: str | None = None,
    device: torch.device,
    **options: Any,
) -> Network:
    """As `soragen.models.weights.load_module`, which has the other options, with the blocks where `residence` says.

    blocks: the name of the network's list of blocks, over which its forward loops. table: the name of an embedding, of
    which few rows are needed at a time: streamed, they are read from the file. The values of a block are looked at when
    it is first used, which raises WeightsError where they are not finite.

    quantize: "int8" or "fp8", for the matrices in blocks that are resident; see `soragen.models.quantize`. Raises
    InputError for others.
    """
    if residence is Residence.RESIDENT and quantize is None:
        return load_module(build, files, device=device, **options)
    network, weights = find_weights(build, files, **options)
    if quantize is not None:
        if residence is not Residence.RESIDENT:
            raise InputError("blocks that come one at a time are not quantised", "leave --quantize out")
        tensors = quantised(network, blocks, weights.read(weights.stored, device, views=False), quantize)
        network.load_state_dict(dict(tensors), strict=True, assign=True)
        return ready(network)
    away = (f"{blocks}.", *([f"{table}."] if table else []))
    here = weights.read([name for name in weights.stored if not name.startswith(away)], device)
    network.load_state_dict({**network.state_dict(), **dict(here)}, strict=True, assign=True)
    ready(network, away)
    modules = list(network.get_submodule(blocks).children())
    parts = [Part(weights, f"{blocks}.{number}.") for number in range(len(modules))]
    source = Slots(parts, device, residence) if device.type == "cuda" else FromFile(parts, device)
    network.set_submodule(blocks, StreamedBlocks(modules, source), strict=True)
    if table is not None:
        network.set_submodule(table, FileTable(weights, f"{table}.weight", device), strict=True)
    return network


class Source(Protocol):
    """Where the weights of blocks come from."""

    def bring(self, index: int) -> dict[str, Tensor]:
        """The weights of a block on the device, by their names in it."""
        ...

    def release(self) -> None:
        """The block brought last is done: what uses it has been given to the device."""
        ...


class StreamedBlocks(nn.ModuleList):
    """Blocks that have weights while a loop over the list is at them, and are empty before and after."""

    def __init__(self, blocks: Sequence[nn.Module], source: Source) -> None:
        super().__init__(blocks)
        self.source = source

    def __iter__(self) -> Iterator[nn.Module]:
        for index, block in enumerate(self.children()):
            block.load_state_dict(self.source.bring(index), strict=True, assign=True)
            try:
                yield block
            finally:
                block.to(META)
                self.source.release()


class Part:
    """The weights of one block, in their files."""

    def __init__(self, weights: Weights, prefix: str) -> None:
        self.weights, self.prefix = weights, prefix
        self.names = [name for name in weights.stored if name.startswith(prefix)]
        self._checked = False

    def read(self, into: Mapping[str, Tensor], device: torch.device) -> None:
        """Writes every tensor to its memory, by its name in the block. Their values are looked at the first time."""
        places = {self.prefix + name: place for name, place in into.items()}
        for _ in self.weights.read(self.names, device, check=not self._checked, into=places):
            pass
        self._checked = True


@dataclass(frozen=True)
class Layout:
    """How the tensors of a block lie in one row of `size` bytes: name to first byte, shape and type."""

    places: Mapping[str, tuple[int, torch.Size, torch.dtype]]
    size: int

    @classmethod
    def of(cls, part: Part) -> Layout:
        places, size = {}, 0
        for name in part.names:
            shape, dtype = part.weights.shapes[name], part.weights.dtypes[name]
            places[name.removeprefix(part.prefix)] = size, shape, dtype
            size += -(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        return cls(places, size)

    def views(self, row: Tensor) -> dict[str, Tensor]:
        """The tensors in a row of bytes."""
        return {
            name: row[first : first + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
            for name, (first, shape, dtype) in self.places.items()
        }

    def fill(self, row: Tensor, part: Part) -> dict[str, Tensor]:
        """The tensors in a row of bytes, after they have been read."""
        views = self.views(row)
        part.read(views, row.device)
        return views


class FromFile:
    """Blocks read from their mapped file whenever they are needed, into one place for all of them.

    New memory for each would not be given back to the system: it lies between what is kept.
    """

    def __init__(self, parts: Sequence[Part], device: torch.device) -> None:
        self.parts, self.layouts = parts, [Layout.of(part) for part in parts]
        self.place = torch.empty(max(layout.size for layout in self.layouts), dtype=torch.uint8, device=device)

    def bring(self, index: int) -> dict[str, Tensor]:
        return self.layouts[index].fill(self.place, self.parts[index])

    def release(self) -> None:
        """Nothing to do: the next block is written when this one is done."""


class FileTable(nn.Module):
    """An embedding that stays in its file: of its rows, those asked for are read."""

    def __init__(self, weights: Weights, name: str, device: torch.device) -> None:
        super().__init__()
        self.weights, self.name, self.device = weights, name, device

    def forward(self, ids: Tensor) -> Tensor:
        """[...] whole numbers -> [..., D]."""
        return self.weights.read_rows(self.name, ids.to(CPU), self.device)


class Slots:
    """Two places for blocks on a CUDA device: while one is worked with, the next block is copied into the other.

    A stream of its own copies, so that the device computes meanwhile. An event of each place says when its copy is
    there, another one when the block in it is done and may be overwritten.
    """

    def __init__(self, parts: Sequence[Part], device: torch.device, residence: Residence) -> None:
        self.parts, self.device = parts, device
        self.layouts = [Layout.of(part) for part in parts]
        size = max(layout.size for layout in self.layouts)
        self.stored: list[list[Tensor]] | None = None
        if residence is Residence.PINNED:
            self.stored = [self._pin(index) for index in range(len(parts))]
        else:
            self.staging = [pinned(size) for _ in range(2)]
        self.copying = torch.cuda.Stream(device)
        self.copying.wait_stream(torch.cuda.current_stream(device))
        self.places = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2)]
        for place in self.places:
            place.record_stream(self.copying)  # a copy may be under way when they are given back
        self.copied, self.used = ([torch.cuda.Event() for _ in range(2)] for _ in range(2))
        self.holds: list[int | None] = [None, None]
        self.current = 1

    def bring(self, index: int) -> dict[str, Tensor]:
        other = 1 - self.current
        if self.holds[other] != index:
            self._copy(index, other)
        self.current = other
        torch.cuda.current_stream(self.device).wait_event(self.copied[other])
        self._copy((index + 1) % len(self.parts), 1 - other)
        return self.layouts[index].views(self.places[other])

    def release(self) -> None:
        self.used[self.current].record(torch.cuda.current_stream(self.device))

    def _copy(self, index: int, slot: int) -> None:
        """Begins to copy a block into a place, once the block that was there is done."""
        pieces = self.stored[index] if self.stored is not None else [self._stage(index, slot)]
        with torch.cuda.stream(self.copying):
            self.copying.wait_event(self.used[slot])
            first = 0
            for piece in pieces:
                count = min(len(piece), self.layouts[index].size - first)
                self.places[slot][first : first + count].copy_(piece[:count], non_blocking=True)
                first += count
            self.copied[slot].record(self.copying)
        self.holds[slot] = index

    def _stage(self, index: int, slot: int) -> Tensor:
        """A block from its file, in page-locked memory: read while the device is at the block before."""
        self.copied[slot].synchronize()  # the last copy out of this row is done
        self.layouts[index].fill(self.staging[slot], self.parts[index])
        return self.staging[slot]

    def _pin(self, index: int) -> list[Tensor]:
        """A block in page-locked memory, in pieces of the sizes in which that is had without loss."""
        row = torch.empty(self.layouts[index].size, dtype=torch.uint8)
        self.layouts[index].fill(row, self.parts[index])
        pieces, first = [], 0
        for size in piece_sizes(len(row)):
            pieces.append(pinned(size))
            stretch = row[first : first + size]
            pieces[-1][: len(stretch)].copy_(stretch)
            first += size
        return pieces


def piece_sizes(size: int) -> Iterator[int]:
    """Powers of two that hold `size` bytes together, with less than one smallest piece to spare."""
    while size > 0:
        piece = max(SMALLEST_PIECE, 1 << (size.bit_length() - 1))
        yield piece
        size -= piece


def pinned(size: int) -> Tensor:
    """A row of bytes in page-locked memory, which a CUDA device copies from while both go on working."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)
