// How rows are cut into tasks. It does not depend on the number of threads, and so neither do sums.
#pragma once

#include <vector>

#include "fairsteer/moments.hpp"
#include "fairsteer/row_sort.hpp"
#include "row_reader.hpp"

namespace fairsteer::detail {

/// Where a task adds up the rows of one cell, until it is its turn to add them to the whole.
struct Slot {
  Index cell;
  Index begin, end;  ///< of the sorted rows
};

struct Task {
  Index first_slot, n_slots;
  Index begin, end;  ///< rows, where they are read in their own order
};

class MomentPlan {
 public:
  /// Rows are read in their own order; every task has a slot for every cell.
  static MomentPlan in_order(const MomentShape& shape, Index n_rows);
  /// Rows are read cell by cell; a task has rows of one scatter.
  static MomentPlan sorted(const MomentShape& shape, const RowCells& cells, Index n_rows);

  bool is_in_order() const { return in_order_; }
  const std::vector<Task>& tasks() const { return tasks_; }
  Index n_tasks() const { return static_cast<Index>(tasks_.size()); }
  const Slot& slot(const Task& task, Index s) const { return slots_[task.first_slot + s]; }
  Index cell(const Task& task, Index s) const { return slot(task, s).cell; }
  Index most_slots() const;
  /// Whether a task has the rows of one cell, and all of them.
  bool has_whole_cell(const Task& task) const;
  /// Of a plan that is sorted, the row at a place; and how many there are.
  Index row(Index place) const { return rows_.rows[place]; }
  Index n_sorted() const { return static_cast<Index>(rows_.rows.size()); }
  const std::vector<Slot>& slots() const { return slots_; }

 private:
  explicit MomentPlan(bool in_order) : in_order_(in_order) {}

  bool in_order_;
  RowsByCode rows_;
  std::vector<Slot> slots_;
  std::vector<Task> tasks_;
};

}  // namespace fairsteer::detail
