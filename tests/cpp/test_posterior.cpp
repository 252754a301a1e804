// The nearest ideal distribution without a family: what is known of the solution in every case.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "fairsteer/posterior.hpp"

using namespace fairsteer;

namespace {

// Normal laws of the logit, of several means and spreads, on a grid of n points.
PosteriorLaws laws(Index n, Index n_groups) {
  PosteriorLaws result;
  result.source = Vector::LinSpaced(n, -4, 4);
  result.target = result.source;
  result.law.resize(n, n_groups);
  for (Index a = 0; a < n_groups; ++a) {
    const double mean = 0.6 * static_cast<double>(a) - 0.5;
    const double spread = 0.8 + 0.2 * static_cast<double>(a);
    result.law.col(a) = (-0.5 * ((result.source.array() - mean) / spread).square()).exp();
    result.law.col(a) /= result.law.col(a).sum();
  }
  result.weight = Vector::LinSpaced(n_groups, 1, 2);
  result.weight /= result.weight.sum();
  return result;
}

}  // namespace

TEST_CASE("groups reach one law of the ideal posterior within the gap") {
  for (const Index n : {5, 40, 151})
    for (const Index n_groups : {2, 3, 4}) {
      const PosteriorLaws given = laws(n, n_groups);
      const PosteriorResult result = nearest_ideal_posterior(given, {});
      CHECK(result.converged);
      CHECK(result.gap <= 1e-9);
      CHECK(result.divergence > 0);
      CHECK(std::abs(result.target_law.sum() - 1) < 1e-9);
      const Vector t = given.target.unaryExpr([](double x) { return 1 / (1 + std::exp(-x)); });
      for (Index a = 0; a < n_groups; ++a) {
        const Vector moved =
            given.law.col(a).cwiseProduct(result.log_ratio.col(a).array().exp().matrix());
        CHECK(std::abs(moved.sum() - 1) < 1e-9);
        CHECK(std::abs(moved.dot(result.posterior.col(a)) - t.dot(result.target_law)) < 1e-6);
      }
    }
}

TEST_CASE("equal laws stay as they are") {
  PosteriorLaws given = laws(60, 3);
  given.law.col(1) = given.law.col(2) = given.law.col(0);
  const PosteriorResult result = nearest_ideal_posterior(given, {});
  CHECK(result.divergence < 1e-9);
  CHECK((result.weight - given.weight).cwiseAbs().maxCoeff() < 1e-9);
}

TEST_CASE("the reference is left alone, and costs more than a common law") {
  const PosteriorLaws given = laws(60, 3);
  PosteriorOptions options;
  options.intervention = Intervention::affirmative;
  options.reference = 1;
  const PosteriorResult result = nearest_ideal_posterior(given, options);
  CHECK(result.converged);
  CHECK(result.target_law == given.law.col(1));
  CHECK(result.log_ratio.col(1).isZero(0));
  CHECK(result.divergence > nearest_ideal_posterior(given, {}).divergence);
}

TEST_CASE("plans from cells lead every group to one law, or to a given one") {
  const PosteriorLaws grid = laws(30, 3);
  CellLaws given;
  Matrix cost(30, 30);
  for (Index i = 0; i < 30; ++i)
    for (Index j = 0; j < 30; ++j) {
      const double s = 1 / (1 + std::exp(-grid.source[i])), t = 1 / (1 + std::exp(-grid.source[j]));
      cost(j, i) = std::max(0.0, t * std::log(t / s) + (1 - t) * std::log((1 - t) / (1 - s)));
    }
  given.cost = {cost};
  given.law = grid.law;
  given.weight = grid.weight;
  PosteriorOptions options;
  options.free_shares = false;
  const PosteriorResult found = nearest_ideal_cells(given, options);
  CHECK(found.converged);
  CHECK(std::abs(found.divergence - nearest_ideal_posterior(grid, options).divergence) < 1e-8);
  for (const Matrix& plan : found.plan)
    CHECK((plan.rowwise().sum() - found.target_law).cwiseAbs().maxCoeff() < 1e-9);
  given.common = grid.law.col(1);
  const PosteriorResult towards = nearest_ideal_cells(given, options);
  CHECK(towards.converged);
  CHECK(towards.divergence > found.divergence);
  for (const Matrix& plan : towards.plan)
    CHECK((plan.rowwise().sum() - given.common).cwiseAbs().maxCoeff() < 1e-9);
  given.cost.push_back(cost);
  CHECK_THROWS_AS(nearest_ideal_cells(given, options), std::invalid_argument);
}

TEST_CASE("what is no law is refused") {
  PosteriorLaws given = laws(10, 2);
  given.law(3, 1) = -0.1;
  CHECK_THROWS_AS(nearest_ideal_posterior(given, {}), std::invalid_argument);
  given = laws(10, 2);
  given.law *= 2;
  CHECK_THROWS_AS(nearest_ideal_posterior(given, {}), std::invalid_argument);
  given = laws(10, 2);
  given.source[4] = given.source[3];
  CHECK_THROWS_AS(nearest_ideal_posterior(given, {}), std::invalid_argument);
  given = laws(10, 2);
  given.weight.resize(3);
  CHECK_THROWS_AS(nearest_ideal_posterior(given, {}), std::invalid_argument);
}
