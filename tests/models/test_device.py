"""Devices, types and memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from soragen.errors import InputError
from soragen.models import device as module
from soragen.models.device import Memory, memory_budget, on_device, peak_memory, pick_device, pick_dtype

CPU = torch.device("cpu")
GIB = 2**30


def test_auto_takes_the_fastest_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, picked in ((["cuda:0", "cpu"], "cuda:0"), (["mps", "cpu"], "mps"), (["cpu"], "cpu")):
        monkeypatch.setattr(module, "devices", lambda there=there: there)
        assert pick_device(None) == pick_device("auto") == torch.device(picked)
    monkeypatch.setattr(module, "devices", lambda: ["cuda:0", "cuda:1", "cpu"])
    assert pick_device("cuda") == torch.device("cuda:0") and pick_device("cuda:1") == torch.device("cuda:1")
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize("name", ["cuda:7", "tpu", "", "mps:x", "meta"])
def test_an_unknown_device_says_what_is_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "devices", lambda: ["cuda:0", "cpu"])
    with pytest.raises(InputError) as caught:
        pick_device(name)
    assert caught.value.hint == "this machine has cuda:0, cpu"


def test_types(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = (torch.bfloat16,)
    assert pick_dtype(None, CPU, allowed) == pick_dtype("auto", CPU, allowed) == torch.float32
    assert pick_dtype("bfloat16", CPU, allowed) == torch.bfloat16
    assert pick_dtype("float32", CPU, allowed) == torch.float32
    with pytest.raises(InputError) as caught:
        pick_dtype("float16", CPU, allowed)
    assert caught.value.hint == "this checkpoint runs in float32, bfloat16"
    with pytest.raises(InputError):
        pick_dtype("float64", CPU, allowed)
    old = torch.device("cuda:0")
    monkeypatch.setattr(module, "_computes", lambda device, dtype: dtype != torch.bfloat16)
    assert pick_dtype(None, old, (torch.bfloat16, torch.float16)) == torch.float16
    assert pick_dtype(None, old, (torch.bfloat16,)) == torch.float32
    with pytest.raises(InputError, match="does not compute in bfloat16"):
        pick_dtype("bfloat16", old, allowed)


def machine(root: Path, groups: str, files: dict[str, str]) -> Memory:
    content = {"proc/meminfo": "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n", "proc/self/cgroup": groups, **files}
    for name, text in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return module._linux_memory(root)


def group(limit: object, usage: int, cache: int, folder: str = "sys/fs/cgroup") -> dict[str, str]:
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{usage}\n",
        f"{folder}/memory.stat": f"anon 1\ninactive_file {cache}\n",
    }


def test_memory_without_groups(tmp_path: Path) -> None:
    assert machine(tmp_path, "", {}) == (16 * GIB, 8 * GIB)


def test_memory_in_a_v2_container(tmp_path: Path) -> None:
    files = group(4 * GIB, 3 * GIB, GIB)
    assert machine(tmp_path, "0::/\n", files) == (4 * GIB, 2 * GIB)
    assert machine(tmp_path, "0::/../host/path/not/here\n", files) == (4 * GIB, 2 * GIB)


def test_memory_is_that_of_the_tightest_group(tmp_path: Path) -> None:
    files = group("max", 0, 0, "sys/fs/cgroup/a") | group(2 * GIB, GIB, 0, "sys/fs/cgroup/a/b")
    files |= group("max", 0, 0, "sys/fs/cgroup/a/b/c")
    assert machine(tmp_path, "0::/a/b/c\n", files) == (2 * GIB, GIB)
    files |= group(3 * GIB, 3 * GIB, GIB // 2, "sys/fs/cgroup/a")
    assert machine(tmp_path, "0::/a/b/c\n", files) == (2 * GIB, GIB // 2)


def test_memory_in_a_v1_container(tmp_path: Path) -> None:
    top = "sys/fs/cgroup/memory"
    files = {
        f"{top}/memory.limit_in_bytes": "9223372036854771712\n",
        f"{top}/memory.usage_in_bytes": "5\n",
        f"{top}/memory.stat": "total_inactive_file 0\n",
        f"{top}/job/memory.limit_in_bytes": str(6 * GIB),
        f"{top}/job/memory.usage_in_bytes": str(5 * GIB),
        f"{top}/job/memory.stat": f"inactive_file 0\ntotal_inactive_file {GIB}\n",
    }
    assert machine(tmp_path, "5:cpu:/\n4:memory:/job\n", files) == (6 * GIB, 2 * GIB)


def test_memory_of_this_machine() -> None:
    total, available = memory_budget(CPU)
    assert 2**26 < available <= total
    held = torch.ones(2**24)
    assert held.nbytes < peak_memory(CPU) < 2**40


def test_a_network_comes_home(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    homes = {name: tensor.data_ptr() for name, tensor in network.state_dict().items()}
    freed = []
    monkeypatch.setattr(module, "free_memory", freed.append)
    away = torch.device("meta")
    with pytest.raises(ValueError), on_device(network, away) as moved:
        assert all(tensor.device == away for tensor in moved.state_dict().values())
        raise ValueError
    assert {name: tensor.data_ptr() for name, tensor in network.state_dict().items()} == homes
    assert freed == [away] and network.eval()(torch.ones(1, 2)).isfinite().all()
