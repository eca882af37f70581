"""Measures the real sizes on an accelerator, against diffusers with the same weights: one step, and one decode.

    python bench/gpu.py                                  # every case, on the fastest device
    python bench/gpu.py --case wan2.1-t2v-1.3b --json
    python bench/gpu.py --device cpu --tiny              # to see that it works
    python bench/gpu.py --device cpu --what decode --size 320x256 --frames 17     # published widths on a processor

No file is read: networks are built from the published configs (tests/published_configs.py), their weights are drawn on
the device, and diffusers' networks hold the very same tensors. A step is what guidance makes of it: two forwards, one
for the prompt and one for the negative prompt. The share of the ceiling is that of the bfloat16 product of two large
square matrices, measured here and now. Attention is torch's own on both sides, nothing is compiled.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from random_checkpoint import TINY, Scale, fill, transformer_config, vae_config
from torch import Tensor, nn

from soragen.catalog import find
from soragen.diffusion.grid import Grid, lay_grid
from soragen.diffusion.guidance import guided
from soragen.diffusion.schedule import NoiseLevel
from soragen.errors import SoragenError
from soragen.families import family_of
from soragen.families.ltx_video.transformer import LtxTransformer
from soragen.families.ltx_video.transformer import TransformerConfig as LtxConfig
from soragen.families.ltx_video.vae import DECODE_NOISE_SCALE, DECODE_TIMESTEP, LtxVae
from soragen.families.ltx_video.vae import VaeConfig as LtxVaeConfig
from soragen.families.wan.transformer import KEEP_FLOAT32, WanTransformer
from soragen.families.wan.transformer import TransformerConfig as WanConfig
from soragen.families.wan.vae import VaeConfig as WanVaeConfig
from soragen.families.wan.vae import WanVae
from soragen.models.config import read_config
from soragen.models.device import DTYPES, free_memory, pick_device
from soragen.models.family import Context
from soragen.size import VideoSize

LEVEL, GUIDANCE = NoiseLevel(0.3, 0.7, 700.0), 5.0
SIDES = ("soragen", "diffusers")
WHAT = ("step", "decode")


@dataclass(frozen=True)
class Case:
    """decodes: whether the VAE is measured, too. A14B has that of 1.3B."""

    name: str
    width: int
    height: int
    num_frames: int
    fps: int
    decodes: bool = True
    text_tokens: int = 512


CASES = (
    Case("wan2.1-t2v-1.3b", 832, 480, 81, 16),
    Case("wan2.2-ti2v-5b", 1280, 704, 121, 24),
    Case("ltx-video-0.9.5", 1216, 704, 121, 24, text_tokens=256),
    Case("wan2.2-t2v-a14b", 1280, 720, 81, 16, decodes=False),
)


class Bench:
    """device: where. scale: how thin the networks are; None is as published. steps: how many are timed.

    what: which of `WHAT`.
    """

    def __init__(
        self, device: torch.device, scale: Scale | None, steps: int, folder: Path, what: Sequence[str] = WHAT
    ) -> None:
        self.device, self.scale, self.steps, self.folder, self.what = device, scale, steps, folder, what
        self.ceiling = self.measure_ceiling(8192 if device.type == "cuda" else 512)

    def measure_ceiling(self, side: int) -> float:
        """FLOP/s of the product of two square matrices in bfloat16, the best of ten."""
        a, b = (torch.randn(side, side, device=self.device).bfloat16() for _ in range(2))
        a @ b
        return 2 * side**3 / min(self.time(lambda: a @ b) for _ in range(10))

    def time(self, call: Callable[[], Any]) -> float:
        """Seconds until the device is done."""
        self.wait()
        began = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - began

    def wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def measure(self, call: Callable[[], Tensor], times: int) -> tuple[dict[str, Any], Tensor | None]:
        """Seconds and peak memory of `call`, once to warm up and then the best of `times`, and its result."""
        free_memory(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        try:
            with torch.inference_mode():
                result = call()
                seconds = min(self.time(call) for _ in range(times))
        except torch.OutOfMemoryError:
            return {"seconds": None, "memory": None}, None
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None
        return {"seconds": seconds, "memory": peak}, result.float().cpu()

    def run(self, case: Case) -> dict[str, Any]:
        """Both sides of a case: {"step": {side: measured, "deviation": ...}, "decode": ...}."""
        configs = self.folder / case.name
        for part, config in (
            ("transformer", transformer_config(case.name, self.scale)),
            ("vae", vae_config(case.name, self.scale)),
        ):
            (configs / part).mkdir(parents=True)
            (configs / part / "config.json").write_text(json.dumps(config))
        family = family_of(find(case.name))
        size = VideoSize(case.width, case.height, case.num_frames, Fraction(case.fps))
        if self.scale is not None:
            size = VideoSize(96, 64, 17, Fraction(case.fps))
        grid = lay_grid(size, family.compression(configs))
        found = {"case": case.name, "size": str(size), "tokens": grid.num_tokens}
        flops = 2 * family.work(configs, grid).transformer_flops
        if "step" in self.what:
            found["step"] = step = self.step(case, configs, grid)
            for side in SIDES:
                seconds = step[side]["seconds"]
                step[side]["ceiling"] = seconds and 100 * flops / seconds / self.ceiling
            self.clean()
        if case.decodes and "decode" in self.what:
            found["decode"] = self.decode(case, configs, grid)
            self.clean()
        return found

    def clean(self) -> None:
        gc.collect()
        free_memory(self.device)

    def dtype(self, case: Case, part: str) -> torch.dtype:
        """That of the catalog; float32 on a processor, as in a run."""
        return torch.float32 if self.device.type == "cpu" else DTYPES[getattr(find(case.name).dtypes, part)]

    def draw(self, *shape: int, seed: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.device)

    def step(self, case: Case, configs: Path, grid: Grid) -> dict[str, Any]:
        """One guided step of the transformer."""
        dtype, is_wan = self.dtype(case, "transformer"), case.name.startswith("wan")
        config: Any = read_config(configs / "transformer", WanConfig if is_wan else LtxConfig)
        ours: Any = self.build(
            lambda: WanTransformer(config) if is_wan else LtxTransformer(config, causal_time=False),
            dtype,
            KEEP_FLOAT32 if is_wan else (),
        )
        theirs = self.share(ours, configs / "transformer")
        text_width = config.text_dim if is_wan else config.caption_channels
        texts = [self.draw(case.text_tokens, text_width, seed=seed).to(dtype) for seed in (1, 2)]
        mask = torch.ones(case.text_tokens, dtype=torch.bool, device=self.device)
        latents = self.draw(1, config.in_channels, *grid.latent_shape, seed=3)
        denoiser = guided(*(ours.bind(Context(text, mask), grid) for text in texts), GUIDANCE)

        def velocity(text: Tensor) -> Tensor:
            if is_wan:
                # Pipelines of 5B give a timestep to each token, others one to all.
                per_token = case.name == "wan2.2-ti2v-5b"
                shape = (1, grid.num_tokens) if per_token else (1,)
                timestep = torch.full(shape, LEVEL.timestep, device=self.device)
                return theirs(latents.to(dtype), timestep, text[None], return_dict=False)[0].float()
            tokens = latents.flatten(2).mT.to(dtype)
            stride = grid.compression.stride
            timestep = torch.full((1,), LEVEL.timestep, device=self.device)
            scale = (stride[0] / case.fps, stride[1], stride[2])
            out = theirs(tokens, text[None], timestep, mask[None], *grid.latent_shape, scale, return_dict=False)[0]
            return out.float().mT.reshape(latents.shape)

        def reference() -> Tensor:
            towards, away = (velocity(text) for text in texts)
            return latents - LEVEL.sigma * (away + GUIDANCE * (towards - away))

        return self.compare(lambda: denoiser(latents, LEVEL), reference, self.steps)

    def decode(self, case: Case, configs: Path, grid: Grid) -> dict[str, Any]:
        """From latents to frames in the machine's memory; diffusers decodes all at once, as its pipelines do."""
        dtype, is_wan = self.dtype(case, "vae"), case.name.startswith("wan")
        keep = () if is_wan else ("latents_mean", "latents_std")
        config: Any = read_config(configs / "vae", WanVaeConfig if is_wan else LtxVaeConfig)
        ours: Any = self.build(lambda: WanVae(config) if is_wan else LtxVae(config), dtype, keep)
        theirs = self.share(ours, configs / "vae")
        channels = config.z_dim if is_wan else config.latent_channels
        latents = self.draw(1, channels, *grid.latent_shape, seed=4)
        if is_wan:
            statistics = (torch.tensor(config.latents_mean), torch.tensor(config.latents_std))
        else:
            statistics = (ours.latents_mean, ours.latents_std)
        mean, std = (values.float().view(1, -1, 1, 1, 1).to(self.device) for values in statistics)

        def reference() -> Tensor:
            x, more = latents * std + mean, ()
            if not is_wan:
                generator = torch.Generator().manual_seed(0)
                _, noise = (torch.randn(x.shape, generator=generator) for _ in range(2))
                x = (1 - DECODE_NOISE_SCALE) * x + DECODE_NOISE_SCALE * noise.to(x)
                more = (torch.tensor([DECODE_TIMESTEP], device=self.device, dtype=dtype),)
            frames = theirs.decode(x.to(dtype), *more, return_dict=False)[0]
            return (frames[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 3, 0).float().cpu()

        return self.compare(lambda: torch.cat(list(ours.decode(latents, seed=0))), reference, 1)

    def compare(self, ours: Callable[[], Tensor], theirs: Callable[[], Tensor], times: int) -> dict[str, Any]:
        """deviation: |ours - theirs| / |theirs|."""
        measured, results = zip(*(self.measure(call, times) for call in (ours, theirs)), strict=True)
        apart = None
        if results[0] is not None and results[1] is not None:
            apart = float((results[0] - results[1]).norm() / results[1].norm())
        return dict(zip(SIDES, measured, strict=True)) | {"deviation": apart}

    def build(self, make: Callable[[], nn.Module], dtype: torch.dtype, keep_float32: tuple[str, ...]) -> nn.Module:
        """A network whose weights were never anywhere but on the device."""
        with torch.device("meta"):
            network = make()
        tensors = {
            name: torch.empty(
                tensor.shape, device=self.device,
                dtype=torch.float32 if any(part in name for part in keep_float32) else dtype,
            )
            for name, tensor in network.state_dict().items()
        }  # fmt: skip
        network.load_state_dict(tensors, strict=True, assign=True)
        fill(network)
        return network.eval().requires_grad_(False)

    def share(self, ours: nn.Module, config_folder: Path) -> Any:
        """diffusers' network of that config, with the weights of `ours`: the same tensors, not copies of them."""
        import diffusers

        config = json.loads((config_folder / "config.json").read_text())
        make = getattr(diffusers, config.pop("_class_name"))
        with torch.device("meta"):
            network = make(**config)
        network.load_state_dict(ours.state_dict(), strict=True, assign=True)
        if hasattr(network, "rope") and any(buffer.is_meta for buffer in network.rope.buffers()):
            network.rope = make(**config | {"num_layers": 0}).rope.to(self.device)  # tables, in no file
        left = [name for name, tensor in (*network.named_parameters(), *network.named_buffers()) if tensor.is_meta]
        if left:
            sys.exit(f"no values for {', '.join(left)} of diffusers' {make.__name__}")
        return network.eval().requires_grad_(False)


def markdown(results: list[dict[str, Any]]) -> str:
    head = ["case", "tokens", "what", "side", "seconds", "% of the ceiling", "peak MB", "deviation"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for found in results:
        for what in WHAT:
            for side in SIDES if what in found else ():
                at, apart = found[what][side], found[what]["deviation"]
                cells = [
                    f"{found['case']}, {found['size']}", str(found["tokens"]), what, side,
                    "out of memory" if at["seconds"] is None else f"{at['seconds']:.3f}",
                    f"{at['ceiling']:.0f}" if at.get("ceiling") else "",
                    f"{at['memory'] / 1e6:.0f}" if at["memory"] else "",
                    f"{apart:.1e}" if apart is not None else "",
                ]  # fmt: skip
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="the fastest unless said")
    parser.add_argument("--tiny", action="store_true", help="thin networks and a small video")
    parser.add_argument("--steps", type=int, default=2, help="timed steps, after one to warm up; the best counts")
    parser.add_argument("--case", choices=[case.name for case in CASES], action="append", help="may be given again")
    parser.add_argument("--what", choices=WHAT, help="one of the two instead of both")
    parser.add_argument("--size", help="of the video, such as 320x256, instead of the published one")
    parser.add_argument("--frames", type=int)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    try:
        device = pick_device(options.device)
    except SoragenError as error:
        sys.exit(f"{error.message}: {error.hint}")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    with tempfile.TemporaryDirectory() as folder:
        what = (options.what,) if options.what else WHAT
        bench = Bench(device, TINY if options.tiny else None, options.steps, Path(folder), what)
        wanted = [case for case in CASES if options.case is None or case.name in options.case]
        if options.size:
            width, _, height = options.size.partition("x")
            wanted = [replace(case, width=int(width), height=int(height)) for case in wanted]
        if options.frames:
            wanted = [replace(case, num_frames=options.frames) for case in wanted]
        results = [bench.run(case) for case in wanted]
    about = {"device": name, "torch": torch.__version__, "ceiling_tflops": bench.ceiling / 1e12}
    if options.json:
        print(json.dumps(about | {"results": results}))
        return
    print(f"{name}, torch {torch.__version__}, bfloat16 ceiling {bench.ceiling / 1e12:.2f} TFLOP/s\n")
    print(markdown(results))


if __name__ == "__main__":
    main()
