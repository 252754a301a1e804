// The build the other tests stand on: Eigen's assertions are on and fresh matrices hold NaN.
#include <Eigen/Core>

#include "testing.hpp"

#ifdef EIGEN_NO_DEBUG
#error "the tests need Eigen's assertions"
#endif

TEST_CASE("fresh matrices hold nan") {
  const Eigen::MatrixXd fresh(3, 2);
  CHECK(fresh.array().isNaN().all());
}
