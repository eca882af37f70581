"""quantize and attention in lists: networks for each kind of weights, none twice, and the same when a list goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from soragen.pipeline import plan as plan_file
from soragen.pipeline import run
from soragen.video.recipe import read_recipe

SMALL = ("--size", "128x128", "--frames", "5", "--steps", "1", "--seed", "1")


@pytest.fixture
def batch(cli: Any, tiny: Path) -> Callable[..., Any]:
    return lambda *more: cli("batch", "list.jsonl", "--model", str(tiny), *SMALL, *more)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The attention of each denoising, of which every one is taken for installed."""
    names: list[str] = []

    @contextmanager
    def attention(name: str) -> Iterator[None]:
        names.append(name)
        yield

    monkeypatch.setattr(plan_file, "check_attention", lambda name, device, dtype: None)
    monkeypatch.setattr(run, "attention", attention)
    return names


def write(*lines: dict[str, Any]) -> None:
    Path("list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def request_in(path: str) -> dict[str, Any]:
    recipe = read_recipe(Path(path))
    assert recipe is not None
    return recipe["request"]  # type: ignore[no-any-return]


def test_networks_for_each_kind_of_weights(batch: Any, cli: Any, calls: Any) -> None:
    """Lines of the same prompt: what one text encoder made of it is not taken for the other's."""
    pytest.importorskip("torchao")
    write(
        {"prompt": "a ball", "output": "rounded.mp4", "quantize": "int8"},
        {"prompt": "a ball", "output": "plain.mp4"},
        {"prompt": "a cube", "output": "more.mp4", "quantize": "INT8"},
    )
    ended = batch()
    assert ended.code == 0, ended.err
    assert calls.loaded == [*2 * ["text_encoder", "t5", "transformer"], "vae"]
    assert "line 1: weights of transformer and text encoder in int8" in ended.err
    found = [request_in(f"{name}.mp4").get("quantize") for name in ("rounded", "plain", "more")]
    assert found == ["int8", None, "int8"]
    asked = ("generate", "a ball", "--frames", "5", "--steps", "1", "--overwrite")
    for name, more in {"plain": (), "rounded": ("--quantize", "int8")}.items():
        assert cli(*asked, *more).code == 0
        assert Path("a.mp4").read_bytes() == Path(f"{name}.mp4").read_bytes()
    assert Path("plain.mp4").read_bytes() != Path("rounded.mp4").read_bytes()


def test_of_all_lines_that_say_no_other(batch: Any, used: list[str]) -> None:
    pytest.importorskip("torchao")
    write({"prompt": "a ball"}, {"prompt": "a cube", "quantize": "fp8", "attention": "sdpa"})
    ended = batch("--quantize", "int8", "--attention", "sage", "--dry-run", "--json")
    said = [plan["request"] for plan in json.loads(ended.out)]
    assert [(one["quantize"], one.get("attention")) for one in said] == [("int8", "sage"), ("fp8", None)]


def test_attention_loads_nothing_anew_and_holds_when_it_goes_on(
    batch: Any, calls: Any, used: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write({"prompt": "a ball", "attention": "Flash3"}, {"prompt": "a cube"}, {"prompt": "a cone", "attention": "sage"})
    with monkeypatch.context() as patch:
        patch.setattr(run, "denoise_windows", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert batch().code == 130
    calls.loaded.clear()
    used.clear()
    ended = batch("--resume")
    assert ended.code == 0, ended.err
    assert used == ["flash3", "sdpa", "sage"] and calls.loaded == ["text_encoder", "transformer", "vae"]
    assert [request_in(path).get("attention") for path in ended.out.split()] == [None, None, "sage"]


def test_a_line_that_says_another_is_another_line(batch: Any) -> None:
    pytest.importorskip("torchao")
    write({"prompt": "a ball"}, {"prompt": "a cube"})
    assert batch().code == 0
    write({"prompt": "a ball"}, {"prompt": "a cube", "quantize": "int8"})
    ended = batch("--resume")
    assert ended.code == 0 and "1 of 2 are done already" in ended.err
    (path,) = ended.out.split()
    assert request_in(path)["prompt"] == "a cube" and request_in(path)["quantize"] == "int8"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"quantize": "int4"}, "no --quantize named 'int4' (use one of int8, fp8)"),
        ({"quantize": 8}, "quantize 8 is not text"),
        ({"attention": "xformers"}, "no --attention named 'xformers' (use one of sdpa, flash3, sage)"),
        ({"attention": "sage"}, "--attention sage needs sageattention"),
        ({"attention": None, "quantize": True}, "quantize True is not text"),
    ],
)
def test_a_bad_line_is_named(said: dict[str, Any], words: str, batch: Any) -> None:
    write({"prompt": "a ball", **said})
    ended = batch("--dry-run")
    assert ended.code == 2 and f"line 1: {words}" in ended.err
