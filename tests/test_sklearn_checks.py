"""scikit-learn's estimator checks, as constructed and with groups that really are steered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.sparse import issparse
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.utils import check_array
from sklearn.utils.estimator_checks import parametrize_with_checks

from fairsteer import FairSteeringTransformer, IdealDistributionClassifier, ScoreAligner

# The checks give no groups to the estimators as constructed, and groups of few rows to the others.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class SteeringOfStripes(FairSteeringTransformer):
    """Groups are stripes of the last feature, so that every check steers at least two of them.

    Row by row, as the checks on subsets and orders of rows demand.
    """

    def _read_rows(self, X: Any, sensitive_features: Any, *, reset: bool) -> tuple[Any, Any]:
        rows, labels = super()._read_rows(X, sensitive_features, reset=reset)
        return rows, stripes(rows) if labels is None else labels


class AlignerOfStripes(ScoreAligner):
    """The same groups, whose scores are aligned."""

    def _labels_of(self, X: Any, sensitive_features: Any, *, reset: bool) -> Any:
        labels = super()._labels_of(X, sensitive_features, reset=reset)
        if labels is not None:
            return labels
        rows = check_array(X, accept_sparse="csr", dtype=float)
        return stripes(rows.toarray() if issparse(rows) else rows)


def stripes(rows: np.ndarray) -> np.ndarray:
    return np.floor(5 * rows[:, -1].astype(float)) % 2


STEERINGS = [
    SteeringOfStripes(unknown_group="infer"),  # some checks transform stripes that they did not fit
    # Symmetric maps are unique; affine ones are not where rows repeat and are fewer than features.
    SteeringOfStripes(unknown_group="infer", covariance="full", intervention="affirmative", map_type="symmetric"),
]


@parametrize_with_checks(
    [
        FairSteeringTransformer(),
        *STEERINGS,
        IdealDistributionClassifier(),
        IdealDistributionClassifier(steering=STEERINGS[0]),
        # Having a `cv`, it is checked for weights on repeated rows in more dimensions than rows: convex programs only.
        IdealDistributionClassifier(steering=clone(STEERINGS[1]).set_params(map_type="symmetric")),
        IdealDistributionClassifier(steering=STEERINGS[0], score_alignment="equal_opportunity"),
        ScoreAligner(LogisticRegression()),
        AlignerOfStripes(LogisticRegression(), unknown_group="average"),
        AlignerOfStripes(LogisticRegression(), unknown_group="average", constraint="demographic_parity"),
    ],
    expected_failed_checks=lambda estimator: (
        # It is skipped unless SCIPY_ARRAY_API=1.
        {"check_array_api_input": "inverse_transform needs the groups of steered rows, which the check cannot give"}
        if isinstance(estimator, SteeringOfStripes)
        else {}
    ),
)
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def test_the_stripes_are_steered() -> None:
    X = np.random.default_rng(0).normal(size=(200, 2))
    steer = SteeringOfStripes(unknown_group="infer").fit(X)
    assert len(steer.groups_) == 2
    assert np.abs(steer.transform(X) - X).max() > 0.01


def test_the_scores_of_stripes_are_aligned() -> None:
    X = np.random.default_rng(0).normal(size=(200, 2))
    plain, aligner = LogisticRegression(), AlignerOfStripes(LogisticRegression())
    y = X.sum(axis=1) > 0
    change = aligner.fit(X, y).predict_proba(X) - plain.fit(X, y).predict_proba(X)
    assert len(aligner.groups_) == 2
    assert np.abs(change).max() > 0.01
