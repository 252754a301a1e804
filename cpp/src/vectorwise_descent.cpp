#include "vectorwise_descent.hpp"

#include <cmath>

#include "fairsteer/covariances.hpp"
#include "linalg.hpp"

namespace fairsteer::detail {
namespace {

double value(const RowProblem& problem, const Matrix& Y) {
  double quadratic = 0;
  for (std::size_t k = 0; k < problem.precision.size(); ++k)
    quadratic += linalg::product(problem.precision[k], Y)
                     .cwiseProduct(linalg::product(Y, problem.second_moment[k]))
                     .sum();
  return 0.5 * quadratic - Y.cwiseProduct(problem.linear).sum() - log_abs_det(Y.leftCols(Y.rows()));
}

}  // namespace

double descend_rows(const RowProblem& problem, Matrix& Y, Index max_sweeps,
                    const DescentOptions& options) {
  const Index d = Y.rows(), n = d + 1;
  const auto K = problem.precision.size();
  // The curvature of a row does not change over the sweeps.
  std::vector<Matrix> curvature(d);
  std::vector<linalg::Cholesky> factor(d);
  for (Index i = 0; i < d; ++i) {
    if (options.stop()) return value(problem, Y);
    curvature[i] = Matrix::Zero(n, n);
    for (std::size_t k = 0; k < K; ++k)
      curvature[i] += problem.precision[k](i, i) * problem.second_moment[k];
    factor[i].compute(curvature[i]);
  }
  double objective = value(problem, Y);
  for (Index sweep = 0; sweep < max_sweeps; ++sweep) {
    Matrix inverse = linalg::LU(Y.leftCols(d)).inverse();
    if (!inverse.allFinite()) break;
    const Matrix before = Y;
    for (Index i = 0; i < d && !options.stop(); ++i) {
      if (!factor[i].succeeded()) continue;
      // Linear term of row i: the pull of the other rows.
      Vector g = -problem.linear.row(i).transpose();
      const Vector row = Y.row(i);
      for (std::size_t k = 0; k < K; ++k)
        g += problem.second_moment[k] *
             (Y.transpose() * problem.precision[k].col(i) - problem.precision[k](i, i) * row);
      // det is linear in the row: det(X with row y) = det(X) u.y.
      Vector u = Vector::Zero(n);
      u.head(d) = inverse.col(i);
      Vector Hg = g, Hu = u;
      factor[i].solve_in_place(Hg);
      factor[i].solve_in_place(Hu);
      // y = -H^{-1} g + tau H^{-1} u with (u H^{-1} u) tau^2 - (u H^{-1} g) tau - 1 = 0
      const double a = u.dot(Hu), b = u.dot(Hg);
      const double root = std::sqrt(b * b + 4 * a);
      const double large = b >= 0 ? (b + root) / (2 * a) : (b - root) / (2 * a);
      Vector best;
      double lowest = 0;
      for (const double tau : {large, -1 / (a * large)}) {
        const Vector y = tau * Hu - Hg;
        const double f = 0.5 * y.dot(curvature[i] * y) + g.dot(y) - std::log(std::abs(u.dot(y)));
        if (best.size() == 0 || f < lowest) {
          best = y;
          lowest = f;
        }
      }
      if (!best.allFinite()) continue;
      const Vector change = (best - row).head(d);
      const Eigen::RowVectorXd moved = change.transpose() * inverse;
      inverse -= (inverse.col(i) / (1 + moved[i])).eval() * moved;
      Y.row(i) = best.transpose();
    }
    const double next = value(problem, Y);
    if (!(next <= objective)) {  // rounding has the last word
      Y = before;
      break;
    }
    const double gain = objective - next;
    objective = next;
    if (gain < options.tol || options.stop()) break;
  }
  return objective;
}

}  // namespace fairsteer::detail
