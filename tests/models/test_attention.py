"""Attention that was asked for: used where it is asked for and nowhere else, refused by name where it cannot be."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.attention
import torch.nn.functional as F
from torch import Tensor

from soragen.errors import InputError
from soragen.models import attention as attention_file
from soragen.models.attention import attend, attention, check_attention

CPU, BF16 = torch.device("cpu"), torch.bfloat16


class Sage(ModuleType):
    """In place of the package: torch's attention, `factor` times."""

    def __init__(self) -> None:
        super().__init__("sageattention")
        self.__spec__ = ModuleSpec("sageattention", None)
        self.calls = 0
        self.factor = 1.01

    def sageattn(self, q: Tensor, k: Tensor, v: Tensor, tensor_layout: str, is_causal: bool) -> Tensor:
        assert tensor_layout == "HND" and not is_causal
        self.calls += 1
        return F.scaled_dot_product_attention(q, k, v) * self.factor


@pytest.fixture
def sage(monkeypatch: pytest.MonkeyPatch) -> Sage:
    fake = Sage()
    monkeypatch.setitem(sys.modules, "sageattention", fake)
    monkeypatch.setattr(attention_file, "RUNS_ON", "cpu")
    return fake


@pytest.fixture
def tensors() -> list[Tensor]:
    return list(torch.randn(3, 1, 2, 12, 8, generator=torch.Generator().manual_seed(0)))


def test_torchs_own_is_the_default(sage: Sage, tensors: list[Tensor]) -> None:
    assert torch.equal(attend(*tensors), F.scaled_dot_product_attention(*tensors))
    check_attention("sdpa", CPU, torch.float32)
    assert not sage.calls


def test_sage_is_used_among_tokens_while_it_is_asked_for(sage: Sage, tensors: list[Tensor]) -> None:
    q, k, v = tensors
    own = F.scaled_dot_product_attention(q, k, v)
    with pytest.raises(ZeroDivisionError), attention("sage"):
        assert torch.equal(attend(q, k, v), own * sage.factor)
        words = attend(q, k[:, :, :5], v[:, :, :5])
        assert torch.equal(words, F.scaled_dot_product_attention(q, k[:, :, :5], v[:, :, :5]))
        mask = (torch.arange(12) < 7)[None]
        assert torch.equal(attend(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
        raise ZeroDivisionError
    assert sage.calls == 1 and torch.equal(attend(q, k, v), own)


def test_flash3_is_torchs_kernel_and_goes_again(monkeypatch: pytest.MonkeyPatch, tensors: list[Tensor]) -> None:
    told: list[Any] = []
    monkeypatch.setattr(torch.nn.attention, "activate_flash_attention_impl", told.append)
    monkeypatch.setattr(torch.nn.attention, "restore_flash_attention_impl", lambda: told.append("restored"))
    with attention("flash3"):
        attend(*tensors)
        assert told == ["FA3"]
    assert told == ["FA3", "restored"]


def test_what_is_tried_and_near_passes(sage: Sage) -> None:
    check_attention("sage", CPU, BF16)
    assert sage.calls == 1


@pytest.mark.parametrize("name", ["flash3", "sage"])
def test_refused_where_it_is_not_installed(name: str) -> None:
    with pytest.raises(InputError, match=rf"--attention {name} needs \w+, which is not installed"):
        check_attention(name, CPU, BF16)


def test_refused_where_it_does_not_work(sage: Sage, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="16 bits, this is float32"):
        check_attention("sage", CPU, torch.float32)
    sage.factor = 2
    with pytest.raises(InputError, match="100% off on cpu"):
        check_attention("sage", CPU, BF16)
    monkeypatch.setattr(sage, "sageattn", lambda *_, **__: 1 / 0)
    with pytest.raises(InputError, match="--attention sage does not run on cpu: division by zero"):
        check_attention("sage", CPU, BF16)
    monkeypatch.setattr(attention_file, "RUNS_ON", "cuda")
    with pytest.raises(InputError, match="runs on cuda, not on cpu"):
        check_attention("sage", CPU, BF16)
