#include "fairsteer/covariances.hpp"

#include <cmath>

#include "problems.hpp"
#include "testing.hpp"

using namespace fairsteer;
using fairsteer::test::Random;

namespace {

// Orthogonal, and what is left of the matrix is symmetric: that is the polar factor, up to signs.
void check_polar_factor(const Matrix& matrix) {
  const Index d = matrix.rows();
  const Matrix factor = polar_factor(matrix);
  CHECK_NEAR((factor.transpose() * factor - Matrix::Identity(d, d)).norm(), 0, 1e-11);
  const Matrix rest = factor.transpose() * matrix;
  CHECK_NEAR((rest - rest.transpose()).norm(), 0, 1e-11 * matrix.norm());
  CHECK(Eigen::SelfAdjointEigenSolver<Matrix>(rest).eigenvalues().minCoeff() >=
        -1e-11 * matrix.norm());
}

}  // namespace

// Small ones are decomposed, larger ones iterated.
TEST_CASE("polar factors are orthogonal and nearest") {
  for (const Index d : {1, 5, 48, 49, 90}) check_polar_factor(Random(7).matrix(d, d));
}

// Isometries but for a part of this size: the iteration starts where its last steps are taken.
TEST_CASE("polar factors of all but isometries") {
  Random random(3);
  const Index d = 60;
  const Matrix isometry = Eigen::HouseholderQR<Matrix>(random.matrix(d, d)).householderQ();
  for (const double size : {1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-9, 0.0})
    check_polar_factor(isometry * (Matrix::Identity(d, d) + size / d * random.matrix(d, d)));
}

TEST_CASE("polar factors of nearly singular matrices") {
  Random random(5);
  Matrix matrix = random.matrix(70, 70);
  matrix.col(3) *= 1e-9;
  check_polar_factor(matrix);
}
