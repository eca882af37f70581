"""What is answered without a network is answered without importing one."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "rich",
    "diffusers",
    "imageio_ffmpeg",
    "huggingface_hub",
)
SCRIPT = """
import sys
from soragen.cli import main
sys.argv = ["soragen", *sys.argv[1:]]
code = main()
print(code, *sorted(set(sys.modules) & {heavy}), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["generate", "--help"], 0),
        (["models", "list"], 0),
        (["models", "info", "pocket", "--json"], 0),
        (["generate", "a ball", "--size", "10y10"], 2),
        (["no-such-command"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_imports_nothing_heavy(arguments: list[str], code: int) -> None:
    script = SCRIPT.format(heavy=set(HEAVY))
    run = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    assert run.stderr.splitlines()[-1] == str(code)
