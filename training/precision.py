"""In which numbers networks are trained: 16 bits where that is faster."""

from __future__ import annotations

import torch


def autocast(device: str) -> torch.autocast:
    """Matrix products in bfloat16, but in float32 on a processor without instructions for it.

    There bfloat16 is emulated, and takes some twenty times as long as float32; with the instructions it takes half.
    """
    fast = device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.autocast(device, torch.bfloat16, enabled=fast)
