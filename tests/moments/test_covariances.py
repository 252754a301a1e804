"""Models of covariances: each is what its definition says, on matrices that are written out."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest

from fairsteer import SubgroupMoments
from fairsteer._utils.types import CovarianceModel
from fairsteer.moments._borrowing import additive_means
from fairsteer.moments._covariances import covariance_model, matching_model

K, G, D = 2, 3, 4
MODELS = get_args(CovarianceModel)


def rows(seed: int = 0, n: int = 300) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, D)) @ rng.normal(size=(D, D)), rng.integers(0, K, n), rng.integers(0, G, n)


def moments_of(covariance: Any, seed: int = 0, **labels: Any) -> SubgroupMoments:
    labels = {"classes": range(K), "groups": range(G), **labels}
    return SubgroupMoments(D, covariance=covariance, **labels).update(*rows(seed))


def matrix(moments: SubgroupMoments, covariances: npt.NDArray[Any], k: int, a: int) -> npt.NDArray[Any]:
    own = moments.model.of_cell(covariances, k, a)
    return own if moments.model.matrices else np.diag(own)


@pytest.mark.parametrize("covariance", MODELS)
def test_a_model_shapes_what_it_keeps(covariance: Any) -> None:
    moments = moments_of(covariance)
    model = covariance_model(covariance)
    assert moments.covariances.shape == model.shape(K, G, D)
    assert matching_model(moments.covariances, K, G, D) == covariance
    assert model.variances(moments.covariances).shape[-1] == D
    one = (D, D) if model.matrices else (D,)
    assert {moments.covariances[cell].shape for cell in model.cells(K, G)} == {one}
    some = model.take_groups(moments.covariances, [2, 0])
    for k in range(K):
        assert np.array_equal(model.of_cell(some, k, 0), model.of_cell(moments.covariances, k, 2))


@pytest.mark.parametrize("covariance", MODELS)
def test_shrinkage_keeps_traces_and_goes_to_the_identity(covariance: Any) -> None:
    moments = moments_of(covariance)
    whole, half = moments.shrink(1.0), moments.shrink(0.5)
    for k in range(K):
        for a in range(G):
            raw = matrix(moments, moments.covariances, k, a)
            target = np.trace(raw) / D * np.eye(D)
            np.testing.assert_allclose(matrix(moments, whole.covariances, k, a), target, atol=1e-12)
            np.testing.assert_allclose(matrix(moments, half.covariances, k, a), (raw + target) / 2, atol=1e-12)


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(ValueError, match="covariance must be 'tied', 'full' or 'diagonal', not 'spherical'"):
        covariance_model("spherical")
    with pytest.raises(ValueError, match=r"\(3, 4, 4\) \(tied\), \(2, 3, 4, 4\) \(full\) or \(2, 3, 4\) \(diagonal\)"):
        matching_model(np.zeros((5, 5)), K, G, D)


@pytest.mark.parametrize("covariance", MODELS)
def test_moments_add_up(covariance: Any) -> None:
    first, second = moments_of(covariance, 0), moments_of(covariance, 1, groups=[2, 3, 4])
    total, merged = first + second, first.merge(second)
    assert total.groups.tolist() == [0, 1, 2, 3, 4]
    for name in ("weights", "means", "covariances"):
        assert np.array_equal(getattr(total, name), getattr(merged, name))
        assert np.array_equal(getattr(sum([first, second]), name), getattr(merged, name))
    assert first.weights.sum() == 300
    with pytest.raises(TypeError, match="unsupported operand"):
        first + 1
    with pytest.raises(ValueError, match="cannot be merged"):
        first + SubgroupMoments(D + 1, classes=[0], groups=[0], covariance=covariance)


def test_borrowed_means_agree_with_dense_least_squares() -> None:
    rng = np.random.default_rng(0)
    for n_classes, n_groups in ((2, 5), (5, 2), (3, 3), (1, 4), (4, 1)):
        weights = rng.integers(0, 9, (n_classes, n_groups)).astype(np.float64) + 0.5
        means = rng.normal(size=(n_classes, n_groups, 2))
        of_class, of_group = additive_means(weights, means)
        design = np.concatenate(
            [
                np.kron(np.eye(n_classes), np.ones((n_groups, 1))),
                np.kron(np.ones((n_classes, 1)), np.eye(n_groups)),
            ],
            axis=1,
        )
        root = np.sqrt(weights).reshape(-1, 1)
        best = np.linalg.lstsq(root * design, root * means.reshape(-1, 2), rcond=None)[0]
        fitted = (of_class[:, None] + of_group).reshape(-1, 2)
        np.testing.assert_allclose(fitted, design @ best, atol=1e-9)
        np.testing.assert_allclose(weights.sum(axis=0) @ of_group, 0, atol=1e-9)


def test_many_groups_cost_no_more_than_each() -> None:
    n_groups = 3000
    moments = SubgroupMoments(2, classes=[0, 1], groups=range(n_groups))
    X = np.random.default_rng(0).normal(size=(8 * n_groups, 2))
    group = np.repeat(np.arange(n_groups), 8)
    group[:4] = n_groups - 1  # one group with few rows
    moments.update(X, np.tile([0, 1], 4 * n_groups), group)
    filled = moments.borrow(4)
    assert np.isfinite(filled.means).all()
    assert moments.small_groups(4) == [0, *(moments.small_groups(4)[1:])]
    merged = moments.merge_groups(moments.small_groups(4), "few")
    assert merged.weights.sum() == moments.weights.sum()
