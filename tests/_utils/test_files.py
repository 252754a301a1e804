"""Writing files: whole or not at all, through links, pipes and devices, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from fairsteer._utils.files import Output, write_file

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")


def test_write_creates_and_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_file(path, "old")
    write_file(path, "grün".encode("latin-1"))
    assert path.read_bytes() == b"gr\xfcn"
    assert list(tmp_path.iterdir()) == [path]


def test_without_commit_nothing_has_happened(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with Output(path) as output:
        output.file.write(b"new")
        assert len(list(tmp_path.iterdir())) == 2
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@posix
def test_permissions_and_links_stay(tmp_path: Path) -> None:
    path, link = tmp_path / "a.txt", tmp_path / "link.txt"
    path.write_text("old")
    path.chmod(0o640)
    link.symlink_to(path)
    write_file(link, b"new")
    assert link.is_symlink()
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640


@posix
def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    write_file(tmp_path / "ours", b"")
    (tmp_path / "other").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_names_may_be_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 250)
    write_file(path, b"new")
    assert path.read_bytes() == b"new"


@posix
def test_a_pipe_and_a_link_to_a_device_are_written_through(tmp_path: Path) -> None:
    fifo, device = tmp_path / "fifo", tmp_path / "null"
    os.mkfifo(fifo)
    device.symlink_to(os.devnull)
    read = []
    reader = threading.Thread(target=lambda: read.append(fifo.read_bytes()))
    reader.start()
    write_file(fifo, b"through")
    reader.join()
    write_file(device, b"nowhere")
    assert read == [b"through"]
    assert fifo.is_fifo()
    assert device.is_symlink()
    assert sorted(tmp_path.iterdir()) == [fifo, device]


@posix
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize("to", ["pipe", "file"])
def test_standard_output_is_appended_to_whatever_it_is(tmp_path: Path, name: Any, to: Any) -> None:
    if name.startswith("/proc") and not os.path.exists(name):
        pytest.skip("this system has no /proc")
    program = (
        "import sys; from fairsteer._utils.files import write_file\n"
        f"print('before'); write_file({name!r}, b'content\\n'); print('after')"
    )
    path = tmp_path / "out"
    with path.open("wb") as file:
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=file if to == "file" else subprocess.PIPE, check=True
        )
    written = path.read_bytes() if to == "file" else done.stdout
    assert written.split() == [b"before", b"content", b"after"]


@posix
def test_what_a_killed_run_left_is_removed_and_what_a_living_one_holds_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    program = (
        "import os, signal; from fairsteer._utils.files import Output\n"
        f"Output({str(path)!r}).file.write(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    assert len(list(tmp_path.iterdir())) == 1
    with Output(tmp_path / "b.txt") as held:
        assert len(list(tmp_path.iterdir())) == 1
        write_file(path, b"whole")
        held.file.write(b"later")
        held.commit()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"a.txt": b"whole", "b.txt": b"later"}


def test_a_folder_that_is_absent_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_file(tmp_path / "absent" / "a.txt", b"")
