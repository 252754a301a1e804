"""What the pages and docstrings promise: their code runs, its output is what is printed, links and options exist."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import fairsteer

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "reference").glob("*.md")),
]

#: Packages that a room, or its examples, cannot do without, and that need not be there.
NEEDS = {"fairsteer.export": "onnx", "fairsteer.export._gguf": "gguf", "fairsteer.torch": "torch"}

MODULES = [
    module.name
    for module in pkgutil.walk_packages(fairsteer.__path__, "fairsteer.")
    if not module.name.endswith(".__main__")  # it runs the command line
]


#: Packages that the code of a page needs.
PAGE_NEEDS = {
    "concept-steering.md": ("torch",),
    "export.md": ("onnx", "onnxruntime", "safetensors", "skops"),
    "language-models.md": ("torch", "transformers"),
    "report.md": ("matplotlib",),
    "serving.md": ("gguf", "torch", "transformers"),
    "scale.md": ("dask", "pyarrow"),
}


#: What runs a block, by its language: every page's ``python``, ``text`` and ``sh`` are run here.
RUN_HERE = {"python", "text", "sh"}
#: Blocks that other tests run, word for word, since they need what is not there everywhere.
RUN_ELSEWHERE = {
    ("language-models.md", "bash"): "cli/test_language.py",  # a model
    ("scale.md", "py"): "streams/test_engines.py",  # Ray, Spark
}
#: Blocks with nothing to run.
NOT_CODE = {("citation.md", "bibtex")}


def _blocks(page: Path, languages: str) -> list[tuple[str, str]]:
    """Language and text of the page's code blocks, in order."""
    found: list[tuple[str, str]] = re.findall(
        rf"^```({languages})\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    return found


_ROLES = ("--target", "hired", "--sensitive", "sex")


def _commands(page: Path) -> list[list[str]]:
    """Arguments of the ``fairsteer`` commands that the page's blocks for a shell have."""
    lines = [line for _, block in _blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    return [words[1:] for line in lines if (words := shlex.split(line, comments=True))[:1] == ["fairsteer"]]


def _anchors(page: Any) -> Any:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings]


def assert_printed(printed: str, shown: str) -> None:
    """The same words in the same places, and numbers that differ no more than between machines."""
    number = r"(?<![\w.])-?\d+\.\d+"
    lines, expected = ([line.rstrip() for line in text.strip().splitlines()] for text in (printed, shown))
    assert [re.sub(number, "0.0", line) for line in lines] == [re.sub(number, "0.0", line) for line in expected]
    numbers, shown_numbers = ([float(found) for found in re.findall(number, text)] for text in (printed, shown))
    assert numbers == pytest.approx(shown_numbers, rel=0.02, abs=0.011)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if _blocks(page, "python")], ids=lambda page: page.name)
def test_code_of_the_pages_runs_and_prints_what_they_show(
    page: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Block after block, as a reader would run it: names stay, files are written to the reader's folder."""
    for package in PAGE_NEEDS.get(page.name, ()):
        pytest.importorskip(package, reason=f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    printed = ""
    for language, block in _blocks(page, "python|text"):
        if language == "python":
            exec(compile(block, page.name, "exec"), names)
            printed = capsys.readouterr().out
        elif language == "text":
            assert printed, f"nothing has printed what {page.name} shows: {block}"
            assert_printed(printed, block)
            printed = ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_run_by_somebody(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    fences = re.findall(r"^```(.*)$", text, flags=re.MULTILINE)
    opened, closed = fences[::2], fences[1::2]
    assert len(opened) == len(closed)
    assert not any(closed)
    for kind in opened:
        if kind.startswith("{"):  # a directive: a picture, an inclusion, a table of contents
            continue
        assert kind in RUN_HERE or {(page.name, kind)} & (NOT_CODE | RUN_ELSEWHERE.keys()), f"who runs ```{kind}?"
        elsewhere = RUN_ELSEWHERE.get((page.name, kind))
        assert elsewhere is None or page.name in (ROOT / "tests" / elsewhere).read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"^\n {4}(?![*-] )\S.*\n(?=\n)", prose, flags=re.MULTILINE), "code by indentation runs nowhere"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_fits_into_the_page(page: Path) -> None:
    for kind, block in _blocks(page, "python|py|sh|text"):
        assert max(map(len, block.splitlines())) <= (110 if page.name == "README.md" else 92), (kind, block)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if _commands(page)], ids=lambda page: page.name)
def test_commands_of_the_pages_run(
    page: Path, run: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    people = pd.DataFrame(rng.normal(size=(400, 2)), columns=["experience", "interview_score"])
    people["sex"] = rng.choice(["female", "male"], 400)
    people["experience"] += people["sex"] == "male"
    people["hired"] = np.where(people["experience"] + rng.normal(size=400) > 0.5, "yes", "no")
    people.to_csv("people.csv", index=False)
    people.drop(columns="hired").to_csv("new_people.csv", index=False)
    if page.name == "scale.md":  # what it says of the first site, and of a public sample, the others have done
        for i, site in enumerate(("site1", "site2", "site3", "public")):
            people[i::4].to_csv(f"{site}.csv", index=False)
            if site != "site1":
                run("moments", f"{site}.csv", *_ROLES, "--out", f"{site}.safetensors")
    for command in _commands(page):
        if "--epsilon" in command and not importlib.util.find_spec("opendp"):
            continue
        code, _, err = run(*command)
        assert code == 0, (command, err)


@pytest.mark.slow
def test_demo_output_is_what_the_demo_prints(run: Callable[..., tuple[int, str, str]]) -> None:
    code, printed, _ = run("demo")
    assert code == 0
    assert_printed(printed, _blocks(ROOT / "docs" / "get-started.md", "text")[0][1])


@pytest.mark.parametrize(
    "command", ['pip install ".[cli]" && fairsteer demo', 'pip install ".[test]" && pytest'], ids=["demo", "tests"]
)
def test_the_two_commands_are_there(command: str) -> None:
    assert any(command in block.splitlines() for _, block in _blocks(ROOT / "README.md", "sh"))


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings_are_true(name: Any) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0
    found = [example for test in doctest.DocTestFinder().find(module) for example in test.examples]
    assert not [example.source for example in found if doctest.SKIP in example.options]


@pytest.mark.slow
def test_every_public_name_is_there_without_an_optional_package() -> None:
    optional = ["cvxpy", "fairlearn", "matplotlib", "onnx", "onnxruntime", "pandas", "polars", "pyarrow", "rich"]
    optional += ["safetensors", "torch", "transformers", "typer"]
    # Not by None in sys.modules, in which SciPy looks for torch.
    program = f"""
import sys
class Absent:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {optional}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent)
from fairsteer import *
from fairsteer import concepts, export, metrics, persistence
print(fairness_scorer("tpr_gap_rms"), LeaceTransformer(), sorted(sys.modules.keys() & {optional}))
"""
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.endswith("LeaceTransformer() []\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Any) -> None:
    text = page.read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", text) if not target.startswith("https://")]
    for target in targets:
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        assert not anchor or anchor in _anchors(linked), target


def test_the_reference_has_every_public_name() -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference").glob("*.md"))
    listed = set(re.findall(r"^ +([\w.]+)$", pages, flags=re.MULTILINE))
    rooms: tuple[str, ...] = (
        "baselines",
        "classifier",
        "concepts",
        "datasets",
        "export",
        "metrics",
        "plotting",
        "report",
        "scoring",
    )
    if importlib.util.find_spec("torch"):
        rooms += ("torch",)
    for room in (*rooms, "score_alignment"):
        module = importlib.import_module(f"fairsteer.{room}")
        own = [name for name, found in vars(module).items() if getattr(found, "__module__", None) == module.__name__]
        for name in getattr(module, "__all__", own):
            assert name.startswith("_") or {name, f"{room}.{name}"} & listed, f"{room}.{name}"
    assert set(fairsteer.__all__) - {"__version__"} - {name.rpartition(".")[2] for name in listed} == set()
    for name in listed:
        room, _, inner = name.rpartition(".")
        if room != "torch":
            assert hasattr(importlib.import_module(f"fairsteer.{room}".rstrip(".")), inner), name


def test_every_parameter_of_the_transformer_has_a_row() -> None:
    from fairsteer.transformer import FairSteeringTransformer

    page = (ROOT / "docs" / "reference" / "steering.md").read_text(encoding="utf-8")
    table = page[page.index("## Parameters of") : page.index("## Baselines")]
    for name, default in FairSteeringTransformer().get_params().items():
        row = next(line for line in table.splitlines() if f"`{name}`" in line)
        assert str(default).strip("'") in row


def test_every_option_of_the_command_line_is_documented() -> None:
    from typer.main import get_command

    from fairsteer.cli._app import app

    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    commands: Any = get_command(app)
    for command in commands.commands.values():
        assert f"fairsteer {command.name}" in text
        for parameter in command.params:
            for option in parameter.opts:
                if option.startswith("--") and option != "--help":
                    assert f"`{option}" in text, option
