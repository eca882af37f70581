"""Streamed networks give the numbers of whole ones, hold one block at a time and are checked as strictly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from soragen.diffusion.grid import Compression, lay_grid
from soragen.diffusion.schedule import make_schedule
from soragen.errors import WeightsError
from soragen.families.ltx_video.transformer import LtxTransformer
from soragen.families.ltx_video.transformer import TransformerConfig as LtxConfig
from soragen.families.pocket.transformer import PocketTransformer
from soragen.families.pocket.transformer import TransformerConfig as PocketConfig
from soragen.families.wan.transformer import TransformerConfig as WanConfig
from soragen.families.wan.transformer import WanTransformer
from soragen.models import offload
from soragen.models.family import Context
from soragen.models.offload import Part, Residence, Sizes, Slots, StreamedBlocks, load_network, measure, piece_sizes
from soragen.models.t5 import T5Config, T5Encoder
from soragen.models.weights import find_weights
from soragen.size import VideoSize

CPU = torch.device("cpu")
STREAMED = (Residence.MAPPED, Residence.PINNED)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(8, width)
        self.outer = nn.Linear(width, 8)
        self.register_buffer("gain", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * self.outer(self.inner(x).tanh())


class Net(nn.Module):
    """Three blocks of different sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding.from_pretrained(torch.empty(50, 8), freeze=False)
        self.blocks = nn.ModuleList(Block(width) for width in (5, 40, 16))
        self.norm = nn.LayerNorm(8)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def write(network: nn.Module, path: Path, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: (torch.randn(value.shape, generator=generator) / math.sqrt(value[0].numel() if value.ndim > 1 else 1)).to(
            dtype
        )
        for name, value in network.state_dict().items()
    }
    save_file(tensors, path)
    return tensors


def load(path: Path, residence: Residence, **options: Any) -> Net:
    options = {"dtype": torch.float32, "device": CPU, **options}
    return load_network(Net, path, residence=residence, blocks="blocks", table="words", **options)


def held(network: nn.Module) -> int:
    return sum(tensor.numel() for tensor in network.state_dict().values() if not tensor.is_meta)


IDS = torch.tensor([[3, 49, 0, 3]])


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_the_same_numbers_with_one_block_at_a_time(tmp_path: Path, stored: torch.dtype) -> None:
    path = tmp_path / "model.safetensors"
    write(Net(), path, stored)
    whole, streamed = load(path, Residence.RESIDENT), load(path, Residence.MAPPED)
    assert held(streamed) == held(streamed.norm) and not streamed.training
    with torch.inference_mode():
        assert torch.equal(streamed(IDS), whole(IDS))
    assert torch.equal(streamed(IDS), whole(IDS)) and not streamed(IDS).requires_grad
    rest = held(streamed)
    for index, block in enumerate(streamed.blocks):
        assert held(streamed) == rest + held(whole.blocks[index]) == rest + held(block)
    assert held(streamed) == rest


def test_a_loop_that_ends_early_leaves_nothing(tmp_path: Path) -> None:
    write(Net(), tmp_path / "model.safetensors")
    streamed = load(tmp_path, Residence.MAPPED)
    rest = held(streamed)
    with pytest.raises(KeyError):
        for _ in streamed.blocks:
            raise KeyError
    assert held(streamed) == rest


def test_types_and_changes_are_those_of_a_whole_network(tmp_path: Path) -> None:
    write(Net(), tmp_path / "model.safetensors")

    def change(name: str, value: Tensor) -> Tensor:
        return value * 2 if name == "blocks.1.inner.weight" else value

    options: dict[str, Any] = {"dtype": torch.bfloat16, "keep_float32": ("gain",), "change": change}
    whole, streamed = load(tmp_path, Residence.RESIDENT, **options), load(tmp_path, Residence.MAPPED, **options)
    for ours, block in zip(streamed.blocks, whole.blocks, strict=True):
        for name, tensor in block.state_dict().items():
            assert ours.state_dict()[name].dtype == tensor.dtype and torch.equal(ours.state_dict()[name], tensor)
    assert torch.equal(streamed(IDS), whole(IDS))


def test_what_does_not_fit_is_named_before_any_block_is_read(tmp_path: Path) -> None:
    tensors = write(Net(), tmp_path / "model.safetensors")
    del tensors["blocks.2.gain"]
    tensors["blocks.1.inner.bias"] = torch.ones(41)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"1 missing \(blocks\.2\.gain\).*blocks\.1\.inner\.bias .* \[41\]"):
        load(tmp_path, Residence.MAPPED)


@pytest.mark.parametrize("name", ["blocks.1.outer.bias", "words.weight"])
def test_values_that_are_not_finite_are_named_when_they_are_first_used(tmp_path: Path, name: str) -> None:
    tensors = write(Net(), tmp_path / "model.safetensors")
    tensors[name][3] = math.nan
    save_file(tensors, tmp_path / "model.safetensors")
    streamed = load(tmp_path, Residence.MAPPED)
    with pytest.raises(WeightsError, match=rf"{name} holds values that are not finite"):
        streamed(IDS)


def test_sizes_come_from_the_headers(tmp_path: Path) -> None:
    write(Net(), tmp_path / "model.safetensors")
    blocks = [held(block) for block in Net().blocks]
    assert measure(tmp_path) == Sizes(sum(blocks), max(blocks), 400 + 16)
    assert measure(tmp_path, ("words.weight",)).rest == 16
    save_file({"a.0.weight": torch.ones(3), "b.0.x": torch.ones(4), "b.1.x": torch.ones(5), "c": torch.ones(7)},
              tmp_path / "model.safetensors")  # fmt: skip
    assert measure(tmp_path) == (9, 5, 10)


def test_page_locked_memory_comes_in_powers_of_two() -> None:
    for size in (1, 2**22, 2**22 + 1, 700_000_000, 2**30):
        pieces = list(piece_sizes(size))
        assert all(piece & (piece - 1) == 0 for piece in pieces)
        assert size <= sum(pieces) < size + 2**22


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stand-in for a CUDA device, on which everything happens at once; what it was told to wait for."""
    waited: list[str] = []

    class Event:
        def __init__(self) -> None:
            self.recorded = False

        def record(self, stream: Any) -> None:
            self.recorded = True

        def synchronize(self) -> None:
            waited.append("synchronize")

    class Stream:
        def __init__(self, device: Any = None) -> None: ...

        def wait_stream(self, other: Any) -> None: ...

        def wait_event(self, event: Event) -> None:
            waited.append("recorded" if event.recorded else "never used")

    @contextmanager
    def stream(which: Any) -> Iterator[None]:
        yield

    for name, stand_in in {"Event": Event, "Stream": Stream, "stream": stream, "current_stream": Stream}.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
    monkeypatch.setattr(offload, "pinned", lambda size: torch.empty(size, dtype=torch.uint8))
    monkeypatch.setattr(offload, "SMALLEST_PIECE", 256)
    return waited


@pytest.mark.parametrize("residence", STREAMED)
def test_two_places_take_turns(tmp_path: Path, card: list[str], residence: Residence) -> None:
    write(Net(), tmp_path / "model.safetensors")
    whole, streamed = load(tmp_path, Residence.RESIDENT), load(tmp_path, Residence.MAPPED)
    parts = [Part(find_weights(Net, tmp_path, dtype=torch.float32)[1], f"blocks.{n}.") for n in range(3)]
    slots = Slots(parts, CPU, residence)
    streamed.blocks = StreamedBlocks(list(streamed.blocks.children()), slots)
    reads: list[int] = []
    for index, part in enumerate(parts):
        part.read = lambda *to, index=index, read=part.read: reads.append(index) or read(*to)  # type: ignore[method-assign]
    for _ in range(3):  # three blocks, two places: after each pass they have changed over
        assert torch.equal(streamed(IDS), whole(IDS))
    assert reads == ([] if residence is Residence.PINNED else [0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
    assert card.count("never used") == 2  # the first copy into each place; all others wait for the block before


def test_a_pass_that_broke_off_starts_again(tmp_path: Path, card: list[str]) -> None:
    write(Net(), tmp_path / "model.safetensors")
    whole, streamed = load(tmp_path, Residence.RESIDENT), load(tmp_path, Residence.MAPPED)
    parts = [Part(find_weights(Net, tmp_path, dtype=torch.float32)[1], f"blocks.{n}.") for n in range(3)]
    streamed.blocks = StreamedBlocks(list(streamed.blocks.children()), Slots(parts, CPU, Residence.PINNED))
    for _ in streamed.blocks:
        break
    assert torch.equal(streamed(IDS), whole(IDS))


TRANSFORMERS: dict[str, tuple[str, Callable[[], Any], int]] = {
    "pocket": ("blocks", lambda: PocketTransformer(PocketConfig(6, 2, 32, 3, 2, 48, 24)), 6),
    "wan": ("blocks", lambda: WanTransformer(WanConfig(2, 28, 4, 4, 80, 3, text_dim=24, freq_dim=64)), 4),
    "ltx_video": ("transformer_blocks", lambda: LtxTransformer(LtxConfig(
        8, 8, num_attention_heads=2, attention_head_dim=32, num_layers=3, cross_attention_dim=64, caption_channels=24
    ), True), 8),
}  # fmt: skip


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_every_transformer(tmp_path: Path, family: str) -> None:
    blocks, build, channels = TRANSFORMERS[family]
    write(build(), tmp_path / "model.safetensors")
    context = Context(torch.randn(5, 24), torch.ones(5, dtype=torch.bool))
    grid = lay_grid(VideoSize(32, 32, 5, Fraction(8)), Compression((4, 8, 8), (1, 2, 2)))
    if family == "ltx_video":
        grid = lay_grid(VideoSize(64, 64, 9, Fraction(8)), Compression((8, 32, 32), (1, 1, 1)))
    latents, level = torch.randn(1, channels, *grid.latent_shape), make_schedule("flow", 2, 3.0, 8)[0]
    results = []
    for residence in (Residence.RESIDENT, Residence.MAPPED):
        network = load_network(
            build, tmp_path, residence=residence, blocks=blocks, device=CPU, dtype=torch.float32
        )  # fmt: skip
        with torch.inference_mode():
            results.append(network.bind(context, grid)(latents, level))
        assert all(tensor.is_meta for tensor in network.get_submodule(blocks).state_dict().values()) == (
            residence is Residence.MAPPED
        )
    assert torch.equal(*results) and results[0].isfinite().all()


@pytest.mark.parametrize("kind", ["t5", "umt5"])
def test_the_text_encoder(tmp_path: Path, kind: str) -> None:
    config = T5Config(40, 16, 8, 2, 24, 3, feed_forward_proj="gated-gelu", model_type=kind)
    write(T5Encoder(config), tmp_path / "model.safetensors")
    ids, mask = torch.randint(40, (1, 7)), torch.arange(7)[None] < 5
    results = [
        load_network(
            lambda: T5Encoder(config), tmp_path, residence=residence, blocks="encoder.block", table="shared",
            device=CPU, dtype=torch.float32,
        )(ids, mask)
        for residence in (Residence.RESIDENT, Residence.MAPPED)
    ]  # fmt: skip
    assert torch.equal(*results)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("residence", STREAMED)
def test_on_a_card(tmp_path: Path, residence: Residence) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(2048, 2048) for _ in range(11))

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x).tanh()
            return x

    write(Wide(), tmp_path / "model.safetensors")
    card = torch.device("cuda", 0)
    x = torch.randn(4096, 2048, device=card)
    options: dict[str, Any] = {"blocks": "blocks", "device": card, "dtype": torch.float32}
    whole = load_network(Wide, tmp_path, residence=Residence.RESIDENT, **options)
    wanted = whole(x)
    del whole
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    streamed = load_network(Wide, tmp_path, residence=residence, **options)
    assert torch.cuda.memory_allocated() - before < 2.1 * 4 * 2048 * 2049
    for _ in range(5):
        assert torch.equal(streamed(x), wanted)
