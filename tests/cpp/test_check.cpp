// The build the other tests stand on: Eigen's assertions are on and fresh matrices hold NaN.
#include <Eigen/Core>

#include "check.hpp"

#ifdef EIGEN_NO_DEBUG
#error "the tests need Eigen's assertions"
#endif

TEST(fresh_matrices_hold_nan) {
  const Eigen::MatrixXd fresh(3, 2);
  CHECK(fresh.array().isNaN().all());
}
