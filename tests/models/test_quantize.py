"""Weights of 8 bits: only the matrices in blocks, never beside the whole network, near its results, refused by name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import ref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soragen.catalog import checkpoint_folder, find
from soragen.errors import InputError
from soragen.families import load_family
from soragen.models import quantize
from soragen.models.embedding_cache import EmbeddingCache
from soragen.models.offload import Residence, load_network
from soragen.models.quantize import check_quantize, quantised
from soragen.models.text_encoder import PromptEncoder
from soragen.models.weights import load_module

pytest.importorskip("torchao")
CPU, F32 = torch.device("cpu"), torch.float32
BOUNDS = {"int8": 0.01, "fp8": 0.04}
"""Relative, of one product with weights and inputs from a normal distribution."""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 64)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64)) for _ in range(3))


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(Net().state_dict(), tmp_path / "model.safetensors")
    return tmp_path


def load(folder: Path, kind: str | None, dtype: torch.dtype = F32, **options: Any) -> Net:
    chosen = {"residence": Residence.RESIDENT, "blocks": "blocks", "device": CPU, "dtype": dtype, **options}
    return load_network(Net, folder, quantize=kind, **chosen)


@pytest.mark.parametrize("kind", BOUNDS)
@pytest.mark.parametrize("dtype", [F32, torch.bfloat16])
def test_matrices_in_blocks_are_stored_in_a_byte_and_nothing_else_is_touched(
    stored: Path, kind: str, dtype: torch.dtype
) -> None:
    whole = load_module(Net, stored, device=CPU, dtype=dtype).state_dict()
    network = load(stored, kind, dtype)
    assert not network.training and not any(tensor.requires_grad for tensor in network.parameters())
    for name, tensor in network.state_dict().items():
        if name.startswith("blocks.") and name.endswith("0.weight"):
            assert tensor.qdata.element_size() == 1 and tensor.qdata.shape == tensor.shape  # type: ignore[attr-defined]
            x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
            expected, found = F.linear(x, whole[name]).float(), F.linear(x, tensor).float()
            assert 0 < ((found - expected).norm() / expected.norm()).item() < BOUNDS[kind]
        else:
            assert type(tensor) is Tensor and torch.equal(tensor, whole[name]), name


def test_the_whole_network_is_never_there() -> None:
    network, alive = Net(), []

    def read() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in network.state_dict().items():
            fresh = tensor.clone()
            alive.append(ref(fresh))
            yield name, fresh
            del fresh
            if name.startswith("blocks.") and name.endswith("0.weight"):
                assert alive[-1]() is None, "the full tensor is kept"

    assert len(dict(quantised(network, "blocks", read(), "int8"))) == len(network.state_dict())


def test_changes_come_first(stored: Path) -> None:
    def change(name: str, tensor: Tensor) -> Tensor:
        return tensor * 0 + 3 if name == "blocks.1.0.weight" else tensor

    network = load(stored, "int8", change=change)
    ones = torch.ones(1, 64)
    assert torch.allclose(F.linear(ones, network.blocks[1][0].weight), torch.full((1, 64), 192.0), rtol=0.01)  # type: ignore[index]


def test_streamed_blocks_are_refused(stored: Path) -> None:
    with pytest.raises(InputError, match="one at a time are not quantised"):
        load(stored, "int8", residence=Residence.MAPPED)


def test_the_transformer_and_the_encoder_of_a_checkpoint() -> None:
    folder, family = checkpoint_folder(find("pocket")), load_family("pocket")
    transformer: Any = family.load_transformer(folder, CPU, F32, quantize="fp8")
    kinds = {type(tensor).__name__ for name, tensor in transformer.named_parameters() if name.startswith("blocks.")}
    assert "Float8Tensor" in kinds
    encoder: Any = family.load_text_encoder(folder, CPU, F32, quantize="int8")
    encoder._cache = EmbeddingCache(None, "")
    (context,) = encoder.encode(["a red ball"])
    whole: Any = family.load_text_encoder(folder, CPU, F32)
    whole._cache = encoder._cache
    (expected,) = whole.encode(["a red ball"])
    wrong = (context.embeddings - expected.embeddings).norm() / expected.embeddings.norm()
    assert 0 < wrong.item() < 0.05


def test_embeddings_of_a_rounded_encoder_are_kept_apart(tmp_path: Path) -> None:
    folder = checkpoint_folder(find("pocket"))

    def encoder(kind: str | None) -> PromptEncoder:
        return PromptEncoder(
            folder / "text_encoder", folder / "tokenizer" / "tokenizer.json", max_length=96, device=CPU, dtype=F32,
            cache=tmp_path, quantize=kind,
        )  # fmt: skip

    encoder(None).encode(["a red ball"])
    again, rounded = encoder(None), encoder("int8")
    again.encode(["a red ball"])
    rounded.encode(["a red ball"])
    assert rounded.loaded and not again.loaded


@pytest.mark.parametrize("kind", BOUNDS)
def test_what_this_machine_runs_passes(kind: str) -> None:
    check_quantize(kind, CPU, F32)


def test_refused_without_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    quantize._torchao.cache_clear()
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(InputError, match="--quantize needs torchao") as refused:
        check_quantize("int8", CPU, F32)
    assert refused.value.hint == "run `pip install 'soragen[quantize]'`"


@pytest.mark.parametrize("kind", BOUNDS)
def test_refused_where_the_device_cannot(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def cannot(layer: nn.Module, config: object) -> None:
        raise RuntimeError("type fp8e4nv not supported in this architecture\nand so on")

    def fake(work: Any) -> Any:
        configs = {f"{name}WeightOnlyConfig": lambda **_: None for name in ("Int8", "Float8")}
        return lambda: SimpleNamespace(quantize_=work, **configs)

    monkeypatch.setattr(quantize, "_torchao", fake(cannot))
    with pytest.raises(InputError, match=f"--quantize {kind} does not run on cpu: type fp8e4nv not supported") as error:
        check_quantize(kind, CPU, F32)
    assert "\n" not in error.value.message

    def double(layer: nn.Module, config: object) -> None:
        layer.weight = nn.Parameter(layer.weight * 2)  # type: ignore[operator]

    monkeypatch.setattr(quantize, "_torchao", fake(double))
    with pytest.raises(InputError, match="100% off"):
        check_quantize(kind, CPU, F32)
