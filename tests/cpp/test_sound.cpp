// What valid data, or a careless caller, may bring: vanishing classes, numbers at the ends of the
// range of double, one-row cells, no features, sums that are not finite.
#include <chrono>
#include <cmath>
#include <limits>
#include <thread>
#include <vector>

#include "fairsteer/errors.hpp"
#include "fairsteer/ideal.hpp"
#include "fairsteer/maps.hpp"
#include "fairsteer/moments.hpp"
#include "problems.hpp"
#include "testing.hpp"

using namespace fairsteer;
using fairsteer::test::Problem;
using fairsteer::test::Random;

namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr CovarianceModel kModels[] = {CovarianceModel::tied, CovarianceModel::full,
                                       CovarianceModel::diagonal};

bool is_finite(const IdealResult& result) {
  for (std::size_t a = 0; a < result.linear.size(); ++a)
    if (!result.linear[a].allFinite() || !result.offset[a].allFinite()) return false;
  return result.canonical_mean.allFinite() && std::isfinite(result.divergence) &&
         result.class_prior.allFinite() && result.group_prior.allFinite();
}

// A rare class far away, and a group that has rows of this class alone.
Problem vanishing(CovarianceModel model, double distance) {
  Problem problem(model, 3, 3, 4, 7);
  Subgroups& s = problem.subgroups;
  s.weight << 1, 1, 0, 1, 1, 0, 0.01, 0.01, 0.01;
  s.weight /= s.weight.sum();
  for (Index j = 0; j < 4; ++j) {
    problem.means[(2 * 3 + 0) * 4 + j] = distance;
    problem.means[(2 * 3 + 1) * 4 + j] = j % 2 == 0 ? -distance : distance / 3;
    problem.means[(2 * 3 + 2) * 4 + j] = 0;
  }
  return problem;
}

}  // namespace

TEST_CASE("a class that vanishes leaves the groups that have it alone with weights") {
  for (const auto model : kModels)
    for (const double distance : {10.0, 100.0, 1e4, 1e8}) {
      const IdealResult result = nearest_ideal(vanishing(model, distance).subgroups, {});
      CHECK(is_finite(result));
      CHECK_NEAR(result.class_prior.sum(), 1, 1e-12);
    }
}

TEST_CASE("units change nothing but units") {
  for (const auto model : kModels)
    for (const double unit : {1e-150, 1e-30, 1e9, 1e100}) {
      Problem problem(model, 2, 3, 3, 5);
      const IdealResult plain = nearest_ideal(problem.subgroups, {});
      for (double& mean : problem.means) mean *= unit;
      for (double& value : problem.covariances) value *= unit * unit;
      const IdealResult scaled = nearest_ideal(problem.subgroups, {});
      CHECK_NEAR(scaled.divergence, plain.divergence, 1e-6);
      for (Index a = 0; a < 3; ++a) {
        CHECK_NEAR((scaled.linear[a] - plain.linear[a]).norm(), 0, 1e-4);
        CHECK_NEAR((scaled.offset[a] / unit - plain.offset[a]).norm(), 0, 1e-4);
      }
    }
}

TEST_CASE("the order of classes and groups decides nothing") {
  for (const auto model : kModels) {
    Problem problem(model, 3, 4, 3, 9);
    const IdealResult one = nearest_ideal(problem.subgroups, {});
    Subgroups other = problem.subgroups;
    other.class_at = {2, 0, 1};
    other.group_at = {3, 1, 0, 2};
    for (Index k = 0; k < 3; ++k)
      for (Index a = 0; a < 4; ++a)
        other.weight(k, a) = problem.subgroups.weight(other.class_at[k], other.group_at[a]);
    const IdealResult two = nearest_ideal(other, {});
    for (Index a = 0; a < 4; ++a)
      CHECK_NEAR((two.linear[a] - one.linear[other.group_at[a]]).norm(), 0, 1e-10);
    for (Index k = 0; k < 3; ++k) CHECK(two.class_prior[k] == one.class_prior[other.class_at[k]]);
  }
}

TEST_CASE("subgroups that are not finite are refused") {
  for (const auto model : kModels) {
    Problem problem(model, 2, 2, 2, 3);
    problem.means[1] = kNaN;
    CHECK_THROWS_AS(nearest_ideal(problem.subgroups, {}), std::invalid_argument);
    problem.means[1] = 0;
    problem.covariances[0] = std::numeric_limits<double>::infinity();
    CHECK_THROWS_AS(nearest_ideal(problem.subgroups, {}), std::invalid_argument);
    problem.covariances[0] = -1;
    CHECK_THROWS_AS(nearest_ideal(problem.subgroups, {}), NumericalError);
    problem.covariances[0] = 1;
    problem.subgroups.weight(0, 0) = kNaN;
    CHECK_THROWS_AS(nearest_ideal(problem.subgroups, {}), std::invalid_argument);
  }
  Subgroups none{CovarianceModel::tied, 1, 1, 0, Matrix::Ones(1, 1), nullptr, nullptr};
  CHECK_THROWS_AS(nearest_ideal(none, {}), std::invalid_argument);
}

TEST_CASE("a watch interrupts, and ends in time with what there is") {
  for (const auto model : kModels) {
    const Problem problem(model, 3, 3, 12, 4);
    IdealOptions options;
    struct Stop {};
    const Watch at_once([] { throw Stop(); });
    std::this_thread::sleep_for(std::chrono::milliseconds(60));
    options.watch = &at_once;
    CHECK_THROWS_AS(nearest_ideal(problem.subgroups, options), Stop);
    CHECK_THROWS_AS(at_once.stop(), Stop);
    const Watch late({}, 0);
    options.watch = &late;
    const IdealResult result = nearest_ideal(problem.subgroups, options);
    CHECK(is_finite(result));
    CHECK(!result.converged);
  }
}

TEST_CASE("one-row cells have no spread and a mean") {
  const double rows[] = {1, 2, 3, 4, 5, 6};
  const std::int64_t classes[] = {0, 1, 1}, groups[] = {0, 0, 1};
  for (const auto model : kModels) {
    Moments moments({model, 2, 2, 2});
    const MomentSums sums = moments.sums();
    update_moments<double>(sums, {rows, 3, 2, 2, 1}, classes, groups, nullptr);
    CHECK(sums.weight[0] == 1);
    CHECK(sums.weight[1] == 0);
    CHECK(sums.mean[3 * 2] == 5);
    for (Index i = 0; i < sums.n_scatters() * sums.scatter_size(); ++i) CHECK(sums.scatter[i] == 0);
  }
}

TEST_CASE("rows that are not finite are refused and leave the sums as they were") {
  Random random(8);
  for (const Index d : {3, 80}) {
    const Matrix rows = random.matrix(d, 50);
    const std::vector<std::int64_t> codes(50, 0);
    for (const auto model : kModels) {
      Moments moments({model, 1, 1, d}), same({model, 1, 1, d});
      const MomentSums sums = moments.sums(), before = same.sums();
      for (const MomentSums& some : {sums, before})
        update_moments<double>(some, {rows.data(), 50, d, d, 1}, codes.data(), codes.data(),
                               nullptr);
      for (const double value : {kNaN, std::numeric_limits<double>::infinity(), 1e200}) {
        Matrix bad = rows;
        bad(1, 20) = value;
        CHECK_THROWS_AS(update_moments<double>(sums, {bad.data(), 50, d, d, 1}, codes.data(),
                                               codes.data(), nullptr),
                        NumericalError);
        CHECK(sums.weight[0] == before.weight[0]);
        for (Index i = 0; i < sums.scatter_size(); ++i) CHECK(sums.scatter[i] == before.scatter[i]);
      }
    }
  }
}

TEST_CASE("what fails in the last cell leaves the sums of all as they were, both triangles") {
  Random random(10);
  const Index n = 90, n_cells = 3;
  std::vector<std::int64_t> classes(n), groups(n, 0);
  for (Index i = 0; i < n; ++i) classes[i] = i * n_cells / n;
  for (const Index d : {5, 80}) {
    const Matrix rows = random.matrix(d, n);
    Matrix bad = random.matrix(d, n);
    bad(d - 1, n - 1) = kNaN;
    for (const auto model : kModels)
      for (const Index n_threads : {1, 3}) {
        Moments moments({model, n_cells + 1, 1, d}), same({model, n_cells + 1, 1, d});
        const MomentSums sums = moments.sums(), before = same.sums();
        for (const MomentSums& some : {sums, before})
          update_moments<double>(some, {rows.data(), n, d, d, 1}, classes.data(), groups.data(),
                                 nullptr);
        CHECK_THROWS_AS(update_moments<double>(sums, {bad.data(), n, d, d, 1}, classes.data(),
                                               groups.data(), nullptr, n_threads),
                        NumericalError);
        const auto check_same = [](const double* one, const double* other, Index size) {
          for (Index i = 0; i < size; ++i) CHECK(one[i] == other[i]);
        };
        const Index cells = sums.n_cells();
        check_same(sums.weight, before.weight, cells);
        check_same(sums.weight_square, before.weight_square, cells);
        check_same(sums.mean, before.mean, cells * d);
        check_same(sums.scatter, before.scatter, sums.n_scatters() * sums.scatter_size());
        check_same(sums.cubic, before.cubic, cells * d);
        check_same(sums.quartic, before.quartic, cells * sums.quartic_size());
      }
  }
}

TEST_CASE("single-precision rows of any size have the moments of double ones") {
  Random random(9);
  const Index n = 500;
  const std::vector<std::int64_t> codes(n, 0);
  for (const Index d : {3, 80})
    for (const double scale : {1e-30, 1.0, 1e20}) {
      const MatrixOf<float> rows = (scale * random.matrix(d, n)).cast<float>();
      const Matrix exact = rows.cast<double>();
      for (const double weight : {1e-90, 1.0, 1e90}) {
        const std::vector<double> weights(n, weight);
        Moments one({CovarianceModel::tied, 1, 1, d}), two({CovarianceModel::tied, 1, 1, d});
        const MomentSums single = one.sums(), twice = two.sums();
        update_moments<float>(single, {rows.data(), n, d, d, 1}, codes.data(), codes.data(),
                              weights.data());
        update_moments<double>(twice, {exact.data(), n, d, d, 1}, codes.data(), codes.data(),
                               weights.data());
        const double size = scale * scale * weight * n;
        for (Index i = 0; i < d * d; ++i)
          CHECK_NEAR((single.scatter[i] - twice.scatter[i]) / size, 0, 1e-5);
      }
    }
}

TEST_CASE("sums that make no sense, and cells that lose rows, are refused") {
  const std::int64_t all[] = {0, 1, 2, 3}, shared[] = {0, 0, 2, 3}, apart[] = {0, 1, 3, 2};
  Moments one({CovarianceModel::tied, 2, 2, 2}), two({CovarianceModel::tied, 2, 2, 2});
  const MomentSums into = one.sums(), from = two.sums();
  for (const double weight : {kNaN, -3.0}) {
    into.weight[0] = weight;
    CHECK_THROWS_AS(merge_moments(into, from, all), std::invalid_argument);
    CHECK_THROWS_AS(merge_moments(from, into, all), std::invalid_argument);
    into.weight[0] = 0;
  }
  CHECK_THROWS_AS(merge_moments(into, from, shared), std::invalid_argument);
  CHECK_THROWS_AS(merge_moments(into, from, apart), std::invalid_argument);
  CHECK_THROWS_AS(merge_moments(into, into, all), std::invalid_argument);
  Moments none({CovarianceModel::tied, 1, 1, 0});
  CHECK_THROWS_AS(update_moments<double>(none.sums(), {nullptr, 0, 0, 0, 1}, all, all, nullptr),
                  std::invalid_argument);
}

TEST_CASE("maps of every kind agree with the matrix") {
  Random random(10);
  const Index n = 130, d = 7;
  const Matrix rows = random.matrix(d, n), scale = random.matrix(d, 2),
               centre = random.matrix(d, 2), offset = random.matrix(d, 2);
  Matrix dense = Matrix::Zero(d, 2 * d);
  for (Index a = 0; a < 2; ++a)
    for (Index j = 0; j < d; ++j) dense(j, a * d + j) = scale(j, a);
  std::vector<std::int64_t> codes(n);
  for (Index i = 0; i < n; ++i) codes[i] = i % 3 - 1;
  const RowsView<double> view{rows.data(), n, d, d, 1};
  Matrix by_matrix = Matrix::Constant(d, n, 7), by_scale = by_matrix, shifted = by_matrix;
  apply_maps<double>(view, codes.data(),
                     {MapKind::dense, 2, d, dense.data(), centre.data(), offset.data()},
                     by_matrix.data(), 2);
  apply_maps<double>(view, codes.data(),
                     {MapKind::diagonal, 2, d, scale.data(), centre.data(), offset.data()},
                     by_scale.data(), 2);
  apply_maps<double>(view, codes.data(),
                     {MapKind::translation, 2, d, nullptr, nullptr, offset.data()}, shifted.data(),
                     2);
  CHECK_NEAR((by_matrix - by_scale).norm(), 0, 1e-12);
  for (Index i = 0; i < n; ++i)
    if (codes[i] < 0)
      CHECK(shifted.col(i) == Vector::Constant(d, 7));
    else
      CHECK_NEAR((shifted.col(i) - rows.col(i) - offset.col(codes[i])).norm(), 0, 1e-15);
}
