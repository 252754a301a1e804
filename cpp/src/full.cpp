#include "full.hpp"

#include "fairsteer/errors.hpp"
#include "fairsteer/gaussian.hpp"
#include "frame.hpp"
#include "tied.hpp"

namespace fairsteer::detail {

FullModel::FullModel(const Subgroups& subgroups, const IdealOptions& options)
    : subgroups_(subgroups), options_(options) {
  const Index d = subgroups.n_features;
  const Index n_classes = tied() ? 1 : subgroups.n_classes;
  precision_.resize(n_classes * subgroups.n_groups);
  log_det_.assign(precision_.size(), 0.0);
  for (Index k = 0; k < n_classes; ++k)
    for (Index a = 0; a < subgroups.n_groups; ++a) {
      if (!tied() && !subgroups.seen(k, a)) continue;
      const Eigen::LLT<Matrix> factor(subgroups.covariance(k, a));
      if (factor.info() != Eigen::Success)
        throw NumericalError("a covariance is not positive definite", tied() ? -1 : k, a);
      Matrix inverse = factor.solve(Matrix::Identity(d, d));
      precision_[cell(k, a)] = 0.5 * (inverse + inverse.transpose());
      log_det_[cell(k, a)] = 2 * factor.matrixLLT().diagonal().array().log().sum();
    }
}

void FullModel::start(State& state, Index group) const {
  const Index d = subgroups_.n_features, K = subgroups_.n_classes;
  const Index G = subgroups_.n_groups;
  state.nu = Matrix::Zero(d, K);
  state.C.assign(tied() ? 1 : K, Matrix::Identity(d, d));
  state.known.assign(K, 0);
  for (Index k = 0; k < K; ++k) {
    if (!subgroups_.seen(k, group)) continue;
    state.known[k] = 1;
    state.nu.col(k) = subgroups_.mean(k, group);
    state.C[canonical(k)] = subgroups_.covariance(k, group);
  }
  state.B.assign(G, Matrix::Identity(d, d));
  state.m.assign(G, Vector::Zero(d));
  state.fitted.assign(G, 0);
  state.fitted[group] = 1;

  // The heaviest class: of the reference group, or of all groups.
  const Vector margin = options_.intervention == Intervention::affirmative
                            ? Vector(subgroups_.weight.col(group))
                            : Vector(subgroups_.weight.rowwise().sum());
  (subgroups_.weight.col(group).array() > 0).select(margin, -1.0).maxCoeff(&state.pinned);
  if (options_.alignment != Alignment::symmetric) return;
  // The paper's B = S R with R = C_i^{-1/2}: coordinates in which C_i = I, and R = I.
  const SquareRoot root = square_root(state.C[canonical(state.pinned)]);
  state.nu = root.inverse * state.nu;
  for (Matrix& C : state.C) {
    C = root.inverse * C * root.inverse;
    C = 0.5 * (C + C.transpose()).eval();
  }
  state.C[canonical(state.pinned)].setIdentity();
  state.B[group] = root.root;
}

void FullModel::fit_group(State& state, Index a, const Vector& w, double tol) const {
  const Index d = subgroups_.n_features, K = subgroups_.n_classes;
  Vector nu_mean = Vector::Zero(d), mu_mean = Vector::Zero(d);
  for (Index k = 0; k < K; ++k) {
    if (w[k] <= 0) continue;
    nu_mean += w[k] * state.nu.col(k);
    mu_mean += w[k] * subgroups_.mean(k, a);
  }
  // sum_k P_k mu_k and J = sum_k P_k (mu_k - P^{-1} sum_j P_j mu_j) nu_k^T
  std::vector<GroupProblem::Term> terms;
  Vector target = Vector::Zero(d);
  Matrix total = Matrix::Zero(d, d), C_mean = Matrix::Zero(d, d), Sigma_mean = Matrix::Zero(d, d);
  Matrix between = Matrix::Zero(d, d), cross = Matrix::Zero(d, d);
  for (Index k = 0; k < K; ++k) {
    if (w[k] <= 0) continue;
    const Vector nu = state.nu.col(k) - nu_mean, mu = subgroups_.mean(k, a) - mu_mean;
    between.noalias() += (w[k] * nu) * nu.transpose();
    cross.noalias() += (w[k] * mu) * nu.transpose();
    C_mean += w[k] * state.C[canonical(k)];
    Sigma_mean += w[k] * subgroups_.covariance(k, a);
    if (tied()) continue;
    terms.push_back(
        {w[k] * precision_[cell(k, a)], state.C[canonical(k)] + nu * nu.transpose(), nu});
    target += terms.back().precision * mu;
    total += terms.back().precision;
  }
  Matrix J = Matrix::Zero(d, d);
  if (tied()) {
    // One precision: the classes enter through their scatter alone.
    terms.push_back({precision_[cell(0, a)], C_mean + between, Vector::Zero(d)});
    J = precision_[cell(0, a)] * cross;
  } else {
    const Vector centre = total.llt().solve(target);
    std::size_t j = 0;
    for (Index k = 0; k < K; ++k) {
      if (w[k] <= 0) continue;
      const GroupProblem::Term& term = terms[j++];
      const Vector mu = subgroups_.mean(k, a) - mu_mean - centre;
      J.noalias() += (term.precision * mu) * term.nu.transpose();
    }
  }
  const GroupProblem problem(std::move(terms), std::move(J), std::move(target));
  const NewtonOptions newton{options_.max_iter, tol};
  Matrix& B = state.B[a];
  if (options_.alignment == Alignment::symmetric) {
    if (!state.fitted[a]) B = transport_map(C_mean, Sigma_mean);
    problem.minimise_symmetric(B, newton);
  } else {
    if (!state.fitted[a]) B = affine_start(state, problem, C_mean, Sigma_mean, between, cross);
    problem.minimise_affine(B, newton);
  }
  state.fitted[a] = 1;
  state.m[a] = problem.shift(B) + mu_mean - B * nu_mean;
}

Matrix FullModel::affine_start(const State& state, const GroupProblem& problem,
                               const Matrix& C_mean, const Matrix& Sigma_mean,
                               const Matrix& between, const Matrix& cross) const {
  const Index d = subgroups_.n_features;
  // The paper's symmetric map, which the affine one must never be farther than.
  const SquareRoot root = square_root(state.C[canonical(state.pinned)]);
  Matrix S = transport_map(root.inverse * C_mean * root.inverse, Sigma_mean);
  problem.transformed(root.inverse).minimise_symmetric(S, {options_.max_iter, 1e-12});
  const Matrix symmetric = S * root.inverse;
  // The tied optimum of averaged covariances, completed by least displacement.
  const Matrix H = cholesky(Sigma_mean);
  const auto lower = H.triangularView<Eigen::Lower>();
  const ClosedForm closed(C_mean + between, lower.solve(cross));
  const Index s = std::min<Index>((closed.l.array() > 1e-10).count(), d);
  const Matrix U = closed.U.rightCols(d - s), V = closed.V.rightCols(d - s);
  const Matrix Y = closed.L_t.triangularView<Eigen::Lower>().solve(Matrix(C_mean * lower));
  Matrix X =
      closed.U.leftCols(s) * closed.x.head(s).asDiagonal() * closed.V.leftCols(s).transpose();
  X += U * polar_factor(U.transpose() * Y.transpose() * V) * V.transpose();
  const Matrix right = closed.L_t.transpose().triangularView<Eigen::Upper>().solve(X.transpose());
  const Matrix tied = lower * right.transpose();
  return problem.value(tied) < problem.value(symmetric) ? tied : symmetric;
}

void FullModel::fit_canonical(State& state, const Matrix& weight, const Mask& classes) const {
  const Index d = subgroups_.n_features, K = subgroups_.n_classes, G = subgroups_.n_groups;
  const bool symmetric = options_.alignment == Alignment::symmetric;
  std::vector<Matrix> pulled;  // tied: B^T P B of every group
  if (tied())
    for (Index a = 0; a < G; ++a) {
      const Matrix& B = state.B[a];
      pulled.push_back(B.transpose() * precision_[cell(0, a)] * B);
    }
  for (Index k = 0; k < K; ++k) {
    if (!classes[k]) continue;
    state.known[k] = 1;
    Matrix A = Matrix::Zero(d, d);
    Vector b = Vector::Zero(d);
    for (Index a = 0; a < G; ++a) {
      if (weight(k, a) <= 0) continue;
      const Matrix PB = precision_[cell(k, a)] * state.B[a];
      A += weight(k, a) * (tied() ? pulled[a] : Matrix(state.B[a].transpose() * PB));
      b += weight(k, a) * (PB.transpose() * (subgroups_.mean(k, a) - state.m[a]));
    }
    const double total = weight.row(k).sum();
    if (total <= 0) continue;
    const Eigen::LLT<Matrix> factor(0.5 * (A + A.transpose()));
    state.nu.col(k) = factor.solve(b);
    // Symmetric maps hold one covariance at the identity; tied, there is no other.
    if (tied() || (symmetric && k == state.pinned)) continue;
    const Matrix inverse = total * factor.solve(Matrix::Identity(d, d));
    state.C[k] = 0.5 * (inverse + inverse.transpose());
  }
}

double FullModel::divergence(const State& state, Index k, Index a) const {
  const Matrix scaled = state.B[a] * cholesky(state.C[canonical(k)]);
  const Vector residual = state.m[a] + state.B[a] * state.nu.col(k) - subgroups_.mean(k, a);
  const Matrix& P = precision_[cell(k, a)];
  const double log_det = 2 * log_abs_det(scaled);
  return 0.5 * ((P * scaled).cwiseProduct(scaled).sum() + residual.dot(P * residual) -
                static_cast<double>(residual.size()) + log_det_[cell(k, a)] - log_det);
}

void FullModel::lift(const Solution<State>& solution, Index reference, IdealResult& result) const {
  const State& state = solution.state;
  const Index d = subgroups_.n_features;
  std::vector<Matrix> E;
  std::vector<Vector> t;
  for (Index a = 0; a < subgroups_.n_groups; ++a) {
    E.push_back(Eigen::PartialPivLU<Matrix>(state.B[a]).inverse());
    t.push_back(-E[a] * state.m[a]);
  }
  Frame frame;
  if (reference < 0) {
    const auto moments = group_moments(subgroups_);
    frame = least_squares_frame(moments, E, t);
    if (!is_invertible(frame, feature_scale(moments))) {
      Index anchor = 0;
      subgroups_.weight.colwise().sum().maxCoeff(&anchor);
      frame = {state.B[anchor], state.m[anchor]};
    }
  } else {
    frame = {state.B[reference], state.m[reference]};
  }
  const Matrix frame_inverse = Eigen::PartialPivLU<Matrix>(frame.linear).inverse();
  for (Index a = 0; a < subgroups_.n_groups; ++a) {
    const bool still = a == reference;
    result.linear.push_back(still ? Matrix(Matrix::Identity(d, d)) : Matrix(frame.linear * E[a]));
    result.offset.push_back(still ? Vector(Vector::Zero(d))
                                  : Vector(frame.linear * t[a] + frame.offset));
    result.inverse_linear.push_back(still ? Matrix(Matrix::Identity(d, d))
                                          : Matrix(state.B[a] * frame_inverse));
    result.inverse_offset.push_back(
        still ? Vector(Vector::Zero(d))
              : Vector(state.m[a] - state.B[a] * (frame_inverse * frame.offset)));
  }
  result.canonical_mean = (frame.linear * state.nu).colwise() + frame.offset;
  for (const Matrix& C : state.C) {
    const Matrix covariance = frame.linear * C * frame.linear.transpose();
    result.canonical_covariance.push_back(0.5 * (covariance + covariance.transpose()));
  }
}

}  // namespace fairsteer::detail
