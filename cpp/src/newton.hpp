// Trust-region Newton-CG over square matrices (Steihaug 1983; Nocedal and Wright, algorithms 4.1
// and 7.2), in the norm of the preconditioner.
//
// A problem offers
//   double value(X)              +infinity outside its domain
//   void linearise(X)            called at every accepted point before the three below
//   Matrix gradient()            at the last linearised point
//   void product(D, out)         Hessian times D
//   void precondition(R, out)    the inverse of a positive-definite approximation of the Hessian
#pragma once

#include <algorithm>
#include <cmath>

#include "descent.hpp"

namespace fairsteer::detail {

constexpr Index kMaxProducts =
    100;  // an iteration; more mean that the matrices are nearly singular

template <class Problem>
Descent minimise(Problem& problem, Matrix& X, const DescentOptions& options) {
  Descent descent;
  descent.path = {problem.value(X)};
  double radius = std::sqrt(static_cast<double>(X.size()));
  const double floor = 1e-14 * std::max(1.0, std::abs(descent.value()));  // what double can resolve
  Matrix step, residual, direction, preconditioned, curved;
  problem.linearise(X);
  Matrix gradient = problem.gradient();
  double left = 0;  // what the model still promises
  bool in_time = true;
  for (Index n = 0; n < options.max_iter; ++n) {
    in_time = !options.stop();
    if (!in_time) break;
    problem.precondition(gradient, preconditioned);
    const double decrement = inner(gradient, preconditioned);  // about twice what is left to gain
    left = 0.5 * decrement;
    if (!(left > std::max(options.tol, floor))) break;
    // Minimise the quadratic model inside the trust region. |.|_M is the preconditioner's norm; the
    // recurrences keep |step|^2, <step, direction> and |direction|^2 in it.
    step.setZero(X.rows(), X.cols());
    residual = gradient;
    direction = -preconditioned;
    double rz = decrement, step_norm = 0, step_direction = 0, direction_norm = rz;
    double promised = 0;
    bool at_boundary = false;
    const double forcing = std::min(0.25, std::sqrt(std::sqrt(decrement)));
    for (Index j = 0; j < kMaxProducts && (j == 0 || !options.stop()); ++j) {
      problem.product(direction, curved);
      const double curvature = inner(direction, curved);
      const double alpha = rz / curvature;
      const double next_norm =
          step_norm + 2 * alpha * step_direction + alpha * alpha * direction_norm;
      if (!(curvature > 0) || next_norm >= radius * radius) {
        // To the boundary along the direction.
        const double gap = radius * radius - step_norm;
        const double tau =
            gap /
            (step_direction + std::sqrt(step_direction * step_direction + direction_norm * gap));
        promised += -tau * inner(residual, direction) - 0.5 * tau * tau * curvature;
        step += tau * direction;
        at_boundary = true;
        break;
      }
      step += alpha * direction;
      step_norm = next_norm;
      promised += 0.5 * alpha * rz;
      residual += alpha * curved;
      problem.precondition(residual, preconditioned);
      const double next_rz = inner(residual, preconditioned);
      if (next_rz <= forcing * forcing * decrement) break;
      const double beta = next_rz / rz;
      step_direction = beta * (step_direction + alpha * direction_norm);
      direction_norm = next_rz + beta * beta * direction_norm;
      direction = beta * direction - preconditioned;
      rz = next_rz;
    }
    if (!step.allFinite()) break;  // the matrices are too near to singular ones
    const double value = problem.value(X + step);
    const double gained = descent.value() - value;
    // Near the optimum the difference of two values is rounding; there the model is trusted, unless
    // the value speaks up against it.
    const double noise = 100 * floor;
    const double ratio = promised > noise ? gained / promised : (gained >= -noise ? 1.0 : -1.0);
    if (!(ratio > 0.1) && at_boundary)
      radius *= 0.25;
    else if (!(ratio > 0.1))
      radius = 0.25 * std::sqrt(step_norm + 1e-300);
    else if (ratio > 0.75 && at_boundary)
      radius *= 2;
    if (ratio > 1e-4 && std::isfinite(value)) {
      X += step;
      descent.path.push_back(value);
      problem.linearise(X);
      gradient = problem.gradient();
    } else if (radius < 1e-12) {
      break;  // no step of any length helps: rounding has the last word
    }
  }
  // Rounding may stop the descent short of the tolerance; then what is left is too small to matter.
  descent.converged =
      in_time && left <= std::max(options.tol, 1e-8 * std::max(1.0, std::abs(descent.value())));
  return descent;
}

}  // namespace fairsteer::detail
