"""What machines are told: ``--json`` of every command, one object and nothing else, and shell completion."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import typer
import typer.core

from fairsteer.cli._app import app
from fairsteer.cli._json import json_text
from fairsteer.metrics._intervals import Measured

N_ROWS = 200

#: The commands, with the arguments that they need.
COMMANDS: dict[str, tuple[str, ...]] = {
    "steer": ("steer", "FILE", "--target", "ill", "--sensitive", "sex", "--folds", "2"),
    "audit": ("audit", "FILE", "--target", "ill", "--sensitive", "sex", "--folds", "2", "--leakage", "none"),
    "explain": ("explain", "FILE", "--target", "ill", "--sensitive", "sex", "--row", "1"),
    "apply": ("apply", "MAP", "FILE", "--out", "OUT.csv"),
    "moments": ("moments", "FILE", "--target", "ill", "--sensitive", "sex", "--out", "OUT.safetensors"),
    "merge": ("merge", "MOMENTS", "--out", "OUT.safetensors"),
    "export": ("export", "MAP", "--to", "affine", "--out", "OUT"),
    "versions": ("versions",),
}


@pytest.fixture
def table() -> Any:
    rng = np.random.default_rng(2)
    y, group = rng.integers(2, size=(2, N_ROWS))
    frame = pd.DataFrame(
        {
            "height": rng.normal(size=N_ROWS) + y + group,
            "sex": np.array(["f", "m"])[group],
            "ill": np.array(["no", "yes"])[y],
        }
    )
    frame.loc[0, "ill"] = None  # which is worth a note
    return frame


@pytest.mark.parametrize("command", COMMANDS)
def test_one_object_and_nothing_else(run: Callable[..., tuple[int, str, str]], file: Any, command: str) -> None:
    fit = (file, "--target", "ill", "--sensitive", "sex", "--map-type", "affine")
    made = {
        name: file.with_name(f"{name}.safetensors")
        for name in ("MAP", "MOMENTS")
        if any(part == name for part in COMMANDS[command])
    }
    if "MAP" in made:
        run("steer", *fit, "--folds", 2, "--map", made["MAP"])
    if "MOMENTS" in made:
        run("moments", *fit[:-2], "--out", made["MOMENTS"])
    paths = {"FILE": file, **made}
    arguments = [
        file.with_name(part.lower()) if part.startswith("OUT") else paths.get(part, part) for part in COMMANDS[command]
    ]
    code, out, err = run(*arguments, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["command"] == command
    if command in ("steer", "audit", "moments"):
        assert any("1 row without 'ill'" in note for note in found["notes"])
    else:
        assert isinstance(found["notes"], list)
    written = [part for part in arguments if str(part).startswith(str(file.parent / "out"))]
    assert [one["to"] for one in found["wrote"]] == list(map(str, written))


@pytest.mark.slow
def test_the_numbers_are_those_of_the_text(run: Callable[..., tuple[int, str, str]], file: Any) -> None:
    arguments = [file if part == "FILE" else part for part in COMMANDS["steer"]]
    text, found = run(*arguments)[1], json.loads(run(*arguments, "--json")[1])
    for which in ("before", "steered"):
        for measure, numbers in found["classifiers"][which].items():
            assert f"{numbers['value']:.3f}" in text, measure
    assert " ".join(found["advice"].split()) in " ".join(text.split())


def commands() -> dict[str, Any]:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    return dict(group.commands)


def test_every_command_has_an_example_and_those_that_print_have_json() -> None:
    for name, command in commands().items():
        assert f"Example: fairsteer {name}" in command.epilog
        assert any("--json" in option.opts for option in command.params), name


def test_without_arguments_it_says_in_ten_lines_what_there_is(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run()
    lines = out.splitlines()
    assert code == 0
    assert len(lines) <= 10
    named = {word.strip(",") for line in lines for word in line[2:23].split()}
    assert set(commands()) <= named


def test_numbers_that_json_lacks_and_labels_of_numpy() -> None:
    values = {
        "nan": float("nan"),
        "inf": np.float64("inf"),
        "labels": np.array(["a", "b"]),
        "pair": ("a", np.int64(1)),
        "measured": Measured(0.1, float("nan"), np.float32(0.5)),
        "none": None,
        "nested": {3: True},
    }
    assert json.loads(json_text(values)) == {
        "nan": None,
        "inf": None,
        "labels": ["a", "b"],
        "pair": ["a", 1],
        "measured": {"value": 0.1, "lower": None, "upper": 0.5},
        "none": None,
        "nested": {"3": True},
    }


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands(shell: str) -> None:
    words = {"bash": {"COMP_WORDS": "fairsteer au", "COMP_CWORD": "1"}}.get(
        shell, {"_TYPER_COMPLETE_ARGS": "fairsteer au"}
    )
    found = subprocess.run(
        [sys.executable, "-m", "fairsteer.cli"],
        env={
            **os.environ,
            **words,
            "_FAIRSTEER_COMPLETE": f"complete_{shell}",
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "audit" in found.stdout
    assert "steer" not in found.stdout.split()


def test_no_colour_where_none_is_wanted(run: Callable[..., tuple[int, str, str]], file: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    _, out, err = run(*[file if part == "FILE" else part for part in COMMANDS["explain"]])
    for text in (out, err):
        assert not any(f"\x1b[{code}" in text for code in ("3", "4", "9"))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["steer", "audit", "explain"])
def test_tables_fit_terminals(
    run: Callable[..., tuple[int, str, str]], file: Any, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [file if part == "FILE" else part for part in COMMANDS[command]]
    for width in (60, 80, 120):
        monkeypatch.setenv("COLUMNS", str(width))
        code, out, _ = run(*arguments)
        assert code == 0
        assert max(len(line.rstrip()) for line in out.splitlines()) <= width


def test_a_terminal_shows_how_far_a_long_job_is(
    run: Callable[..., tuple[int, str, str]], file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    err = run(*[file if part == "FILE" else part for part in COMMANDS["steer"]])[2]
    for words in ("reading rows.csv", "fitting", "cross-validation", " left"):
        assert words in err


@pytest.mark.slow
def test_maps_and_moments_come_through_pipes(
    run: Callable[..., tuple[int, str, str]], file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def to_pipe(*arguments: Any, given: bytes) -> bytes:
        return subprocess.run(
            [sys.executable, "-m", "fairsteer.cli", *map(str, arguments)],
            input=given,
            capture_output=True,
            timeout=120,
            check=True,
        ).stdout

    def from_pipe(*arguments: Any, given: bytes) -> str:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        code, printed, err = run(*arguments)
        assert code == 0, err
        return printed

    rows = ("--target", "ill", "--sensitive", "sex")
    model, out, again = (file.with_name(name) for name in ("map.safetensors", "out.csv", "again.csv"))
    moments = to_pipe("moments", "-", *rows, "--out", "-", given=file.read_bytes())
    from_pipe("merge", "-", "--out", model, given=moments)
    piped = model.read_bytes()
    from_pipe("apply", model, file, "--out", out, given=b"")
    assert to_pipe("apply", "-", file, "--out", "-", given=piped) == out.read_bytes()
    from_pipe("apply", model, "-", "--out", again, given=file.read_bytes())
    assert again.read_bytes() == out.read_bytes()
    found = json.loads(from_pipe("explain", file, "--map", "-", "--row", 2, "--json", given=piped))
    assert found["row"] == 2


def test_two_inputs_cannot_be_standard_input(run: Callable[..., tuple[int, str, str]], file: Any) -> None:
    code, _, err = run("apply", "-", "-", "--out", file.with_name("out.csv"))
    assert (code, "both standard input" in err) == (2, True)
    code, _, err = run("explain", "-", "--map", "-", "--row", 1)
    assert (code, "both standard input" in err) == (2, True)
