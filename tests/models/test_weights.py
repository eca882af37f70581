"""Strict loading: what does not fit is named, and nothing is loaded by half."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from soragen.errors import ResourceError, WeightsError
from soragen.models.weights import is_finite, load_module, open_file, sha256_file, verify_files, weight_files

CPU = torch.device("cpu")


class Net(nn.Module):
    steps: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 6)
        self.norm = nn.LayerNorm(6)
        self.register_buffer("scale", torch.ones(3))
        self.register_buffer("steps", torch.tensor(1000))


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    net = Net()
    nn.init.normal_(net.norm.weight)
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def load(files: Path, dtype: torch.dtype = torch.float32, **options: object) -> Net:
    return load_module(Net, files, device=CPU, dtype=dtype, **options)  # type: ignore[arg-type]


def saved(path: Path, **changes: Tensor | None) -> Path:
    content = {**tensors(), **{name.replace("__", "."): tensor for name, tensor in changes.items()}}
    save_file({name: tensor for name, tensor in content.items() if tensor is not None}, path)
    return path


def test_loads_every_tensor_ready_to_run(tmp_path: Path) -> None:
    net = load(saved(tmp_path / "model.safetensors"))
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, tensors()[name]), name
    assert not net.training and not any(p.requires_grad for p in net.parameters())


def test_casts_all_but_the_named_and_the_whole_numbers(tmp_path: Path) -> None:
    net = load(saved(tmp_path / "model.safetensors"), torch.bfloat16, keep_float32=("norm",))
    kinds = {name: tensor.dtype for name, tensor in net.state_dict().items()}
    assert kinds == {
        "inner.weight": torch.bfloat16,
        "inner.bias": torch.bfloat16,
        "norm.weight": torch.float32,
        "norm.bias": torch.float32,
        "scale": torch.bfloat16,
        "steps": torch.int64,
    }


def bad(value: float) -> Tensor:
    weight = tensors()["inner.weight"]
    weight[3, 1] = value
    return weight


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"inner__bias": None}, r"1 missing \(inner\.bias\)"),
        ({"other": torch.ones(1)}, r"1 unknown \(other\)"),
        ({"inner__bias": torch.ones(7)}, r"inner\.bias in model\.safetensors is \[7\] where \[6\] is needed"),
        ({"inner__bias": torch.ones(6, dtype=torch.int8)}, r"inner\.bias .* stored as I8"),
        ({"steps": torch.tensor(1000.0)}, r"steps .* stored as F32"),
        ({"inner__weight": bad(float("nan"))}, r"model\.safetensors: inner\.weight .* not finite"),
        ({"inner__weight": bad(float("-inf"))}, r"inner\.weight .* not finite"),
        ({"inner__bias": None, "other": torch.ones(1), "scale": torch.ones(2)}, r"missing .*unknown .*scale"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, changes: dict[str, Tensor | None], said: str) -> None:
    saved(tmp_path / "model.safetensors", **changes)
    with pytest.raises(WeightsError, match=said) as caught:
        load(tmp_path)
    assert str(tmp_path) in caught.value.message and "\n" not in caught.value.message and caught.value.hint


def test_a_cast_that_overflows_is_named(tmp_path: Path) -> None:
    saved(tmp_path / "model.safetensors", inner__weight=bad(1e6))
    with pytest.raises(WeightsError, match=r"inner\.weight .* not finite in torch\.float16"):
        load(tmp_path, torch.float16)


def test_many_names_are_counted_not_listed(tmp_path: Path) -> None:
    save_file({"steps": torch.tensor(1)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"5 missing \(.*and 1 more\)"):
        load(tmp_path)


@pytest.mark.parametrize("table", [{"linear.weight": "inner.weight"}, lambda key: key.replace("linear", "inner")])
def test_renames(tmp_path: Path, table: dict[str, str] | Callable[[str], str]) -> None:
    saved(tmp_path / "model.safetensors", inner__weight=None, linear__weight=tensors()["inner.weight"])
    assert torch.equal(load(tmp_path, rename=table).inner.weight, tensors()["inner.weight"])


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "model.safetensors", linear__weight=torch.zeros(6, 4))
    with pytest.raises(WeightsError, match=r"inner\.weight"):
        load(tmp_path, rename={"linear.weight": "inner.weight"})


def test_extra_tensors_only_where_allowed(tmp_path: Path) -> None:
    saved(tmp_path / "model.safetensors", decoder__weight=torch.ones(1))
    assert load(tmp_path, allow_extra=("decoder.",))
    with pytest.raises(WeightsError, match="unknown"):
        load(tmp_path, allow_extra=("encoder.",))


def test_tied_copies_must_be_equal_or_stand_in(tmp_path: Path) -> None:
    tied, weight = {"copy": "inner.weight"}, tensors()["inner.weight"]
    saved(tmp_path / "model.safetensors", copy=weight)
    assert load(tmp_path, tied=tied)
    saved(tmp_path / "model.safetensors", copy=weight, inner__weight=None)
    assert torch.equal(load(tmp_path, tied=tied).inner.weight, weight)
    saved(tmp_path / "model.safetensors", copy=weight + 1)
    with pytest.raises(WeightsError, match=r"copy and inner\.weight should be equal"):
        load(tmp_path, tied=tied)


def shards(folder: Path) -> dict[str, str]:
    """Two shards with names of no pattern, and their index."""
    content = tensors()
    places = {name: ("7.safetensors" if name.startswith("inner") else "rest.safetensors") for name in content}
    for file in set(places.values()):
        save_file({name: tensor for name, tensor in content.items() if places[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return places


def test_shards_are_read_by_their_index(tmp_path: Path) -> None:
    shards(tmp_path)
    for files in (tmp_path, tmp_path / "model.safetensors.index.json"):
        assert all(torch.equal(tensor, tensors()[name]) for name, tensor in load(files).state_dict().items())


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    shards(tmp_path)
    (tmp_path / "rest.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"rest\.safetensors is missing"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..\\x.safetensors", ""])
def test_an_index_cannot_leave_its_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "transformer"
    folder.mkdir()
    saved(tmp_path / "x.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"inner.weight": name}}))
    with pytest.raises(WeightsError, match="names the file"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    path = saved(tmp_path / "model.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"model\.safetensors is not a whole safetensors file"):
        load(tmp_path)


def test_pickles_are_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"never read")
    for files in (tmp_path, tmp_path / "model.bin"):
        with pytest.raises(WeightsError, match="pickle"):
            load(files)


def test_the_plain_name_wins_over_a_variant(tmp_path: Path) -> None:
    for name in ("model.safetensors", "model.fp16.safetensors"):
        saved(tmp_path / name)
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]
    saved(tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="more than one set"):
        weight_files(tmp_path)


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="holds no weights"):
        load(tmp_path)
    with pytest.raises(WeightsError, match="vae is missing"):
        load(tmp_path / "vae")


def test_a_buffer_that_no_file_holds_is_a_bug(tmp_path: Path) -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.register_buffer("table", torch.ones(3), persistent=False)

    save_file(nn.Linear(2, 2).state_dict(prefix="linear."), tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match="table"):
        load_module(Table, tmp_path, device=CPU, dtype=torch.float32)


def test_weights_in_their_own_type_are_mapped_not_copied(tmp_path: Path) -> None:
    """A change of the file shows in the network: nothing was read into memory of its own."""
    path = saved(tmp_path / "model.safetensors")
    net = load(path)
    before = net.inner.weight.clone()
    content = path.read_bytes()
    where = content.index(before.numpy().tobytes())
    with path.open("r+b") as file:
        file.seek(where)
        file.write(torch.zeros(1).numpy().tobytes())
    assert net.inner.weight[0, 0] == 0 and before[0, 0] != 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_finite_scan_sees_every_place(dtype: torch.dtype) -> None:
    tensor = torch.zeros(77, dtype=dtype)
    assert is_finite(tensor) and is_finite(tensor[:0])
    for place in range(77):
        for value in (float("nan"), float("inf"), float("-inf")):
            tensor[place] = value
            assert not is_finite(tensor)
        tensor[place] = 0


def test_hashes(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.safetensors")
    digest = sha256_file(path)
    verify_files(tmp_path, {"model.safetensors": digest.upper()})
    save_file({**load_file(path), "scale": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match=rf"{sha256_file(path)}, expected {digest}"):
        verify_files(tmp_path, {"model.safetensors": digest})
    with pytest.raises(WeightsError, match="other"):
        verify_files(tmp_path, {"other": digest})


def test_a_file_that_cannot_be_mapped_gets_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch does on Linux with one that is larger than all memory."""
    save_file({"weight": torch.ones(2)}, tmp_path / "large.safetensors")

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("unable to mmap 28600000000 bytes: Cannot allocate memory (12)")

    monkeypatch.setattr("soragen.models.weights.safe_open", refuse)
    with pytest.raises(ResourceError, match="cannot be mapped into memory") as raised:
        open_file(tmp_path / "large.safetensors")
    assert "overcommit_memory" in str(raised.value.hint)
