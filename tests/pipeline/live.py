"""The bytes of all tensors that are made and not gone yet; on the "meta" device it costs nothing to know."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """now, peak: of what is made while this mode is on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._owners: dict[int, tuple[int, int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {tensor.untyped_storage()._cdata for tensor in tensors((args, kwargs))}
        result = function(*args, **kwargs or {})
        for tensor in tensors(result):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._owners and key in inputs:
                continue  # a view of what was there before
            num_owners, _ = self._owners.get(key, (0, 0))
            if not num_owners:
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
            self._owners[key] = (num_owners + 1, storage.nbytes())
            weakref.finalize(tensor, self._drop, key)
        return result

    def _drop(self, key: int) -> None:
        num_owners, num_bytes = self._owners.pop(key)
        if num_owners > 1:
            self._owners[key] = (num_owners - 1, num_bytes)
        else:
            self.now -= num_bytes


def tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
