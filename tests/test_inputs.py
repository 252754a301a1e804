"""What people hand over: the same data in any container, type, order and spelling gives the same answer or a sentence.

Every estimator goes through the same tests; only how it is made and asked differs.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from fairsteer import FairSteeringTransformer, IdealDistributionClassifier, ScoreAligner, metrics
from fairsteer.baselines import CovarianceMatchingTransformer, LeaceTransformer, MeanMatchingTransformer
from fairsteer.scoring import fairness_scorer, performance_scorer

Array = npt.NDArray[Any]


class Sample(NamedTuple):
    """Rows with class 0 or 1 and group 0 or 1."""

    X: Array
    y: Array
    group: Array


def _sample(seed: int) -> Sample:
    rng = np.random.default_rng(seed)
    y, group = rng.integers(0, 2, (2, 160))
    y[rng.random(160) < 0.2 * group] = 0
    X = rng.normal(size=(160, 3)) * np.array([1, 2, 0.5])
    X[group == 1] @= np.array([[1, 0.5, 0], [0, 1.2, 0], [0.3, 0, 1]])
    return Sample(X + np.outer(y, [1, -0.5, 0.3]) + np.outer(group, [0.7, 0, -0.4]), y, group)


DATA = _sample(0)
NEW = _sample(1)

TRANSFORMERS: dict[str, Any] = {
    "affine": FairSteeringTransformer(),
    "affirmative": FairSteeringTransformer(intervention="affirmative"),
    "full, symmetric": FairSteeringTransformer(covariance="full", map_type="symmetric"),
    "full": FairSteeringTransformer(covariance="full", shrinkage=0.1),
    "diagonal": FairSteeringTransformer(covariance="diagonal"),
    "translations": FairSteeringTransformer(map_type="translation"),
    "scales": FairSteeringTransformer(map_type="diagonal"),
    "equal opportunity": FairSteeringTransformer(constraint="equal_opportunity"),
    "demographic parity": FairSteeringTransformer(constraint="demographic_parity"),
    "standardised": FairSteeringTransformer(feature_transform=StandardScaler()),
    "half": FairSteeringTransformer(strength=0.5, unknown_group="infer"),
    "mean matching": MeanMatchingTransformer(),
    "covariance matching": CovarianceMatchingTransformer(),
    "LEACE": LeaceTransformer(),
}
CLASSIFIERS: dict[str, Any] = {
    "Bayes rule": IdealDistributionClassifier(),
    "logistic regression": IdealDistributionClassifier(estimator=LogisticRegression()),
    "aligned Bayes rule": IdealDistributionClassifier(score_alignment="equal_opportunity", cv=3),
    "aligner": ScoreAligner(LogisticRegression(), cv=3),
    "aligner, demographic parity": ScoreAligner(LogisticRegression(), constraint="demographic_parity", cv=3),
}
ESTIMATORS = TRANSFORMERS | CLASSIFIERS
#: Out-of-fold scores depend on which rows are in one fold.
CROSS_FITTED = {name for name in CLASSIFIERS if "align" in name}

#: Those that do not look at the classes.
CLASS_BLIND = {"mean matching", "covariance matching", "LEACE"}

every_estimator = pytest.mark.parametrize("name", ESTIMATORS)
every_estimator_of_classes = pytest.mark.parametrize("name", [name for name in ESTIMATORS if name not in CLASS_BLIND])
every_transformer = pytest.mark.parametrize("name", TRANSFORMERS)
every_classifier = pytest.mark.parametrize("name", CLASSIFIERS)


def fitted(name: str, X: Any = DATA.X, y: Any = DATA.y, group: Any = DATA.group, **more: Any) -> Any:
    return clone(ESTIMATORS[name]).fit(X, y, sensitive_features=group, **more)


def groups_of(model: Any) -> list[Any]:
    """Labels of the groups that the model knows."""
    labels: list[Any] = (model if hasattr(model, "groups_") else model.steering_).groups_.tolist()
    return labels


def answer(model: Any, X: Any = NEW.X, group: Any = NEW.group) -> Array:
    """Moved rows, or probabilities."""
    ask = model.transform if hasattr(model, "transform") else model.predict_proba
    return np.asarray(ask(X, sensitive_features=group), dtype=np.float64)


_known: dict[str, Array] = {}


def plain(name: str) -> Array:
    """The answer to the rows as arrays of float64 and integers."""
    if name not in _known:
        _known[name] = answer(fitted(name))
    return _known[name]


def assert_close(ours: Array, theirs: Array, rtol: float = 1e-9) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol * np.abs(theirs).max())


# ---- rows


def _read_only(X: Array) -> Array:
    X = X.copy()
    X.flags.writeable = False
    return X


NAMES = ["a", "b c", "ü"]
ROWS: dict[str, Callable[[Array], Any]] = {
    "list of lists": lambda X: X.tolist(),
    "tuple of tuples": lambda X: tuple(map(tuple, X.tolist())),
    "list of arrays": list,
    "column-major": np.asfortranarray,
    "every second row": lambda X: np.repeat(X, 2, axis=0)[::2],
    "every second column": lambda X: np.repeat(X, 2, axis=1)[:, ::2],
    "backwards": lambda X: X[::-1].copy()[::-1],
    "read-only": _read_only,
    "other byte order": lambda X: X.astype(X.dtype.newbyteorder()),
    "objects": lambda X: X.astype(object),
    "extended precision": lambda X: X.astype(np.longdouble),
    "pandas": lambda X: pd.DataFrame(X, columns=NAMES),
    "pandas, other index": lambda X: pd.DataFrame(X, columns=NAMES, index=[f"r{i}" for i in range(len(X))][::-1]),
    "pandas, index of equal labels": lambda X: pd.DataFrame(X, columns=NAMES, index=[7] * len(X)),
    "pandas, numbered columns": pd.DataFrame,
    "pandas nullable": lambda X: pd.DataFrame(X, columns=NAMES).convert_dtypes(),
    "pandas pyarrow": lambda X: pd.DataFrame(X, columns=NAMES).convert_dtypes(dtype_backend="pyarrow"),
    "polars": lambda X: pl.DataFrame(X, schema=NAMES),
    "pyarrow": lambda X: pa.table(dict(zip(NAMES, X.T, strict=True))),
}


@every_estimator
@pytest.mark.parametrize("container", ROWS)
def test_rows_in_any_container(name: str, container: str) -> None:
    model = fitted(name, ROWS[container](DATA.X))
    assert_close(answer(model, ROWS[container](NEW.X)), plain(name))
    if hasattr(model, "feature_names_in_"):
        assert model.feature_names_in_.tolist() == NAMES


@every_estimator
def test_rows_mapped_from_a_file(name: str, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", DATA.X)
    assert_close(answer(fitted(name, np.load(tmp_path / "rows.npy", mmap_mode="r"))), plain(name))


@every_estimator
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint64", "int64", "float16", "float32", "longdouble"])
def test_numbers_of_any_type(name: str, dtype: str) -> None:
    counts, new = (np.floor(4 * np.abs(sample.X)) for sample in (DATA, NEW))
    model = fitted(name, counts.astype(dtype))
    exact = dtype not in ("float16", "float32")
    assert_close(answer(model, new.astype(dtype)), answer(fitted(name, counts), new), 1e-9 if exact else 4e-3)


@every_estimator
def test_booleans_are_zeros_and_ones(name: str) -> None:
    flags, new = DATA.X > 0, NEW.X > 0
    assert_close(answer(fitted(name, flags), new), answer(fitted(name, flags.astype(float)), new.astype(float)))


@every_estimator
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_refused(name: str, bad: float) -> None:
    X, new = DATA.X.copy(), NEW.X.copy()
    X[3, 1] = new[3, 1] = bad
    with pytest.raises(ValueError, match=r"NaN|infinit"):
        fitted(name, X)
    with pytest.raises(ValueError, match=r"NaN|infinit"):
        answer(fitted(name), new)


@every_estimator
@pytest.mark.parametrize(
    "rows",
    [
        DATA.X[:, 0],
        DATA.X[None],
        np.float64(3),
        DATA.X[:0],
        DATA.X[:, :0],
        DATA.X.astype(complex),
        np.full((160, 3), "a"),
        None,
    ],
    ids=["1-D", "3-D", "0-D", "no rows", "no columns", "complex", "text", "None"],
)
def test_what_is_no_table_of_numbers_is_refused(name: str, rows: Any) -> None:
    n = len(rows) if isinstance(rows, np.ndarray) and rows.ndim else 0
    with pytest.raises((TypeError, ValueError)):
        clone(ESTIMATORS[name]).fit(rows, DATA.y[:n], sensitive_features=DATA.group[:n])
    with pytest.raises((TypeError, ValueError)):
        answer(fitted(name), rows, NEW.group[:n])


@every_estimator
def test_a_row_is_answered_alike_alone_and_among_others(name: str) -> None:
    model = fitted(name)
    alone = np.vstack([answer(model, NEW.X[i : i + 1], NEW.group[i : i + 1]) for i in range(12)])
    assert_close(alone, answer(model)[:12], 1e-12)


# ---- the same data, told otherwise


def _frozen(name: str) -> Any:
    """The estimator where no answer depends on folds; None if there is no such."""
    if name not in CROSS_FITTED:
        return clone(ESTIMATORS[name])
    if "estimator" not in (model := clone(ESTIMATORS[name])).get_params(deep=False) or model.estimator is None:
        return None
    return model.set_params(estimator=FrozenEstimator(model.estimator.fit(DATA.X, DATA.y)))


@every_estimator
def test_the_order_of_rows_does_not_count(name: str) -> None:
    if (model := _frozen(name)) is None:
        model = IdealDistributionClassifier()
    order = np.random.default_rng(5).permutation(len(DATA.X))
    one = answer(clone(model).fit(DATA.X, DATA.y, sensitive_features=DATA.group))
    two = answer(clone(model).fit(DATA.X[order], DATA.y[order], sensitive_features=DATA.group[order]))
    assert_close(two, one, 1e-7)


@every_estimator
def test_names_of_groups_do_not_count(name: str) -> None:
    exchanged = answer(fitted(name, group=1 - DATA.group), group=1 - NEW.group)
    assert_close(exchanged, plain(name), 1e-7)


@every_estimator
def test_names_of_classes_do_not_count(name: str) -> None:
    if name in ("aligned Bayes rule", "equal opportunity") or name.startswith("aligner"):
        pytest.skip("its two classes are not treated alike: the larger is the positive one")
    exchanged = answer(fitted(name, y=1 - DATA.y))
    assert_close(exchanged if name in TRANSFORMERS else exchanged[:, ::-1], plain(name), 1e-6)


@every_transformer
def test_the_order_of_columns_does_not_count(name: str) -> None:
    order = [2, 0, 1]
    assert_close(answer(fitted(name, DATA.X[:, order]), NEW.X[:, order]), plain(name)[:, order], 1e-7)


@every_transformer
@pytest.mark.parametrize("unit", [2.0**-60, 2.0**-10, 2.0**10, 2.0**60])
def test_units_do_not_count(name: str, unit: float) -> None:
    assert_close(answer(fitted(name, unit * DATA.X), unit * NEW.X) / unit, plain(name), 1e-7)


@every_transformer
def test_where_zero_is_does_not_count(name: str) -> None:
    away = np.array([1e4, -300.0, 7.0])
    assert_close(answer(fitted(name, DATA.X + away), NEW.X + away) - away, plain(name), 1e-6)


@every_estimator
def test_nothing_of_an_earlier_fit_remains(name: str) -> None:
    other = (NEW.X[:, :2], NEW.y, np.array(["x", "y", "z"])[np.arange(160) % 3])
    model = fitted(name, *other)
    model.fit(DATA.X, DATA.y, sensitive_features=DATA.group)
    assert_close(answer(model), plain(name), 1e-12)


@every_estimator
def test_what_is_given_is_not_changed(name: str) -> None:
    given: dict[str, Any] = {
        "X": pd.DataFrame(DATA.X, columns=NAMES),
        "y": pd.Series(DATA.y, index=np.arange(160)[::-1]),
        "sensitive_features": pd.Series(DATA.group).map({0: "f", 1: "m"}),
        "sample_weight": np.ones(160),
    }
    before = copy.deepcopy(given)
    model = clone(ESTIMATORS[name]).fit(**given)
    answer(model, given["X"], given["sensitive_features"])
    for key, value in before.items():
        assert value.equals(given[key]) if hasattr(value, "equals") else np.array_equal(value, given[key])
    X = np.asfortranarray(DATA.X)
    answer(fitted(name, X), X, DATA.group)
    np.testing.assert_array_equal(X, DATA.X)


@every_estimator
def test_rows_of_no_weight_are_not_there(name: str) -> None:
    if (model := _frozen(name)) is None:
        model = IdealDistributionClassifier()
    extra = np.vstack([DATA.X, 100 + 10 * NEW.X[:9]])
    y, group = np.append(DATA.y, NEW.y[:9]), np.append(DATA.group, NEW.group[:9])
    weight = np.append(np.ones(160), np.zeros(9))
    one = answer(clone(model).fit(DATA.X, DATA.y, sensitive_features=DATA.group, sample_weight=np.ones(160)))
    two = answer(clone(model).fit(extra, y, sensitive_features=group, sample_weight=weight))
    # feature_transform and estimator may count rows in their own way, as scikit-learn's solvers stop early.
    assert_close(two, one, 1e-5)


@every_estimator
@pytest.mark.parametrize(
    "weight",
    [
        np.ones(159),
        -np.ones(160),
        np.zeros(160),
        np.full(160, np.nan),
        np.full(160, np.inf),
        np.ones((160, 2)),
        ["a"] * 160,
    ],
    ids=["short", "negative", "all zero", "NaN", "infinite", "2-D", "text"],
)
def test_weights_that_are_none_are_refused(name: str, weight: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"(?i)weight|NaN|infinit|convert|\[160, 159\]"):
        fitted(name, sample_weight=weight)


# ---- labels


LABELS: dict[str, tuple[Any, Any]] = {
    "negative": (-1, 1),
    "large": (2**53 + 1, 2**53 + 2),
    "floats": (0.0, 1.0),
    "booleans": (False, True),
    "words": ("no", "yes"),
    "digits": ("1", "2"),
    "empty": ("", "x"),
    "not ASCII": ("männlich", "weiblich ☃"),
    "like markup": ("$x$", "[bold]"),
    "like missing": ("NA", "nan"),
}
SERIES: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "array": np.array,
    "objects": lambda labels: np.array(labels, dtype=object),
    "Series, other index": lambda labels: pd.Series(labels, index=np.arange(len(labels))[::-1]),
    "category": lambda labels: pd.Series(labels).astype("category"),
    "Categorical": lambda labels: pd.Categorical(labels),
    "nullable": lambda labels: pd.Series(labels).convert_dtypes(),
    "pandas pyarrow": lambda labels: pd.Series(labels).convert_dtypes(dtype_backend="pyarrow"),
    "Index": pd.Index,
    "polars": pl.Series,
    "pyarrow": pa.array,
    "pyarrow chunks": lambda labels: pa.chunked_array([labels[:50], labels[50:]]),
    "pyarrow dictionary": lambda labels: pa.array(labels).dictionary_encode(),
}


def spelt(codes: Array, labels: tuple[Any, Any]) -> list[Any]:
    return [labels[code] for code in codes]


@every_estimator
@pytest.mark.parametrize("labels", LABELS)
def test_groups_of_any_spelling(name: str, labels: str) -> None:
    model = fitted(name, group=spelt(DATA.group, LABELS[labels]))
    assert tuple(groups_of(model)) == LABELS[labels]
    assert_close(answer(model, group=spelt(NEW.group, LABELS[labels])), plain(name), 1e-12)


@every_classifier
@pytest.mark.parametrize("labels", LABELS)
def test_classes_of_any_spelling(name: str, labels: str) -> None:
    values = LABELS[labels]
    model = fitted(name, y=spelt(DATA.y, values))
    assert tuple(model.classes_.tolist()) == values
    assert_close(answer(model), plain(name), 1e-12)
    predicted = model.predict(NEW.X, sensitive_features=NEW.group)
    numbers = fitted(name).predict(NEW.X, sensitive_features=NEW.group)
    assert predicted.dtype == np.array(values).dtype
    assert predicted.tolist() == spelt(numbers, values)


@every_estimator
@pytest.mark.parametrize("container", SERIES)
@pytest.mark.parametrize("labels", ["words", "negative", "booleans"])
def test_labels_in_any_container(name: str, container: str, labels: str) -> None:
    given = SERIES[container]
    groups, classes = given(spelt(DATA.group, LABELS[labels])), given(spelt(DATA.y, LABELS[labels]))
    if container == "objects" and labels != "words":  # refused by scikit-learn, as labels of an unknown type
        classes = classes.tolist()
    model = fitted(name, y=classes, group=groups)
    assert_close(answer(model, group=given(spelt(NEW.group, LABELS[labels]))), plain(name), 1e-12)
    if name in CLASSIFIERS:
        assert tuple(model.classes_.tolist()) == LABELS[labels]


MISSING: dict[str, Callable[[list[Any]], Any]] = {
    "None in a list": list,
    "None among objects": lambda labels: np.array(labels, dtype=object),
    "NaN in a list": lambda labels: [np.nan if label is None else label for label in labels],
    "pd.NA in a list": lambda labels: [pd.NA if label is None else label for label in labels],
    "Series": pd.Series,
    "pandas string": lambda labels: pd.Series(labels, dtype="string"),
    "category": lambda labels: pd.Series(labels).astype("category"),
    "pandas pyarrow": lambda labels: pd.Series(labels).convert_dtypes(dtype_backend="pyarrow"),
    "polars": pl.Series,
    "pyarrow": pa.array,
}


def _without(codes: Array) -> list[Any]:
    """The labels "no" and "yes", but for three that are missing."""
    return [None if i in (4, 9, 77) else ("no", "yes")[code] for i, code in enumerate(codes)]


@every_estimator
@pytest.mark.parametrize("container", MISSING)
def test_missing_groups_are_counted_and_left_out(name: str, container: str) -> None:
    given = MISSING[container](_without(DATA.group))
    model = clone(ESTIMATORS[name])
    with pytest.warns(UserWarning, match=r"\b3 of 160 rows"):
        model.fit(DATA.X, DATA.y, sensitive_features=given)
    assert groups_of(model) == ["no", "yes"]
    if name not in CROSS_FITTED:
        kept = np.setdiff1d(np.arange(160), [4, 9, 77])
        others = fitted(name, DATA.X[kept], DATA.y[kept], DATA.group[kept])
        assert_close(answer(model, group=spelt(NEW.group, ("no", "yes"))), answer(others), 1e-6)


@every_estimator_of_classes
@pytest.mark.parametrize("container", MISSING)
def test_missing_classes_are_refused(name: str, container: str) -> None:
    with pytest.raises(ValueError, match=r"(?i)missing|NaN|NA\b|None"):
        fitted(name, y=MISSING[container](_without(DATA.y)))


@every_estimator_of_classes
def test_missing_numbers_as_classes_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"(?i)missing|NaN"):
        fitted(name, y=np.where(np.arange(160) == 5, np.nan, DATA.y))


@every_estimator_of_classes
@pytest.mark.parametrize("length", [0, 1, 159, 161])
def test_classes_of_another_length_are_refused(name: str, length: int) -> None:
    with pytest.raises(ValueError, match=rf"160.*\b{length}\b|\b{length}\b.*160"):
        fitted(name, y=np.resize(DATA.y, length))


@every_estimator
@pytest.mark.parametrize("length", [0, 1, 159, 161])
def test_groups_of_another_length_are_refused(name: str, length: int) -> None:
    lengths = rf"160.*\b{length}\b|\b{length}\b.*160" if length else r"\b0 rows|160"
    with pytest.raises(ValueError, match=lengths):
        fitted(name, group=np.resize(DATA.group, length))
    if name != "LEACE":  # which moves all groups alike
        with pytest.raises(ValueError, match=lengths):
            answer(fitted(name), group=np.resize(NEW.group, length))


@every_estimator
def test_two_columns_of_groups_are_their_intersections(name: str) -> None:
    half = np.arange(160) % 2
    expected = answer(fitted(name, group=2 * DATA.group + half), group=2 * NEW.group + half)
    tables: list[Callable[[Array], Any]] = [
        lambda group: np.column_stack([group, half]),
        lambda group: np.column_stack([group, half]).tolist(),
        lambda group: pd.DataFrame({"sex": group, "half": half}),
        lambda group: pl.DataFrame({"sex": group, "half": half}),
        lambda group: pa.table({"sex": group, "half": half}),
    ]
    for table in tables:
        model = fitted(name, group=table(DATA.group))
        assert groups_of(model) == [(0, 0), (0, 1), (1, 0), (1, 1)]
        assert_close(answer(model, group=table(NEW.group)), expected)


# ---- metrics and scorers


GAPS = ("demographic_parity_difference", "equal_opportunity_difference", "equalized_odds_difference", "tpr_gap_rms")
PREDICTED = (DATA.X[:, 0] > 0.4).astype(int)


def gap(metric: str, y: Any = DATA.y, predicted: Any = PREDICTED, group: Any = DATA.group, **more: Any) -> float:
    found = getattr(metrics, metric)(y, predicted, sensitive_features=group, **more)
    assert isinstance(found, float)
    return found


@pytest.mark.parametrize("metric", GAPS)
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("container", SERIES)
def test_gaps_of_labels_of_any_spelling_in_any_container(metric: str, labels: str, container: str) -> None:
    given = [SERIES[container](spelt(codes, LABELS[labels])) for codes in (DATA.y, PREDICTED, DATA.group)]
    assert gap(metric, *given) == gap(metric) > 0
    assert gap(metric, DATA.y, PREDICTED, given[2]) == gap(metric)


@pytest.mark.parametrize("metric", GAPS)
def test_gaps_do_not_know_orders_or_names(metric: str) -> None:
    order = np.random.default_rng(3).permutation(160)
    weight = np.random.default_rng(4).integers(0, 4, 160)
    assert gap(metric, DATA.y[order], PREDICTED[order], DATA.group[order]) == pytest.approx(gap(metric), abs=1e-14)
    assert gap(metric, group=1 - DATA.group) == pytest.approx(gap(metric), abs=1e-14)
    assert gap(metric, sample_weight=np.ones(160)) == pytest.approx(gap(metric), abs=1e-14)
    repeated = [np.repeat(codes, weight) for codes in (DATA.y, PREDICTED, DATA.group)]
    assert gap(metric, sample_weight=weight) == pytest.approx(gap(metric, *repeated), abs=1e-14)
    assert gap(metric, predicted=DATA.y) == pytest.approx(
        0 if "parity" not in metric else gap(metric, predicted=DATA.y)
    )


@pytest.mark.parametrize("metric", GAPS)
@pytest.mark.parametrize("container", MISSING)
@pytest.mark.parametrize("which", [0, 1])
def test_gaps_of_missing_labels_are_refused(metric: str, container: str, which: int) -> None:
    given: list[Any] = [spelt(DATA.y, ("no", "yes")), spelt(PREDICTED, ("no", "yes"))]
    given[which] = MISSING[container](_without((DATA.y, PREDICTED)[which]))
    with pytest.raises(ValueError, match=r"(?i)missing"):
        gap(metric, *given)


@pytest.mark.parametrize("metric", GAPS)
@pytest.mark.parametrize(
    ("y", "predicted"),
    [
        (DATA.y, DATA.X[:, 0]),
        (DATA.y, np.clip(DATA.X[:, 0], 0, 1)),
        (DATA.y, np.column_stack([PREDICTED, 1 - PREDICTED])),
        (spelt(DATA.y, ("no", "yes")), spelt(PREDICTED, ("No", "Yes"))),
        (spelt(DATA.y, ("no", "yes")), PREDICTED),
        (DATA.y, spelt(PREDICTED, ("0", "1"))),
        (DATA.y, 5 + PREDICTED),
        (DATA.y[:0], PREDICTED[:0]),
        (DATA.y, PREDICTED[:159]),
        (DATA.y[:159], PREDICTED),
    ],
    ids=[
        "scores",
        "probabilities",
        "2-D",
        "other spelling",
        "text, numbers",
        "numbers, text",
        "other numbers",
        "no rows",
        "short",
        "long",
    ],
)
def test_no_gap_of_what_cannot_be_compared(metric: str, y: Any, predicted: Any) -> None:
    """Never a gap of 0, by which a search would choose."""
    group = DATA.group[: len(y)] if len(y) in (0, 160) else DATA.group
    with pytest.raises((TypeError, ValueError)):
        gap(metric, y, predicted, group)


@pytest.mark.parametrize("metric", GAPS)
def test_scorers_are_minus_the_gap_in_every_container(metric: str) -> None:
    model = LogisticRegression().fit(DATA.X, DATA.y)
    expected = -gap(metric, NEW.y, model.predict(NEW.X), NEW.group)
    scorer = fairness_scorer(metric, sensitive_columns=["sex"])
    columns = {**dict(zip(NAMES, NEW.X.T, strict=True)), "sex": spelt(NEW.group, ("f", "m"))}
    for frame in (pd.DataFrame, pl.DataFrame, pa.table):
        steer = FairSteeringTransformer(sensitive_columns=["sex"], strength=0)
        pipe = IdealDistributionClassifier(steering=steer, estimator=LogisticRegression())
        table = frame(columns)
        pipe.fit(table, NEW.y)
        predicted = pipe.predict(table)
        assert scorer(pipe, table, NEW.y) == pytest.approx(-gap(metric, NEW.y, predicted, NEW.group), abs=1e-14)
    for given in SERIES.values():
        group = given(spelt(NEW.group, ("f", "m")))
        assert fairness_scorer(metric)(model, NEW.X, NEW.y, sensitive_features=group) == pytest.approx(expected)


@every_classifier
def test_performance_is_scored_with_the_groups(name: str) -> None:
    model = fitted(name)
    predicted = model.predict(NEW.X, sensitive_features=NEW.group)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = performance_scorer("accuracy")(model, NEW.X, NEW.y, sensitive_features=NEW.group)
    assert found == pytest.approx(np.mean(predicted == NEW.y))
