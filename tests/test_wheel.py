"""The wheel holds all that a video takes: it is built, installed by itself, and used with the network blocked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

NO_NETWORK = """
import socket

def refuse(*arguments, **options):
    raise OSError("the network is blocked in this test")

socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(ROOT)], check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"soragen"}
    assert "soragen/weights.toml" in names
    embedded = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("soragen/checkpoints/**/*") if path.is_file()}
    assert embedded and embedded <= set(names)
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_generates_in_an_empty_environment_without_network(wheel: Path, tmp_path: Path) -> None:
    """The environment holds what soragen depends on, taken from this one, and soragen from the wheel alone."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", where], check=True, capture_output=True, text=True).stdout.strip())
    install = [sys.executable, "-m", "pip", "--quiet", "--python", str(python), "install", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True)
    here = subprocess.run([sys.executable, "-c", where], check=True, capture_output=True, text=True).stdout.strip()
    (site / "dependencies.pth").write_text(here + "\n")  # a .pth inside the added folder is not read: not this checkout
    (site / "sitecustomize.py").write_text(NO_NETWORK)

    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"SORAGEN_CACHE": str(tmp_path / "cache"), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    program = python.with_name("soragen" + python.suffix)
    options = ["--size", "96x64", "--frames", "9", "--steps", "2", "--seed", "1", "--json", "--output", "ball.mp4"]
    run = subprocess.run(
        [program, "generate", "a red ball on grass", *options],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["num_frames"] == 9
    assert (tmp_path / "ball.mp4").read_bytes()[4:8] == b"ftyp"
    source = subprocess.run([python, "-c", "import soragen; print(soragen.__file__)"], env=environment, cwd=tmp_path,
                            check=True, capture_output=True, text=True).stdout  # fmt: skip
    assert Path(source.strip()).is_relative_to(site)
