"""Video sparse attention against a plain loop over blocks, and the networks that have it."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from published_configs import PUBLISHED, write_configs
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from wan_folder import write_checkpoint
from wan_reference import TRANSFORMER, error, randn, randomise

from soragen.catalog import catalog, find
from soragen.diffusion.grid import Compression, Grid, lay_grid
from soragen.errors import InputError, WeightsError
from soragen.families import family_of, load_family
from soragen.families.wan import Wan, sparse_attention, transformer
from soragen.families.wan.sparse_attention import attend_sparsely, num_chosen
from soragen.families.wan.transformer import TransformerConfig, WanTransformer, lay_positions
from soragen.pipeline import run as pipeline
from soragen.pipeline.plan import make_plan
from soragen.pipeline.resolve import resolve
from soragen.size import VideoSize
from soragen.video.facts import video_facts

NAME = "fastwan2.1-t2v-1.3b"
CPU, F32 = torch.device("cpu"), torch.float32
TOLERANCE = 1e-6
SHAPES = [(3, 5, 6), (4, 4, 4), (1, 9, 2), (5, 8, 7), (9, 3, 13)]
SPARSE: dict[str, Any] = {**TRANSFORMER, "sparsity": 0.6}


def inputs(shape: tuple[int, int, int], heads: int = 2, width: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, k, v, gate = (randn(2, math.prod(shape), heads, width, seed=seed) for seed in range(4))
    return q, k, v, gate


def slow(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, shape: tuple[int, int, int], sparsity: float) -> Tensor:
    """By the definition (arXiv:2505.13389, section 2), one block of one head at a time."""
    blocks: dict[tuple[int, ...], list[int]] = {}
    for token, place in enumerate(itertools.product(*map(range, shape))):
        blocks.setdefault(tuple(index // 4 for index in place), []).append(token)
    members = [blocks[place] for place in sorted(blocks)]
    chosen = max(1, math.ceil((1 - sparsity) * len(members)))
    out = torch.zeros_like(v)
    for sample, head in itertools.product(range(q.shape[0]), range(q.shape[2])):
        query, key, value = (x[sample, :, head] for x in (q, k, v))
        scale = query.shape[-1] ** -0.5
        key_means = torch.stack([key[tokens].mean(0) for tokens in members])
        value_means = torch.stack([value[tokens].mean(0) for tokens in members])
        for tokens in members:
            scores = key_means @ query[tokens].mean(0) * scale
            best = sorted(range(len(members)), key=lambda block: -float(scores[block]))[:chosen]
            seen = [token for block in best for token in members[block]]
            fine = (query[tokens] @ key[seen].T * scale).softmax(-1) @ value[seen]
            out[sample, tokens, head] = fine + gate[sample, tokens, head] * (scores.softmax(0) @ value_means)
    return out


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_with_nothing_left_out_and_gates_shut_it_is_full_attention(shape: tuple[int, int, int]) -> None:
    q, k, v, gate = inputs(shape)
    expected = nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    assert error(attend_sparsely(q, k, v, torch.zeros_like(gate), shape, 0.0), expected) <= TOLERANCE


@pytest.mark.parametrize("sparsity", [0.8, 0.55, 0.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_what_a_loop_over_blocks_finds(shape: tuple[int, int, int], sparsity: float) -> None:
    tensors = inputs(shape)
    before = [x.clone() for x in tensors]
    found, expected = attend_sparsely(*tensors, shape, sparsity), slow(*tensors, shape, sparsity)
    assert error(found, expected) <= TOLERANCE
    assert all(torch.equal(x, y) for x, y in zip(tensors, before, strict=True))


def test_what_is_left_out_counts() -> None:
    tensors, shape = inputs((9, 3, 13)), (9, 3, 13)
    assert error(attend_sparsely(*tensors, shape, 0.8), slow(*tensors, shape, 0.7)) > 0.1


@pytest.mark.parametrize(
    ("shape", "sparsity", "count"),
    [
        ((16, 28, 52), 0.8, 73),  #  61 frames of 832x448: whole blocks, 364
        ((21, 30, 52), 0.8, 125),  # 81 frames of 832x480: blocks at the edge count as whole ones, 624
        ((21, 30, 52), 0.9, 63),
        ((4, 8, 20), 0.7, 4),  #     of 10, in floating point
        ((4, 8, 20), 0.999, 1),
        ((4, 8, 20), 0.0, 10),
        ((1, 1, 1), 0.8, 1),
    ],
)
def test_how_many_blocks_are_looked_at(shape: tuple[int, int, int], sparsity: float, count: int) -> None:
    assert num_chosen(shape, sparsity) == count


def test_memory_does_not_grow_with_the_square(monkeypatch: pytest.MonkeyPatch) -> None:
    shape, copied = (8, 22, 24), []

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        copied.append(k.numel())
        return torch.zeros_like(q)

    monkeypatch.setattr(sparse_attention, "attend", attend)
    attend_sparsely(*inputs(shape), shape, 0.8)
    places = 2 * 2 * 8 * 24 * 24 * 8  # samples, heads, padded tokens, width
    assert max(copied) <= sparse_attention.COPIES * places
    assert sum(copied) == num_chosen(shape, 0.8) * places


def test_16_bits() -> None:
    shape = (5, 8, 7)
    tensors = inputs(shape)
    found = attend_sparsely(*(x.bfloat16() for x in tensors), shape, 0.5)
    assert found.dtype == torch.bfloat16
    assert error(found, slow(*(x.bfloat16().float() for x in tensors), shape, 0.5)) <= 1e-2


def build(config: dict[str, Any]) -> WanTransformer:
    network = WanTransformer(TransformerConfig(**config)).eval()
    randomise(network)
    return network


def run(network: WanTransformer, shape: tuple[int, int, int]) -> Tensor:
    frames, height, width = shape
    latents, text = randn(2, 4, frames, 2 * height, 2 * width, seed=7), randn(2, 9, 24, seed=8)
    rows = torch.tensor([0, 1])[:, None, None]
    timesteps = torch.tensor([701.0, 34.0])
    return network(latents, timesteps, rows, lay_positions(28, shape), network.read(text))


@torch.no_grad()
def test_a_network_with_gates_that_are_shut_is_the_reference() -> None:
    theirs = WanTransformer3DModel(**TRANSFORMER).eval()
    randomise(theirs)
    ours = WanTransformer(TransformerConfig(**TRANSFORMER, sparsity=0.0)).eval()
    gates = {f"blocks.{n}.to_gate_compress.{kind}" for n in range(2) for kind in ("weight", "bias")}
    loaded = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert set(loaded.missing_keys) == gates and not loaded.unexpected_keys
    for name in gates:
        nn.init.zeros_(ours.get_parameter(name))
    shape = (3, 5, 6)
    latents, text = randn(2, 4, 3, 10, 12, seed=7), randn(2, 9, 24, seed=8)
    assert error(run(ours, shape), theirs(latents, torch.tensor([701, 34]), text).sample) <= TOLERANCE


@torch.no_grad()
def test_a_network_with_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates see what queries see, and are as they come out of their layer."""
    network, shape, seen = build(SPARSE), (5, 4, 9), []
    for name in ("attn1.to_q", "to_gate_compress"):
        layer = network.get_submodule(f"blocks.1.{name}")
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    found = run(network, shape)
    assert seen[0] is seen[1]
    monkeypatch.setattr(transformer, "attend_sparsely", slow)
    assert error(found, run(network, shape)) <= TOLERANCE
    nn.init.zeros_(network.get_parameter("blocks.0.to_gate_compress.weight"))
    assert error(found, run(network, shape)) > 1e-3


def test_the_published_network(tmp_path: Path) -> None:
    """At its full size, without memory: diffusers' tensors and, beside them, gates under their published names."""
    folder, checkpoint = write_configs(NAME, tmp_path), find(NAME)
    family, published = family_of(checkpoint), PUBLISHED[NAME]["transformer"]
    assert isinstance(family, Wan) and family.read(folder).sparsity == 0.8
    with torch.device("meta"):
        ours = WanTransformer(family.read(folder)).state_dict()
        theirs = WanTransformer3DModel(**{k: v for k, v in published.config.items() if k != "_class_name"})
    gates = {f"blocks.{n}.to_gate_compress.weight": torch.Size([1536, 1536]) for n in range(30)}
    gates |= {f"blocks.{n}.to_gate_compress.bias": torch.Size([1536]) for n in range(30)}
    wanted = {key: tensor.shape for key, tensor in theirs.state_dict().items()} | gates
    assert {key: tensor.shape for key, tensor in ours.items()} == wanted
    assert sum(weight.numel() for weight in ours.values()) == published.num_weights
    assert set(gates) <= set(family.lora_targets(folder)[""].shapes)


def test_what_the_catalog_says_of_configs(tmp_path: Path) -> None:
    folder = write_configs(NAME, tmp_path)
    family = load_family("wan")
    assert isinstance(family, Wan) and family.read(folder).sparsity is None
    for key in ("transformer.sparse", "vae.sparsity"):
        with pytest.raises(InputError, match=key):
            family.with_config({key: 0.8})
    for value in (-0.1, 1.0, "most"):
        with pytest.raises(WeightsError, match="sparsity"):
            family.with_config({"transformer.sparsity": value}).read(folder)
    pocket = catalog()["pocket"]
    with pytest.raises(InputError, match="pocket take none"):
        family_of(type(pocket)(**{**vars(pocket), "config": {"transformer.sparsity": 0.8}}))


def sparse_folder(folder: Path, own: dict[str, Any]) -> Path:
    """A small checkpoint with random gates, as FastVideo stores them, and a soragen.json of its own."""
    write_checkpoint(folder, WanPipeline)
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    for n in range(TRANSFORMER["num_layers"]):
        tensors[f"blocks.{n}.to_gate_compress.weight"] = randn(56, 56, seed=n) / 56**0.5
        tensors[f"blocks.{n}.to_gate_compress.bias"] = 0.1 * randn(56, seed=n)
    save_file(tensors, path)
    (folder / "soragen.json").write_text(json.dumps(own))
    return folder


def test_gates_are_needed_where_they_are_said_and_refused_elsewhere(tmp_path: Path) -> None:
    sparse = sparse_folder(tmp_path / "sparse", {"config": {"transformer.sparsity": 0.6}})
    loaded = family_of(find(str(sparse))).load_transformer(sparse, CPU, F32)
    assert isinstance(loaded, WanTransformer) and loaded.config.sparsity == 0.6
    with pytest.raises(WeightsError, match="to_gate_compress"):
        load_family("wan").load_transformer(sparse, CPU, F32)
    full = tmp_path / "full"
    write_checkpoint(full, WanPipeline)
    with pytest.raises(WeightsError, match="to_gate_compress"):
        family_of(find(str(sparse))).load_transformer(full, CPU, F32)


def test_from_a_sentence_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SORAGEN_CACHE", str(tmp_path / "cache"))
    native = {"width": 64, "height": 64, "num_frames": 9, "min_area": 0.5, "max_area": 2.0, "max_num_frames": 81}
    folder = sparse_folder(tmp_path / "model", {"like": NAME, "native": native})
    request = resolve("a red ball", model=str(folder), size="96x64", frames=13, seed=7, listen=lambda _: None)
    plan = make_plan(request, find(str(folder)), "cpu")
    assert [level.timestep for level in plan.schedule] == [1000, 757, 522, 0]
    assert not request.is_guided and plan.request.solver == "renoise"
    shapes: list[tuple[int, int, int]] = []

    def looked(*arguments: Any) -> Tensor:
        shapes.append(arguments[4])
        return attend_sparsely(*arguments)

    with pytest.raises(InputError, match="attention of its own: --attention sage"):
        make_plan(replace(request, attention="sage"), find(str(folder)), "cpu")
    monkeypatch.setattr(transformer, "attend_sparsely", looked)
    pipeline.generate(request, tmp_path / "a.mp4", device="cpu", listen=lambda _: None)
    facts = video_facts(tmp_path / "a.mp4")
    assert (facts.width, facts.height, facts.num_frames) == (96, 64, 13)
    assert shapes == [(4, 4, 6)] * 6  # three steps of two blocks


@torch.no_grad()
def test_work_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against what the layers and the attention of a forward are given to multiply."""
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(TRANSFORMER))
    (tmp_path / "vae").mkdir()
    vae = {"base_dim": 8, "z_dim": 4, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    (tmp_path / "vae" / "config.json").write_text(json.dumps(vae))
    token_shape, counted = (9, 10, 11), [0]
    size = VideoSize(16 * 11, 16 * 10, 33, Fraction(16))
    grid = lay_grid(size, Compression(stride=(4, 8, 8), patch_size=(1, 2, 2)))
    assert isinstance(grid, Grid) and grid.token_shape == token_shape
    network, attend = build(SPARSE), sparse_attention.attend

    def count(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        counted[0] += 4 * q.numel() * k.shape[-2]
        return attend(q, k, v, mask)

    monkeypatch.setattr(sparse_attention, "attend", count)
    words = network.read(randn(1, 512, 24))
    for layer in network.blocks.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(
                lambda layer, _, out: counted.__setitem__(0, counted[0] + 2 * out.numel() * layer.in_features)
            )
    latents = randn(1, 4, 9, 20, 22)
    network(latents, torch.tensor([1.0]), torch.zeros(1, 1, 1).long(), lay_positions(28, token_shape), words)
    counted[0] += 2 * 4 * 990 * 512 * 56  # attention to words
    counted[0] += 2 * 4 * 27**2 * 56  # attention of means
    work = Wan({"sparsity": 0.6}).work(tmp_path, grid)
    assert work.transformer_flops == pytest.approx(counted[0], rel=1e-9)
    assert work.transformer_bytes > Wan().work(tmp_path, grid).transformer_bytes  # blocks at the edge are as large


def test_the_published_size_takes_less_work(tmp_path: Path) -> None:
    folder, native = write_configs(NAME, tmp_path), find(NAME).native
    family = family_of(find(NAME))
    grid = lay_grid(VideoSize(native.width, native.height, native.num_frames, native.fps), family.compression(folder))
    sparse, full = family.work(folder, grid), load_family("wan").work(folder, grid)
    assert grid.token_shape == (16, 28, 52)
    assert 0.5 < sparse.transformer_flops / full.transformer_flops < 0.6
    assert sparse.transformer_bytes == full.transformer_bytes  # the feed-forward layers hold more
