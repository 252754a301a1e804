#include "fairsteer/posterior.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <memory>
#include <string>
#include <tuple>
#include <utility>

#include "fairsteer/check.hpp"
#include "fairsteer/errors.hpp"
#include "linalg.hpp"

namespace fairsteer {
namespace {

constexpr Index kSmall = 24;          // grids of which every pair is looked at
constexpr double kSlack = 0.1;        // of the dual constraints at the start
constexpr double kDenseSpeed = 4.0;   // of BLAS, against loops over a band
constexpr double kToBoundary = 0.99;  // how much of the way to the boundary a step may go
constexpr double kStop = 0.01;        // of the tolerance, so that small masses are settled too
constexpr double kRidge = 1e-14;  // relative, of a dense matrix; the first of those that are tried
constexpr int kRidges = 7;        // each a hundred times the one before
constexpr double kLoose = 0.1;    // residual below which costs say something about shares
constexpr double kNear = 10;      // of the tolerance, where rounding ends all progress
constexpr double kWorthKeeping = 1e-4;
constexpr int kMostStalls = 10;      // steps without progress
constexpr double kSum = 1e-9;        // how far sums of probabilities may be from one
constexpr double kNever = 1e-12;     // probability of a posterior that does not occur
constexpr double kFew = 1e-7;        // part of its law below which a row has no plan to speak of
constexpr Index kMostStarts = 3;     // of the shares, besides themselves
constexpr double kCoarseTol = 1e-6;  // duality gap on the way to the finest grid
constexpr double kOff = 0.1;         // of the tolerance: what a target off the band must gain
constexpr Index kMargin = 1;         // of a band, in points of the coarser grid
constexpr Index kWidest = 512;       // margin after which a band is not widened any more

double softplus(double x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }

double logistic(double x) {
  return x > 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x));
}

// A symmetric positive definite matrix whose rows may be of any size.
class ScaledMatrix {
 public:
  void factorise(Matrix lower) {
    scale_ = lower.diagonal().unaryExpr([](double x) { return x > 0 ? 1 / std::sqrt(x) : 0.0; });
    lower = scale_.asDiagonal() * lower * scale_.asDiagonal();
    // A direction without curvature is not moved along.
    double ridge = kRidge;
    for (int i = 0; i < kRidges; ++i) {
      lower.diagonal().setConstant(1 + ridge);
      if (factor_.compute(lower)) return;
      ridge *= 100;
    }
    lower.setIdentity();
    factor_.compute(std::move(lower));
  }

  void solve(Vector& x) const {
    x = x.cwiseProduct(scale_);
    factor_.solve_in_place(x);
    x = x.cwiseProduct(scale_);
  }

  Matrix inverse() const { return scale_.asDiagonal() * factor_.inverse() * scale_.asDiagonal(); }

 private:
  linalg::Cholesky factor_;
  Vector scale_;
};

// A symmetric positive definite matrix of which row p begins at first[p], as its factor does; these
// do not fall.
class EnvelopeMatrix {
 public:
  explicit EnvelopeMatrix(std::vector<Index> first = {})
      : first_(std::move(first)), start_(first_.size()) {
    Index size = 0;
    for (Index p = 0; p < n_rows(); ++p) {
      start_[p] = size - first_[p];
      size += p - first_[p] + 1;
    }
    entries_.resize(size);
  }

  Index n_rows() const { return static_cast<Index>(first_.size()); }
  Index first(Index row) const { return first_[row]; }
  void set_zero() { entries_.setZero(); }
  double& at(Index row, Index column) { return entries_[start_[row] + column]; }

  auto row(Index row, Index first, Index count) {
    return Eigen::Map<Vector>(&at(row, first), count);
  }

  void factorise() {
    for (Index p = 0; p < n_rows(); ++p) {
      const double diagonal = at(p, p);
      for (Index q = first_[p]; q <= p; ++q) {
        const Index from = std::max(first_[p], first_[q]);
        const Index count = q - from;
        double sum = at(p, q);
        if (count > 0) sum -= row(p, from, count).dot(row(q, from, count));
        if (q < p)
          at(p, q) = sum / at(q, q);
        else  // a direction without curvature is not moved along
          at(p, p) = sum > 1e-14 * diagonal ? std::sqrt(sum) : 1e100;
      }
    }
  }

  void solve(Vector& x) {
    for (Index p = 0; p < n_rows(); ++p) {
      const Index first = first_[p];
      if (p > first) x[p] -= row(p, first, p - first).dot(x.segment(first, p - first));
      x[p] /= at(p, p);
    }
    for (Index p = n_rows() - 1; p >= 0; --p) {
      x[p] /= at(p, p);
      const Index first = first_[p];
      if (p > first) x.segment(first, p - first) -= x[p] * row(p, first, p - first);
    }
  }

 private:
  std::vector<Index> first_, start_;
  Vector entries_;
};

// Pairs (i, j) of one group's plan: a range of targets for every posterior that occurs in it.
struct Band {
  std::vector<Index> row;    // posterior of a row of the band
  std::vector<Index> first;  // its first target
  std::vector<Index> start;  // its first pair; one more at the end

  Index n_rows() const { return static_cast<Index>(row.size()); }
  Index n_pairs() const { return start.back(); }
  Index width(Index i) const { return start[i + 1] - start[i]; }
  Index last(Index i) const { return first[i] + width(i) - 1; }
};

// kl(target || source) of every pair, (T, S), nats: phi(t) - t logit s + softplus(logit s), with
// phi(t) = t log t + (1 - t) log(1 - t) = t logit t - softplus(logit t).
Matrix costs_of(const Vector& source, const Vector& target) {
  const Vector t = target.unaryExpr(&logistic);
  const Vector phi = t.cwiseProduct(target) - target.unaryExpr(&softplus);
  Matrix cost(target.size(), source.size());
  for (Index i = 0; i < source.size(); ++i)
    cost.col(i) = (phi.array() - t.array() * source[i] + softplus(source[i])).max(0.0);
  return cost;
}

// What one program is made of; `common` is the law of the ideal posterior where that is given.
struct Level {
  CellLaws laws;
  Vector source{}, target{};  ///< grids of logits that the costs are of, if they are
  double tol = kCoarseTol;    ///< largest duality gap: what leads to a finer grid need not be exact
};

Level level_of(Vector source, Vector target, Matrix law, Vector weight, Vector common = {}) {
  Level level{{{costs_of(source, target)}, std::move(law), std::move(weight), std::move(common)}};
  level.source = std::move(source);
  level.target = std::move(target);
  return level;
}

// The program on one grid, and the plans that solve it.
class Program {
 public:
  Program(const Level& level, const PosteriorOptions& options, Vector shares)
      : laws_(level.laws),
        source_(level.source),
        target_(level.target),
        options_(options),
        tol_(level.tol),
        fixed_(level.laws.common.size() > 0),
        w_(std::move(shares)),
        G_(laws_.n_groups()),
        T_(laws_.n_target()) {
    const Index S = laws_.n_source();
    occurs_.resize(G_);
    for (Index a = 0; a < G_; ++a)
      for (Index i = 0; i < S; ++i)
        if (laws_.law(i, a) > kNever) occurs_[a].push_back(i);
    g_ = Matrix::Zero(T_, G_);
    w_.maxCoeff(&last_);
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  // All pairs.
  void full_band() {
    bands_.assign(G_, Band{});
    for (Index a = 0; a < G_; ++a)
      for (const Index i : occurs_[a]) add_row(bands_[a], i, 0, T_ - 1);
    finish_bands();
  }

  // About the best targets of the posteriors under the potentials of a grid of half the size.
  void band_about(const Program& coarse) {
    bands_.assign(G_, Band{});
    const Vector& grid = coarse.source_;
    const Index last_target = coarse.T_ - 1;
    for (Index a = 0; a < G_; ++a) {
      std::vector<Index> best(grid.size());
      for (Index k = 0; k < grid.size(); ++k) best[k] = coarse.best_target(k, a);
      for (const Index i : occurs_[a]) {
        const Index above =
            std::upper_bound(grid.data(), grid.data() + grid.size(), source_[i]) - grid.data();
        const Index low = best[std::max<Index>(0, above - 2)];
        const Index high = best[std::min<Index>(grid.size() - 1, above + 1)];
        add_row(bands_[a], i, from_coarse(std::max<Index>(0, low - kMargin)),
                from_coarse(std::min(last_target, high + kMargin)));
      }
      cover(bands_[a]);
    }
    finish_bands();
  }

  bool full() const { return full_; }

  // The band, and for every target that rows off it object to, the first of these rows.
  void widen(Index margin) {
    for (Index a = 0; a < G_; ++a) {
      const Band& band = bands_[a];
      const Index n = band.n_rows();
      std::vector<Index> low(band.first), high(n);
      for (Index i = 0; i < n; ++i) high[i] = band.last(i);
      for (Index j = 0; j < T_; ++j) {
        const double excess =
            fixed_ ? rho_[j] * (g_(j, a) - tight_g_(j, a)) : level_ - tight_g_.row(j).dot(w_);
        if (!(excess > kOff * tol_)) continue;
        const Index row = binding_[a][j];
        for (Index k = std::max<Index>(0, row - margin); k <= std::min(n - 1, row + margin); ++k) {
          low[k] = std::min(low[k], std::max<Index>(0, j - margin));
          high[k] = std::max(high[k], std::min(T_ - 1, j + margin));
        }
      }
      Band wider;
      for (Index i = 0; i < n; ++i) add_row(wider, band.row[i], low[i], high[i]);
      bands_[a] = std::move(wider);
    }
    finish_bands();
  }

  // Interior point; whether it met the tolerance. With `move_shares` the shares follow the costs on
  // the way.
  bool solve(bool move_shares);

  void tighten();

  // The bounds between which the optimum for these shares lies: every pair of the grid counts.
  double lower_bound() const;
  double upper_bound() const { return w_.dot(costs_); }

  // One step of the alternation; how far the shares went.
  double update_shares() {
    Vector next = laws_.weight.array() * (costs_.minCoeff() - costs_.array()).exp();
    next /= next.sum();
    const double change = (next - w_).cwiseAbs().maxCoeff();
    w_ = next;
    return change;
  }

  const Vector& shares() const { return w_; }
  void set_shares(const Vector& shares) { w_ = shares; }
  const Vector& costs() const { return costs_; }
  Index n_iter() const { return n_iter_; }
  void write(PosteriorResult& result) const;
  Matrix posteriors() const;
  Matrix plan(Index a) const;

 private:
  auto cost(Index i, Index a) const {
    return laws_.cost[laws_.cost.size() == 1 ? 0 : static_cast<std::size_t>(a)].col(i);
  }

  static void add_row(Band& band, Index i, Index first, Index last) {
    if (band.start.empty()) band.start.push_back(0);
    band.row.push_back(i);
    band.first.push_back(first);
    band.start.push_back(band.start.back() + last - first + 1);
  }

  Index from_coarse(Index j) const { return std::min(2 * j, T_ - 1); }

  // Every target is reached, and every row meets the one before.
  void cover(Band& band) const {
    Band covering;
    const Index n = band.n_rows();
    for (Index i = 0; i < n; ++i) {
      Index first = band.first[i], last = band.last(i);
      if (i == 0) first = 0;
      if (i > 0) first = std::min(first, band.last(i - 1));
      if (i == n - 1) last = T_ - 1;
      add_row(covering, band.row[i], first, last);
    }
    band = std::move(covering);
  }

  void finish_bands() {
    full_ = true;
    for (const Band& band : bands_)
      for (Index i = 0; i < band.n_rows(); ++i) {
        full_ = full_ && band.width(i) == T_;
      }
    // Where a target's row of each group's matrix begins, and of all of them.
    begins_.assign(G_, std::vector<Index>(T_));
    begin_.resize(T_);
    for (Index j = 0; j < T_; ++j) begin_[j] = j;
    for (Index a = 0; a < G_; ++a) {
      std::vector<Index>& begins = begins_[a];
      for (Index j = 0; j < T_; ++j) begins[j] = j;
      const Band& band = bands_[a];
      for (Index i = 0; i < band.n_rows(); ++i)
        begins[band.last(i)] = std::min(begins[band.last(i)], band.first[i]);
      for (Index j = T_ - 2; j >= 0; --j) begins[j] = std::min({begins[j], begins[j + 1], j});
      for (Index j = 0; j < T_; ++j) begin_[j] = std::min(begin_[j], begins[j]);
    }
    const auto T = static_cast<double>(T_);
    const double n = fixed_ ? 1.0 : static_cast<double>(G_ - 1);
    double banded = 0;
    for (Index j = 0; j < T_; ++j) {
      const double width = n * static_cast<double>(j - begin_[j] + 1);
      banded += n * width * width;
    }
    const double dense = fixed_ ? T * T * T / 3 : T * T * T * (n + 3);
    dense_ = banded > dense / kDenseSpeed;
  }

  // The target of least cost under the potentials, the lowest of several.
  Index best_target(Index i, Index a) const {
    Index best = 0;
    (cost(i, a) - tight_g_.col(a)).minCoeff(&best);
    return best;
  }

  double tight(Index i, Index a) const { return (cost(i, a) - tight_g_.col(a)).minCoeff(); }

  std::vector<Index> free_groups() const {
    std::vector<Index> groups;
    for (Index a = 0; a < G_; ++a)
      if (a != last_) groups.push_back(a);
    return groups;
  }

  void start();
  void assemble();
  void assemble_dense();
  void assemble_banded();
  void direct_banded(const Matrix& b);
  void direct_dense(const Matrix& b);
  void direct(const std::vector<Vector>& push);
  double longest_step() const;
  void evaluate();

  const CellLaws& laws_;
  const Vector &source_, &target_;
  const PosteriorOptions& options_;
  const double tol_;
  const bool fixed_;  // the common law is given
  Vector w_;
  Index G_, T_;
  Index last_ = 0;  // group whose potential follows from the others'
  std::vector<std::vector<Index>> occurs_;
  std::vector<Band> bands_;
  bool full_ = true, dense_ = true;
  std::vector<std::vector<Index>> begins_;
  std::vector<Index> begin_;
  Index n_iter_ = 0;

  // The iterate: potentials f (rows) and g (targets), slacks z and plans by pair, the common law.
  std::vector<Vector> f_, mass_, z_, plan_;
  Matrix g_, tight_g_;
  std::vector<std::vector<Index>> binding_;  // the row that bounds a target's potential
  Vector rho_;
  double level_ = 0;  // of sum_a w_a g_a
  Vector costs_;
  double residual_ = 0;

  struct Iterate {
    std::vector<Vector> f, z, plan;
    Matrix g;
    Vector rho, w, costs;
    double level = 0;
  };

  // One step.
  std::vector<Vector> d_, den_, row_residual_, df_, dz_, dplan_, one_over_z_, one_over_plan_;
  Matrix column_residual_, dg_, k1_;
  std::vector<ScaledMatrix> scaled_;
  ScaledMatrix central_;
  std::vector<EnvelopeMatrix> k_;
  EnvelopeMatrix joint_;
  Vector border_, bordered_, drho_;
  double corner_ = 0, dlevel_ = 0;
  Vector dual_residual_;
};

void Program::start() {
  f_.assign(G_, Vector());
  mass_ = z_ = plan_ = d_ = den_ = row_residual_ = df_ = dz_ = dplan_ = one_over_z_ =
      one_over_plan_ = f_;
  g_ = dg_ = column_residual_ = k1_ = Matrix::Zero(T_, G_);
  rho_ = drho_ = Vector::Zero(T_);
  level_ = dlevel_ = 0;
  costs_ = Vector::Zero(G_);
  for (Index a = 0; a < G_; ++a) {
    const Band& band = bands_[a];
    const Index n = band.n_rows();
    f_[a].resize(n);
    mass_[a].resize(n);
    den_[a].resize(n);
    row_residual_[a].resize(n);
    df_[a].resize(n);
    z_[a].resize(band.n_pairs());
    for (Index i = 0; i < n; ++i) {
      auto slack = z_[a].segment(band.start[i], band.width(i));
      slack = cost(band.row[i], a).segment(band.first[i], band.width(i));
      f_[a][i] = slack.minCoeff() - kSlack;
      slack.array() -= f_[a][i];
    }
    plan_[a] = z_[a].cwiseInverse();
    plan_[a] /= plan_[a].sum();
    d_[a].resize(band.n_pairs());
    dz_[a].resize(band.n_pairs());
    dplan_[a].resize(band.n_pairs());
    if (!fixed_)
      for (Index i = 0; i < n; ++i)
        rho_.segment(band.first[i], band.width(i)) +=
            plan_[a].segment(band.start[i], band.width(i)) / static_cast<double>(G_);
  }
  if (fixed_) rho_ = laws_.common;
  if (dense_) {
    scaled_.resize(G_);
    return;
  }
  k_.clear();
  for (Index a = 0; a < G_; ++a) k_.emplace_back(begins_[a]);
  if (fixed_) return;
  const Index n = G_ - 1;
  std::vector<Index> first(T_ * n);
  for (Index j = 0; j < T_; ++j)
    for (Index c = 0; c < n; ++c) first[j * n + c] = begin_[j] * n;
  joint_ = EnvelopeMatrix(std::move(first));
  border_.resize(T_ * n);
}

// Residuals of the present iterate, and the costs of the groups.
void Program::evaluate() {
  residual_ = std::abs(1 - rho_.sum());
  for (Index a = 0; a < G_; ++a) {
    const Band& band = bands_[a];
    column_residual_.col(a) = rho_;
    double spent = 0;
    for (Index i = 0; i < band.n_rows(); ++i) {
      const Index size = band.width(i), at = band.start[i];
      const double law = laws_.law(band.row[i], a);
      const auto plan = plan_[a].segment(at, size);
      const double total = plan.sum();
      mass_[a][i] = law * std::exp(-f_[a][i]);
      row_residual_[a][i] = mass_[a][i] - total;
      column_residual_.col(a).segment(band.first[i], size) -= plan;
      // cost = z + f + g
      spent += plan.dot(z_[a].segment(at, size)) + total * f_[a][i] +
               plan.dot(g_.col(a).segment(band.first[i], size));
      if (total > 0) spent += total * std::log(total / law);
    }
    costs_[a] = spent;
    residual_ = std::max(
        {residual_, row_residual_[a].cwiseAbs().sum(), column_residual_.col(a).cwiseAbs().sum()});
  }
  dual_residual_ = Vector::Zero(T_);
  if (!fixed_) dual_residual_ = (level_ - (g_ * w_).array()).matrix();
}

// Eliminates the rows: K_a dg_a = drho + b_a, with K_a = diag(D' 1) - D' diag(1 / (D 1 + m)) D. Its
// row sums k1 are known without cancellation, so that its diagonal follows from the rest of it.
void Program::assemble() {
  k1_.setZero();
  for (Index a = 0; a < G_; ++a) {
    const Band& band = bands_[a];
    one_over_z_[a] = z_[a].cwiseInverse();
    one_over_plan_[a] = plan_[a].cwiseInverse();
    d_[a] = plan_[a].cwiseProduct(one_over_z_[a]);
    for (Index i = 0; i < band.n_rows(); ++i) {
      const auto d = d_[a].segment(band.start[i], band.width(i));
      den_[a][i] = d.sum() + mass_[a][i];
      k1_.col(a).segment(band.first[i], band.width(i)) += d * (mass_[a][i] / den_[a][i]);
    }
  }
  if (dense_)
    assemble_dense();
  else
    assemble_banded();
}

// With the inverses of all K_a: sum_a w_a dg_a is known, hence (sum_a w_a K_a^-1) drho.
void Program::assemble_dense() {
  Matrix central = Matrix::Zero(T_, T_);
  for (Index a = 0; a < G_; ++a) {
    const Band& band = bands_[a];
    Matrix K = Matrix::Zero(T_, T_);
    if (full_) {
      Matrix D = MatrixView(d_[a].data(), T_, band.n_rows());
      D *= den_[a].cwiseSqrt().cwiseInverse().asDiagonal();
      linalg::syrk<double>(D, K, -1);
    } else {
      for (Index i = 0; i < band.n_rows(); ++i) {
        const Index size = band.width(i), first = band.first[i];
        const auto d = d_[a].segment(band.start[i], size);
        for (Index j = 0; j < size; ++j)
          K.col(first + j).segment(first + j, size - j) -= d.tail(size - j) * (d[j] / den_[a][i]);
      }
    }
    K.diagonal() = k1_.col(a);
    for (Index j = 0; j < T_; ++j)
      for (Index k = j + 1; k < T_; ++k) {
        K(j, j) -= K(k, j);
        K(k, k) -= K(k, j);
      }
    scaled_[a].factorise(std::move(K));
    if (!fixed_) central += w_[a] * scaled_[a].inverse();
  }
  if (fixed_) return;
  central_.factorise(std::move(central));
  bordered_ = Vector::Ones(T_);
  central_.solve(bordered_);
}

// The last group's potential follows from the others', whose matrix has a band.
void Program::assemble_banded() {
  for (Index a = 0; a < G_; ++a) {
    const Band& band = bands_[a];
    k_[a].set_zero();
    for (Index i = 0; i < band.n_rows(); ++i) {
      const Index size = band.width(i), first = band.first[i];
      const auto d = d_[a].segment(band.start[i], size);
      for (Index j = 1; j < size; ++j)
        k_[a].row(first + j, first, j) -= d.head(j) * (d[j] / den_[a][i]);
    }
    for (Index j = 0; j < T_; ++j) k_[a].at(j, j) = k1_(j, a);
    for (Index j = 0; j < T_; ++j)
      for (Index k = k_[a].first(j); k < j; ++k) {
        k_[a].at(j, j) -= k_[a].at(j, k);
        k_[a].at(k, k) -= k_[a].at(j, k);
      }
    if (fixed_) k_[a].factorise();
  }
  if (fixed_) return;
  joint_.set_zero();
  const std::vector<Index> others = free_groups();
  const auto n = static_cast<Index>(others.size());
  for (Index j = 0; j < T_; ++j) {
    for (Index k = k_[last_].first(j); k <= j; ++k) {
      const double shared = k_[last_].at(j, k) / w_[last_];
      for (Index c = 0; c < n; ++c)
        for (Index e = 0; e < (j == k ? c + 1 : n); ++e)
          joint_.at(j * n + c, k * n + e) = w_[others[c]] * w_[others[e]] * shared;
    }
    for (Index c = 0; c < n; ++c)
      for (Index k = k_[others[c]].first(j); k <= j; ++k)
        joint_.at(j * n + c, k * n + c) += w_[others[c]] * k_[others[c]].at(j, k);
  }
  joint_.factorise();
  for (Index j = 0; j < T_; ++j)
    for (Index c = 0; c < n; ++c) border_[j * n + c] = -w_[others[c]] * k1_(j, last_) / w_[last_];
  bordered_ = border_;
  joint_.solve(bordered_);
  corner_ = k1_.col(last_).sum() / w_[last_] - border_.dot(bordered_);
}

void Program::direct_dense(const Matrix& b) {
  Vector known = dual_residual_;
  for (Index a = 0; a < G_; ++a) {
    Vector x = b.col(a);
    scaled_[a].solve(x);
    dg_.col(a) = x;
    if (!fixed_) known -= w_[a] * x;
  }
  if (fixed_) return;
  central_.solve(known);
  const double total = bordered_.sum();
  dlevel_ = total > 0 ? (1 - rho_.sum() - known.sum()) / total : 0.0;
  drho_ = known + dlevel_ * bordered_;
  for (Index a = 0; a < G_; ++a) {
    Vector x = drho_;
    scaled_[a].solve(x);
    dg_.col(a) += x;
  }
}

void Program::direct_banded(const Matrix& b) {
  if (fixed_) {
    for (Index a = 0; a < G_; ++a) {
      Vector x = b.col(a);
      k_[a].solve(x);
      dg_.col(a) = x;
    }
    return;
  }
  // The last potential is (level + residual - sum of the others) / its share: K applied to what
  // is known of it joins the right side.
  const std::vector<Index> others = free_groups();
  const auto n = static_cast<Index>(others.size());
  Vector known = dual_residual_ / w_[last_];
  Vector b_last = b.col(last_);
  if (known.cwiseAbs().maxCoeff() > 0) {
    const Band& band = bands_[last_];
    for (Index i = 0; i < band.n_rows(); ++i) {
      const Index size = band.width(i), at = band.start[i], first = band.first[i];
      const auto d = d_[last_].segment(at, size);
      const auto x = known.segment(first, size);
      const double mean = d.dot(x) / den_[last_][i];
      b_last.segment(first, size) -= (d.array() * (x.array() - mean)).matrix();
    }
  }
  Vector x(T_ * n);
  for (Index j = 0; j < T_; ++j)
    for (Index c = 0; c < n; ++c) x[j * n + c] = w_[others[c]] * (b(j, others[c]) - b_last[j]);
  const double mass_residual = 1 - rho_.sum();
  const double right = b_last.sum() + mass_residual;
  joint_.solve(x);
  dlevel_ = corner_ > 0 ? (right - border_.dot(x)) / corner_ : 0.0;
  x -= dlevel_ * bordered_;
  Vector rest = (dual_residual_.array() + dlevel_).matrix();
  for (Index j = 0; j < T_; ++j)
    for (Index c = 0; c < n; ++c) {
      dg_(j, others[c]) = x[j * n + c];
      rest[j] -= w_[others[c]] * dg_(j, others[c]);
    }
  dg_.col(last_) = rest / w_[last_];
  drho_ = -b.col(last_);
}

// The Newton direction towards z * plan = z * (plan + push).
void Program::direct(const std::vector<Vector>& push) {
  Matrix b = column_residual_;
  for (Index a = 0; a < G_; ++a) {
    const Band& band = bands_[a];
    for (Index i = 0; i < band.n_rows(); ++i) {
      const Index size = band.width(i), at = band.start[i];
      df_[a][i] = (row_residual_[a][i] - push[a].segment(at, size).sum()) / den_[a][i];
      b.col(a).segment(band.first[i], size) -=
          push[a].segment(at, size) + df_[a][i] * d_[a].segment(at, size);
    }
  }
  if (dense_)
    direct_dense(b);
  else
    direct_banded(b);
  for (Index a = 0; a < G_; ++a) {
    const Band& band = bands_[a];
    for (Index i = 0; i < band.n_rows(); ++i) {
      const Index size = band.width(i), at = band.start[i], first = band.first[i];
      const auto d = d_[a].segment(at, size);
      const auto dg = dg_.col(a).segment(first, size);
      const double mean = d.dot(dg) / den_[a][i];
      df_[a][i] -= mean;
      dz_[a].segment(at, size) = (-df_[a][i] - dg.array()).matrix();
      if (!dense_ && !fixed_ && a == last_)
        drho_.segment(first, size) += (d.array() * (dg.array() - mean)).matrix();
    }
    dplan_[a] = push[a] - d_[a].cwiseProduct(dz_[a]);
  }
}

double Program::longest_step() const {
  double worst = 0;
  for (Index a = 0; a < G_; ++a) {
    worst = std::max(worst, -dplan_[a].cwiseProduct(one_over_plan_[a]).minCoeff());
    worst = std::max(worst, -dz_[a].cwiseProduct(one_over_z_[a]).minCoeff());
  }
  return worst > 0 ? 1 / worst : std::numeric_limits<double>::infinity();
}

bool Program::solve(bool move_shares) {
  start();
  Index n_pairs = 0;
  for (const Band& band : bands_) n_pairs += band.n_pairs();
  std::vector<Vector> push(G_);
  Iterate kept;
  double best = std::numeric_limits<double>::infinity();
  int stalled = 0;
  for (Index step = 0; step < options_.max_iter; ++step) {
    evaluate();
    double moved = 0;
    if (move_shares && residual_ < kLoose) {
      moved = update_shares();
      dual_residual_ = (level_ - (g_ * w_).array()).matrix();
    }
    double complementary = 0;
    for (Index a = 0; a < G_; ++a) complementary += w_[a] * plan_[a].dot(z_[a]);
    const double dual = dual_residual_.cwiseAbs().maxCoeff();
    const double worst = std::max({complementary, residual_, dual, move_shares ? moved : 0.0});
    if (worst < kStop * tol_) return true;
    stalled = worst < 0.9 * best ? 0 : stalled + 1;
    if (worst < best) {
      best = worst;
      if (best < kWorthKeeping) kept = {f_, z_, plan_, g_, rho_, w_, costs_, level_};
    }
    if (stalled > kMostStalls || options_.stop()) break;
    ++n_iter_;
    assemble();
    double mu = 0;
    for (Index a = 0; a < G_; ++a) {
      mu += plan_[a].dot(z_[a]);
      push[a] = -plan_[a];
    }
    direct(push);
    const double reach = std::min(1.0, longest_step());
    double after = 0;
    for (Index a = 0; a < G_; ++a)
      after += (plan_[a] + reach * dplan_[a]).dot(z_[a] + reach * dz_[a]);
    const double ratio = std::max(0.0, after / mu);
    const double centre = ratio * ratio * ratio * mu / static_cast<double>(n_pairs);
    for (Index a = 0; a < G_; ++a)
      push[a] = ((centre - dplan_[a].array() * dz_[a].array()) * one_over_z_[a].array()).matrix() -
                plan_[a];
    direct(push);
    const double length = std::min(1.0, kToBoundary * longest_step());
    for (Index a = 0; a < G_; ++a) {
      f_[a] += length * df_[a];
      z_[a] += length * dz_[a];
      plan_[a] += length * dplan_[a];
    }
    g_ += length * dg_;
    rho_ += length * drho_;
    level_ += length * dlevel_;
  }
  if (!kept.f.empty())  // rounding may have led away from it
    std::tie(f_, z_, plan_, g_, rho_, w_, costs_, level_) =
        std::tie(kept.f, kept.z, kept.plan, kept.g, kept.rho, kept.w, kept.costs, kept.level);
  return best < kNear * tol_;
}

// The potentials of the rows, with the largest of the targets that every pair allows: where no plan
// leads, the method leaves those of the targets anywhere.
void Program::tighten() {
  tight_g_.resize(T_, G_);
  binding_.assign(G_, std::vector<Index>(T_));
  for (Index a = 0; a < G_; ++a) {
    const Band& band = bands_[a];
    tight_g_.col(a).setConstant(std::numeric_limits<double>::infinity());
    for (Index p = 0; p < band.n_rows(); ++p) {
      const auto costs = cost(band.row[p], a);
      for (Index j = 0; j < T_; ++j) {
        const double value = costs[j] - f_[a][p];
        if (value < tight_g_(j, a)) {
          tight_g_(j, a) = value;
          binding_[a][j] = p;
        }
      }
    }
  }
}

double Program::lower_bound() const {
  double bound = fixed_ ? 0.0 : (tight_g_ * w_).minCoeff();
  for (Index a = 0; a < G_; ++a) {
    double total = 0;
    for (const Index i : occurs_[a]) total += laws_.law(i, a) * std::exp(-tight(i, a));
    bound -= w_[a] * std::log(total);
    if (fixed_) bound += w_[a] * tight_g_.col(a).dot(rho_);
  }
  return bound;
}

void Program::write(PosteriorResult& result) const {
  const Index S = laws_.n_source();
  result.weight = w_;
  result.group_divergence = costs_.cwiseMax(0.0);
  result.target_law = rho_.cwiseMax(0.0);
  result.target_law /= result.target_law.sum();
  result.log_ratio.resize(S, G_);
  for (Index a = 0; a < G_; ++a) {
    double total = 0;
    for (Index i = 0; i < S; ++i) {
      const double f = tight(i, a);
      result.log_ratio(i, a) = -f;
      total += laws_.law(i, a) * std::exp(-f);
    }
    result.log_ratio.col(a).array() -= std::log(total);
  }
}

// Of the grid's points: the mean of where a plan leads, or else the best of the targets.
Matrix Program::posteriors() const {
  const Index S = laws_.n_source();
  const Vector t = target_.unaryExpr(&logistic);
  Matrix posterior(S, G_);
  for (Index a = 0; a < G_; ++a) {
    const Band& band = bands_[a];
    for (Index i = 0, k = 0; i < S; ++i) {
      posterior(i, a) = t[best_target(i, a)];
      if (k == band.n_rows() || band.row[k] != i) continue;
      const auto plan = plan_[a].segment(band.start[k], band.width(k));
      if (plan.sum() > kFew * laws_.law(i, a))
        posterior(i, a) = plan.dot(t.segment(band.first[k], band.width(k))) / plan.sum();
      ++k;
    }
    for (Index i = 1; i < S; ++i)  // but for rounding it rises by itself
      posterior(i, a) = std::max(posterior(i, a), posterior(i - 1, a));
  }
  return posterior;
}

Matrix Program::plan(Index a) const {
  const Band& band = bands_[a];
  Matrix plan = Matrix::Zero(T_, laws_.n_source());
  for (Index k = 0; k < band.n_rows(); ++k)
    plan.col(band.row[k]).segment(band.first[k], band.width(k)) =
        plan_[a].segment(band.start[k], band.width(k));
  return plan;
}

// Every second point and the last.
Vector halved(const Vector& grid) {
  const Index n = grid.size();
  Vector half(n / 2 + 1);
  for (Index k = 0; k < half.size(); ++k) half[k] = grid[std::min(2 * k, n - 1)];
  return n % 2 == 1 ? Vector(half.head((n + 1) / 2)) : half;
}

// What lies between the points of the half grid is split among its neighbours.
Matrix halved(const Matrix& law, const Vector& grid, const Vector& half) {
  Matrix result = Matrix::Zero(half.size(), law.cols());
  for (Index i = 0; i < grid.size(); ++i) {
    const Index k = i == grid.size() - 1 ? half.size() - 1 : i / 2;
    if (half[k] == grid[i]) {
      result.row(k) += law.row(i);
    } else {
      const double share = (half[k + 1] - grid[i]) / (half[k + 1] - half[k]);
      result.row(k) += share * law.row(i);
      result.row(k + 1) += (1 - share) * law.row(i);
    }
  }
  return result;
}

Level halved(const Level& level) {
  const Vector source = halved(level.source), target = halved(level.target);
  const CellLaws& laws = level.laws;
  Vector common;
  if (laws.common.size() > 0) common = halved(laws.common, level.target, target);
  return level_of(source, target, halved(laws.law, level.source, source), laws.weight, common);
}

// Laws of groups and their shares.
void check_laws(const char* function, const Matrix& law, const Vector& weight) {
  const Index G = law.cols();
  check_at_least(function, "number of groups", G, 1);
  if (weight.size() != G)
    refuse(function, "number of shares", "be that of the groups, " + std::to_string(G),
           static_cast<double>(weight.size()));
  check_not_negative(function, "law", law.data(), law.size());
  check_not_negative(function, "share", weight.data(), G);
  for (Index a = 0; a < G; ++a) {
    const std::string group = " of group " + std::to_string(a);
    if (!(weight[a] > 0)) refuse(function, "share" + group, "be positive", weight[a]);
    const double sum = law.col(a).sum();
    if (!(std::abs(sum - 1) < kSum)) refuse(function, "sum of the law" + group, "be 1", sum);
  }
  const double sum = weight.sum();
  if (!(std::abs(sum - 1) < kSum)) refuse(function, "sum of the shares", "be 1", sum);
}

bool shares_move(const PosteriorOptions& options) {
  return options.free_shares && options.intervention == Intervention::all_subgroups;
}

double relative_entropy(const Vector& one, const Vector& other) {
  double sum = 0;
  for (Index a = 0; a < one.size(); ++a)
    if (one[a] > 0) sum += one[a] * std::log(one[a] / other[a]);
  return std::max(sum, 0.0);
}

// Solves for the shares too, which are either left alone or a fixed point at the end; whether that
// was reached.
bool solve_all(Program& program, const PosteriorOptions& options, double settled) {
  const bool free = shares_move(options);
  const Vector start = program.shares();
  bool converged = program.solve(free);
  if (!free) return converged;
  if (!converged && !options.stop()) {
    // Where groups are far apart, shares and plans that move at once may miss.
    program.set_shares(start);
    converged = program.solve(false);
  }
  for (Index round = 0; round < options.max_iter && converged; ++round) {
    if (program.update_shares() < settled) return true;
    if (options.stop()) return false;
    converged = program.solve(false);
  }
  return false;
}

// Where the alternation of shares and plans may begin: the shares as they are, and what is left of
// them where all groups go to the posteriors of one of the heaviest.
std::vector<Vector> starts(const Level& level) {
  const CellLaws& laws = level.laws;
  std::vector<Vector> found{laws.weight};
  if (level.source.size() == 0) return found;
  const Index G = laws.n_groups();
  std::vector<Index> order(G);
  for (Index a = 0; a < G; ++a) order[a] = a;
  std::stable_sort(order.begin(), order.end(),
                   [&](Index a, Index b) { return laws.weight[a] > laws.weight[b]; });
  order.resize(std::min(G, kMostStarts));
  for (const Index one : order) {
    Vector next(G);
    for (Index a = 0; a < G; ++a) {
      // sum_i w ( t log(t / s) + (1 - t) log((1 - t) / (1 - s)) ) along the quantiles
      double sum = 0, left_one = laws.law(0, one), left = laws.law(0, a);
      for (Index i = 0, j = 0; i < laws.n_source() && j < laws.n_source();) {
        const double step = std::min(left, left_one);
        const double s = level.source[i], t = level.source[j], proba = logistic(t);
        sum += step * (proba * (t - s) + softplus(s) - softplus(t));
        left -= step;
        left_one -= step;
        if (left <= 0 && ++i < laws.n_source()) left = laws.law(i, a);
        if (left_one <= 0 && ++j < laws.n_source()) left_one = laws.law(j, one);
      }
      next[a] = laws.weight[a] * std::exp(-std::max(sum, 0.0));
    }
    found.emplace_back(next / next.sum());
  }
  return found;
}

PosteriorResult solve_levels(const std::vector<Level>& levels, const PosteriorOptions& options) {
  const Vector& share = levels.front().laws.weight;
  const bool free = shares_move(options);
  PosteriorResult result;
  std::unique_ptr<Program> best;
  double least = std::numeric_limits<double>::infinity();
  const std::vector<Vector> from = free ? starts(levels.back()) : std::vector<Vector>{share};
  for (const Vector& start : from) {
    auto program = std::make_unique<Program>(levels.back(), options, start);
    program->full_band();
    result.converged = solve_all(*program, options, levels.back().tol);
    result.n_iter += program->n_iter();
    program->tighten();
    const double value = program->upper_bound() + relative_entropy(program->shares(), share);
    if (value < least - options.tol || !best) {
      least = std::min(least, value);
      best = std::move(program);
    }
  }
  for (auto level = std::next(levels.rbegin()); level != levels.rend(); ++level) {
    auto program = std::make_unique<Program>(*level, options, best->shares());
    program->band_about(*best);
    for (Index margin = kMargin;; margin *= 2) {
      result.converged = solve_all(*program, options, level->tol);
      program->tighten();
      const double gap = program->upper_bound() - program->lower_bound();
      if (gap <= level->tol || program->full() || margin > kWidest || options.stop()) break;
      program->widen(margin);
    }
    result.n_iter += program->n_iter();
    best = std::move(program);
  }
  best->write(result);
  if (levels.front().source.size() > 0)
    result.posterior = best->posteriors();
  else
    for (Index a = 0; a < share.size(); ++a) result.plan.push_back(best->plan(a));
  result.gap = std::max(0.0, best->upper_bound() - best->lower_bound());
  result.converged = result.converged && result.gap <= options.tol;
  result.divergence =
      result.weight.dot(result.group_divergence) + relative_entropy(result.weight, share);
  return result;
}

// With grids of half the size after it, down to a small one.
std::vector<Level> levels_of(Level finest, const PosteriorOptions& options) {
  std::vector<Level> levels{std::move(finest)};
  levels[0].tol = options.tol;
  while (std::max(levels.back().laws.n_source(), levels.back().laws.n_target()) > kSmall)
    levels.push_back(halved(levels.back()));
  if (shares_move(options)) levels.back().tol = options.tol;  // where the starts are compared
  return levels;
}

// The groups one by one towards a law that is given.
PosteriorResult towards_common(const CellLaws& laws, const PosteriorOptions& options) {
  PosteriorResult result;
  const Index S = laws.n_source(), G = laws.n_groups();
  result.weight = laws.weight;
  result.group_divergence = Vector::Zero(G);
  result.target_law = laws.common;
  result.log_ratio = Matrix::Zero(S, G);
  for (Index a = 0; a < G; ++a) {
    const std::size_t of_group = laws.cost.size() == 1 ? 0 : static_cast<std::size_t>(a);
    Level level{{{laws.cost[of_group]}, laws.law.col(a), Vector::Ones(1), laws.common}};
    level.tol = options.tol;
    PosteriorResult one = solve_levels({std::move(level)}, options);
    result.group_divergence[a] = one.group_divergence[0];
    result.log_ratio.col(a) = one.log_ratio;
    result.plan.push_back(std::move(one.plan.front()));
    result.gap += laws.weight[a] * one.gap;
    result.n_iter += one.n_iter;
    result.converged = result.converged && one.converged;
  }
  result.divergence = laws.weight.dot(result.group_divergence);
  return result;
}

PosteriorResult unchanged(const PosteriorLaws& laws) {
  PosteriorResult result;
  const Index S = laws.n_source(), G = laws.n_groups();
  result.weight = laws.weight;
  result.group_divergence = Vector::Zero(G);
  result.log_ratio = Matrix::Zero(S, G);
  result.posterior = laws.source.unaryExpr(&logistic).replicate(1, G);
  return result;
}

PosteriorResult towards_all(const PosteriorLaws& laws, const PosteriorOptions& options) {
  if (laws.n_groups() > 1)
    return solve_levels(
        levels_of(level_of(laws.source, laws.target, laws.law, laws.weight), options), options);
  PosteriorResult result = unchanged(laws);
  result.target_law = laws.law.col(0);
  return result;
}

// Each other group meets the law of the reference, at the posteriors that occur in it.
PosteriorResult towards_reference(const PosteriorLaws& laws, const PosteriorOptions& options) {
  PosteriorResult result = unchanged(laws);
  result.target_law = laws.law.col(options.reference);
  std::vector<Index> reached;
  for (Index j = 0; j < laws.n_target(); ++j)
    if (result.target_law[j] > 0) reached.push_back(j);
  for (Index a = 0; a < laws.n_groups(); ++a) {
    if (a == options.reference) continue;
    Level level = level_of(laws.source, laws.target(reached), laws.law.col(a), Vector::Ones(1),
                           result.target_law(reached));
    const PosteriorResult of_group = solve_levels(levels_of(std::move(level), options), options);
    result.group_divergence[a] = of_group.group_divergence[0];
    result.log_ratio.col(a) = of_group.log_ratio;
    result.posterior.col(a) = of_group.posterior;
    result.gap += laws.weight[a] * of_group.gap;
    result.n_iter += of_group.n_iter;
    result.converged = result.converged && of_group.converged;
  }
  result.divergence = laws.weight.dot(result.group_divergence);
  return result;
}

}  // namespace

void check_posterior_laws(const PosteriorLaws& laws) {
  const char* function = "nearest_ideal_posterior";
  for (const auto& [name, grid] :
       {std::pair{"source", &laws.source}, std::pair{"target", &laws.target}}) {
    check_at_least(function, name, grid->size(), 2);
    check_finite(function, name, grid->data(), grid->size());
    for (Index i = 1; i < grid->size(); ++i)
      if (!((*grid)[i] > (*grid)[i - 1]))
        refuse(function, std::string(name) + "[" + std::to_string(i) + "]",
               "be above the value before it", (*grid)[i]);
  }
  if (laws.law.rows() != laws.n_source())
    refuse(function, "number of probabilities of a law",
           "be that of the posteriors, " + std::to_string(laws.n_source()),
           static_cast<double>(laws.law.rows()));
  check_laws(function, laws.law, laws.weight);
}

void check_cell_laws(const CellLaws& laws) {
  const char* function = "nearest_ideal_cells";
  const Index S = laws.n_source(), T = laws.n_target(), G = laws.n_groups();
  const auto n = static_cast<Index>(laws.cost.size());
  check_at_least(function, "number of cells", S, 1);
  check_at_least(function, "number of targets", T, 1);
  if (n != 1 && n != G)
    refuse(function, "number of cost matrices", "be 1 or that of the groups, " + std::to_string(G),
           static_cast<double>(n));
  for (const Matrix& cost : laws.cost) {
    if (cost.rows() != T || cost.cols() != S)
      refuse(function, "size of a cost matrix", "be that of the others, by cells",
             static_cast<double>(cost.size()));
    check_not_negative(function, "cost", cost.data(), cost.size());
  }
  check_laws(function, laws.law, laws.weight);
  if (laws.common.size() == 0) return;
  if (laws.common.size() != T)
    refuse(function, "number of probabilities of the common law",
           "be that of the targets, " + std::to_string(T), static_cast<double>(laws.common.size()));
  check_not_negative(function, "common", laws.common.data(), T);
  const double sum = laws.common.sum();
  if (!(std::abs(sum - 1) < kSum)) refuse(function, "sum of the common law", "be 1", sum);
}

PosteriorResult nearest_ideal_cells(const CellLaws& laws, const PosteriorOptions& options) {
  check_cell_laws(laws);
  PosteriorResult result;
  if (laws.common.size() > 0) {
    result = towards_common(laws, options);
  } else {
    Level level{laws};
    level.tol = options.tol;
    result = solve_levels({std::move(level)}, options);
  }
  for (Index a = 0; a < laws.n_groups(); ++a)
    if (!result.plan[static_cast<std::size_t>(a)].allFinite() ||
        !result.log_ratio.col(a).allFinite() || !std::isfinite(result.group_divergence[a]))
      throw NumericalError("the ideal posterior is not finite", -1, a);
  return result;
}

PosteriorResult nearest_ideal_posterior(const PosteriorLaws& laws,
                                        const PosteriorOptions& options) {
  check_posterior_laws(laws);
  const bool fixed = options.intervention == Intervention::affirmative;
  if (fixed) {
    check_index("nearest_ideal_posterior", "reference", options.reference, laws.n_groups());
    if (laws.n_target() != laws.n_source() || laws.target != laws.source)
      refuse("nearest_ideal_posterior", "number of targets",
             "be that of the posteriors, which are the reference's",
             static_cast<double>(laws.n_target()));
  }
  PosteriorResult result = fixed ? towards_reference(laws, options) : towards_all(laws, options);
  for (Index a = 0; a < laws.n_groups(); ++a)
    if (!result.posterior.col(a).allFinite() || !result.log_ratio.col(a).allFinite() ||
        !std::isfinite(result.group_divergence[a]))
      throw NumericalError("the ideal posterior is not finite", -1, a);
  return result;
}

}  // namespace fairsteer
