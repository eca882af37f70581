"""LoRA files on a small network: formulas against the ones written out, and what does not fit by its name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from soragen.errors import WeightsError
from soragen.models.keys import Naming
from soragen.models.lora import Fit, Targets, fit, merging
from soragen.models.offload import Residence, load_network
from soragen.models.weights import load_module

NAMING = Naming("head.weight", {"self_attn": "attn1", "q": "to_q", "head": "proj_out", "modulation": "table"})
CPU = torch.device("cpu")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn1 = nn.ModuleDict({"to_q": nn.Linear(6, 8)})
        self.table = nn.Parameter(torch.zeros(1, 2, 6))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv3d(3, 6, (1, 2, 2))
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm = nn.LayerNorm(6)
        self.proj_out = nn.Linear(6, 4)


TARGETS = Targets.of(Small, NAMING)
LAYER, NAME = "blocks.0.self_attn.q", "blocks.0.attn1.to_q.weight"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "model.safetensors"
    save_file({name: torch.randn_like(tensor) for name, tensor in Small().state_dict().items()}, path)
    return path


def weights(base: Path, *fits: Fit, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    change = merging(fits) if fits else None
    return load_module(Small, base, device=CPU, dtype=dtype, change=change).state_dict()


@pytest.fixture
def lora(tmp_path: Path) -> Callable[..., Path]:
    """lora(key=tensor, …): a file with these."""

    def write(tensors: dict[str, Tensor], name: str = "a.safetensors", metadata: dict[str, str] | None = None) -> Path:
        save_file(tensors, tmp_path / name, metadata)
        return tmp_path / name

    return write


def pair(down: str = "lora_down.weight", up: str = "lora_up.weight", layer: str = LAYER) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 6, generator=generator), torch.randn(8, 2, generator=generator)
    return {f"{layer}.{down}": a, f"{layer}.{up}": b}


def product(tensors: dict[str, Tensor]) -> Tensor:
    a, b = list(tensors.values())[:2]
    return b @ a


NAMINGS = {
    "authors": (LAYER, "lora_down.weight", "lora_up.weight"),
    "ComfyUI": (f"diffusion_model.{LAYER}", "lora_A.weight", "lora_B.weight"),
    "kohya": ("lora_unet_blocks_0_self_attn_q", "lora_down.weight", "lora_up.weight"),
    "kohya, published names": ("lora_unet_blocks_0_attn1_to_q", "lora_down.weight", "lora_up.weight"),
    "diffusers": ("transformer.blocks.0.attn1.to_q", "lora_A.weight", "lora_B.weight"),
    "diffusers before PEFT": ("transformer.blocks.0.attn1.to_q", "lora.down.weight", "lora.up.weight"),
    "PEFT": ("base_model.model.blocks.0.attn1.to_q", "lora_A.weight", "lora_B.weight"),
    "PEFT, a named adapter": (
        "base_model.model.blocks.0.attn1.to_q", "lora_A.default.weight", "lora_B.default.weight",
    ),
    "without .weight": ("blocks.0.attn1.to_q", "lora_A", "lora_B"),
    "a whole checkpoint's names": (f"model.diffusion_model.{LAYER}", "lora_down.weight", "lora_up.weight"),
}  # fmt: skip


@pytest.mark.parametrize("naming", NAMINGS.values(), ids=NAMINGS.keys())
def test_every_naming_is_the_same_change(naming: tuple[str, str, str], base: Path, lora: Callable[..., Path]) -> None:
    layer, down, up = naming
    tensors = pair(down, up, layer)
    before, after = weights(base), weights(base, fit(lora(tensors), 1.0, TARGETS).require(False))
    torch.testing.assert_close(after[NAME], before[NAME] + product(tensors), rtol=1e-6, atol=1e-6)
    assert all(torch.equal(after[name], before[name]) for name in before if name != NAME)


def test_alpha_over_rank_and_the_scale_of_the_user(base: Path, lora: Callable[..., Path]) -> None:
    tensors = pair() | {f"{LAYER}.alpha": torch.tensor(8.0)}
    before, after = weights(base), weights(base, fit(lora(tensors), -0.5, TARGETS))
    torch.testing.assert_close(after[NAME], before[NAME] - 0.5 * 8 / 2 * product(tensors), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "factor"),
    [
        ({"r": 2, "lora_alpha": 6}, 3.0),
        ({"r": 2, "lora_alpha": 6, "use_rslora": True}, 6 / math.sqrt(2)),
        ({"r": 2, "lora_alpha": 6, "alpha_pattern": {"attn1.to_q": 1}}, 0.5),
        ({"r": 2, "lora_alpha": 6, "alpha_pattern": {"ttn1.to_q": 1}}, 3.0),
    ],
    ids=["alpha", "by the root of the rank", "of one layer", "of another layer"],
)
def test_alpha_that_is_not_among_the_tensors(
    config: dict[str, Any], factor: float, base: Path, lora: Callable[..., Path], tmp_path: Path
) -> None:
    tensors = pair("lora_A.weight", "lora_B.weight", "base_model.model.blocks.0.attn1.to_q")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    header = {f"transformer.{key}": value for key, value in config.items()}
    for path in (
        lora(tensors, "adapter_model.safetensors"),
        lora(tensors, "a.safetensors", {"lora_adapter_metadata": json.dumps(header)}),
    ):
        before, after = weights(base), weights(base, fit(path, 1.0, TARGETS))
        torch.testing.assert_close(after[NAME], before[NAME] + factor * product(tensors), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("along", ["rows", "columns"])
def test_dora(along: str, base: Path, lora: Callable[..., Path]) -> None:
    axis, count = (1, 8) if along == "rows" else (0, 6)
    lengths = 1 + torch.arange(count) / count
    tensors = pair() | {f"{LAYER}.alpha": torch.tensor(4.0)}
    tensors[f"{LAYER}.dora_scale"] = lengths[:, None] if along == "rows" else lengths[None]
    before = weights(base)[NAME]
    changed = before + 2 * product(tensors)
    expected = changed / changed.norm(dim=axis, keepdim=True) * lengths.unsqueeze(axis)
    path = lora(tensors)
    torch.testing.assert_close(weights(base, fit(path, 1.0, TARGETS))[NAME], expected, rtol=1e-6, atol=1e-6)
    half = weights(base, fit(path, 0.5, TARGETS))[NAME]
    torch.testing.assert_close(half, (before + expected) / 2, rtol=1e-6, atol=1e-6)


def test_full_differences_of_weight_bias_norm_and_table(base: Path, lora: Callable[..., Path]) -> None:
    shapes = {"head.diff": (4, 6), "head.diff_b": (4,), "norm.diff": (6,), "blocks.1.diff_m": (1, 2, 6)}
    tensors = {f"diffusion_model.{key}": torch.randn(shape) for key, shape in shapes.items()}
    found = fit(lora(tensors), 2.0, TARGETS).require(False)
    assert (found.num_applied, found.num_changes) == (4, 4)
    before, after = weights(base), weights(base, found)
    names = ("proj_out.weight", "proj_out.bias", "norm.weight", "blocks.1.table")
    for name, tensor in zip(names, tensors.values(), strict=True):
        torch.testing.assert_close(after[name], before[name] + 2 * tensor)


def test_a_convolution(base: Path, lora: Callable[..., Path]) -> None:
    a, b = torch.randn(2, 3, 1, 2, 2), torch.randn(6, 2, 1, 1, 1)
    path = lora({"patch.lora_down.weight": a, "patch.lora_up.weight": b})
    before, after = weights(base), weights(base, fit(path, 1.0, TARGETS))
    expected = before["patch.weight"] + torch.einsum("or,rithw->oithw", b[..., 0, 0, 0], a)
    torch.testing.assert_close(after["patch.weight"], expected, rtol=1e-6, atol=1e-6)


def test_several_files_add_up_in_any_order(base: Path, lora: Callable[..., Path]) -> None:
    dora = pair() | {f"{LAYER}.dora_scale": torch.ones(8, 1)}
    plain = {key: 3 * tensor for key, tensor in pair().items()}
    one, two = fit(lora(dora, "1.safetensors"), 0.5, TARGETS), fit(lora(plain, "2.safetensors"), 1.0, TARGETS)
    before = weights(base)[NAME]
    added = weights(base, one)[NAME] + weights(base, two)[NAME] - before
    for order in ((one, two), (two, one)):
        torch.testing.assert_close(weights(base, *order)[NAME], added, rtol=1e-5, atol=1e-5)


def test_the_sum_is_made_in_float32_and_rounded_once(base: Path, lora: Callable[..., Path]) -> None:
    path = lora({key: tensor.bfloat16() for key, tensor in pair().items()})
    exact = weights(base)[NAME] + product({key: t.bfloat16().float() for key, t in pair().items()})
    assert torch.equal(weights(base, fit(path, 1.0, TARGETS), dtype=torch.bfloat16)[NAME], exact.bfloat16())


def test_blocks_that_stay_in_their_file_are_changed_when_they_are_read(base: Path, lora: Callable[..., Path]) -> None:
    change = merging([fit(lora(pair()), 1.0, TARGETS)])
    options: dict[str, Any] = {"device": CPU, "dtype": torch.float32, "change": change}
    streamed = load_network(Small, base, residence=Residence.MAPPED, blocks="blocks", **options)
    expected = weights(base, fit(lora(pair()), 1.0, TARGETS))[NAME]
    for _ in range(2):
        for number, block in enumerate(streamed.blocks):
            weight = block.attn1["to_q"].weight  # type: ignore[union-attr, index]
            assert torch.equal(weight, expected) == (number == 0)


def test_what_does_not_fit_is_named(lora: Callable[..., Path]) -> None:
    tensors = pair() | {
        "blocks.7.self_attn.q.diff_b": torch.zeros(8),
        "lora_te1_layers_0_q.diff": torch.zeros(2, 2),
        "blocks.0.bias": torch.zeros(3),
        "head.diff": torch.zeros(4, 9),
    }
    found = fit(lora(tensors), 1.0, TARGETS)
    assert (found.num_applied, found.num_changes) == (1, 5)
    assert {key: reason for key, reason in found.unfit.items()} == {
        "blocks.7.self_attn.q.bias": "no such layer here",
        "lora_te1_layers_0_q.weight": "of the text encoder, which is not changed",
        "blocks.0.bias": "no known part of a LoRA",
        "head.weight": "[4, 9] where [4, 6] is needed",
    }
    assert found.require(partial=True) is found
    with pytest.raises(WeightsError, match=r"a\.safetensors does not fit this model: only 1 of its 5 changes") as error:
        found.require(partial=False)
    assert error.value.hint is not None and "--lora-partial" in error.value.hint


@pytest.mark.parametrize(
    ("layer", "width", "model"),
    [
        ("diffusion_model.blocks.9.cross_attn.q", 5120, "Wan 14B"),
        ("lora_unet_blocks_9_cross_attn_k_img", 5120, r"Wan 14B image to video \(2.1\)"),
        ("transformer.transformer_blocks.9.attn2.to_q", 2048, "LTX-Video 2B"),
        ("transformer.single_transformer_blocks.9.attn.to_q", 3072, "Flux"),
        ("lora_unet_double_blocks_9_img_attn_qkv", 3072, "HunyuanVideo or Flux"),
        ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q", 320, "Stable Diffusion"),
    ],
)
def test_a_lora_of_another_model_says_of_which(layer: str, width: int, model: str, lora: Callable[..., Path]) -> None:
    path = lora({f"{layer}.lora_down.weight": torch.zeros(1, 4), f"{layer}.lora_up.weight": torch.zeros(width, 1)})
    for partial in (False, True):  # a file without any effect is never meant
        with pytest.raises(WeightsError, match=rf"none of its 1 changes .*; it seems to be for {model}"):
            fit(path, 1.0, TARGETS).require(partial)


BROKEN: dict[str, tuple[dict[str, Tensor], str]] = {
    "LoKr": ({f"{LAYER}.lokr_w1": torch.zeros(2, 2)}, "is LoKr"),
    "a Tucker factor": (pair() | {f"{LAYER}.lora_mid.weight": torch.zeros(2, 2, 1, 1)}, "is LoCon"),
    "half a pair": ({f"{LAYER}.lora_up.weight": torch.zeros(8, 2)}, "has up alone"),
    "alpha alone": ({f"{LAYER}.alpha": torch.tensor(1.0)}, "has alpha alone"),
    "alpha that is no number": (pair() | {f"{LAYER}.alpha": torch.tensor(math.nan)}, "is not one number"),
    "two adapters": (pair() | pair("lora_A.b.weight", "lora_B.b.weight"), "holds .* and "),
    "no rank": ({f"{LAYER}.lora_A.weight": torch.zeros(0, 6), f"{LAYER}.lora_B.weight": torch.zeros(8, 0)}, "no rank"),
    "whole numbers": ({key: tensor.to(torch.int8) for key, tensor in pair().items()}, "stored as I8"),
    "a whole model": ({"layer.weight": torch.zeros(2)}, r"is no LoRA \(layer.weight\)"),
    "changed twice": (pair() | {f"{LAYER}.diff": torch.zeros(8, 6)}, "changes its weight twice"),
}


@pytest.mark.parametrize(("tensors", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_refused_from_the_header(tensors: dict[str, Tensor], message: str, lora: Callable[..., Path]) -> None:
    with pytest.raises(WeightsError, match=message):
        fit(lora(tensors), 1.0, TARGETS)


def test_the_same_weight_by_two_names_is_refused(lora: Callable[..., Path]) -> None:
    with pytest.raises(WeightsError, match=r"blocks\.0\.attn1\.to_q\.weight is changed twice"):
        fit(lora(pair() | pair(layer="blocks.0.attn1.to_q")), 1.0, TARGETS)


def test_ranks_that_do_not_go_together(lora: Callable[..., Path]) -> None:
    path = lora({f"{LAYER}.lora_A.weight": torch.zeros(3, 6), f"{LAYER}.lora_B.weight": torch.zeros(8, 2)})
    assert list(fit(path, 1.0, TARGETS).unfit.values()) == ["rank 3 and [8, 2] do not go together"]


def test_values_that_are_not_finite_name_the_lora(base: Path, lora: Callable[..., Path]) -> None:
    tensors = pair()
    tensors[f"{LAYER}.lora_up.weight"][0, 0] = math.inf
    with pytest.raises(WeightsError, match=rf"LoRA a\.safetensors: {LAYER}\.lora_up\.weight holds values"):
        weights(base, fit(lora(tensors), 1.0, TARGETS))


@pytest.mark.parametrize(
    "config", [{"peft_type": "LOHA"}, {"lora_alpha": "2"}, {"alpha_pattern": {"(a+)+": 1}}, {"fan_in_fan_out": True}]
)
def test_a_configuration_that_is_not_known(config: dict[str, Any], lora: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="scaled in a way that is not known"):
        fit(lora(pair(), "adapter_model.safetensors"), 1.0, TARGETS)


def test_no_pickle_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"\x80\x04K\x01." + bytes(16))
    with pytest.raises(WeightsError, match="is a pickle, which can run code"):
        fit(path, 1.0, TARGETS)
