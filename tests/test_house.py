"""The house: rooms on floors, imports downwards only, optional packages behind their doors, tests beside the rooms."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python" / "fairsteer"

#: Bottom to top. A room imports rooms of lower floors only, so that there cannot be a circle.
FLOORS = (
    ("_core",),
    ("_utils",),
    ("groups", "moments", "datasets"),
    ("ideal", "score_alignment", "metrics", "streams"),
    ("transformer", "concepts", "scoring"),
    ("baselines", "classifier"),
    ("report",),
    ("plotting", "persistence", "export", "torch"),
    ("cli",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

#: What `pip install fairsteer` does not bring, and the rooms that may import it.
OPTIONAL = {
    "array_api_compat": {"_utils"},
    "dask": {"streams"},
    "fairlearn": {"scoring"},
    "gguf": {"export"},
    "matplotlib": {"plotting"},
    "onnx": {"export"},
    "opendp": {"moments"},
    "pandas": {"cli", "report"},
    "pyarrow": {"_utils", "cli", "streams"},  # the lowest reads labels of its columns, which are there already
    "rich": {"cli", "report"},
    "safetensors": {"persistence"},
    "torch": {"cli", "torch"},
    "transformers": {"cli"},
    "typer": {"cli"},
}
#: Rooms that are of no use without their packages, and may import them where they begin.
OTHER_WORLDS = {"cli", "torch"}

#: Tests of the house as a whole, which belong to no room.
OF_THE_HOUSE = {
    "test_docs", "test_habits", "test_house", "test_inputs", "test_invariants", "test_lazy", "test_meta_estimators",
    "test_model_selection", "test_shown", "test_sklearn_checks",
}  # fmt: skip


@cache
def modules() -> dict[str, Path]:
    """Dotted name of every Python module of the package, without `fairsteer`."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip("."): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def room_of(module: str) -> str:
    return module.partition(".")[0]


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Dotted names that a module imports, absolute, and whether it does so inside a function."""
    yield from _imports(ast.parse(path.read_text(encoding="utf-8")), path, deferred=False)


def _imports(node: ast.AST, path: Path, *, deferred: bool) -> Iterator[tuple[str, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, deferred) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                package = ("fairsteer", *path.relative_to(PACKAGE).parts[: -child.level])
                base = ".".join(package) + (f".{child.module}" if child.module else "")
            yield from ((f"{base}.{alias.name}", deferred) for alias in child.names)
        else:
            yield from _imports(child, path, deferred=deferred or isinstance(child, ast.FunctionDef))


@cache
def arrows() -> dict[tuple[str, str], list[str]]:
    """(room, another room that it imports) -> the modules that do it; `import fairsteer` is the room `""`."""
    found: dict[tuple[str, str], list[str]] = {}
    for module, path in modules().items():
        if not module:  # the front door, which names rooms to type checkers and imports none
            continue
        for name, _ in imports(path):
            head, _, inner = name.partition(".")
            if head != "fairsteer":
                continue
            room = room_of(inner) if room_of(inner) in FLOOR else ""
            if room != room_of(module):
                found.setdefault((room_of(module), room), []).append(module)
    return found


def test_what_lies_at_the_root_is_a_room_with_a_floor() -> None:
    entries = {
        path.stem.partition(".")[0] for path in PACKAGE.iterdir() if path.name not in ("__pycache__", "py.typed")
    }
    assert entries - {"__init__"} == set(FLOOR)
    assert len(FLOOR) <= 20
    assert {room for room in FLOOR if room.startswith("_")} == {"_core", "_utils"}


def test_rooms_import_lower_floors_only() -> None:
    upwards = {
        f"{module}: {there}"
        for (here, there), by in arrows().items()
        if there and FLOOR[there] >= FLOOR[here]
        for module in by
    }
    assert not upwards


def test_only_the_command_line_enters_by_the_front_door() -> None:
    """`import fairsteer` from a room below would import the rooms above it."""
    assert {here for here, there in arrows() if not there} <= {"cli"}


def test_arrows_between_rooms_stay_few() -> None:
    """Where helpers were private neighbours of the rooms there were 126, in fewer rooms than now.

    The last to be drawn leads from streams to the core, which lays the columns of tables out as rows.
    """
    assert len(arrows()) <= 91


@pytest.mark.slow
def test_nothing_is_imported_that_is_neither_required_nor_behind_its_door() -> None:
    project = _project()
    required = {re.split(r"[><=!~ ]", one)[0].replace("scikit-learn", "sklearn") for one in project["dependencies"]}
    wrong = set()
    for module, path in modules().items():
        for name, deferred in imports(path):
            package = name.partition(".")[0]
            if package in required | sys.stdlib_module_names | {"fairsteer"}:
                continue
            room = room_of(module)
            if room not in OPTIONAL.get(package, ()) or not (deferred or room in OTHER_WORLDS):
                wrong.add(f"{module}: {package}")
    assert not wrong


def test_every_optional_package_is_in_an_extra() -> None:
    extras = " ".join(one for extra in _project()["optional-dependencies"].values() for one in extra)
    assert all(re.search(rf"\b{package}\b", extras.replace("-", "_")) for package in OPTIONAL)


def _project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib", reason="reads TOML, as Python does from 3.11 on")
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def test_private_names_of_scikit_learn_are_touched_in_one_room() -> None:
    touched = {
        f"{module}: {name}"
        for module, path in modules().items()
        if room_of(module) != "_utils"
        for name, _ in imports(path)
        if re.match(r"sklearn\b.*\._", name)
    }
    assert not touched


def test_tests_lie_where_what_they_test_lies() -> None:
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders - {"cpp", "benchmarks"} <= {room for room in FLOOR if (PACKAGE / room).is_dir() or room == "_core"}
    files = {path.stem for path in (ROOT / "tests").glob("test_*.py")}
    assert files - OF_THE_HOUSE <= {f"test_{room}" for room in FLOOR}


def test_the_benchmarks_import_one_another_without_a_circle() -> None:
    folder = ROOT / "benchmarks"
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in folder.rglob("*.py")
    }
    known = {
        name: {there for one, _ in imports(path) for there in (one, one.rpartition(".")[0]) if there in names} - {name}
        for name, path in names.items()
    }
    while free := {name for name, others in known.items() if not others & known.keys()}:
        known = {name: others for name, others in known.items() if name not in free}
    assert not known
