#include <cmath>

#include "fairsteer/covariances.hpp"
#include "fairsteer/ideal.hpp"
#include "problems.hpp"
#include "testing.hpp"

using namespace fairsteer;
using fairsteer::test::Problem;
using fairsteer::test::Random;

namespace {

constexpr CovarianceModel kModels[] = {CovarianceModel::tied, CovarianceModel::full,
                                       CovarianceModel::diagonal};
constexpr Alignment kAlignments[] = {Alignment::affine, Alignment::symmetric};
constexpr Intervention kInterventions[] = {Intervention::all_subgroups, Intervention::affirmative};

Matrix covariance_of(const Subgroups& s, Index k, Index a) {
  if (s.model == CovarianceModel::diagonal) return Matrix(s.variance(k, a).asDiagonal());
  return s.covariance(k, a);
}

Matrix canonical_of(const IdealResult& result, CovarianceModel model, Index k) {
  if (model == CovarianceModel::diagonal)
    return Matrix(result.canonical_covariance[0].col(k).asDiagonal());
  return result.canonical_covariance[model == CovarianceModel::tied ? 0 : k];
}

double gaussian_kl(const Vector& m1, const Matrix& S1, const Vector& m0, const Matrix& S0) {
  const Eigen::LLT<Matrix> factor(S0);
  const Vector r = m1 - m0;
  return 0.5 * (factor.solve(S1).trace() + r.dot(factor.solve(r)) - static_cast<double>(r.size()) -
                std::log(S1.determinant() / S0.determinant()));
}

// The scales of a diagonal map as a matrix.
Matrix matrix_of(const Matrix& linear) {
  return linear.cols() == linear.rows() ? linear : Matrix(linear.col(0).asDiagonal());
}

// The way back from the common frame: x = linear u + offset.
struct Inverse {
  Matrix linear;
  Vector offset;

  Inverse(const IdealResult& result, Index a)
      : linear(matrix_of(result.linear[a]).inverse()), offset(-linear * result.offset[a]) {}
  Matrix map(const ConstMatrixRef& u) const { return (linear * u).colwise() + offset; }
};

// The divergence of the distribution that the maps describe, from the definition.
double divergence(const Subgroups& s, const IdealResult& result) {
  double total = 0;
  for (Index k = 0; k < s.n_classes; ++k)
    for (Index a = 0; a < s.n_groups; ++a) {
      const double w = result.class_prior[k] * result.group_prior[a];
      const Inverse back(result, a);
      const Matrix covariance =
          back.linear * canonical_of(result, s.model, k) * back.linear.transpose();
      total += w * (std::log(w / s.weight(k, a)) +
                    gaussian_kl(back.map(result.canonical_mean.col(k)), covariance, s.mean(k, a),
                                covariance_of(s, k, a)));
    }
  return total;
}

}  // namespace

TEST_CASE("the reported divergence is that of the maps") {
  for (const auto model : kModels)
    for (const auto alignment : kAlignments)
      for (const auto intervention : kInterventions) {
        const Problem problem(model, 3, 2, 4, 11);
        IdealOptions options;
        options.alignment = alignment;
        options.intervention = intervention;
        options.reference = 1;
        const IdealResult result = nearest_ideal(problem.subgroups, options);
        CHECK(result.converged);
        CHECK_NEAR(divergence(problem.subgroups, result), result.divergence, 1e-9);
        if (intervention == Intervention::affirmative)
          CHECK(matrix_of(result.linear[1]).isIdentity(0));
        for (std::size_t i = 1; i < result.objective_path.size(); ++i)
          CHECK(result.objective_path[i] <= result.objective_path[i - 1] + 1e-10);
      }
}

TEST_CASE("freedom never costs divergence") {
  for (const auto model : kModels)
    for (std::uint64_t seed = 0; seed < 5; ++seed) {
      const Problem problem(model, 2, 3, 3, seed);
      IdealOptions options;
      options.reference = 0;
      double value[2][2];
      for (const auto alignment : kAlignments)
        for (const auto intervention : kInterventions) {
          options.alignment = alignment;
          options.intervention = intervention;
          value[alignment == Alignment::affine][intervention == Intervention::all_subgroups] =
              nearest_ideal(problem.subgroups, options).divergence;
        }
      CHECK(value[1][0] <= value[0][0] + 1e-8);  // affine, symmetric
      CHECK(value[1][1] <= value[0][1] + 1e-8);
      CHECK(value[1][1] <= value[1][0] + 1e-8);  // all subgroups, affirmative
      CHECK(value[0][1] <= value[0][0] + 1e-8);
    }
}

TEST_CASE("an ideal distribution stays where it is") {
  for (const auto model : kModels) {
    const Problem problem(model, 3, 2, 4, 21);
    IdealOptions options;
    const IdealResult result = nearest_ideal(problem.subgroups, options);
    std::vector<double> means, covariances;
    Matrix weight = result.class_prior * result.group_prior.transpose();
    for (Index k = 0; k < 3; ++k)
      for (Index a = 0; a < 2; ++a) {
        const Vector mean = Inverse(result, a).map(result.canonical_mean.col(k));
        means.insert(means.end(), mean.data(), mean.data() + 4);
      }
    const Index n = model == CovarianceModel::tied ? 1 : 3;
    for (Index k = 0; k < n; ++k)
      for (Index a = 0; a < 2; ++a) {
        const Matrix B = Inverse(result, a).linear;
        const Matrix S = B * canonical_of(result, model, k) * B.transpose();
        if (model == CovarianceModel::diagonal)
          for (Index j = 0; j < 4; ++j) covariances.push_back(S(j, j));
        else
          covariances.insert(covariances.end(), S.data(), S.data() + 16);
      }
    const Subgroups ideal{model, 3, 2, 4, weight, means.data(), covariances.data()};
    CHECK_NEAR(nearest_ideal(ideal, options).divergence, 0, 1e-9);
  }
}

TEST_CASE("an empty cell and a class that the reference lacks are survived") {
  for (const auto model : kModels)
    for (const auto alignment : kAlignments)
      for (const auto intervention : kInterventions) {
        Problem problem(model, 3, 3, 2, 31);
        problem.subgroups.weight(0, 1) = 0;
        problem.subgroups.weight /= problem.subgroups.weight.sum();
        IdealOptions options;
        options.alignment = alignment;
        options.intervention = intervention;
        options.reference = 1;
        const IdealResult result = nearest_ideal(problem.subgroups, options);
        CHECK(result.canonical_mean.allFinite());
        CHECK(std::isfinite(result.divergence));
        CHECK_NEAR(result.cell_divergence(0, 1), 0, 0);
        CHECK(result.class_prior.minCoeff() > 0);
      }
}

TEST_CASE("a reference without a common class is refused") {
  Problem problem(CovarianceModel::tied, 2, 2, 2, 41);
  problem.subgroups.weight << 0.5, 0, 0, 0.5;
  IdealOptions options;
  CHECK_THROWS_AS(nearest_ideal(problem.subgroups, options), std::invalid_argument);
}

TEST_CASE("flooring leaves a good covariance untouched and lifts a singular one") {
  Random random(51);
  const Matrix good = random.covariance(5);
  Matrix floored = good;
  const Vector scale = Vector::Ones(5);
  CHECK(floor_spectrum(floored, scale, 1e-10) == 5);
  CHECK(floored == good);
  const Matrix thin = random.matrix(5, 2);
  floored = thin * thin.transpose();
  CHECK(floor_spectrum(floored, scale, 1e-10) == 2);
  CHECK(Eigen::LLT<Matrix>(floored).info() == Eigen::Success);
}

TEST_CASE("the transport map carries one covariance to the other") {
  Random random(61);
  const Matrix source = random.covariance(6), target = random.covariance(6);
  const Matrix W = transport_map(source, target);
  CHECK_NEAR((W - W.transpose()).norm(), 0, 1e-12);
  CHECK_NEAR((W * source * W - target).norm(), 0, 1e-10);
}
