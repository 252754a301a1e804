#include "moment_plan.hpp"

#include <algorithm>

namespace fairsteer::detail {
namespace {

// Rows whose products are added up in single precision before they go to double.
constexpr Index kTaskRows = 4096;

}  // namespace

MomentPlan MomentPlan::in_order(const MomentShape& shape, Index n_rows) {
  MomentPlan plan(true);
  const Index n_cells = shape.n_cells();
  for (Index cell = 0; cell < n_cells; ++cell) plan.slots_.push_back({cell, 0, 0});
  const Index size = std::max(2 * kTaskRows, 16 * n_cells);
  for (Index begin = 0; begin < n_rows; begin += size)
    plan.tasks_.push_back({0, n_cells, begin, std::min(n_rows, begin + size)});
  return plan;
}

MomentPlan MomentPlan::sorted(const MomentShape& shape, const RowCells& cells, Index n_rows) {
  MomentPlan plan(false);
  plan.rows_ = sort_rows(n_rows, shape.n_cells(), [&](Index row) { return cells.of(row); });
  const std::vector<Index>& first = plan.rows_.begin;
  const bool tied = shape.model == CovarianceModel::tied;
  Index task_rows = 0, scatter = -1;
  for (Index i = 0; i < shape.n_cells(); ++i) {
    // Tied: the cells of a group follow one another.
    const Index cell = tied ? i % shape.n_classes * shape.n_groups + i / shape.n_classes : i;
    for (Index begin = first[cell]; begin < first[cell + 1];) {
      if (scatter != shape.scatter_of(cell) || task_rows == kTaskRows) {
        plan.tasks_.push_back({static_cast<Index>(plan.slots_.size()), 0, 0, 0});
        scatter = shape.scatter_of(cell);
        task_rows = 0;
      }
      const Index end = std::min(first[cell + 1], begin + kTaskRows - task_rows);
      plan.slots_.push_back({cell, begin, end});
      ++plan.tasks_.back().n_slots;
      task_rows += end - begin;
      begin = end;
    }
  }
  return plan;
}

Index MomentPlan::most_slots() const {
  Index most = 0;
  for (const Task& task : tasks_) most = std::max(most, task.n_slots);
  return most;
}

bool MomentPlan::has_whole_cell(const Task& task) const {
  if (in_order_ || task.n_slots != 1) return false;
  const Slot& own = slot(task, 0);
  return own.begin == rows_.begin[own.cell] && own.end == rows_.begin[own.cell + 1];
}

}  // namespace fairsteer::detail
