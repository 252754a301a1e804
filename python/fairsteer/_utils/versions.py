"""What this installation is made of, for bug reports and next to every timing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from typing import Any

import threadpoolctl

from fairsteer import _core


def build_info() -> dict[str, str]:
    """Tell how the compiled core was built.

    Returns
    -------
    dict of str to str
        ``compiler``, ``flags``, ``build_type``, the versions of ``eigen`` and ``pybind11`` that
        were compiled in, and ``simd``, the instruction sets that Eigen's own kernels use. Large
        products and decompositions run in SciPy's BLAS and LAPACK, which choose theirs at run
        time; `show_versions` names them.

    Examples
    --------
    >>> import fairsteer
    >>> sorted(fairsteer.build_info())
    ['build_type', 'compiler', 'eigen', 'flags', 'pybind11', 'simd']
    """
    return _core.build_info()


def show_versions() -> None:
    """Print the system, the build of the core, the versions of dependencies and the BLAS in use.

    Paste the output into a bug report; a timing means little without it.

    Examples
    --------
    >>> import fairsteer
    >>> fairsteer.show_versions()  # doctest: +ELLIPSIS
    System:
    ...fairsteer: 0...
    """
    info = version_info()
    for title in ("System", "Build", "Versions"):
        print(f"{title}:")
        for name, value in info[title.lower()].items():
            print(f"  {name:>13}: {value}")
        print()
    print("BLAS and OpenMP:")
    for library in info["blas"]:
        described = (
            library["internal_api"],
            library.get("version"),
            library.get("architecture"),
            f"{library['num_threads']} threads",
            library["filepath"],
        )
        print("  " + ", ".join(str(part) for part in described if part is not None))


def version_info() -> dict[str, Any]:
    """Tell what `show_versions` prints.

    Returns
    -------
    dict
        ``system``, ``build`` and ``versions``, each a dict of texts, and ``blas``, what threadpoolctl knows of the
        libraries that are loaded.
    """
    return {
        "system": {
            "python": sys.version.replace("\n", ""),
            "platform": platform.platform(),
            "machine": platform.machine(),
            "CPUs": str(os.cpu_count()),
        },
        "build": build_info(),
        "versions": {
            package: _installed_version(package)
            for package in ("fairsteer", "numpy", "scipy", "scikit-learn", "threadpoolctl")
        },
        # Only libraries already loaded show; importing the core has loaded NumPy's and SciPy's.
        "blas": threadpoolctl.threadpool_info(),
    }


def _installed_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
