// The nearest ideal distribution: D~ = argmin KL(D~ || D) over the distributions whose groups are
// one family N(nu_k, C_k) seen through one invertible affine map each, x = m_a + B_a z, with priors
// p r^T.
#pragma once

#include <vector>

#include "fairsteer/moments.hpp"
#include "fairsteer/types.hpp"

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

  bool seen(Index k, Index a) const { return weight(k, a) > 0; }
  VectorView mean(Index k, Index a) const {
    return {means + (k * n_groups + a) * n_features, n_features};
  }
  MatrixView covariance(Index k, Index a) const {
    const Index which = model == CovarianceModel::tied ? a : k * n_groups + a;
    return {covariances + which * n_features * n_features, n_features, n_features};
  }
  VectorView variance(Index k, Index a) const {
    return {covariances + (k * n_groups + a) * n_features, n_features};
  }
};

struct IdealOptions {
  Intervention intervention = Intervention::all_subgroups;
  Index reference = -1;  ///< group that is left alone; only read when affirmative
  Alignment alignment = Alignment::affine;
  Index max_iter = 200;  ///< of the alternation and of each inner Newton iteration
  double tol = 1e-6;     ///< estimated distance to the limit in nats, relative to max(1, KL)
};

/// Everything is in the coordinates of the features. Group a's map into the common frame is
/// u = linear[a] x + offset[a].
struct IdealResult {
  Vector class_prior;      ///< p (K)
  Vector group_prior;      ///< r (G)
  Matrix cell_divergence;  ///< (K, G) nats; 0 where no row was seen
  double divergence = 0;   ///< nats
  std::vector<Matrix> linear;
  std::vector<Vector> offset;
  Matrix canonical_mean;  ///< (d, K), in the common frame
  std::vector<Matrix>
      canonical_covariance;            ///< tied: 1, full: K, diagonal: one (d, K) of variances
  std::vector<double> objective_path;  ///< divergence after each round of the best start
  Index n_iter = 0;
  bool converged = true;
};

/// Throws NumericalError when a factorisation fails, std::invalid_argument when a group shares no
/// class with the reference.
IdealResult nearest_ideal(const Subgroups& subgroups, const IdealOptions& options);

}  // namespace fairsteer
