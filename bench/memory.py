"""What loading takes beside the weights, and what streaming takes instead of them: each in a process of its own.

    python bench/memory.py                # a Wan transformer of 200 million random weights, 400 MB in 16 bits on disk
    python bench/memory.py --layers 4     # a smaller one

The peak is VmHWM, as Linux keeps it: pages of the mapped file count for as long as they are mapped. "beside" is what a
process held at most over what it held before, without the weights as they are computed with.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import torch
from safetensors.torch import save_file
from watch import run

from soragen.diffusion.grid import Compression, lay_grid
from soragen.diffusion.schedule import make_schedule
from soragen.families.wan.transformer import TransformerConfig, WanTransformer
from soragen.models.device import DTYPES, peak_memory
from soragen.models.family import Context
from soragen.models.offload import Residence, load_network, measure
from soragen.models.quantize import quantiser
from soragen.size import VideoSize

MARGIN = 350_000_000
"""Bytes that loading may take beside the weights: 256 MB of the file that are mapped, and the largest tensor twice."""


def config(num_layers: int) -> TransformerConfig:
    return TransformerConfig(8, 128, 16, 16, 4096, num_layers, text_dim=512)


def write(folder: Path, num_layers: int) -> None:
    """Random weights in 16 bits; the numbers repeat, which nothing here depends on."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in WanTransformer(config(num_layers)).state_dict().items()}
    drawn = torch.randn(2**23, generator=torch.Generator().manual_seed(0)).bfloat16()
    tensors = {}
    for shape_name, shape in shapes.items():
        count = math.prod(shape)
        tensors[shape_name] = (drawn.repeat(-(-count // len(drawn)))[:count] / math.sqrt(shape[-1])).view(shape)
    save_file(tensors, folder / "model.safetensors")


def child(folder: Path, num_layers: int, residence: str, dtype: str, quantize: str) -> None:
    """Loads, runs two steps where that is float32, and prints what it took."""
    torch.set_num_threads(1)
    made = config(num_layers)
    if quantize:
        quantiser(quantize)(torch.randn(64, 64).to(DTYPES[dtype]))  # all that is imported is no part of loading
    before, began = peak_memory(), time.perf_counter()
    network = load_network(
        lambda: WanTransformer(made), folder, residence=Residence(residence), blocks="blocks",
        device=torch.device("cpu"), dtype=DTYPES[dtype], quantize=quantize or None,
    )  # fmt: skip
    loaded, seconds, digest = peak_memory(), time.perf_counter() - began, ""
    if dtype == "float32":
        torch.manual_seed(0)
        grid = lay_grid(VideoSize(64, 64, 9, Fraction(8)), Compression((4, 8, 8), (1, 2, 2)))
        x, levels = torch.randn(1, 16, *grid.latent_shape), make_schedule("flow", 2, 3.0, grid.num_tokens)
        with torch.inference_mode():
            denoise = network.bind(Context(torch.randn(16, 512), torch.ones(16, dtype=torch.bool)), grid)
            began = time.perf_counter()
            for level in levels[:2]:
                x = denoise(x, level)
        seconds = time.perf_counter() - began
        digest = hashlib.sha256(x.numpy().tobytes()).hexdigest()[:12]
    print(json.dumps({"load": loaded - before, "run": peak_memory() - before, "seconds": seconds, "digest": digest}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--child", nargs=4, metavar=("FOLDER", "RESIDENCE", "DTYPE", "QUANTIZE"))
    options = parser.parse_args()
    if options.child:
        child(Path(options.child[0]), options.layers, *options.child[1:])
        return
    print(
        "| blocks | computed in | weights MB | peak of loading MB | beside MB | peak with two steps MB | two steps s |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    digests = set()
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), options.layers)
        sizes = measure(Path(name))
        for residence, dtype, quantize in (
            ("resident", "bfloat16", ""),
            ("resident", "bfloat16", "int8"),
            ("resident", "bfloat16", "fp8"),
            ("resident", "float32", ""),
            ("mapped", "float32", ""),
        ):
            kind = quantize or dtype
            arguments = [__file__, "--layers", str(options.layers), "--child", name, residence, dtype, quantize]
            found = json.loads(run(arguments, {}).out)
            width = DTYPES[dtype].itemsize
            weights = sizes.blocks * (1 if quantize else width) + sizes.rest * width
            beside = found["load"] - (weights if residence == "resident" else sizes.rest * 4)
            steps = (f"{found['run'] / 1e6:.0f}", f"{found['seconds']:.2f}") if found["digest"] else ("", "")
            megabytes = (f"{value / 1e6:.0f}" for value in (weights, found["load"], beside))
            cells = [residence, kind, *megabytes, *steps]
            print("| " + " | ".join(cells) + " |")
            digests |= {found["digest"]} - {""}
            if beside > MARGIN:
                sys.exit(f"{residence} {kind}: {beside / 1e6:.0f} MB beside the weights, {MARGIN / 1e6:.0f} at most")
    if len(digests) != 1:
        sys.exit("streamed and resident steps differ")


if __name__ == "__main__":
    main()
