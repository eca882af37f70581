"""Damaged weights, seen from the command line: exit code 3, the file named, nothing written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fakes import Cli

from soragen.catalog import checkpoint_folder, find
from soragen.errors import WeightsError


@pytest.mark.parametrize("part", ["text_encoder", "transformer", "vae"])
def test_truncated_weights(cli: Cli, tmp_path: Path, part: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint_folder(find("pocket")), folder)
    (file,) = (folder / part).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1000])
    small = ["--size", "64x64", "--frames", "1", "--steps", "1", "-o", "x.mp4"]
    ended = cli("generate", f"a {part}", "--model", str(folder), *small)
    assert ended.code == WeightsError.exit_code, ended.err
    assert any(line.startswith("error: ") and file.name in line for line in ended.err.splitlines()), ended.err
    assert not (tmp_path / "x.mp4").exists()
