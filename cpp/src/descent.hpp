// What every iterative descent is told, and what it tells.
#pragma once

#include <vector>

#include "fairsteer/types.hpp"
#include "fairsteer/watch.hpp"

namespace fairsteer::detail {

struct DescentOptions {
  Index max_iter;
  double tol;  ///< stop when the model promises to gain less, in the units of the objective
  const Watch* watch = nullptr;
  double after = 0;  ///< seconds of the time that are left to what follows

  /// Whether time is up; throws when interrupted.
  bool stop() const { return watch != nullptr && watch->stop(after); }
};

struct Descent {
  std::vector<double> path;  ///< objective at the start and after every iteration
  bool converged = false;

  double value() const { return path.back(); }
};

/// Frobenius inner product.
inline double inner(const Matrix& a, const Matrix& b) { return a.cwiseProduct(b).sum(); }

}  // namespace fairsteer::detail
