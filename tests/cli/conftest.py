"""The command line run inside the test's own process, with the slow parts of the pipeline replaced by fakes."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from fakes import Cli, Ended, FakeRun

import soragen.pipeline
from soragen.cli import app, entry


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """cli("generate", "a ball", …) → exit code, stdout, stderr, in an empty folder with no models of the user's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("SORAGEN_WEIGHTS", raising=False)
    monkeypatch.setenv("SORAGEN_MODELS", str(tmp_path / "models"))

    def run(*arguments: str, stdin: bytes = b"") -> Ended:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        capsys.readouterr()
        code = entry.run(app, list(arguments))
        return Ended(code, *capsys.readouterr())

    return run


@pytest.fixture
def fake_run(monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    """soragen.pipeline.run replaced by a fake; the plan too."""
    run, plan = FakeRun(), ModuleType("soragen.pipeline.plan")
    vars(plan)["make_plan"] = lambda request, checkpoint, device, dtype: SimpleNamespace(
        to_dict=lambda: {"size": str(request.size), "checkpoint": checkpoint.name, "device": device},
        lines=lambda: [f"plan: {request.size}", f"device: {device}"],
    )
    for name, module in (("run", run), ("plan", plan)):
        monkeypatch.setitem(sys.modules, f"soragen.pipeline.{name}", module)
        monkeypatch.setattr(soragen.pipeline, name, module, raising=False)
    return run
