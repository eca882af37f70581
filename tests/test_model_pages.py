"""The pages of the models say what weights.toml and the plan say."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from soragen.catalog import catalog, packaged_catalog

ROOT = Path(__file__).parents[1]


def test_the_pages_are_those_of_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SORAGEN_WEIGHTS", str(packaged_catalog()))
    script = runpy.run_path(str(ROOT / "docs" / "write_models.py"))
    pages = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "models").glob("*.md")}
    assert set(pages) == {f"{name}.md" for name in catalog()}, "run `make docs`"
    for name, text in script["pages"]().items():
        assert pages[name] == text, f"run `make docs`: {name} is not what weights.toml says"
    assert (ROOT / "docs" / "models.md").read_text(encoding="utf-8") == script["index"](), "run `make docs`"
