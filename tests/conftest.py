"""Tests marked `gpu` run where torch sees a GPU; tests that run side by side share the cores."""

from __future__ import annotations

import os

import pytest


def pytest_configure() -> None:
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # before torch is imported, and for programs begun here
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // int(workers)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no GPU"))
