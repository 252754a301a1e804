// Vector-wise coordinate descent: exact minimisation over one row of the map at a time (theory
// section 6): monotone, no step size,
// and it tries both signs of a row, so that it leaves the poor local optima a gradient would stay
// in. Known from blind source separation as iterative projection (Ono 2011; with a linear term:
// Mitsui et al. 2018).
#pragma once

#include <vector>

#include "descent.hpp"
#include "fairsteer/types.hpp"

namespace fairsteer::detail {

/// f(X, m) = sum_k 1/2 <P_k, Y S_k Y^T> - <Y, L> - log|det X|,  Y = [X m].
struct RowProblem {
  std::vector<Matrix> precision;      ///< P_k (d, d)
  std::vector<Matrix> second_moment;  ///< S_k (d + 1, d + 1), of (z, 1)
  Matrix linear;                      ///< L (d, d + 1)
};

/// At most `max_sweeps` sweeps over the rows of Y, until one gains less than `options.tol` or time
/// is up. Returns f.
double descend_rows(const RowProblem& problem, Matrix& Y, Index max_sweeps,
                    const DescentOptions& options);

}  // namespace fairsteer::detail
