#include "diagonal.hpp"

#include <cmath>
#include <limits>

namespace fairsteer::detail {
namespace {

// Below this, in nats, the two signs of a scale are equally near: what decides is rounding.
constexpr double kNoInformation = 1e-8;

Eigen::ArrayXd log_of_each(const Eigen::ArrayXd& values) {
  return values.unaryExpr([](double value) { return std::log(value); });
}

}  // namespace

void DiagonalModel::start(State& state, Index group) const {
  const Index d = subgroups_.n_features, K = subgroups_.n_classes;
  const Index G = subgroups_.n_groups;
  state.nu = Matrix::Zero(d, K);
  state.C = Matrix::Ones(d, K);
  state.known.assign(K, 0);
  for (Index k = 0; k < K; ++k) {
    if (!subgroups_.seen(k, group)) continue;
    state.known[k] = 1;
    state.nu.col(k) = subgroups_.mean(k, group);
    state.C.col(k) = subgroups_.variance(k, group);
  }
  state.B.assign(G, Vector::Ones(d));
  state.m.assign(G, Vector::Zero(d));
  state.pull.assign(G, Vector::Zero(d));
  state.pull[group].setConstant(std::numeric_limits<double>::infinity());
  state.centre.assign(G, Vector::Zero(d));
}

void DiagonalModel::fit_group(State& state, Index a, const Vector& w, double /*tol*/) const {
  const Index d = subgroups_.n_features;
  Eigen::ArrayXd total = Eigen::ArrayXd::Zero(d), nu_mean = total, mu_mean = total;
  for (Index k = 0; k < w.size(); ++k) {
    if (w[k] <= 0) continue;
    const Eigen::ArrayXd precision = w[k] / subgroups_.variance(k, a).array();
    total += precision;
    nu_mean += precision * state.nu.col(k).array();
    mu_mean += precision * subgroups_.mean(k, a).array();
  }
  nu_mean /= total;
  mu_mean /= total;
  // f(B) = A B^2 / 2 - b B - log|B|
  Eigen::ArrayXd A = Eigen::ArrayXd::Zero(d), b = A;
  for (Index k = 0; k < w.size(); ++k) {
    if (w[k] <= 0) continue;
    const Eigen::ArrayXd precision = w[k] / subgroups_.variance(k, a).array();
    const Eigen::ArrayXd nu = state.nu.col(k).array() - nu_mean;
    A += precision * (state.C.col(k).array() + nu.square());
    b += precision * nu * (subgroups_.mean(k, a).array() - mu_mean);
  }
  // Both roots are stationary; the one on the side of b is nearer. "symmetric" keeps orientation,
  // and so does a group whose classes do not tell the two apart.
  const Eigen::ArrayXd root = (b.square() + 4 * A).sqrt();
  state.pull[a] = (b / A.sqrt()).matrix();
  state.centre[a] = nu_mean.matrix();
  const double reflected =
      alignment_ == Alignment::affine ? -kNoInformation : -std::numeric_limits<double>::infinity();
  const Eigen::ArrayXd upright = (b >= 0).select((b + root) / (2 * A), 2 / (root - b));
  const Eigen::ArrayXd B =
      (state.pull[a].array() < reflected).select((b - root) / (2 * A), upright);
  state.B[a] = B.matrix();
  state.m[a] = (mu_mean - B * nu_mean).matrix();
}

void DiagonalModel::fit_canonical(State& state, const FamilyWeights& weights,
                                  const Mask& classes) const {
  const Index d = subgroups_.n_features;
  for (Index k = 0; k < subgroups_.n_classes; ++k) {
    if (!classes[k]) continue;
    state.known[k] = 1;
    Eigen::ArrayXd A = Eigen::ArrayXd::Zero(d), b = A;
    for (Index a = 0; a < subgroups_.n_groups; ++a) {
      const double w = weights.shares(k, a);
      if (!(w > 0)) continue;
      const Eigen::ArrayXd B = state.B[a].array();
      const Eigen::ArrayXd precision = w / subgroups_.variance(k, a).array();
      A += precision * B.square();
      b += precision * B * (subgroups_.mean(k, a) - state.m[a]).array();
    }
    state.nu.col(k) = (b / A).matrix();
    state.C.col(k) = A.inverse().matrix();
  }
}

Matrix DiagonalModel::divergences(const State& state) const {
  Matrix cells = Matrix::Zero(subgroups_.n_classes, subgroups_.n_groups);
  for (Index k = 0; k < cells.rows(); ++k)
    for (Index a = 0; a < cells.cols(); ++a)
      if (subgroups_.seen(k, a)) cells(k, a) = divergence(state, k, a);
  return cells;
}

double DiagonalModel::divergence(const State& state, Index k, Index a) const {
  const Eigen::ArrayXd variance = subgroups_.variance(k, a).array();
  const Eigen::ArrayXd ratio = state.B[a].array().square() * state.C.col(k).array() / variance;
  const Eigen::ArrayXd residual = state.m[a].array() +
                                  state.B[a].array() * state.nu.col(k).array() -
                                  subgroups_.mean(k, a).array();
  return 0.5 * (ratio - 1 - log_of_each(ratio) + residual.square() / variance).sum();
}

void DiagonalModel::lift(const Solution<State>& solution, Index reference,
                         IdealResult& result) const {
  const Index d = subgroups_.n_features, K = subgroups_.n_classes, G = subgroups_.n_groups;
  const State& state = solution.state;
  std::vector<Eigen::ArrayXd> scale, shift;  // B and m
  for (Index a = 0; a < G; ++a) {
    scale.push_back(state.B[a].array());
    shift.push_back(state.m[a].array());
  }
  // The frame u = F z + f that moves points least, feature by feature: F = cov(x, z) / var(z).
  Eigen::ArrayXd F = Eigen::ArrayXd::Ones(d), f = Eigen::ArrayXd::Zero(d);
  if (reference < 0) {
    Eigen::ArrayXd x_mean = f, z_mean = f, zz = f;
    Matrix within = Matrix::Zero(d, G);  // by group: of cov(x, z), what a reflection turns round
    Eigen::ArrayXd between = f;
    const auto each_cell = [&](auto visit) {
      for (Index a = 0; a < G; ++a)
        for (Index k = 0; k < K; ++k) {
          if (!subgroups_.seen(k, a)) continue;
          const Eigen::ArrayXd x = subgroups_.mean(k, a).array();
          visit(a, subgroups_.weight(k, a), x, ((x - shift[a]) / scale[a]).eval(),
                subgroups_.variance(k, a).array().eval());
        }
    };
    each_cell([&](Index, double w, const auto& x, const auto& z, const auto&) {
      x_mean += w * x;
      z_mean += w * z;
    });
    each_cell([&](Index a, double w, const auto& x, const auto& z, const auto& variance) {
      within.col(a).array() += w * variance / scale[a];
      between += w * (x - x_mean) * (z - z_mean);
      zz += w * (variance / scale[a].square() + (z - z_mean).square());
    });
    // A group that may be reflected at no cost is turned to where the others lie. Its classes lie
    // at one point, about which it turns, so that only its own part changes.
    const auto is_free = [&](Index a, Index j) {
      return alignment_ == Alignment::affine && std::abs(state.pull[a][j]) <= kNoInformation;
    };
    for (Index j = 0; j < d; ++j) {
      double decided = between[j], magnitude = std::abs(between[j]);
      for (Index a = 0; a < G; ++a) {
        if (is_free(a, j)) continue;
        decided += within(j, a);
        magnitude += std::abs(within(j, a));
      }
      const bool reflected = decided < -kNoInformation * magnitude;
      F[j] = between[j];
      for (Index a = 0; a < G; ++a) {
        if (is_free(a, j) && reflected != (scale[a][j] < 0)) {
          shift[a][j] += 2 * scale[a][j] * state.centre[a][j];
          scale[a][j] = -scale[a][j];
          within(j, a) = -within(j, a);
        }
        F[j] += within(j, a);
      }
    }
    F /= zz;
    // Reflected groups can cancel; then the heaviest group's coordinates serve.
    F = (F.abs() > 1e-8 * scale[0].abs()).select(F, scale[0]);
    f = x_mean - F * z_mean;
  }
  for (Index a = 0; a < G; ++a) {
    const bool still = a == reference;
    const Eigen::ArrayXd linear = still ? Eigen::ArrayXd::Ones(d).eval() : (F / scale[a]).eval();
    const Eigen::ArrayXd offset =
        still ? Eigen::ArrayXd::Zero(d).eval() : (f - linear * shift[a]).eval();
    result.linear.push_back(linear.matrix());
    result.offset.push_back(offset.matrix());
  }
  result.canonical_mean = ((state.nu.array().colwise() * F).colwise() + f).matrix();
  result.canonical_covariance = {(state.C.array().colwise() * F.square()).matrix()};
}

}  // namespace fairsteer::detail
