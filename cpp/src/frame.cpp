#include "frame.hpp"

#include <cmath>
#include <limits>
#include <utility>

#include "linalg.hpp"

namespace fairsteer::detail {

std::vector<GroupMoments> group_moments(const Subgroups& subgroups) {
  const Index d = subgroups.n_features;
  std::vector<GroupMoments> groups;
  for (Index a = 0; a < subgroups.n_groups; ++a) {
    GroupMoments group{subgroups.weight.col(a).sum(), Vector::Zero(d), Matrix::Zero(d, d)};
    for (Index k = 0; k < subgroups.n_classes; ++k)
      group.mean += subgroups.weight(k, a) / group.weight * subgroups.mean(k, a);
    for (Index k = 0; k < subgroups.n_classes; ++k) {
      if (!subgroups.seen(k, a)) continue;
      const double w = subgroups.weight(k, a) / group.weight;
      if (subgroups.model == CovarianceModel::full)
        group.covariance += w * subgroups.covariance(k, a);
      const Vector difference = subgroups.mean(k, a) - group.mean;
      group.covariance.noalias() += (w * difference) * difference.transpose();
    }
    if (subgroups.model == CovarianceModel::tied) group.covariance += subgroups.covariance(0, a);
    groups.push_back(std::move(group));
  }
  return groups;
}

Frame least_squares_frame(const std::vector<GroupMoments>& groups, const std::vector<Matrix>& E,
                          const std::vector<Vector>& t) {
  const Index d = groups[0].mean.size();
  double total = 0;
  Vector x_mean = Vector::Zero(d), z_mean = Vector::Zero(d);
  std::vector<Vector> z;
  for (std::size_t a = 0; a < groups.size(); ++a) {
    z.push_back(E[a] * groups[a].mean + t[a]);
    total += groups[a].weight;
    x_mean += groups[a].weight * groups[a].mean;
    z_mean += groups[a].weight * z[a];
  }
  x_mean /= total;
  z_mean /= total;
  Matrix xz = Matrix::Zero(d, d), zz = Matrix::Zero(d, d);
  for (std::size_t a = 0; a < groups.size(); ++a) {
    const double w = groups[a].weight / total;
    const Matrix cross = linalg::product(groups[a].covariance, E[a].transpose());
    const Vector dx = groups[a].mean - x_mean, dz = z[a] - z_mean;
    xz += w * cross;
    xz.noalias() += (w * dx) * dz.transpose();
    linalg::add_product(E[a], cross, zz, w);
    zz.noalias() += (w * dz) * dz.transpose();
  }
  // F zz = xz
  linalg::symmetrise(zz);
  const linalg::Cholesky factor(std::move(zz));
  if (!factor.succeeded())
    return {Matrix::Constant(d, d, std::numeric_limits<double>::quiet_NaN()), x_mean};
  Matrix solved = xz.transpose();
  factor.solve_in_place(solved);
  Frame frame{solved.transpose(), Vector()};
  frame.offset = x_mean - frame.linear * z_mean;
  return frame;
}

bool is_invertible(const Frame& frame, const ConstVectorRef& scale) {
  if (!frame.linear.allFinite()) return false;
  const Matrix relative = scale.cwiseInverse().asDiagonal() * frame.linear;
  return linalg::LU(relative).reciprocal_condition() > 1e-10;
}

Vector feature_scale(const std::vector<GroupMoments>& groups) {
  const Index d = groups[0].mean.size();
  double total = 0;
  Vector mean = Vector::Zero(d);
  for (const auto& group : groups) {
    total += group.weight;
    mean += group.weight * group.mean;
  }
  mean /= total;
  Vector variance = Vector::Zero(d);
  for (const auto& group : groups)
    variance.array() +=
        group.weight / total *
        (group.covariance.diagonal().array() + (group.mean - mean).array().square());
  return (variance.array() > 0).select(variance.cwiseSqrt(), 1.0);
}

}  // namespace fairsteer::detail
