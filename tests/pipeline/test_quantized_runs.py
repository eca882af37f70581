"""--quantize and --attention from the request to the file: in the plan's bytes and notes, and in the recipe."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from soragen.catalog import find
from soragen.errors import InputError, ResourceError
from soragen.models.device import Memory
from soragen.pipeline import memory as memory_file
from soragen.pipeline.events import Event, Note
from soragen.pipeline.plan import Plan, make_plan
from soragen.pipeline.run import Result
from soragen.request import Request
from soragen.video.read import read_video
from soragen.video.recipe import read_recipe

Ask = Callable[..., Request]


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda size: monkeypatch.setattr(memory_file, "memory_budget", lambda device=None: Memory(10**12, size))


def planned(request: Request) -> Plan:
    return make_plan(request, find(request.checkpoint), "cpu")


def pocket(ask: Ask, **options: Any) -> Request:
    return ask(model="pocket", size="64x64", **options)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_the_plan_counts_a_byte_for_a_weight(ask: Ask, free: Callable[[int], None], kind: str) -> None:
    pytest.importorskip("torchao")
    whole, plan = planned(pocket(ask)), planned(pocket(ask, quantize=kind))
    assert 0.25 < plan.weight_bytes["transformer"] / whole.weight_bytes["transformer"] < 0.6
    assert plan.weight_bytes["text_encoder"] < whole.weight_bytes["text_encoder"]
    assert plan.weight_bytes["vae"] == whole.weight_bytes["vae"]
    (note,) = set(plan.notes()) - set(whole.notes())
    assert note.startswith(f"weights of transformer and text encoder in {kind}")
    assert plan.to_dict()["request"]["quantize"] == kind

    free(plan.peak_bytes["denoise"] - 1)
    with pytest.raises(ResourceError, match=f"in {kind}, .* are free") as refused:
        planned(pocket(ask, quantize=kind))
    assert "leave --quantize out" in str(refused.value.hint)


def test_a_run_says_it_and_the_file_too(ask: Ask, make: Callable[..., Result], events: list[Event]) -> None:
    pytest.importorskip("torchao")
    whole = make(ask(), "whole.mp4")
    result = make(ask(quantize="int8"), "rounded.mp4")
    assert any(isinstance(event, Note) and "text encoder in int8" in event.text for event in events)
    recipe = read_recipe(result.path)
    assert recipe is not None and recipe["request"]["quantize"] == "int8"
    assert Request.from_dict(recipe["request"]) == result.request
    frames = [torch.cat(list(read_video(each.path)[1])).float() for each in (whole, result)]
    assert 0 < (frames[0] - frames[1]).abs().mean() < 8


def test_refused_before_anything_is_loaded(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    from soragen.models import quantize

    quantize._torchao.cache_clear()
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(InputError, match="needs torchao"):
        planned(ask(quantize="fp8"))
    with pytest.raises(InputError, match="--attention sage needs sageattention"):
        planned(ask(attention="sage"))
    with pytest.raises(InputError, match="no --quantize named 'int4'"):
        ask(quantize="int4")
    with pytest.raises(InputError, match="no --attention named 'xformers'"):
        ask(attention="xformers")


def test_a_recipe_names_an_attention_that_approximates(ask: Ask) -> None:
    assert ask(attention="sage").to_dict()["attention"] == "sage"
    assert Request.from_dict(ask(attention="sage").to_dict()).attention == "sage"
    assert "attention" not in ask(attention="flash3").to_dict() and "attention" not in ask().to_dict()
    with pytest.raises(ValueError, match="int4"):
        Request.from_dict({**ask().to_dict(), "quantize": "int4"})


def test_attention_holds_while_it_is_denoised(
    ask: Ask, make: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    from soragen.models import attention
    from soragen.pipeline import plan as plan_file

    seen = []
    monkeypatch.setattr(plan_file, "check_attention", lambda name, device, dtype: seen.append(name))
    own = attention.F.scaled_dot_product_attention

    def sageattn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: Any) -> torch.Tensor:
        seen.append("used")
        return own(q, k, v)

    fake = type(sys)("sageattention")
    fake.sageattn = sageattn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sageattention", fake)
    result = make(ask(attention="sage"), "sage.mp4")
    assert seen[0] == "sage" and seen[1:] == ["used"] * (len(seen) - 1) and len(seen) > 2
    recipe = read_recipe(Path(result.path))
    assert recipe is not None and recipe["request"]["attention"] == "sage"
