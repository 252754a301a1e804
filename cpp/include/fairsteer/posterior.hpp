// The nearest ideal distribution without a family, two classes: D~ = argmin KL(D~ || D) over the
// distributions whose posterior P(y = 1 | x, a) has the same law in every group. It depends on x
// through the posterior s under D alone, so everything happens on a grid of posteriors.
#pragma once

#include <vector>

#include "fairsteer/ideal.hpp"
#include "fairsteer/types.hpp"
#include "fairsteer/watch.hpp"

namespace fairsteer {

/// What is known of D: the law of the posterior in every group. Logits, because posteriors near 1
/// would lose their digits.
struct PosteriorLaws {
  Vector source;  ///< (S) logits of the posteriors that occur, ascending
  Vector target;  ///< (T) logits of those that the ideal distribution may have, ascending
  Matrix law;     ///< (S, G), every column sums to one; 0: does not occur in the group
  Vector weight;  ///< (G) shares of the groups, positive, sum to one

  Index n_source() const { return source.size(); }
  Index n_target() const { return target.size(); }
  Index n_groups() const { return law.cols(); }
};

/// The same of any number of classes, cell by cell: rows of a group whose posteriors are alike
/// count as one, and the ideal posterior takes one of T given values.
struct CellLaws {
  std::vector<Matrix> cost;  ///< kl(target || posterior of the cell) in nats, (T, S): one matrix
                             ///< for all groups or one for each
  Matrix law;                ///< (S, G), every column sums to one; 0: does not occur in the group
  Vector weight;             ///< (G) shares of the groups, positive, sum to one
  Vector common{};           ///< (T) the law of the ideal posterior, where that is given

  Index n_source() const { return law.rows(); }
  Index n_target() const { return cost.empty() ? 0 : cost.front().rows(); }
  Index n_groups() const { return law.cols(); }
};

struct PosteriorOptions {
  Intervention intervention = Intervention::all_subgroups;
  Index reference = -1;     ///< group whose law is the common one; only read when affirmative
  bool free_shares = true;  ///< whether the shares of the groups may change; never when affirmative
  Index max_iter = 100;     ///< steps of an interior-point method, and rounds of an alternation
  double tol = 1e-9;        ///< largest duality gap in nats
  const Watch* watch = nullptr;  ///< null: neither interrupted nor limited in time

  bool stop() const { return watch != nullptr && watch->stop(); }
};

struct PosteriorResult {
  Vector weight;            ///< (G) shares of the groups on D~
  Vector group_divergence;  ///< (G) nats: of a group's rows and labels from its own law
  double divergence = 0;    ///< nats, shares of the groups included
  double gap = 0;           ///< nats: how far `divergence` can lie above the optimum for `weight`
  Vector target_law;        ///< (T) the common law of the ideal posterior
  Matrix log_ratio;         ///< (S, G) log of what rows of that posterior are to be weighted by
  Matrix posterior;         ///< (S, G) ideal posterior of such rows, rising with the own one
  std::vector<Matrix>
      plan;  ///< of cells: by group, (T, S), mass that leads from a cell to a target
  Index n_iter = 0;
  bool converged = true;
};

/// The global optimum for the shares that it ends with; shares themselves are a fixed point of
/// `weight[a] ~ share[a] exp(-group_divergence[a])`, the lowest that a few starts find.
///
/// Every plan between a group's posteriors and the common ones is monotone, hence lies on a band
/// of the grid, which a grid of half the size finds. On it a primal-dual interior-point method
/// meets the optimum; all pairs off the band are then checked through the duality gap, and the band
/// is widened where they object.
///
/// Throws std::invalid_argument unless `check_posterior_laws` passes; when affirmative, unless
/// the reference is a group and the source grid is the target grid; and what `options.watch`
/// throws; NumericalError, with the group, when a number of the result is not finite. When time is
/// up or `max_iter` is reached, `converged` is false and `gap` says what is left. Posteriors with a
/// probability below 1e-12 in a group count as such that do not occur.
///
/// Cost: O((S + T) G b^2) a step with a band of b pairs a row, some tens of steps; memory O((S + T)
/// G b). Safe to call from several threads at a time.
PosteriorResult nearest_ideal_posterior(const PosteriorLaws& laws, const PosteriorOptions& options);

/// The same program on given costs, all pairs: dense interior point. Where `laws.common` is given
/// every group meets that law; `options.intervention` and `reference` are not read. The plans'
/// sums over cells are the target law, to the tolerance.
///
/// Throws std::invalid_argument unless `check_cell_laws` passes; otherwise as above.
/// Cost: O(G T^2 (S + T)) a step; memory O(G T (S + T)).
PosteriorResult nearest_ideal_cells(const CellLaws& laws, const PosteriorOptions& options);

/// Throws std::invalid_argument unless costs are finite, not negative and of one shape, and laws
/// and shares are probabilities.
void check_cell_laws(const CellLaws& laws);

/// Throws std::invalid_argument unless the grids ascend, are finite and have two points, laws are
/// not negative and sum to one, and shares are positive and sum to one.
void check_posterior_laws(const PosteriorLaws& laws);

}  // namespace fairsteer
