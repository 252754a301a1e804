#include "frame.hpp"

#include <cmath>

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
    const Matrix cross = groups[a].covariance * E[a].transpose();
    const Vector dx = groups[a].mean - x_mean, dz = z[a] - z_mean;
    xz += w * cross;
    xz.noalias() += (w * dx) * dz.transpose();
    zz.noalias() += w * (E[a] * cross);
    zz.noalias() += (w * dz) * dz.transpose();
  }
  // F zz = xz
  const Eigen::LLT<Matrix> factor(0.5 * (zz + zz.transpose()));
  Frame frame{factor.solve(xz.transpose()).transpose(), Vector()};
  frame.offset = x_mean - frame.linear * z_mean;
  return frame;
}

bool is_invertible(const Frame& frame, const ConstVectorRef& scale) {
  if (!frame.linear.allFinite()) return false;
  const Matrix relative = scale.cwiseInverse().asDiagonal() * frame.linear;
  return Eigen::PartialPivLU<Matrix>(relative).rcond() > 1e-10;
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
