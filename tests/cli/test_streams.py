"""Pipes, devices, terminals of any width and encoding, kills: what surrounds the command line."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fairsteer.cli import main

N_ROWS = 160
POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")


@pytest.fixture
def table() -> Any:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, N_ROWS)
    return pd.DataFrame(
        {
            "age": 40 + 5 * y + rng.normal(0, 9, N_ROWS),
            "pay": 3000 + rng.integers(0, 900, N_ROWS),
            "sex": rng.choice(["f", "m"], N_ROWS),
            "hired": np.array(["no", "yes"])[y],
        }
    )


def _arguments(command: Any, file: Any, *options: Any) -> Any:
    return [command, str(file), "--target", "hired", "--sensitive", "sex", "--folds", "2", *options]


def _fairsteer(*arguments: Any, **how: Any) -> Any:
    """Run the command line as a process of its own."""
    environment = {**os.environ, "COLUMNS": "80", **how.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-m", "fairsteer.cli", *map(str, arguments)], env=environment, check=False, **how
    )


# ---- outputs that are no files


@pytest.fixture
def run_on_descriptors(capfdbinary: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command line with what it writes to the descriptors, below Python's own streams; returns bytes."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: Any) -> Any:
        capfdbinary.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        return stop.value.code, *capfdbinary.readouterr()

    return run


@POSIX
@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1"])
def test_standard_output_carries_the_table_and_nothing_else(run_on_descriptors: Any, file: Any, name: Any) -> None:
    out = file.with_name("out.csv")
    assert run_on_descriptors(*_arguments("steer", file, "--out", out))[0] == 0
    code, printed, notes = run_on_descriptors(*_arguments("steer", file, "--out", name))
    assert code == 0
    assert printed == out.read_bytes()
    assert b"equalized odds gap" in notes
    assert b"Wrote 160 steered rows to standard output." in notes


@pytest.mark.slow
@POSIX
def test_a_process_reads_standard_input_and_writes_standard_output(file: Any) -> None:
    done = _fairsteer(*_arguments("steer", "-", "--out", "-"), input=file.read_bytes(), capture_output=True)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == N_ROWS + 1


@POSIX
def test_a_pipe_and_a_link_to_a_device_stay_what_they_are(
    run: Callable[..., tuple[int, str, str]], file: Any, tmp_path: Path
) -> None:
    pipe, device = tmp_path / "pipe", tmp_path / "null"
    os.mkfifo(pipe)
    device.symlink_to(os.devnull)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    assert run(*_arguments("steer", file, "--out", pipe))[0] == 0
    reader.join()
    assert read[0].count(b"\n") == N_ROWS + 1
    assert run(*_arguments("steer", file, "--out", device))[0] == 0
    assert pipe.is_fifo()
    assert device.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["null", "pipe", "rows.csv"]


@POSIX
def test_a_link_to_a_file_stays_a_link(run: Callable[..., tuple[int, str, str]], file: Any, tmp_path: Path) -> None:
    link = tmp_path / "link.csv"
    link.symlink_to(tmp_path / "target.csv")
    assert run(*_arguments("steer", file, "--out", link))[0] == 0
    assert link.is_symlink()
    assert (tmp_path / "target.csv").read_text().startswith("age,pay")


@POSIX
def test_the_page_of_audit_goes_to_standard_output(run_on_descriptors: Any, file: Any) -> None:
    code, printed, notes = run_on_descriptors(*_arguments("audit", file, "--html", "-"))
    assert code == 0
    assert printed.startswith(b"<!DOCTYPE html>")
    assert b"What the classifier gains" in notes


@pytest.mark.slow
@POSIX
def test_a_reader_who_leaves_early_stops_nothing(file: Any) -> None:
    out = file.with_name("out.csv")
    command = [sys.executable, "-m", "fairsteer.cli", *_arguments("steer", file, "--out", str(out))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert len(out.read_text().splitlines()) == N_ROWS + 1


@pytest.mark.slow
@POSIX
def test_the_next_run_removes_what_a_killed_one_left(
    run: Callable[..., tuple[int, str, str]], file: Any, tmp_path: Path
) -> None:
    # A pipe without a reader holds the run up when the rows are written beside their target already.
    pipe = tmp_path / "map.safetensors"
    os.mkfifo(pipe)
    out = tmp_path / "out.csv"
    command = [sys.executable, "-m", "fairsteer.cli"]
    command += _arguments("steer", file, "--out", str(out), "--map", str(pipe))
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not (left := list(tmp_path.glob(".fairsteer-*"))) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
    assert left
    assert run(*_arguments("steer", file, "--out", out))[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map.safetensors", "out.csv", "rows.csv"]


@POSIX
def test_a_working_directory_that_is_gone_is_a_sentence(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    code, out, err = run(*_arguments("steer", "rows.csv"))
    assert (code, out) == (2, "")
    assert err == "fairsteer: the working directory no longer exists; cd to another.\n"
    monkeypatch.undo()


# ---- terminals


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("command", ["steer", "audit"])
def test_tables_fit_the_terminal_and_keep_their_labels(
    run: Callable[..., tuple[int, str, str]],
    table: Any,
    file: Any,
    monkeypatch: pytest.MonkeyPatch,
    width: Any,
    command: Any,
) -> None:
    table["sex"] = table["sex"].map({"f": "women and girls", "m": "men"})
    table.to_csv(file, index=False)
    monkeypatch.setenv("COLUMNS", str(width))  # after the fixture's own
    code, out, _ = run(*_arguments(command, file))
    assert code == 0
    assert max(len(line.rstrip()) for line in out.splitlines()) <= width
    for block in re.split(r"\n\s*\n", out):
        if "TPR" in block and "─" in block:
            assert "women and" in block
            assert "men" in block
    if command == "audit":
        cells = out[out.index("Classes in groups") : out.index("What moved")]
        for label in ("class", "group", "no", "yes", "women and", "0."):
            assert label in cells
        assert "…" not in cells


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("command", ["steer", "audit"])
def test_streams_that_are_not_utf8_get_their_own_letters(
    table: Any, file: Any, monkeypatch: pytest.MonkeyPatch, encoding: Any, command: Any
) -> None:
    table["sex"] = table["sex"].map({"f": "日本 ≤", "m": "é"})
    table.to_csv(file, index=False)
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding=encoding))
    with pytest.raises(SystemExit) as stop:
        main(_arguments(command, file))
    assert stop.value.code == 0
    text = printed.getvalue().decode(encoding)
    assert r"\u65e5\u672c <=" in text
    assert ("é" if encoding == "latin-1" else r"\xe9") in text
    assert "─" not in text


def test_no_color_is_honoured(
    run: Callable[..., tuple[int, str, str]], file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    file.write_text(file.read_text().replace("age", "id"), encoding="utf-8")
    assert "\x1b[" in run(*_arguments("audit", file))[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", run(*_arguments("audit", file))[1])


LABELS = ["[unknown]", "[/x]", "n/a [/]", ":female_sign:", "$x$", "<b>&amp;</b>", "[bold red]f[/]", r"\[x]", "=1+1"]


def test_labels_are_text_everywhere(run: Callable[..., tuple[int, str, str]], table: Any, file: Any) -> None:
    table["sex"] = np.array(LABELS)[np.arange(N_ROWS) % len(LABELS)]
    table.to_csv(file, index=False)
    out, html = file.with_name("out.csv"), file.with_name("report.html")
    code, steered, err = run(*_arguments("steer", file, "--out", out))
    assert code == 0, err
    assert pd.read_csv(out)["sex"].tolist() == table["sex"].tolist()
    code, audited, _ = run(*_arguments("audit", file, "--html", html))
    assert code == 0
    for label in LABELS:
        assert f"\n{label} " in steered
        assert f"\n{label} " in audited
        assert "<" not in label or label not in html.read_text(encoding="utf-8")


# ---- help


def test_help_imports_nothing_heavy_and_costs_little() -> None:
    program = (
        "import sys, time\nfrom fairsteer.cli import main\n"
        "try: main(['steer', '--help'])\nexcept SystemExit: pass\n"
        "heavy = [m for m in ('numpy', 'scipy', 'sklearn', 'pandas', 'pyarrow', 'rich') if m in sys.modules]\n"
        "print(heavy, file=sys.stderr)\nprint(time.process_time(), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy, seconds = done.stderr.splitlines()
    assert heavy == "[]"
    assert float(seconds) < 0.6  # 0.15 on a machine that is not busy


@pytest.mark.parametrize("command", ["demo", "steer", "audit", "apply", "moments", "merge", "export", "versions"])
def test_every_command_has_help_with_an_example(run: Callable[..., tuple[int, str, str]], command: Any) -> None:
    code, out, _ = run(command, "-h")
    assert code == 0
    assert run(command, "--help") == (0, out, "")
    assert f"Example: fairsteer {command}" in out
    assert max(map(len, out.splitlines())) <= 80


def test_audit_and_export_have_every_option_of_the_fit(run: Callable[..., tuple[int, str, str]]) -> None:
    options = {
        command: set(re.findall(r"--[a-z-]+", run(command, "-h")[1])) for command in ("steer", "audit", "export")
    }
    own = {"--out", "--map", "--align", "--resume", "--checkpoint-every"}  # of what is written
    assert options["steer"] - own <= options["audit"]
    assert options["steer"] - own <= options["export"]
    assert {"--keep", "--pooling", "--min-subgroup-size", "--small-subgroups", "--unknown-group"} <= options["steer"]


def test_version_and_completion(run: Callable[..., tuple[int, str, str]]) -> None:
    import fairsteer

    assert run("--version") == (0, f"fairsteer {fairsteer.__version__}\n", "")
    assert run("-V")[1] == f"fairsteer {fairsteer.__version__}\n"
    assert "--install-completion" in run("--help")[1]
    done = _fairsteer(
        env={"_FAIRSTEER_COMPLETE": "complete_bash", "COMP_WORDS": "fairsteer st", "COMP_CWORD": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["steer"]


@pytest.mark.slow
def test_examples_of_the_help_run(
    run: Callable[..., tuple[int, str, str]], table: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each as it is printed, one after the other."""
    monkeypatch.chdir(tmp_path)
    people = table.assign(id=[f"p{i}" for i in range(N_ROWS)], age_group=np.arange(N_ROWS) % 2)
    people.to_csv("people.csv", index=False)
    people.to_csv("new_people.csv", index=False)
    for command in ("steer", "apply", "export", "audit", "versions"):
        example = " ".join(run(command, "-h")[1].split()).split("Example: fairsteer ")[1].split()
        if command == "apply":
            Path("steered.csv").unlink()
        code, _, err = run(*example)
        assert code == 0, err
