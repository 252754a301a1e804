from __future__ import annotations

import re

import pytest

import fairsteer


def test_build_info_is_all_text() -> None:
    info = fairsteer.build_info()
    assert set(info) == {"build_type", "compiler", "eigen", "flags", "pybind11", "simd"}
    assert all(isinstance(value, str) for value in info.values())
    assert re.fullmatch(r"\d+\.\d+\.\d+", info["eigen"])


def test_show_versions_names_what_decides_a_result(capsys: pytest.CaptureFixture[str]) -> None:
    fairsteer.show_versions()
    printed = capsys.readouterr().out
    assert fairsteer.__version__ in printed
    for name in ("python", "compiler", "flags", "eigen", "numpy", "scipy", "scikit-learn"):
        assert re.search(rf"^ +{name}: \S", printed, flags=re.MULTILINE), name
    assert "threads" in printed
