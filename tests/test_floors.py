"""The floors of the design: a file imports only lower floors or its own folder, and nothing goes round in circles."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {"video": 1, "diffusion": 2, "models": 3, "families": 4, "pipeline": 5, "cli": 6, "__main__": 7}
MAX_LINES = 400

SORAGEN = sorted((ROOT / "soragen").rglob("*.py"))
TRAINING = sorted((ROOT / "training").rglob("*.py"))
PARSED = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SORAGEN + TRAINING}
EVERY = [pytest.param(path, id=str(path.relative_to(ROOT))) for path in SORAGEN + TRAINING]
IN_SORAGEN = EVERY[: len(SORAGEN)]
IN_TRAINING = EVERY[len(SORAGEN) :]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in PARSED}


def imports(path: Path, *, at_run_time_only: bool = False) -> set[str]:
    """Every module that a file imports, wherever in it, in full names."""
    found = set()
    skipped: set[ast.AST] = set()
    for node in ast.walk(PARSED[path]):
        if at_run_time_only and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            skipped |= {inner for statement in node.body for inner in ast.walk(statement)}
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = ""
            if node.level:
                parts = module_of(path).split(".")
                up = node.level - (path.name == "__init__.py")
                package = ".".join(parts[: len(parts) - up]) + "." * bool(node.module)
            base = package + (node.module or "")
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else base for name in names}
    return found


def floor(module: str) -> int:
    parts = module.split(".")
    return FLOORS.get(parts[1], 0) if len(parts) > 1 else 0


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@pytest.mark.parametrize("path", IN_SORAGEN)
def test_imports_lower_floors_only(path: Path) -> None:
    module = module_of(path)
    for imported in imports(path):
        if not within(imported, "soragen"):
            continue
        same_folder = module.split(".")[:2] == imported.split(".")[:2]
        assert floor(imported) < floor(module) or same_folder or floor(imported) == floor(module) == 0, imported


@pytest.mark.parametrize("path", IN_SORAGEN)
def test_families_are_reached_through_load_family(path: Path) -> None:
    module = module_of(path)
    own = ".".join(module.split(".")[:3])
    for imported in imports(path):
        if within(imported, "soragen.families") and imported.count(".") >= 2:
            assert within(module, "soragen.families") and within(imported, own), imported


@pytest.mark.parametrize("path", IN_SORAGEN)
def test_stands_without_training_and_references(path: Path) -> None:
    forbidden = {"training", "tests", "diffusers", "click"}
    assert not forbidden & {imported.split(".")[0] for imported in imports(path)}


@pytest.mark.parametrize("path", IN_SORAGEN)
def test_only_downloads_know_the_network(path: Path) -> None:
    if module_of(path) in ("soragen.models.hub", "soragen.models.download"):
        return
    network = ("urllib.request", "http", "huggingface_hub", "requests", "httpx", "aiohttp", "asyncio")
    for imported in imports(path):
        assert not any(within(imported, package) for package in network), imported


@pytest.mark.parametrize("path", IN_TRAINING)
def test_training_uses_the_networks_not_the_pipeline(path: Path) -> None:
    for imported in imports(path):
        assert not within(imported, "soragen") or floor(imported) <= FLOORS["families"], imported


def test_no_circles() -> None:
    graph = {
        module: {name for name in imports(path, at_run_time_only=True) if name in MODULES and name != module}
        for module, path in MODULES.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("path", IN_SORAGEN)
def test_only_output_prints(path: Path) -> None:
    if path == ROOT / "soragen" / "cli" / "output.py":
        return
    for node in ast.walk(PARSED[path]):
        if isinstance(node, ast.Name):
            assert node.id != "print", f"line {node.lineno}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            assert name not in ("sys.stdout", "sys.stderr", "typer.echo", "typer.secho"), f"line {node.lineno}"


@pytest.mark.parametrize("path", EVERY)
def test_reads_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", IN_SORAGEN)
def test_floor_0_and_start_up_import_nothing_heavy(path: Path) -> None:
    """Outside of functions; `tests/test_startup.py` sees the whole, this names the file."""
    if floor(module_of(path)) not in (0, FLOORS["cli"]):
        return
    for node in PARSED[path].body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {name.split(".")[0] for name in names} & {"torch", "transformers", "rich", "numpy", "tokenizers"}
