// The nearest ideal distribution: D~ = argmin KL(D~ || D) over the distributions whose groups are
// one family N(nu_k, C_k) seen through one invertible affine map each, x = m_a + B_a z, with priors
// p r^T.
#pragma once

#include <vector>

#include "fairsteer/moments.hpp"
#include "fairsteer/types.hpp"
#include "fairsteer/watch.hpp"

namespace fairsteer {

enum class Intervention { all_subgroups, affirmative };
enum class Alignment { affine, symmetric };

/// What is known of D: one Gaussian a cell (k, a). Views; the covariances are positive definite.
struct Subgroups {
  CovarianceModel model;
  Index n_classes;
  Index n_groups;
  Index n_features;
  Matrix weight;              ///< (K, G), sums to one; 0: no row was seen
  const double* means;        ///< [k][a][d]
  const double* covariances;  ///< tied [a][d][d], full [k][a][d][d], diagonal [k][a][d]

  /// Where class k and group a lie in `means` and `covariances`; empty: in this order. `weight`
  /// always follows k and a.
  std::vector<Index> class_at{};
  std::vector<Index> group_at{};

  bool seen(Index k, Index a) const { return weight(k, a) > 0; }
  VectorView mean(Index k, Index a) const { return {means + cell(k, a) * n_features, n_features}; }
  MatrixView covariance(Index k, Index a) const {
    const Index which = model == CovarianceModel::tied ? group(a) : cell(k, a);
    return {covariances + which * n_features * n_features, n_features, n_features};
  }
  VectorView variance(Index k, Index a) const {
    return {covariances + cell(k, a) * n_features, n_features};
  }

 private:
  Index group(Index a) const { return group_at.empty() ? a : group_at[a]; }
  Index cell(Index k, Index a) const {
    return (class_at.empty() ? k : class_at[k]) * n_groups + group(a);
  }
};

struct IdealOptions {
  Intervention intervention = Intervention::all_subgroups;
  Index reference = -1;  ///< group that is left alone; only read when affirmative
  Alignment alignment = Alignment::affine;
  Index max_iter = 200;  ///< rounds of block-coordinate descent, steps of each descent within, and
                         ///< rounds in which tied isometries and frame move points less
  double tol = 1e-6;     ///< estimated distance to the limit in nats, relative to max(1, KL)
  const Watch* watch = nullptr;  ///< null: neither interrupted nor limited in time

  double after = 0;  ///< seconds of the time that are left to what follows the descent

  /// Whether time is up, but for what follows and for `ahead` seconds; throws when interrupted.
  bool stop(double ahead = 0) const { return watch != nullptr && watch->stop(after + ahead); }
  /// Throws when interrupted.
  void poll() const { static_cast<void>(stop()); }
  /// Seconds since the watch was made.
  double elapsed() const { return watch != nullptr ? watch->elapsed() : 0; }
};

/// Everything is in the coordinates of the features. Group a's map into the common frame is
/// u = linear[a] x + offset[a].
struct IdealResult {
  Vector class_prior;          ///< p (K)
  Vector group_prior;          ///< r (G)
  Matrix cell_divergence;      ///< (K, G) nats; 0 where no row was seen
  double divergence = 0;       ///< nats
  std::vector<Matrix> linear;  ///< (d, d); diagonal: (d, 1), the scales
  std::vector<Vector> offset;
  Matrix canonical_mean;  ///< (d, K), in the common frame
  std::vector<Matrix>
      canonical_covariance;            ///< tied: 1, full: K, diagonal: one (d, K) of variances
  std::vector<double> objective_path;  ///< divergence after each round of the best start
  Index n_iter = 0;
  bool converged = true;
  bool moves_least =
      true;  ///< tied: whether isometries and frame came to rest; implied by converged
};

/// The result follows from the numbers alone: another order of the classes and groups gives the
/// same numbers in that order, and whatever several optima leave open is decided by what moves
/// points least, or else by weights and moments (see order.hpp).
///
/// Expects what `check_subgroups` checks, and a `reference` below the number of groups when
/// affirmative. Every number of the result is finite.
///
/// Throws NumericalError, with the cell where it is known, when a factorisation fails or a number
/// of the result is not finite; std::invalid_argument when a group shares no class with the
/// reference, or `check_subgroups` fails; and what `options.watch` throws. When its time is up, the
/// result is the nearest so far, with `converged` false.
///
/// Cost: tied O(G d^3) and little more, full O(K G d^3) a step of a descent, diagonal O(K G d) a
/// round. Safe to call from several threads at a time.
IdealResult nearest_ideal(const Subgroups& subgroups, const IdealOptions& options);

/// Throws std::invalid_argument unless there is a class, a group and a feature, every class and
/// every group has weight, no weight is negative, and every number of the subgroups that were seen
/// is finite, with positive variances.
void check_subgroups(const Subgroups& subgroups);

}  // namespace fairsteer
