"""LoRAs by PEFT on Wan's transformer, against PEFT's own merge, in the namings in which people have them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("peft")

import torch
from diffusers import WanPipeline, WanTransformer3DModel
from diffusers.loaders import lora_conversion_utils as reference
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from wan_folder import write_checkpoint
from wan_reference import IMAGE_TRANSFORMER, TRANSFORMER, error, randn, randomise

from soragen.catalog import catalog, find
from soragen.families.wan import FAMILY
from soragen.families.wan.experts import Experts
from soragen.families.wan.keys import TRANSFORMER as NAMING
from soragen.families.wan.transformer import TransformerConfig, WanTransformer, lay_positions
from soragen.models.lora import Fit, Targets, fit, merging
from soragen.models.weights import load_module
from soragen.pipeline import run
from soragen.pipeline.lora_fits import changes, fit_loras
from soragen.pipeline.plan import make_plan
from soragen.pipeline.resolve import resolve
from soragen.request import LoraFile

LAYERS = [
    "to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2", "proj_out", "time_proj", "patch_embedding",
    "text_embedder.linear_1", "text_embedder.linear_2", "time_embedder.linear_1", "time_embedder.linear_2",
]  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"lora_alpha": 4},
    "alpha": {"lora_alpha": 10, "alpha_pattern": {"attn1.to_q": 2}, "rank_pattern": {"to_v": 3}},
    "by the root of the rank": {"lora_alpha": 8, "use_rslora": True},
    "dora": {"lora_alpha": 6, "use_dora": True},
    "with biases": {"lora_alpha": 8, "lora_bias": True, "target_modules": ["to_q", "ffn.net.2"]},
}


def trained(folder: Path, config: dict[str, Any], **options: Any) -> PeftModel:
    """A network in `folder`/transformer and an adapter of it in `folder`/adapter, none of their weights trivial."""
    base = WanTransformer3DModel(**config).eval()
    randomise(base)
    base.save_pretrained(folder / "transformer")
    model: PeftModel = get_peft_model(base, LoraConfig(**{"r": 4, "target_modules": LAYERS, **options})).eval()
    with torch.no_grad():
        for number, (name, weight) in enumerate(model.named_parameters()):
            if "lora_magnitude" in name:
                weight.mul_(1 + 0.2 * randn(*weight.shape, seed=number))
            elif "lora_" in name:
                weight.copy_(0.1 * randn(*weight.shape, seed=number))
    model.save_pretrained(folder / "adapter")
    return model


def targets(config: dict[str, Any]) -> Targets:
    return Targets.of(lambda: WanTransformer(TransformerConfig(**config)), NAMING)


def ours(folder: Path, config: dict[str, Any], *fits: Fit) -> WanTransformer:
    return load_module(
        lambda: WanTransformer(TransformerConfig(**config)), folder / "transformer", device=torch.device("cpu"),
        dtype=torch.float32, change=merging(fits),
    )  # fmt: skip


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS.keys())
@torch.no_grad()
def test_forward_is_that_of_pefts_own_merge(options: dict[str, Any], tmp_path: Path) -> None:
    theirs = trained(tmp_path, TRANSFORMER, **options)
    latents, text = randn(1, 4, 3, 6, 10), randn(1, 512, 24, seed=1)
    before = theirs.base_model.model(latents, torch.tensor([701]), text).sample  # with the adapter, not merged
    merged = theirs.merge_and_unload()
    expected = merged(latents, torch.tensor([701]), text).sample

    found = fit(tmp_path / "adapter" / "adapter_model.safetensors", 1.0, targets(TRANSFORMER)).require(partial=False)
    network = ours(tmp_path, TRANSFORMER, found)
    rows, positions = torch.zeros(1, 1, 1, dtype=torch.long), lay_positions(28, (3, 3, 5))
    forward = network(latents, torch.tensor([701.0]), rows, positions, network.read(text))
    assert error(forward, expected) <= 1e-6
    assert error(forward, before) <= 1e-5
    assert (
        error(
            ours(tmp_path, TRANSFORMER)(latents, torch.tensor([701.0]), rows, positions, network.read(text)), expected
        )
        > 0.01
    )


def files(adapter: dict[str, Tensor], folder: Path) -> dict[str, Path]:
    """The same change as each of the trainers and packagers would write it."""
    plain = {key.removeprefix("base_model.model."): tensor for key, tensor in adapter.items()}
    layers = sorted({key.partition(".lora_")[0] for key in plain})
    original = {layer: NAMING.originals(f"{layer}.weight")[0].removesuffix(".weight") for layer in layers}
    parts = {layer: (plain[f"{layer}.lora_A.weight"], plain[f"{layer}.lora_B.weight"]) for layer in layers}
    alpha = torch.tensor(4.0)
    written = {name: folder / f"{name}.safetensors" for name in ("diffusers", "comfyui", "lightx2v", "kohya", "full")}
    save_file({f"transformer.{key}": tensor for key, tensor in plain.items()}, written["diffusers"])
    comfyui, lightx2v, kohya, full = ({} for _ in range(4))
    for layer, (a, b) in parts.items():
        comfyui |= {f"diffusion_model.{original[layer]}.lora_A.weight": a}
        comfyui |= {f"diffusion_model.{original[layer]}.lora_B.weight": b}
        lightx2v |= {f"diffusion_model.{original[layer]}.lora_down.weight": a}
        lightx2v |= {f"diffusion_model.{original[layer]}.lora_up.weight": b}
        under = "lora_unet_" + original[layer].replace(".", "_")
        kohya |= {f"{under}.lora_down.weight": a, f"{under}.lora_up.weight": b, f"{under}.alpha": alpha}
        full |= {f"diffusion_model.{original[layer]}.diff": b @ a}
    for name, tensors in zip(list(written)[1:], (comfyui, lightx2v, kohya, full), strict=True):
        save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, written[name])
    return written


@pytest.mark.parametrize("config", [TRANSFORMER, IMAGE_TRANSFORMER], ids=["text", "images"])
@torch.no_grad()
def test_every_naming_is_the_same_change(config: dict[str, Any], tmp_path: Path) -> None:
    layers = [name for name in LAYERS[:6]] + (["add_k_proj", "add_v_proj"] if config is IMAGE_TRANSFORMER else [])
    theirs = trained(tmp_path, config, lora_alpha=4, target_modules=[*layers])
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    written, expected = files(adapter, tmp_path), theirs.merge_and_unload().state_dict()
    for name, path in written.items():
        found = fit(path, 1.0, targets(config)).require(partial=False)
        assert found.num_applied == len(adapter) // 2, name
        weights = ours(tmp_path, config, found).state_dict()
        for key, weight in weights.items():
            torch.testing.assert_close(weight, expected[key], rtol=1e-6, atol=1e-6, msg=f"{name}: {key}")

    # The reference library reads the same out of the files that it knows.
    plain = load_file(written["diffusers"])
    for name, convert in (
        ("comfyui", reference._convert_non_diffusers_wan_lora_to_diffusers),
        ("kohya", reference._convert_musubi_wan_lora_to_diffusers),
    ):
        converted = convert(load_file(written[name]))
        assert converted.keys() == plain.keys()
        assert all(torch.equal(converted[key], plain[key]) for key in plain)


@torch.no_grad()
def test_each_of_two_transformers_gets_its_own(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, WanPipeline, boundary_ratio=0.875)
    targets = FAMILY.lora_targets(tmp_path)
    assert list(targets) == ["high", "low"]
    bias = {"diffusion_model.head.head.diff_b": torch.ones(16)}
    save_file(bias, tmp_path / "a.safetensors")

    def biases(*loras: LoraFile) -> list[Tensor]:
        """Of the last layer, for high and for low noise."""
        experts = FAMILY.load_transformer(
            tmp_path, torch.device("cpu"), torch.float32, changes=changes(fit_loras(loras, targets))
        )
        assert isinstance(experts, Experts)
        return [experts.load[high]().proj_out.bias for high in (True, False)]

    path = tmp_path / "a.safetensors"
    high, low = biases()
    for loras, expected in {
        (LoraFile(path, "", 1.0, "high"),): (high + 1, low),
        (LoraFile(path, "", 1.0, "low"),): (high, low + 1),
        (LoraFile(path, "", 1.0), LoraFile(path, "", 2.0, "low")): (high + 1, low + 3),
    }.items():
        for found, wanted in zip(biases(*loras), expected, strict=True):
            torch.testing.assert_close(found, wanted)
    both, one = fit_loras([LoraFile(path, "", 0.5), LoraFile(path, "", 1.0, "low")], targets)
    assert both.note == "LoRA a.safetensors at 0.5: applied 1 of 1 (high noise), 1 of 1 (low noise)"
    assert one.note == "LoRA a.safetensors at 1: applied 1 of 1 (low noise)"


def test_distilled_file_with_differences_of_norms_biases_and_tables(tmp_path: Path) -> None:
    base = WanTransformer3DModel(**TRANSFORMER)
    randomise(base)
    base.save_pretrained(tmp_path / "transformer")
    weights = base.state_dict()
    stored = {  # authors' key to our weight
        "blocks.1.norm3.diff": "blocks.1.norm2.weight",
        "blocks.1.norm3.diff_b": "blocks.1.norm2.bias",
        "blocks.0.self_attn.norm_q.diff": "blocks.0.attn1.norm_q.weight",
        "blocks.0.cross_attn.o.diff_b": "blocks.0.attn2.to_out.0.bias",
        "blocks.0.diff_m": "blocks.0.scale_shift_table",
        "head.diff_m": "scale_shift_table",
        "head.head.diff": "proj_out.weight",
        "time_projection.1.diff_b": "condition_embedder.time_proj.bias",
        "patch_embedding.diff": "patch_embedding.weight",
    }
    changes = {key: randn(*weights[name].shape, seed=number) for number, (key, name) in enumerate(stored.items())}
    save_file({f"diffusion_model.{key}": tensor for key, tensor in changes.items()}, tmp_path / "a.safetensors")
    found = fit(tmp_path / "a.safetensors", 0.5, targets(TRANSFORMER)).require(partial=False)
    after = ours(tmp_path, TRANSFORMER, found).state_dict()
    expected = dict(weights)
    for key, name in stored.items():
        expected[name] = weights[name] + 0.5 * changes[key]
    for name, weight in after.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-6, atol=1e-6, msg=name)


NAME = "wan2.2-t2v-a14b-4step"
NATIVE = {"width": 64, "height": 64, "num_frames": 9, "min_area": 0.5, "max_area": 2.0, "max_num_frames": 81}


@pytest.fixture
def experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two small transformers, with the LoRA of each beside it, by the names of the catalog's own.

    The user's own table names it "two-loras".
    """
    folder = tmp_path / "experts"
    write_checkpoint(folder, WanPipeline, boundary_ratio=0.875)
    for seed, part in enumerate(catalog()[NAME].loras):
        layers = {"blocks.0.self_attn.q": (56, 56), "blocks.1.ffn.0": (80, 56), "head.head": (16, 56)}
        pairs = {
            f"diffusion_model.{layer}.lora_{side}.weight": 0.3 * randn(*shape, seed=10 * seed + number)
            for number, (layer, (rows, columns)) in enumerate(layers.items())
            for side, shape in (("A", (4, columns)), ("B", (rows, 4)))
        }
        save_file(pairs, folder / part.file)
    lines = ["[two-loras]", f'like = "{NAME}"', f'source = "{folder}"', "[two-loras.native]"]
    (tmp_path / "weights.toml").write_text("\n".join([*lines, *(f"{key} = {value}" for key, value in NATIVE.items())]))
    monkeypatch.setenv("SORAGEN_WEIGHTS", str(tmp_path / "weights.toml"))
    monkeypatch.setenv("SORAGEN_CACHE", str(tmp_path / "cache"))
    return folder


def latents_of(model: str, **options: Any) -> tuple[Tensor, list[str]]:
    """The final latents, as a run plans, loads and denoises them, and what its plan says of each LoRA."""
    asked = {"size": "96x64", "frames": 9, "seed": 7, "listen": lambda event: None, **options}
    plan = make_plan(resolve("a red fox", model=model, **asked), find(model), "cpu")
    clock = run.Clock(lambda event: None)
    context, negative = run.encode_prompts(plan, True, clock.listen)
    made = run.denoise_all(plan, context, negative, run.encode_given(plan, clock), clock)
    assert made.shape == (1, 4, 3, 8, 12)
    return made, [lora.note for lora in plan.loras]


def test_a_checkpoint_with_a_lora_for_each_expert_is_what_the_options_add(experts: Path) -> None:
    """Named by the user's own table or by a file in its folder, against the plain model with the same settings."""
    high, low = (experts / part.file for part in catalog()[NAME].loras)
    settings = {**asdict(catalog()[NAME].defaults), "shifts": {}}

    def described(values: dict[str, Any], **options: Any) -> tuple[Tensor, list[str]]:
        (experts / "soragen.json").write_text(json.dumps({"native": NATIVE, **values}))
        return latents_of(str(experts), **options)

    def plain(*loras: str) -> tuple[Tensor, list[str]]:
        return described({"like": "wan2.2-t2v-a14b", "defaults": settings}, lora=loras)

    expected, said = plain(f"{high}@high", f"{low}@low")
    assert [note.partition(": ")[2] for note in said] == ["applied 3 of 3 (high noise)", "applied 3 of 3 (low noise)"]
    for found, notes in (latents_of("two-loras"), described({"like": NAME})):
        assert notes == said and torch.equal(found, expected)
    for loras in ([], [f"{high}@low", f"{low}@high"]):
        assert error(plain(*loras)[0], expected) > 0.01
