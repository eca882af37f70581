"""The doctor of GPUs that are not here: what CUDA says is made up, what is made of it is not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from soragen.errors import NumericalError, SoragenError
from soragen.pipeline import doctor

Cards = list[tuple[str, int, int]]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Any:
    """cuda(cards, wheel) is a machine with these cards, and a torch built for these architectures."""

    def pretend(cards: Cards, wheel: list[str]) -> None:
        known = [SimpleNamespace(name=name, major=a, minor=b, total_memory=24e9) for name, a, b in cards]
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        for name, value in {
            "is_available": lambda: bool(known),
            "device_count": lambda: len(known),
            "get_device_properties": lambda number: known[number],
            "get_arch_list": lambda: wheel,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    return pretend


def test_names_each_card_and_its_architecture(cuda: Any) -> None:
    cuda([("H100", 9, 0), ("RTX 4090", 8, 9)], ["sm_80", "sm_90", "compute_120"])
    found = doctor.CHECKS["device"]()
    assert found == "H100 (sm_90), 24 GB; RTX 4090 (sm_89), 24 GB; torch is built for sm_80 sm_90 compute_120"


@pytest.mark.parametrize(
    ("card", "helps"),
    [(("RTX 5090", 12, 0), "run `pip install --upgrade torch`"), (("V100", 7, 0), "a torch for an older CUDA")],
)
def test_says_what_helps_a_card_without_code(cuda: Any, card: tuple[str, int, int], helps: str) -> None:
    cuda([("H100", 9, 0), card], ["sm_80", "sm_90a"])
    with pytest.raises(SoragenError, match=rf"{card[0]} is sm_{card[1]}{card[2]}; .* only sm_80 sm_90a") as failed:
        doctor.CHECKS["device"]()
    assert helps in str(failed.value.hint) and "--device cpu" in str(failed.value.hint)


def test_says_why_a_card_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA: install one that is" in doctor.CHECKS["device"]()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "CUDA 13.0: update the driver" in doctor.CHECKS["device"]()
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor, "Path", lambda path: SimpleNamespace(exists=lambda: False))
    assert doctor.CHECKS["device"]() == "no GPU: the CPU is used"


def test_compares_a_card_with_the_processor_in_both_types(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = torch.randint(0, 255, (9, 64, 64, 3), generator=torch.Generator().manual_seed(0)).float()
    apart: dict[tuple[str, str | None], float] = {("cpu", "float32"): 0, ("cuda", "float32"): 0.1, ("cuda", None): 1}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def tiny(device: str, dtype: str | None = "float32") -> torch.Tensor:
        return frames + apart[device, dtype]

    monkeypatch.setattr(doctor, "_tiny_video", tiny)
    found = doctor.CHECKS["generation"]()
    assert "0.10 of 255 apart in float32, 1.00 of 255 apart as runs are there" in found
    apart["cuda", None] = float("nan")
    with pytest.raises(NumericalError, match="disagree by nan of 255 as runs are there") as failed:
        doctor.CHECKS["generation"]()
    assert "--dtype float32" in str(failed.value.hint)


def test_lists_what_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor.CHECKS["extras"]()
    assert found.startswith("on cpu: --quantize ") and "--attention sdpa; flash3 needs flash_attn_interface" in found
