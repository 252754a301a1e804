"""``import fairsteer`` is quick, and everything is reachable from it all the same."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fairsteer

ROOT = Path(fairsteer.__file__).parent


def _python(program: Any) -> Any:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_import_brings_nothing_that_is_not_asked_for() -> None:
    heavy = "('numpy', 'scipy', 'sklearn', 'pandas', 'pyarrow', 'torch', 'matplotlib', 'rich')"
    assert _python(f"import fairsteer, sys; print([m for m in {heavy} if m in sys.modules])") == "[]\n"


@pytest.mark.slow
def test_every_public_module_is_an_attribute_and_listed() -> None:
    public = {path.stem for path in ROOT.iterdir() if path.stem.isidentifier() and not path.stem.startswith("_")}
    rooms = {name for name in public if name not in ("cli", "py")}
    assert set(fairsteer._ROOMS) == rooms
    assert rooms <= set(dir(fairsteer))
    found = _python("import fairsteer; print(fairsteer.persistence.save.__name__, fairsteer.report.__name__)")
    assert found == "save fairsteer.report\n"


@pytest.mark.parametrize("name", fairsteer.__all__)
def test_every_public_name_is_what_its_module_has(name: Any) -> None:
    assert name in dir(fairsteer)
    value = getattr(fairsteer, name)
    if name != "__version__":
        assert value is getattr(importlib.import_module(f"fairsteer.{fairsteer._HOMES[name]}"), name)
        assert value is getattr(importlib.import_module(value.__module__), name)
    assert set(fairsteer._HOMES) | {"__version__"} == set(fairsteer.__all__)


def test_another_name_is_an_attribute_error() -> None:
    assert not hasattr(fairsteer, "nothing")
    with pytest.raises(ImportError, match="nothing"):
        exec("from fairsteer import nothing")
