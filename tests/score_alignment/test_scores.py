"""Answers of classifiers are checked, those that differ by rounding are one, and maps live without the classifier."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils import get_tags

import fairsteer.groups
import fairsteer.score_alignment._aligner
from fairsteer import IdealDistributionClassifier, ScoreAligner
from fairsteer.score_alignment import Alignment

CONSTRAINTS = ["equal_opportunity", "demographic_parity"]


class Says(ClassifierMixin, BaseEstimator):
    """A classifier that answers with its features, spoilt on the rows whose last feature is 1."""

    def __init__(self, spoil: Any = None, dtype: str = "float64") -> None:
        self.spoil = spoil
        self.dtype = dtype

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Says:
        self.classes_ = np.unique(y)
        return self

    def predict(self, X: Any) -> npt.NDArray[Any]:
        return np.asarray(self.classes_[np.asarray(X)[:, :-1].argmax(axis=1)])

    def answer(self, X: Any) -> Any:
        X = np.asarray(X)
        answer = X[:, :-1].astype(self.dtype)
        return answer if self.spoil is None else self.spoil(answer, X[:, -1] == 1)


class SaysProba(Says):
    def predict_proba(self, X: Any) -> Any:
        return self.answer(X)


class SaysScore(Says):
    def decision_function(self, X: Any) -> Any:
        return self.answer(X)[:, 0]


def rows(
    n_classes: int = 2, n: int = 600, seed: int = 0
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Probabilities and a last column that marks no row; classes; groups."""
    rng = np.random.default_rng(seed)
    proba, group = rng.dirichlet(np.ones(n_classes), n), rng.integers(0, 2, n)
    y = (proba.cumsum(axis=1)[:, :-1] < rng.random((n, 1))).sum(axis=1)
    return np.column_stack([proba, np.zeros(n)]), y, group


def marked(X: npt.NDArray[Any], row: int) -> npt.NDArray[Any]:
    X = X.copy()
    X[row, -1] = 1
    return X


def put(value: float) -> Any:
    def spoil(answer: npt.NDArray[Any], bad: npt.NDArray[Any]) -> npt.NDArray[Any]:
        answer[bad, -1] = value
        return answer

    return spoil


@pytest.mark.slow
@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_row_of_zeros_counts_as_equal_probabilities(n_classes: int, constraint: Any) -> None:
    X, y, group = rows(n_classes)
    X[::7, :-1] = 0
    known = X.copy()
    known[::7, :-1] = 1 / n_classes
    aligner = ScoreAligner(SaysProba(), constraint=constraint).fit(X, y, sensitive_features=group)
    expected = ScoreAligner(SaysProba(), constraint=constraint).fit(known, y, sensitive_features=group)
    proba = aligner.predict_proba(X, sensitive_features=group)
    assert np.isfinite(proba).all()
    np.testing.assert_array_equal(proba, expected.predict_proba(known, sensitive_features=group))
    np.testing.assert_array_equal(proba, expected.predict_proba(X, sensitive_features=group))


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_rows_of_zeros_from_one_against_the_rest(constraint: Any) -> None:
    rng = np.random.default_rng(0)
    y, group = rng.integers(0, 3, 600), rng.integers(0, 2, 600)
    X = rng.normal(size=(600, 4)) + 0.7 * y[:, None]
    tree = OneVsRestClassifier(DecisionTreeClassifier(random_state=0))
    aligner = ScoreAligner(tree, constraint=constraint).fit(X[:400], y[:400], sensitive_features=group[:400])
    assert (aligner.estimator_.predict_proba(X[400:]).sum(axis=1) == 0).any()
    assert np.isfinite(aligner.predict_proba(X[400:], sensitive_features=group[400:])).all()
    assert np.isfinite(aligner.predict_log_proba(X[400:], sensitive_features=group[400:])).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("kind", "n_classes"), [(SaysProba, 2), (SaysProba, 3), (SaysScore, 2)])
def test_one_score_that_is_not_finite_is_refused_at_fit_and_at_predict(kind: Any, n_classes: int, value: float) -> None:
    X, y, group = rows(n_classes)
    spoil = put(value) if kind is SaysProba else lambda answer, bad: np.where(bad[:, None], value, answer)
    asked = "predict_proba" if kind is SaysProba else "decision_function"
    with pytest.raises(ValueError, match=rf"{asked} of Says\w+\(.*not finite: .* the first {value:g} in row 123"):
        ScoreAligner(kind(spoil)).fit(marked(X, 123), y, sensitive_features=group)
    aligner = ScoreAligner(kind(spoil)).fit(X, y, sensitive_features=group)
    for method in ("predict", "predict_proba", "predict_log_proba", "decision_function"):
        with pytest.raises(ValueError, match=r"not finite: .* of 600 rows, the first .* in row 5"):
            getattr(aligner, method)(marked(X, 5), sensitive_features=group)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (put(1.5), r"no probabilities, in \[0, 1\]: 1 in 1 of 600 rows, the first 1.5 in row 3, class 1"),
        (put(-0.5), r"no probabilities, in \[0, 1\]"),
        (lambda answer, bad: np.where(bad[:, None], 0.9 * answer, answer), "sums of probabilities"),
        (lambda answer, bad: answer[:1], r"an array of shape \(1, 2\) for 600 rows of 2 classes, not \(600, 2\)"),
        (lambda answer, bad: answer[:, :1], r"an array of shape \(600, 1\)"),
        (lambda answer, bad: answer[0], r"an array of shape \(2,\)"),
        (lambda answer, bad: answer[:-1], r"an array of shape \(599, 2\)"),
        (lambda answer, bad: np.float64(0.5), r"an array of shape \(\)"),
        (lambda answer, bad: [answer, answer], "gave 2 arrays, as for several outputs"),
        (lambda answer, bad: np.full(answer.shape, "a"), "an array of type <U1, not numbers"),
    ],
)
def test_what_is_no_probability_of_every_row_is_refused(spoil: Any, message: str) -> None:
    X, y, group = rows()
    aligner = ScoreAligner(FrozenEstimator(SaysProba().fit(X, y))).fit(X, y, sensitive_features=group)
    aligner.estimator_.estimator.spoil = spoil
    with pytest.raises(ValueError, match=message):
        aligner.predict(marked(X, 3), sensitive_features=group)
    with pytest.raises(ValueError, match=r"gave an array of|gave 2 arrays|gave scores that are"):
        ScoreAligner(SaysProba(spoil)).fit(marked(X, 3), y, sensitive_features=group)


@pytest.mark.parametrize(
    "spoil",
    [lambda a, bad: a[:1], lambda a, bad: np.stack([a[:, 0]] * 2, axis=1)[:, None], lambda a, bad: a * 1e300],
)
def test_scores_of_another_shape_or_size_are_refused(spoil: Any) -> None:
    X, y, group = rows()
    with pytest.raises(ValueError, match=r"gave an array of shape|larger than 1e\+150"):
        ScoreAligner(SaysScore(spoil)).fit(X, y, sensitive_features=group)


@pytest.mark.slow
def test_probabilities_that_sum_to_one_but_for_rounding_are_taken() -> None:
    X, y, group = rows(3)
    for dtype in ("float32", "float16"):
        aligner = ScoreAligner(SaysProba(dtype=dtype)).fit(X, y, sensitive_features=group)
        np.testing.assert_allclose(aligner.predict_proba(X, sensitive_features=group).sum(axis=1), 1)
    nearly = X * (1 + 1e-5)  # as single precision sums up
    nearly[0, :3] = [1 + 1e-7, 0, -1e-7]
    found = ScoreAligner(SaysProba()).fit(nearly, y, sensitive_features=group)
    proba = found.predict_proba(nearly, sensitive_features=group)
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    assert ((proba >= 0) & (proba <= 1)).all()


def test_the_aligned_classifier_refuses_and_defines_as_the_aligner_does() -> None:
    X, y, group = rows(3)
    X = np.column_stack([X[:, :-1] + 0.05 * np.random.default_rng(1).normal(size=(600, 3)), X[:, -1]])

    def silent(answer: npt.NDArray[Any], bad: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.zeros_like(answer)

    def infinite(answer: npt.NDArray[Any], bad: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.where(np.arange(len(answer))[:, None] == 2, np.nan, np.full_like(answer, 1 / 3))

    inner = IdealDistributionClassifier(estimator=SaysProba(silent), score_alignment="equal_opportunity")
    X = X[:, :-1] @ np.eye(3, 4) + 0.1 * np.random.default_rng(2).normal(size=(600, 4))
    proba = inner.fit(X, y, sensitive_features=group).predict_proba(X, sensitive_features=group)
    assert np.isfinite(proba).all()
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    with pytest.raises(ValueError, match="not finite"):
        inner.set_params(estimator=SaysProba(infinite)).fit(X, y, sensitive_features=group)


# ---- scores that differ by rounding only


def jitter(answer: npt.NDArray[Any], bad: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Last digits that depend on the place in the batch, of the second class; the first is 1 less the others."""
    rng = np.random.default_rng(len(answer))
    for _ in range(3):
        up = rng.random(answer.shape) < 0.5
        answer = np.where(up, np.nextafter(answer, 2, dtype=answer.dtype), np.nextafter(answer, 0, dtype=answer.dtype))
    answer = np.minimum(answer, 1)
    if answer.shape[1] == 2:
        answer[:, 0] = 1 - answer[:, 1]
    return answer


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("max_gap", [0.0, 0.05])
@pytest.mark.parametrize(("kind", "n_classes"), [(SaysProba, 2), (SaysProba, 3), (SaysScore, 2)])
def test_equal_rows_get_equal_predictions(
    kind: Any, n_classes: int, max_gap: float, constraint: Any, dtype: str
) -> None:
    rng = np.random.default_rng(3)
    kinds = rng.dirichlet(np.full(n_classes, 0.5), 6)
    if n_classes == 2:  # where 1 less the other has no digits left, too
        kinds = np.vstack([kinds, [[1e-10, 1 - 1e-10], [1 - 1e-13, 1e-13], [0, 1], [1, 0]]])
    which, group = rng.integers(0, len(kinds), 2000), rng.integers(0, 2, 2000)
    y = (kinds[which].cumsum(axis=1)[:, :-1] < rng.random((2000, 1))).sum(axis=1)
    X = np.column_stack([kinds[which], np.zeros(2000)])
    model = kind(jitter, dtype).fit(X, y)
    aligner = ScoreAligner(FrozenEstimator(model), constraint=constraint, max_gap=max_gap)
    aligner.fit(X, y, sensitive_features=group)
    batches = [np.arange(2000), rng.permutation(2000), *np.array_split(rng.permutation(2000), 30)]
    place = np.concatenate(batches)
    proba = np.vstack([aligner.predict_proba(X[batch], sensitive_features=group[batch]) for batch in batches])
    predicted = np.concatenate([aligner.predict(X[batch], sensitive_features=group[batch]) for batch in batches])
    for j in range(len(kinds)):
        for a in (0, 1):
            same = (which[place] == j) & (group[place] == a)
            assert np.ptp(proba[same], axis=0).max() < 64 * np.finfo(dtype).eps
            assert len(set(predicted[same])) == 1


def test_rounding_makes_no_gap() -> None:
    """Two groups with the same four scores have no gap, though their last digits differ."""
    rng = np.random.default_rng(0)
    which, y = rng.integers(0, 4, 800), rng.integers(0, 2, 800)
    score = np.array([-1.3, -0.1, 0.7, 2.9])[which]
    group = np.repeat([0, 1], 400)
    score[400:], y[400:] = score[:400], y[:400]
    X = np.column_stack([np.where(group == 1, np.nextafter(score, 9), score), np.zeros(800), np.zeros(800)])
    aligner = ScoreAligner(FrozenEstimator(SaysScore().fit(X, y))).fit(X, y, sensitive_features=group)
    assert aligner.gap_band().measured.max() < 1e-12
    proba = aligner.predict_proba(X, sensitive_features=group)
    np.testing.assert_allclose(proba[:400], proba[400:], rtol=1e-12)


def test_the_order_of_tiny_probabilities_stays() -> None:
    """A classifier that is very sure, and computes both probabilities exactly, is not thrown into one tie."""
    rng = np.random.default_rng(0)
    y, group = rng.integers(0, 2, (2, 400))
    X = rng.normal(size=(400, 12)) + 4 * y[:, None] + group[:, None]
    aligner = ScoreAligner(GaussianNB()).fit(X, y, sensitive_features=group)
    sure = aligner.estimator_.predict_proba(X).min(axis=1) < 1e-20
    assert sure.sum() > 20
    maps: Any = aligner.alignment_.maps
    assert sum(len(ties.values) for ties in maps.ties) == 0


def test_rows_far_from_those_of_the_fit_have_finite_probabilities() -> None:
    X, y, group = rows()
    group[(y == 1) & (group == 1)] = 0  # a group without rows of the second class
    with pytest.warns(UserWarning, match="no out-of-fold row of class 1 in group 1"):
        aligner = ScoreAligner(SaysScore()).fit(X * 1e-300, y, sensitive_features=group)
    far = np.outer([-1e150, -1e100, 1e-310, 1e100, 1e150], np.ones(3))
    for a in (0, 1):
        proba = aligner.predict_proba(far, sensitive_features=np.full(5, a))
        assert np.isfinite(proba).all()
        assert (np.diff(proba[:, 1]) >= 0).all()


# ---- the alignment apart from the classifier, and the manners of the estimator


@pytest.mark.slow
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("columns", [1, 2])
def test_the_alignment_is_a_value_of_its_own(n_classes: int, columns: int) -> None:
    X, y, group = rows(n_classes)
    groups = group if columns == 1 else np.column_stack([group, np.arange(600) % 2])
    aligner = ScoreAligner(SaysProba()).fit(X, y, sensitive_features=groups)
    alignment: Alignment = pickle.loads(pickle.dumps(aligner.alignment_))
    expected = aligner.predict_proba(X, sensitive_features=groups)
    np.testing.assert_array_equal(alignment.predict_proba(X[:, :-1], sensitive_features=groups), expected)
    np.testing.assert_array_equal(
        alignment.predict_proba(X[:, :-1], unknown_group="average"),
        aligner.set_params(unknown_group="average").predict_proba(X),
    )
    if n_classes == 2:
        log_odds = np.log(X[:, 1]) - np.log(X[:, 0])
        np.testing.assert_allclose(alignment.predict_proba(log_odds, sensitive_features=groups), expected)
    assert "\n" not in repr(alignment)
    assert len(repr(aligner.gap_band())) < 100
    assert alignment.max_gap == aligner.max_gap_
    with pytest.raises(ValueError, match="No groups are given"):
        alignment.predict_proba(X[:, :-1])
    with pytest.raises(ValueError, match="missing or was not there at fit"):
        alignment.predict_proba(X[:, :-1], sensitive_features=groups + 5)
    with pytest.raises(ValueError, match="not finite"):
        alignment.predict_proba(X[:, :-1] * np.nan, sensitive_features=groups)


def test_the_alignment_of_a_decision_function_and_of_one_class() -> None:
    X, y, group = rows()
    aligner = ScoreAligner(RidgeClassifier()).fit(X, y, sensitive_features=group)
    assert aligner.alignment_.response_method == "decision_function"
    scores = aligner.estimator_.decision_function(X)
    np.testing.assert_array_equal(
        aligner.alignment_.predict_proba(scores, sensitive_features=group),
        aligner.predict_proba(X, sensitive_features=group),
    )
    one = ScoreAligner(DecisionTreeClassifier()).fit(X, np.zeros(600), sensitive_features=group).alignment_
    assert one.predict_proba(np.ones((3, 1)), sensitive_features=[0, 1, 0]).tolist() == [[1.0]] * 3


@pytest.mark.slow
@pytest.mark.parametrize("n_classes", [2, 3])
def test_folds_in_several_processes_give_the_same(n_classes: int) -> None:
    X, y, group = rows(n_classes)
    weight = np.random.default_rng(0).uniform(0.5, 2, 600)
    one, two = (
        ScoreAligner(LogisticRegression(), n_jobs=n_jobs)
        .fit(X, y, sensitive_features=group, sample_weight=weight)
        .predict_proba(X, sensitive_features=group)
        for n_jobs in (None, 2)
    )
    np.testing.assert_array_equal(one, two)


def test_progress_is_printed_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    X, y, group = rows()
    ScoreAligner(SaysProba()).fit(X, y, sensitive_features=group)
    assert capsys.readouterr() == ("", "")
    ScoreAligner(SaysProba(), verbose=1).fit(X, y, sensitive_features=group)
    assert "5 out of   5" in "".join(capsys.readouterr())


def test_groups_and_rows_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, group = rows()
    counted: dict[str, int] = {}

    def count(place: Any, name: str) -> None:
        original = getattr(place, name)

        def counting(*args: Any, **kwargs: Any) -> Any:
            counted[name] = counted.get(name, 0) + 1
            return original(*args, **kwargs)

        monkeypatch.setattr(place, name, counting)

    count(fairsteer.groups, "_factorise")
    count(fairsteer.score_alignment._aligner, "validate_data")
    aligner = ScoreAligner(SaysProba()).fit(X, y, sensitive_features=group)
    assert counted == {"_factorise": 1, "validate_data": 1}
    counted.clear()
    aligner.predict(X, sensitive_features=group)
    assert counted == {"_factorise": 1, "validate_data": 1}


def test_tags_are_those_of_the_classifier() -> None:
    text = make_pipeline(OneHotEncoder(handle_unknown="ignore"), LogisticRegression())
    for inner in (LogisticRegression(), DecisionTreeClassifier(), text, GaussianNB()):
        wrapped, tags = get_tags(inner), get_tags(ScoreAligner(inner))
        assert tags.input_tags == wrapped.input_tags
        assert tags.classifier_tags.multi_class == wrapped.classifier_tags.multi_class
        assert tags.estimator_type == "classifier"
        assert tags.target_tags.required


@pytest.mark.parametrize(("kind", "n_classes"), [(SaysProba, 2), (SaysProba, 3), (SaysScore, 2)])
def test_the_graph_knows_ties_and_rows_of_zeros(kind: Any, n_classes: int, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    from fairsteer.export import export_onnx

    X, y, group = rows(n_classes)
    X[:, :-1] = np.round(X[:, :-1], 1)
    X[:, 0] = 1 - X[:, 1:-1].sum(axis=1)
    X[:, :-1] = np.clip(X[:, :-1], 0, None) / np.clip(X[:, :-1], 0, None).sum(axis=1, keepdims=True)
    if kind is SaysProba:
        X[::9, :-1] = 0
    aligner = ScoreAligner(FrozenEstimator(kind(jitter if n_classes == 2 else None).fit(X, y)))
    aligner.fit(X, y, sensitive_features=group)
    export_onnx(aligner, tmp_path / "scores.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "scores.onnx"))
    asked = aligner.alignment_.response_method
    scores = np.asarray(getattr(aligner.estimator_, asked)(X), dtype=np.float64)
    (found,) = session.run(None, {"score": scores, "group": group.astype(np.int64)})
    np.testing.assert_allclose(found, aligner.predict_proba(X, sensitive_features=group), rtol=1e-9, atol=1e-12)
    if n_classes == 2:
        maps: Any = aligner.alignment_.maps
        assert sum(len(ties.values) for ties in maps.ties) > 5
