"""What the options of several commands are: declared once, so that one command has what another has."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

from . import UsageError

__all__ = [
    "FILE_HELP",
    "Json",
    "Maps",
    "Reads",
    "Rows",
    "Settings",
    "check_separator",
    "expand",
    "parse_memory",
    "parse_shrinkage",
]

Alignment = Literal["equal_opportunity", "demographic_parity"]
Leakage = Literal["none", "linear", "trees"]
UnknownGroup = Literal["error", "infer", "infer_hard"]

#: Option of every command that prints.
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines, notes included, not text.")]

FILE_HELP = "A .csv, .tsv (or either with .gz) or .parquet file, or a folder of them; - is standard input."

_SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "pipe": "|", "space": " "}


def _option(text: str, *names: str, metavar: str | None = None, **limits: Any) -> Any:
    return typer.Option(*names, help=text, metavar=metavar, **limits)


@dataclass(frozen=True)
class Reads:
    """How csv files are read; what is not said is guessed."""

    separator: Annotated[
        str | None, _option("What stands between values: , ; tab or another sign.", metavar="SIGN")
    ] = None
    decimal: Annotated[Literal[".", ","] | None, _option("Decimal point or comma.")] = None
    encoding: Annotated[str | None, _option("Such as utf-8, utf-16 or latin-1.", metavar="NAME")] = None
    na_values: Annotated[
        list[str],
        _option(
            "Texts that mean a missing value, besides the usual ones; repeatable, or a,b.",
            metavar="TEXTS",
        ),
    ] = field(default_factory=list)
    strict_na: Annotated[
        bool, _option("Empty values only are missing; NA, null and the like are texts.", "--strict-na")
    ] = False
    memory: Annotated[
        str | None,
        _option(
            "Memory that a table may take, such as 500M or 4G; a larger one is read in pieces. By default 1G, or half "
            "of what is free if that is less.",
            metavar="SIZE",
        ),
    ] = None

    def __post_init__(self) -> None:
        check_separator(self.separator)
        parse_memory(self.memory)


@dataclass(frozen=True)
class Rows(Reads):
    """A table, and what its columns are."""

    file: Annotated[Path, typer.Argument(help=FILE_HELP, metavar="FILE")] = Path()
    target: Annotated[str, _option("Column of the classes.", metavar="COLUMN")] = ""
    sensitive: Annotated[
        list[str], _option("Column of the groups; again, or a,b, for intersections.", metavar="COLUMN")
    ] = field(default_factory=list)
    drop: Annotated[
        list[str], _option("Leave this column out (leaks, splits); repeatable, or a,b.", metavar="COLUMN")
    ] = field(default_factory=list)
    keep: Annotated[
        list[str],
        _option("Not a feature, but copied to the output byte for byte (ids); repeatable, or a,b.", metavar="COLUMN"),
    ] = field(default_factory=list)
    categorical: Annotated[list[str], _option("Numbers that are categories; repeatable, or a,b.", metavar="COLUMN")] = (
        field(default_factory=list)
    )
    max_categories: Annotated[int, _option("Most 0/1 columns per categorical column.", min=1, metavar="N")] = 50


@dataclass(frozen=True)
class Maps:
    """What maps are fitted to moments."""

    intervention: Annotated[
        Literal["all_subgroups", "affirmative"],
        _option("Move all groups, or all but the reference group."),
    ] = "all_subgroups"
    reference_group: Annotated[
        str | None,
        _option("With affirmative: the group left as it is; by default the largest.", metavar="LABEL"),
    ] = None
    constraint: Annotated[
        Literal["ideal", "equal_opportunity", "demographic_parity"],
        _option("All criteria, rates of the positive class, or rates of prediction."),
    ] = "ideal"
    map_type: Annotated[
        Literal["affine", "symmetric", "diagonal", "translation", "monotone", "auto"],
        _option("How rows may move; monotone keeps values that occur, auto takes it for tables."),
    ] = "auto"
    standardize: Annotated[
        bool, typer.Option("--standardize/--own-shares", help="Whether the classes weigh alike in every group.")
    ] = True
    covariance: Annotated[
        Literal["tied", "full", "diagonal"],
        _option("One covariance per group, per class and group, or diagonal ones."),
    ] = "tied"
    shrinkage: Annotated[str, _option("ledoit_wolf, oas, none or a number in [0, 1].", metavar="AMOUNT")] = (
        "ledoit_wolf"
    )
    pooling: Annotated[
        float,
        _option(
            "With full: how far the classes of a group share their covariances.",
            min=0,
            max=1,
            metavar="SHARE",
        ),
    ] = 0.0
    min_subgroup_size: Annotated[
        int, _option("Rows that every class should have in every group.", min=0, metavar="N")
    ] = 0
    small_subgroups: Annotated[
        Literal["error", "pool", "merge"],
        _option("With fewer: refuse, borrow from other subgroups, or join small groups."),
    ] = "error"
    strength: Annotated[float, _option("0 leaves rows as they are, 1 steers fully.", min=0, max=1, metavar="S")] = 1.0
    max_time: Annotated[
        float | None,
        _option("Seconds after which a fit ends with the nearest distribution so far.", metavar="SECONDS"),
    ] = None

    def __post_init__(self) -> None:
        if self.pooling > 0 and self.covariance != "full":
            raise UsageError(f"--pooling needs --covariance full, not {self.covariance}.")
        if self.small_subgroups != "error" and self.min_subgroup_size == 0:
            raise UsageError(
                f"--small-subgroups {self.small_subgroups} needs --min-subgroup-size, "
                "the rows below which a subgroup is small."
            )
        if self.reference_group is not None and self.intervention != "affirmative":
            raise UsageError("--reference-group belongs to --intervention affirmative; add it.")
        if self.max_time is not None and not self.max_time > 0:
            raise UsageError(f"--max-time must be a positive number of seconds, not {self.max_time:g}.")
        parse_shrinkage(self.shrinkage)


@dataclass(frozen=True)
class Settings(Maps, Rows):
    """What ``steer``, ``audit`` and ``export`` fit, and how they measure."""

    pos_label: Annotated[str | None, _option("The positive class; by default the larger label.", metavar="LABEL")] = (
        None
    )
    unknown_group: Annotated[
        UnknownGroup | None,
        _option(
            "Rows without a group: refuse, all groups' maps by probability, or the likeliest group's. By "
            "default infer, where there are any."
        ),
    ] = None
    measured_rows: Annotated[
        int | None,
        _option(
            "Rows that gaps are measured on, evenly spaced in every class and group. By default 10,000 to 100,000, the "
            "fewer the more features and classes there are.",
            min=1,
            metavar="N",
        ),
    ] = None
    folds: Annotated[int, _option("Folds of the cross-validation behind the table.", min=2, metavar="N")] = 5
    min_rows: Annotated[int, _option("Rates from fewer rows take no part in the gaps.", min=1, metavar="N")] = 30

    def __post_init__(self) -> None:
        Maps.__post_init__(self)
        Rows.__post_init__(self)


#: Settings that a command line must give.
REQUIRED = ("file", "target", "sensitive")


def expand(settings: type[Any], required: tuple[str, ...] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turn the first parameter of a command into the fields of a dataclass, each an option of its own.

    Parameters
    ----------
    settings : type
        Dataclass whose fields are annotated as typer takes them.
    required : tuple of str
        Fields without a default; they come first.

    Returns
    -------
    callable
        Decorator of a command.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def run(**values: Any) -> None:
            own = {f.name: values.pop(f.name) for f in fields(settings)}
            command(settings(**own), **values)

        hints = get_type_hints(settings, include_extras=True)
        parameters = []
        for one in fields(settings):
            default: Any = inspect.Parameter.empty
            if one.name not in required:
                default = one.default if one.default_factory is MISSING else one.default_factory()
            parameters.append(
                inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[one.name])
            )
        parameters.sort(key=lambda parameter: required.index(parameter.name) if parameter.name in required else 99)
        _, *others = inspect.signature(command, eval_str=True).parameters.values()
        others = [other.replace(kind=inspect.Parameter.KEYWORD_ONLY) for other in others]
        n = len(required)
        everything = [*parameters[:n], *others, *parameters[n:]]
        everything.sort(key=lambda parameter: parameter.default is not inspect.Parameter.empty)
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__dict__["__signature__"] = inspect.Signature(everything)
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in everything}
        return run

    return decorate


def parse_shrinkage(text: str) -> Any:
    """Turn what ``--shrinkage`` was given into a parameter."""
    if text in ("ledoit_wolf", "oas"):
        return text
    if text == "none":
        return None
    try:
        amount = float(text)
    except ValueError:
        raise UsageError(f"--shrinkage must be ledoit_wolf, oas, none or a number in [0, 1], not {text!r}.") from None
    if not 0 <= amount <= 1:
        raise UsageError(f"--shrinkage must be a number in [0, 1], not {amount:g}.")
    return amount


# Beyond this, reading in pieces is no slower, and takes less.
_DEFAULT_MEMORY = 2**30
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)


def parse_memory(text: str | None) -> int:
    """Turn what ``--memory`` was given into bytes; by default a gigabyte, or half of what is free if that is less."""
    if text is None:
        return min(_DEFAULT_MEMORY, _free_memory() // 2)
    found = _MEMORY.fullmatch(text.strip())
    n_bytes = 0 if found is None else int(float(found[1]) * 1024 ** " kmgt".index(found[2].lower() or " "))
    if n_bytes < 2**20:
        raise UsageError(f"--memory must be a size of at least 1M, such as 500M or 4G, not {text!r}.")
    return n_bytes


def _free_memory() -> int:
    """Bytes that can be had without swapping; 2 GiB where the system does not say."""
    try:
        with Path("/proc/meminfo").open(encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return 2**31


def check_separator(text: str | None) -> str | None:
    """Turn what ``--separator`` was given into a sign."""
    if text is None:
        return None
    sign = _SEPARATORS.get(text, text)
    if len(sign.encode()) != 1 or sign in '"\r\n':
        raise UsageError(f"--separator must be one sign, such as , or ; or tab, not {text!r}.")
    return sign
