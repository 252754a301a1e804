"""What this installation is made of, for bug reports and next to every timing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys

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
    >>> fairsteer.show_versions()  # doctest: +SKIP
    """
    sections = {
        "System": {
            "python": sys.version.replace("\n", ""),
            "platform": platform.platform(),
            "machine": platform.machine(),
            "CPUs": str(os.cpu_count()),
        },
        "Build": build_info(),
        "Versions": {
            package: _installed_version(package)
            for package in ("fairsteer", "numpy", "scipy", "scikit-learn", "threadpoolctl")
        },
    }
    for title, entries in sections.items():
        print(f"{title}:")
        for name, value in entries.items():
            print(f"  {name:>13}: {value}")
        print()
    print("BLAS and OpenMP:")
    # Only libraries already loaded show; importing the core has loaded NumPy's and SciPy's.
    for library in threadpoolctl.threadpool_info():
        described = (
            library["internal_api"],
            library.get("version"),
            library.get("architecture"),
            f"{library['num_threads']} threads",
            library["filepath"],
        )
        print("  " + ", ".join(str(part) for part in described if part is not None))


def _installed_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
