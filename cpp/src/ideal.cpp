#include "fairsteer/ideal.hpp"

#include <type_traits>

#include "alternation.hpp"
#include "diagonal.hpp"
#include "full.hpp"
#include "tied.hpp"

namespace fairsteer {
namespace {

template <class Model>
detail::Solution<typename Model::State> alternate(const Model& model, const Subgroups& subgroups,
                                                  const IdealOptions& options) {
  const detail::Alternation<Model> alternation(model, subgroups, options);
  if (options.intervention == Intervention::affirmative) return alternation.affirmative();
  if constexpr (std::is_same_v<Model, detail::FullModel>) {
    if (options.alignment == Alignment::affine) {
      // From the nearest symmetric solution as well: the affine one is then never farther.
      IdealOptions symmetric = options;
      symmetric.alignment = Alignment::symmetric;
      const detail::FullModel restricted(subgroups, symmetric);
      return alternation.all_subgroups(alternate(restricted, subgroups, symmetric));
    }
  }
  return alternation.all_subgroups();
}

template <class Model>
IdealResult solve(const Model& model, const Subgroups& subgroups, const IdealOptions& options) {
  const auto solution = alternate(model, subgroups, options);
  IdealResult result;
  result.class_prior = solution.priors.p;
  result.group_prior = solution.priors.r;
  result.cell_divergence = solution.cells;
  result.divergence = std::max(0.0, solution.objective);
  result.objective_path = solution.path;
  result.n_iter = solution.n_iter;
  result.converged = solution.converged;
  model.lift(solution, options.intervention == Intervention::affirmative ? options.reference : -1,
             result);
  return result;
}

}  // namespace

IdealResult nearest_ideal(const Subgroups& subgroups, const IdealOptions& options) {
  switch (subgroups.model) {
    case CovarianceModel::diagonal:
      return solve(detail::DiagonalModel(subgroups, options.alignment), subgroups, options);
    case CovarianceModel::tied:
      if (options.alignment == Alignment::affine)
        return solve(detail::TiedModel(subgroups), subgroups, options);
      [[fallthrough]];
    case CovarianceModel::full:
      return solve(detail::FullModel(subgroups, options), subgroups, options);
  }
  throw std::logic_error("unreachable");
}

}  // namespace fairsteer
