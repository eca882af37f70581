"""Attention, as all transformers call it: torch's own, or another one where it was asked for.

FlashAttention 3 (Shah et al., arXiv:2407.08608) takes the place of torch's flash kernel inside of torch: the same sum
in another order. SageAttention (Zhang et al., arXiv:2410.02367) multiplies in 8 bits: an approximation. It is used
where tokens look at each other, which is where the time goes; text is few tokens, and masks are not known to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec

import torch
import torch.nn.attention
import torch.nn.functional as F
from torch import Tensor

from soragen.errors import InputError
from soragen.request import ATTENTIONS

PACKAGES = {
    "flash3": ("flash_attn_interface", "build the `hopper` folder of FlashAttention"),
    "sage": ("sageattention", "run `pip install sageattention`"),
}
"""Name to the module that has the kernels, and how it is had."""
RUNS_ON = "cuda"
EXACT, APPROXIMATE = 0.02, 0.1
"""The largest relative deviation from torch's own attention: 16 bits round at 0.004."""

_asked: ContextVar[str] = ContextVar("attention", default="sdpa")


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """q [B, heads, N, K] looks at k, v [B, heads, L, K] -> [B, heads, N, K].

    mask: True where there is something to see, in a shape that stretches to [B, heads, N, L].
    """
    if _asked.get() == "sage" and mask is None and q.shape == k.shape:
        import sageattention

        return sageattention.sageattn(q, k, v, tensor_layout="HND", is_causal=False)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@contextmanager
def attention(name: str) -> Iterator[None]:
    """While the block runs, `attend` is the one of this name, which `check_attention` has passed."""
    token = _asked.set(name)
    if name == "flash3":
        torch.nn.attention.activate_flash_attention_impl("FA3")
    try:
        yield
    finally:
        if name == "flash3":
            torch.nn.attention.restore_flash_attention_impl()
        _asked.reset(token)


def check_attention(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raises InputError where attention of this name does not work here: it is tried, and compared with torch's own."""
    if name == "sdpa":
        return
    package, how = PACKAGES[name]
    if find_spec(package) is None:
        raise InputError(f"--attention {name} needs {package}, which is not installed", f"{how}, or leave it out")
    if device.type != RUNS_ON:
        raise InputError(f"--attention {name} runs on {RUNS_ON}, not on {device}", "leave it out")
    if dtype == torch.float32:
        raise InputError(f"--attention {name} computes in 16 bits, this is float32", "add --dtype bfloat16")
    q, k, v = torch.randn(3, 1, 2, 256, 64, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    expected = attend(q, k, v).float()
    try:
        with attention(name):
            found = attend(q, k, v).float()
    except Exception as error:  # each kernel has errors of its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"--attention {name} does not run on {device}: {reason}", "leave it out") from error
    wrong = ((found - expected).norm() / expected.norm()).item()
    if not wrong < (EXACT if ATTENTIONS[name] else APPROXIMATE):
        raise InputError(f"--attention {name} is {wrong:.0%} off on {device}", "leave it out")
