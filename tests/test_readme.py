"""What the pages and docstrings promise: their code runs, its output is what is printed, links and options exist."""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fairsteer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]

#: Packages that a room, or its examples, cannot do without, and that need not be there.
NEEDS = {"fairsteer.export": "onnx", "fairsteer.torch": "torch"}

MODULES = [
    module.name
    for module in pkgutil.walk_packages(fairsteer.__path__, "fairsteer.")
    if not module.name.endswith(".__main__")  # it runs the command line
]


def _blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def _anchors(page):
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings]


def _shape(text):
    """Words and layout without the digits, which may differ in the last place between machines."""
    return [re.sub(r"\d", "0", line.rstrip()) for line in text.strip().splitlines()]


@pytest.mark.parametrize("code", _blocks("python"), ids=["pipeline", "embeddings"])
def test_examples_run_without_a_warning(code, capsys):
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    if code == _blocks("python")[1]:
        assert _shape(printed) == _shape(_blocks("text")[1])
        gaps = [float(line.rsplit(maxsplit=1)[1]) for line in printed.splitlines()]
        assert gaps[1] < gaps[0] / 3


def test_demo_output_is_what_the_demo_prints():
    demo = subprocess.run(
        [sys.executable, "-m", "fairsteer.cli", "demo"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
        env={**os.environ, "COLUMNS": "80", "PYTHONIOENCODING": "utf-8"},
    )
    assert _shape(demo.stdout) == _shape(_blocks("text")[0])


@pytest.mark.parametrize(
    "command", ['pip install ".[cli]" && fairsteer demo', 'pip install ".[test]" && pytest'], ids=["demo", "tests"]
)
def test_the_two_commands_are_there(command):
    assert any(command in block.splitlines() for block in _blocks("sh"))


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings_are_true(name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_every_public_name_is_there_without_an_optional_package():
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
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", text) if not target.startswith("https://")]
    for target in targets:
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        assert not anchor or anchor in _anchors(linked), target


def test_every_parameter_of_the_transformer_has_a_row():
    from fairsteer.transformer import FairSteeringTransformer

    table = README[README.index("## Parameters of") : README.index("**When to standardise.**")]
    for name, default in FairSteeringTransformer().get_params().items():
        row = next(line for line in table.splitlines() if f"`{name}`" in line)
        assert str(default).strip("'") in row


def test_every_option_of_the_command_line_is_documented():
    from typer.main import get_command

    from fairsteer.cli._app import app

    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    for command in get_command(app).commands.values():
        assert f"fairsteer {command.name}" in text
        for parameter in command.params:
            for option in parameter.opts:
                if option.startswith("--") and option != "--help":
                    assert f"`{option}" in text, option
