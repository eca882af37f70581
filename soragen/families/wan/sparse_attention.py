"""Video sparse attention: tokens look at the few blocks of neighbours that matter to them, and at the means of all.

Source: Zhang et al., "VSA: Faster Video Diffusion with Trainable Sparse Attention" (arXiv:2505.13389), and FastVideo's
published code. The tokens of a video are cut into blocks of 4 x 4 x 4 neighbours. Attention between the means of blocks
says which blocks of keys count most for a block of queries, whose tokens then look at those tokens alone. What the
means found, which is one vector for a block, is added to it, times a gate that each token makes for itself.

A block at the edge of the video holds fewer tokens: its mean is theirs alone, and its empty places are not looked at.

Axis letters: B batch, A heads, K width of a head, N tokens; M blocks, S = 64 places in a block; m blocks of queries
that are computed at once, s blocks of keys that each of them looks at.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from soragen.models.attention import attend

SIDES = (4, 4, 4)
"""Of a block, in tokens: time, height, width."""
PLACES = math.prod(SIDES)
COPIES = 2
"""How much room the chosen keys have, in multiples of all keys. They are copied together for a few blocks at a time."""

TokenShape = tuple[int, int, int]


def num_blocks(token_shape: TokenShape) -> int:
    return math.prod(-(-count // side) for count, side in zip(token_shape, SIDES, strict=True))


def num_chosen(token_shape: TokenShape, sparsity: float) -> int:
    """How many blocks of keys a block of queries looks at; blocks at the edge count as whole ones.

    FastVideo's sum in FastVideo's floating point, which rounds 0.3 of 10 blocks up to 4.
    """
    blocks = num_blocks(token_shape)
    return max(1, min(math.ceil((1 - sparsity) * blocks), blocks))


def attend_sparsely(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, token_shape: TokenShape, sparsity: float) -> Tensor:
    """q looks at k, v; all [B, N, A, K], as gate and the result are.

    sparsity: 0..1, the share of blocks that are left out. Memory grows with N: nothing of size N x N is made, nor of
    M x M.
    """
    batch, chosen = len(q), num_chosen(token_shape, sparsity)
    real = cut(torch.ones(1, q.shape[1], 1, 1, dtype=torch.bool, device=q.device), token_shape)[0, :, :, 0]  # [M, S]
    size = real.sum(1, keepdim=True)
    is_padded = any(count % side for count, side in zip(token_shape, SIDES, strict=True))
    q, k, v, gate = (cut(x, token_shape) for x in (q, k, v, gate))  #        [B * A, M, S, K]
    q_mean, k_mean, v_mean = (x.sum(2, dtype=torch.float32) / size for x in (q, k, v))
    q_mean = q_mean * q_mean.shape[-1] ** -0.5
    k_rows, v_rows = k.flatten(0, 1), v.flatten(0, 1)
    first_rows = torch.arange(len(k), device=k.device)[:, None, None] * k.shape[1]
    out = torch.empty_like(q)
    at_once = max(1, COPIES * q.shape[1] // chosen)
    for start in range(0, q.shape[1], at_once):
        these = slice(start, start + at_once)
        scores = q_mean[:, these] @ k_mean.transpose(1, 2)  #                [B * A, m, M]
        blocks = scores.topk(chosen, sorted=False).indices  #                [B * A, m, s]
        rows = (blocks + first_rows).flatten()
        keys, values = (x.index_select(0, rows).view(*blocks.shape[:2], -1, x.shape[-1]) for x in (k_rows, v_rows))
        mask = real[blocks].flatten(2)[:, :, None] if is_padded else None  # [B * A, m, 1, s * S]
        fine = attend(q[:, these], keys, values, mask)  #                    [B * A, m, S, K]
        coarse = (scores.softmax(-1) @ v_mean)[:, :, None].type_as(fine)  #  [B * A, m, 1, K]
        out[:, these] = fine + gate[:, these] * coarse
        del keys, values  # before the next ones are made
    return join(out, token_shape, batch)


def cut(x: Tensor, token_shape: TokenShape) -> Tensor:
    """Tokens [B, N, A, K] in blocks [B * A, M, S, K], with zeros in the places that are empty."""
    x = x.unflatten(1, token_shape)  #                                       [B, t, h, w, A, K]
    t, h, w = (-count % side for count, side in zip(token_shape, SIDES, strict=True))
    x = F.pad(x, (0, 0, 0, 0, 0, w, 0, h, 0, t))
    for axis, side in zip((1, 3, 5), SIDES, strict=True):
        x = x.unflatten(axis, (-1, side))
    x = x.permute(0, 7, 1, 3, 5, 2, 4, 6, 8)  #                              [B, A, t, h, w of blocks, 4, 4, 4, K]
    return x.flatten(5, 7).flatten(2, 4).flatten(0, 1)


def join(x: Tensor, token_shape: TokenShape, batch: int) -> Tensor:
    """The inverse of `cut`."""
    blocks = [-(-count // side) for count, side in zip(token_shape, SIDES, strict=True)]
    x = x.unflatten(2, SIDES).unflatten(1, blocks).unflatten(0, (batch, -1))
    x = x.permute(0, 2, 5, 3, 6, 4, 7, 1, 8).flatten(5, 6).flatten(3, 4).flatten(1, 2)  # [B, t, h, w, A, K]
    t, h, w = token_shape
    return x[:, :t, :h, :w].flatten(1, 3)
