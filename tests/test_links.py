"""What the pages name exists: files, headings, modules, and every `soragen` command is one that the program takes."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from soragen.catalog import catalog
from soragen.checkpoint import EMBEDDED, Checkpoint
from soragen.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "training" / "README.md",
    *sorted(ROOT.glob("docs/**/*.md")),
]  # fmt: skip
PUBLISHED = {checkpoint.name for checkpoint in catalog().values() if checkpoint.is_hub}  # which are not on this machine
EMBEDDED_MODELS = [checkpoint for checkpoint in catalog().values() if checkpoint.source == EMBEDDED]
EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))

TOP = ("soragen", "training", "tests", "docs", "bench", "examples", ".ci")
FILES = "\n".join(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*"), *(path for folder in TOP for path in (ROOT / folder).rglob("*")))
    if path.is_file() and "__pycache__" not in path.parts
)


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path) -> list[str]:
    """The contents of the fenced blocks of a page."""
    return re.findall(r"^```[^\n]*\n(.*?)^```", read(page), re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What #links may name: headings as they are turned into anchors."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", read(page), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def exists(name: str) -> bool:
    """Whether some file's path ends in `name`. `*` stands for any name, and so does a placeholder such as NAME."""
    parts = [re.escape(part).replace(r"\*", "[^/\n]*") for part in name.split("/")]
    parts = [re.sub(r"^[A-Z]{2,}(?=$|\\\.(?:py|toml)$)", "[^/\n]+", part) for part in parts]
    return re.search(rf"^(?:.*/)?{'/'.join(parts)}$", FILES, re.MULTILINE) is not None


@EACH_PAGE
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", read(page), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)[^)]*\)|(?:src|href)=\"([^\"]+)\"", text)
    for link in (markdown or html for markdown, html in links):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert target.resolve().is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


@EACH_PAGE
def test_files_that_are_named_exist(page: Path) -> None:
    text = re.sub(r"\w+://\S+", "", read(page))
    python = set(re.findall(r"(?<![\w/.*-])[\w/.*-]*\w\.py\b(?!\w)", text))
    others = set(re.findall(rf"(?<![\w/.-])(?:{'|'.join(map(re.escape, TOP))})/[\w/.*-]*\.(?:md|sh|toml|txt)\b", text))
    missing = [name for name in sorted(python | others) if not exists(name)]
    assert not missing


@EACH_PAGE
def test_folders_that_are_named_exist(page: Path) -> None:
    for name in re.findall(r"`((?:soragen|training|tests|docs|bench|examples)/(?:[\w-]+/)*)`", read(page)):
        parts = ["*" if part.isupper() else part for part in name.strip("/").split("/")]
        assert list(ROOT.glob("/".join(parts))), name


@EACH_PAGE
def test_modules_that_are_run_exist(page: Path) -> None:
    for module in re.findall(r"python3? -m (training(?:\.\w+)*|soragen)", read(page)):
        path = ROOT.joinpath(*module.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


def commands(page: Path) -> list[list[str]]:
    """The arguments of every `soragen …` at the beginning of a line, or after a shell operator, in a page's blocks.

    Variables and substitutions of the shell become 1, which is a prompt, a seed and a name alike.
    """
    found = []
    for block in blocks(page):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            plain = re.sub(r"\$\([^)]*\)|\$\{[^}]*\}|\$\w+|\$@", "1", line.strip().removeprefix("$ "))
            if "soragen " not in plain or plain.startswith("#"):
                continue
            if not re.match(r"(echo|printf|cat|for|while|do)\b|soragen ", plain):
                continue
            words = shlex.shlex(plain, posix=True, punctuation_chars=True)
            words.whitespace_split = True
            command: list[str] = []
            for word in [*words, ";"]:
                if re.fullmatch(r"[();<>|&]+", word) or word == "do":
                    found.append(command)
                    command = []
                else:
                    command.append(word)
    return [command[1:] for command in found if command[:1] == ["soragen"]]


EVERY_COMMAND = [
    pytest.param(command, id=f"{page.name}: {shlex.join(command)}") for page in PAGES if page.is_file()
    for command in commands(page)
]  # fmt: skip


def idle(function: Callable[..., Any]) -> Callable[..., None]:
    @functools.wraps(function)
    def does_nothing(*arguments: Any, **options: Any) -> None:
        return None

    return does_nothing


def parser(source: typer.Typer) -> typer.Typer:
    """The same commands with the same options, which do nothing: Typer's own parser, by itself."""
    copy = typer.Typer(rich_markup_mode=None)
    for command in source.registered_commands:
        assert command.callback is not None
        copy.command(command.name)(idle(command.callback))
    for group in source.registered_groups:
        assert group.typer_instance is not None
        copy.add_typer(parser(group.typer_instance), name=str(group.typer_instance.info.name))
    return copy


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_commands_are_taken(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every one is parsed; a video is planned as well, where its model is here: its size and duration are looked at."""
    parsed = CliRunner().invoke(parser(app), command)
    assert parsed.exit_code == 0, parsed.output
    if command[0] == "generate" and not PUBLISHED & set(command):
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("SORAGEN_WEIGHTS", raising=False)
        planned = CliRunner().invoke(app, ["generate", "--dry-run", *command[1:]], input="a ball")
        assert planned.exit_code == 0, planned.exception or planned.output
        assert not list(tmp_path.iterdir())


def test_readme_has_an_example_of_every_command() -> None:
    names = {command.callback.__name__ for command in app.registered_commands if command.callback}
    groups = [group.typer_instance for group in app.registered_groups if group.typer_instance]
    names |= {f"{group.info.name} {command.name}" for group in groups for command in group.registered_commands}
    shown = commands(ROOT / "README.md")
    assert names == {name for name in names if any(" ".join(command).startswith(name) for command in shown)}


def test_the_parser_refuses_what_the_program_refuses() -> None:
    for wrong in ("generate", "generate ball --lenght 5", "nothing", "generate ball --steps x", "models info"):
        assert CliRunner().invoke(parser(app), wrong.split()).exit_code == 2, wrong


def test_every_family_of_the_list_is_in_the_table_of_families() -> None:
    told = set(re.findall(r"^\| (\w+) \|", read(ROOT / "docs" / "models.md"), re.MULTILINE))
    assert {checkpoint.family for checkpoint in catalog().values()} <= told


@pytest.mark.parametrize("checkpoint", EMBEDDED_MODELS, ids=lambda checkpoint: checkpoint.name)
def test_every_embedded_model_has_a_section_with_its_numbers(checkpoint: Checkpoint) -> None:
    page = read(ROOT / "docs" / "models.md")
    section = re.search(rf"^## {re.escape(checkpoint.name)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert section, f"docs/models.md has no section {checkpoint.name}"
    native, defaults = checkpoint.native, checkpoint.defaults
    for fact in (
        checkpoint.licence.id,
        f"{native.width}x{native.height}, {native.num_frames} frames at {native.fps} fps",
        f"{defaults.width}x{defaults.height}, {defaults.num_steps} steps, guidance {defaults.guidance_scale:g}",
    ):
        assert fact in section[1], fact
