"""Weights of 8 bits: the matrices inside a network's blocks, rounded while they are loaded, by torchao.

Weight-only: a matrix is stored as int8 or as float8 (e4m3), with one scale for each of its rows, and widened while it
is multiplied with; what it is multiplied with stays as it was. Half the memory of 16 bits for the blocks, a quarter of
that of float32. What stands outside of the blocks (embeddings, the first and the last layer), norms, biases and tables
keep their type: they are small, and steer everything. docs/precision.md has how far the results are apart.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soragen.errors import InputError, SoragenError

LARGEST_DEVIATION = 0.06
"""Relative, of one layer: int8 stays below 0.01, and the three bits after the leading one of fp8 below 0.03."""


def check_quantize(kind: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raises InputError where weights of this kind ("int8", "fp8") do not work here: no table knows it, a layer does.

    dtype: of what the weights are multiplied with.
    """
    drawn = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))
    weight, x = drawn.to(device, dtype)
    try:
        found = F.linear(x, quantiser(kind)(weight))
        wrong = ((found - F.linear(x, weight)).float().norm() / F.linear(x, weight).float().norm()).item()
    except SoragenError:
        raise
    except Exception as error:  # each kernel that is missing has an error of its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"--quantize {kind} does not run on {device}: {reason}", "leave it out") from error
    if not wrong < LARGEST_DEVIATION:
        raise InputError(f"--quantize {kind} is {wrong:.0%} off on {device}", "leave it out, and run `soragen doctor`")


def quantised(
    network: nn.Module, blocks: str, tensors: Iterable[tuple[str, Tensor]], kind: str
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of `network`, one by one as they come, with the matrices inside its blocks in 8 bits.

    blocks: the name of the network's list of blocks.
    """
    quantise = quantiser(kind)
    matrices = {
        f"{blocks}.{name}.weight"
        for name, module in network.get_submodule(blocks).named_modules()
        if isinstance(module, nn.Linear)
    }
    for name, tensor in tensors:
        loaded = quantise(tensor) if name in matrices else tensor.clone()  # no view keeps the file mapped
        del tensor  # before the next one is read
        if loaded.device.type == "cpu":
            _give_back()
        yield name, loaded


def _give_back() -> None:
    """Memory that is free between what is kept goes back to the system, where the C library can do that.

    On a processor, rounding takes several times a matrix for a moment, and what is kept of it lies in between.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl has not
        if trim is not None:
            trim(0)


def quantiser(kind: str) -> Callable[[Tensor], nn.Parameter]:
    """From a matrix [out, in] to the same in 8 bits, as a layer takes it. Raises InputError without torchao."""
    torchao = _torchao()
    config = {"int8": torchao.Int8WeightOnlyConfig, "fp8": torchao.Float8WeightOnlyConfig}[kind]

    def quantise(weight: Tensor) -> nn.Parameter:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        torchao.quantize_(layer, config(set_inductor_config=False))
        return layer.weight

    return quantise


@cache
def _torchao() -> Any:
    """torchao.quantization. As it is imported, it warns of kernels for other machines; nobody needs to read that."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        import torchao.quantization
    except ImportError as error:
        raise InputError(f"--quantize needs torchao ({error})", "run `pip install 'soragen[quantize]'`") from error
    finally:
        logging.disable(before)
    return torchao.quantization
