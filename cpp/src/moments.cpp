#include "fairsteer/moments.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <optional>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include "chan_merge.hpp"
#include "fairsteer/check.hpp"
#include "fairsteer/errors.hpp"
#include "kernels.hpp"
#include "linalg.hpp"
#include "moment_plan.hpp"
#include "parallel.hpp"
#include "row_reader.hpp"

namespace fairsteer {
namespace detail {
namespace {

// Numbers in the tables of one thread, where rows are read in their own order.
constexpr Index kTableSize = Index{1} << 17;

// What the range of single precision leaves for squares and for their sums over a block.
constexpr double kSmallestSquare = 1e-30, kLargestSquare = 1e30;

/// Rows with their cells, the tasks they are cut into, and the threads that work on these.
template <class T>
class Batch {
 public:
  using S = RowScalar<T>;

  /// What one thread adds up, and needs to read.
  struct Scratch {
    Chunk chunk;
    MatrixOf<S> staging;  // (d, kChunk) where rows cannot be read in place
    Matrix vectors;       // (vector size, slots): sums of a slot, of rows or of cubes
    Matrix squares;       // (2, slots): weights and their squares, or traces and fourth powers
  };

  Batch(const MomentShape& shape, const RowsView<T>& rows, const RowCells& cells, MomentPlan plan,
        Index vector_size, Index n_threads, const Watch* watch)
      : shape_(shape),
        rows_(rows),
        cells_(cells),
        reader_(rows),
        plan_(std::move(plan)),
        n_threads_(n_threads),
        watch_(watch) {
    scratch_.resize(std::max<Index>(1, std::min(n_threads, plan_.n_tasks())));
    for (Scratch& scratch : scratch_) {
      if (!reader_.in_place()) scratch.staging.resize(rows.cols, kChunk);
      scratch.vectors.resize(vector_size, plan_.most_slots());
      scratch.squares.resize(2, plan_.most_slots());
    }
  }

  const MomentShape& shape() const { return shape_; }
  const MomentPlan& plan() const { return plan_; }
  Index n_scratch() const { return static_cast<Index>(scratch_.size()); }

  RowList<S> read(Scratch& scratch) const {
    const Chunk& chunk = scratch.chunk;
    return reader_.read(chunk.which, chunk.first, chunk.count, scratch.staging.data());
  }

  /// Calls `function(chunk)` for all rows of a task, at most `most()` at a time.
  template <class Most, class Function>
  void for_chunks(const Task& task, Chunk& chunk, Most most, Function function) const {
    Slot slot{};
    Index s = -1, row = task.begin;
    for (bool more = true; more;) {
      if (watch_ != nullptr) watch_->stop();
      const Index limit = std::min(kChunk, most());
      if (plan_.is_in_order()) {
        take_in_order(row, std::min(limit, task.end - row), chunk);
        row += std::min(limit, task.end - row);
        more = row < task.end;
      } else {
        Index n = 0;
        while (n < limit) {
          if (slot.begin == slot.end) {
            more = ++s < task.n_slots;
            if (!more) break;
            slot = plan_.slot(task, s);
          }
          chunk.own_row[n] = plan_.row(slot.begin++);
          chunk.own_slot[n] = s;
          chunk.cell[n++] = slot.cell;
        }
        take_listed(n, chunk.own_slot.data(), chunk);
      }
      if (chunk.count > 0) function(chunk);
    }
  }

  /// Calls `work(task, scratch, thread)` on several threads, and `flush(task, scratch, thread)` in
  /// the order of the tasks.
  template <class Work, class Flush>
  void for_tasks(Work work, Flush flush) {
    Turns turns;
    for_each_task(
        plan_.n_tasks(), n_threads_,
        [&](Index t, Index thread) {
          const Task& task = plan_.tasks()[t];
          Scratch& scratch = scratch_[thread];
          scratch.vectors.setZero();
          scratch.squares.setZero();
          work(task, scratch, thread);
          turns.take(t, [&] { flush(task, scratch, thread); });
        },
        [&] { turns.give_up(); });
  }

  /// The exact mean of every cell before anything is squared: neither a large offset nor a cell's
  /// share of a common scatter then costs digits. Where a task has all rows of its cell and they
  /// may wait (`wait`), `find_mean` finds theirs when they are about to be read once more.
  CellSums find_means(bool wait) {
    const Index d = shape_.n_features;
    CellSums sums(d, shape_.n_cells());
    if (shape_.model != CovarianceModel::diagonal) sums.add_products();
    origin_ = first_rows();
    for_tasks(
        [&](const Task& task, Scratch& scratch, Index) {
          if (!wait || !plan_.has_whole_cell(task)) add_up(task, scratch);
        },
        [&](const Task& task, const Scratch& scratch, Index) {
          if (!wait || !plan_.has_whole_cell(task)) take_sums(task, scratch, sums);
        });
    for (Index c = 0; c < shape_.n_cells(); ++c)
      if (sums.weight[c] > 0) finish_mean(c, sums);
    return sums;
  }

  /// The mean of the rows of a task that has all of its cell. Leaves the scratch as it was.
  void find_mean(const Task& task, Scratch& scratch, CellSums& sums) const {
    add_up(task, scratch);
    take_sums(task, scratch, sums);
    finish_mean(plan_.cell(task, 0), sums);
    scratch.vectors.setZero();
    scratch.squares.setZero();
  }

 private:
  void add_up(const Task& task, Scratch& scratch) const {
    for_chunks(
        task, scratch.chunk, [] { return kChunk; },
        [&](Chunk& chunk) {
          for (Index i = 0; i < chunk.count; ++i) {
            const double w = chunk.weight ? chunk.weight[i] : 1.0;
            double* both = scratch.squares.data() + 2 * chunk.slot[i];
            both[0] += w;
            both[1] += w * w;
          }
          add_rows(read(scratch), origin_.data(), chunk.cell.data(), chunk.weight,
                   scratch.vectors.data(), chunk.slot);
        });
  }

  void take_sums(const Task& task, const Scratch& scratch, CellSums& sums) const {
    const Index d = shape_.n_features;
    for (Index s = 0; s < task.n_slots; ++s) {
      const Index cell = plan_.cell(task, s);
      sums.weight[cell] += scratch.squares(0, s);
      sums.weight_square[cell] += scratch.squares(1, s);
      // Vectors of d numbers, whatever the size of the table's columns.
      sums.mean.col(cell) += VectorView(scratch.vectors.data() + s * d, d);
    }
  }

  void finish_mean(Index cell, CellSums& sums) const {
    sums.mean.col(cell) = origin_.col(cell) + sums.mean.col(cell) / sums.weight[cell];
    if (shape_.model != CovarianceModel::diagonal)
      sums.centre.col(cell) = sums.mean.col(cell).template cast<S>().template cast<double>();
  }

  // Rows that follow one another, less those that are left out: mostly none is.
  void take_in_order(Index first, Index n, Chunk& chunk) const {
    bool all = true;
    for (Index i = 0; i < n; ++i) {
      const Index cell = cells_.of(first + i);
      chunk.cell[i] = cell;
      all = all && cell >= 0;
    }
    if (all) {
      chunk.count = n;
      chunk.first = first;
      chunk.which = nullptr;
      chunk.slot = chunk.cell.data();
      chunk.weight = cells_.weights ? cells_.weights + first : nullptr;
      return;
    }
    Index count = 0;
    for (Index i = 0; i < n; ++i) {
      chunk.own_row[count] = first + i;
      chunk.cell[count] = chunk.cell[i];
      count += chunk.cell[i] >= 0;
    }
    take_listed(count, chunk.cell.data(), chunk);
  }

  void take_listed(Index count, const Index* slots, Chunk& chunk) const {
    chunk.count = count;
    chunk.first = 0;
    chunk.which = chunk.own_row.data();
    chunk.slot = slots;
    chunk.weight = nullptr;
    if (!cells_.weights) return;
    for (Index i = 0; i < count; ++i) chunk.own_weight[i] = cells_.weights[chunk.own_row[i]];
    chunk.weight = chunk.own_weight.data();
  }

  // A row of every cell: sums relative to it lose nothing to an offset.
  Matrix first_rows() {
    const Index d = shape_.n_features;
    Matrix origin = Matrix::Zero(d, shape_.n_cells());
    std::vector<char> found(shape_.n_cells(), 0);
    Index missing = shape_.n_cells();
    const auto visit = [&](Index row, Index c) {
      if (found[c]) return;
      found[c] = 1;
      --missing;
      Scratch& scratch = scratch_.front();
      const RowList<S> list = reader_.read(nullptr, row, 1, scratch.staging.data());
      origin.col(c) = Eigen::Map<const VectorOf<S>>(list.data, d).template cast<double>();
    };
    if (plan_.is_in_order()) {
      for (Index row = 0; row < rows_.rows && missing > 0; ++row)
        if (cells_.of(row) >= 0) visit(row, cells_.of(row));
    } else {
      for (const Slot& slot : plan_.slots()) visit(plan_.row(slot.begin), slot.cell);
    }
    return origin;
  }

  const MomentShape shape_;
  const RowsView<T> rows_;
  const RowCells cells_;
  const RowReader<T> reader_;
  const MomentPlan plan_;
  const Index n_threads_;
  const Watch* const watch_;
  std::vector<Scratch> scratch_;
  Matrix origin_;  // a row of every cell
};

/// Products of rows with few features: rows of a block side by side, the product our own. Where the
/// tables stay near the core, rows are read in the order in which they lie: jumping from row to row
/// of a cell would cost more than everything else.
template <class T>
class RowBlocks {
  using S = RowScalar<T>;

 public:
  using Scratch = typename Batch<T>::Scratch;

  static bool fits(const MomentShape& shape) { return has_small_product(shape.n_features); }
  static Index table_size(const MomentShape& shape) {
    return shape.n_scatters() * small_product_stride<S>(shape.n_features) *
           small_product_columns(shape.n_features);
  }

  RowBlocks(const Batch<T>& batch, const CellSums& sums)
      : batch_(batch),
        d_(batch.shape().n_features),
        stride_(small_product_stride<S>(d_)),
        product_size_(stride_ * small_product_columns(d_)),
        n_scatters_(batch.plan().is_in_order() ? batch.shape().n_scatters() : 1),
        centre_(sums.centre.template cast<S>()) {
    limit_ = batch.plan().is_in_order()
                 ? std::clamp<Index>(kTableSize / (n_scatters_ * stride_), 32, 512)
                 : std::min<Index>(1024, std::max<Index>(1, batch.plan().n_sorted()));
    if (batch.plan().is_in_order())
      for (Index c = 0; c < batch.shape().n_cells(); ++c)
        scatter_.push_back(batch.shape().scatter_of(c));
    else
      scatter_.assign(static_cast<std::size_t>(batch.shape().n_cells()), 0);
    tables_.resize(batch.n_scratch());
    for (Tables& tables : tables_) {
      tables.block.resize(n_scatters_ * limit_ * stride_);
      tables.fill.resize(n_scatters_);
      tables.products.resize(n_scatters_ * product_size_);
    }
  }

  void begin(Index thread) {
    Tables& tables = tables_[thread];
    std::fill(tables.products.begin(), tables.products.end(), 0.0);
    std::fill(tables.fill.begin(), tables.fill.end(), 0);
  }

  /// Takes the centre of a cell anew.
  void centre(Index cell, const CellSums& sums) {
    centre_.col(cell) = sums.centre.col(cell).template cast<S>();
  }

  // Rows that fit into every block; never so few that reading them in turn is what takes time.
  Index room(Index thread) {
    Tables& tables = tables_[thread];
    const Index least = std::min(kChunk, (limit_ + 1) / 2);
    Index most = 0;
    for (Index scatter = 0; scatter < n_scatters_; ++scatter) {
      if (limit_ - tables.fill[scatter] < least) multiply(tables, scatter);
      most = std::max(most, tables.fill[scatter]);
    }
    return limit_ - most;
  }

  void add(Scratch& scratch, Index thread) {
    Tables& tables = tables_[thread];
    Chunk& chunk = scratch.chunk;
    for (Index i = 0; i < chunk.count; ++i) {
      const Index scatter = scatter_[chunk.cell[i]];
      chunk.position[i] = scatter * limit_ + tables.fill[scatter]++;
    }
    centre_rows(batch_.read(scratch), centre_.data(), chunk.cell.data(), chunk.weight,
                tables.block.data(), chunk.position.data(), stride_, scratch.squares.data(),
                scratch.vectors.data(), chunk.slot);
  }

  void end(Index thread) {
    for (Index scatter = 0; scatter < n_scatters_; ++scatter) multiply(tables_[thread], scatter);
  }

  template <class Into>
  void flush(const Task& task, Index thread, Into into) const {
    for (Index scatter = 0; scatter < n_scatters_; ++scatter) {
      const Index whole = batch_.plan().is_in_order()
                              ? scatter
                              : batch_.shape().scatter_of(batch_.plan().cell(task, 0));
      into(whole, tables_[thread].products.data() + scatter * product_size_, stride_);
    }
  }

 private:
  struct Tables {
    std::vector<S> block;          // rows of every scatter, `stride_` apart
    std::vector<Index> fill;       // rows in the block of each scatter
    std::vector<double> products;  // lower triangles of every scatter
  };

  void multiply(Tables& tables, Index scatter) const {
    const Index filled = tables.fill[scatter];
    if (filled == 0) return;
    add_small_product(tables.block.data() + scatter * limit_ * stride_, stride_, filled, d_,
                      tables.products.data() + scatter * product_size_);
    tables.fill[scatter] = 0;
  }

  const Batch<T>& batch_;
  const Index d_;
  const Index stride_;        // of rows in a block
  const Index product_size_;  // of one scatter
  const Index n_scatters_;    // of a task
  MatrixOf<S> centre_;
  Index limit_;                 // rows of a block
  std::vector<Index> scatter_;  // of every cell, within a task: a division a row would show
  std::vector<Tables> tables_;
};

/// Products of rows with many features, by BLAS: the numbers of a feature side by side in a block.
template <class T>
class ColumnBlocks {
  using S = RowScalar<T>;

 public:
  using Scratch = typename Batch<T>::Scratch;

  ColumnBlocks(const Batch<T>& batch, const CellSums& sums)
      : batch_(batch),
        d_(batch.shape().n_features),
        // Large enough that adding its product to the matrix of products is a small part of forming
        // it, small enough to stay near the core.
        limit_(std::min<Index>(std::clamp<Index>((Index{1} << 19) / d_, 512, 1024),
                               std::max<Index>(1, batch.plan().n_sorted()))),
        leading_(limit_ + 16),  // off the powers of two, at which cache lines displace one another
        centre_(sums.centre.template cast<S>()) {
    tables_.resize(batch.n_scratch());
    for (Tables& tables : tables_) {
      tables.block.resize(leading_ * d_);
      tables.product.resize(d_, d_);
    }
  }

  void begin(Index thread) {
    tables_[thread].keep = 0;
    tables_[thread].fill = 0;
  }

  /// Takes the centre of a cell anew.
  void centre(Index cell, const CellSums& sums) {
    centre_.col(cell) = sums.centre.col(cell).template cast<S>();
  }

  Index room(Index thread) {
    Tables& tables = tables_[thread];
    if (limit_ - tables.fill < std::min(kChunk, (limit_ + 1) / 2)) multiply(tables);
    return limit_ - tables.fill;
  }

  void add(Scratch& scratch, Index thread) {
    Tables& tables = tables_[thread];
    const Chunk& chunk = scratch.chunk;
    S* block = tables.block.data() + tables.fill;
    double* norms = tables.norms.data();
    centre_columns(batch_.read(scratch), centre_.data(), chunk.cell.data(), chunk.weight, block,
                   leading_, norms);
    tables.fill += chunk.count;
    for (Index i = 0; i < chunk.count; ++i) {
      const double norm = norms[i];
      auto squares = scratch.squares.col(chunk.slot[i]);
      squares[0] += norm;
      squares[1] += chunk.weight ? norm * norm / chunk.weight[i] : norm * norm;
      if (chunk.weight) norms[i] = norm / std::sqrt(chunk.weight[i]);
    }
    // Stretches of rows of one cell, relative to the largest factor: single precision suffices.
    for (Index begin = 0, end; begin < chunk.count; begin = end) {
      end = begin + 1;
      while (end < chunk.count && chunk.slot[end] == chunk.slot[begin]) ++end;
      const double largest = *std::max_element(norms + begin, norms + end);
      if (!(largest > 0)) continue;
      for (Index i = begin; i < end; ++i) tables.factors[i] = static_cast<S>(norms[i] / largest);
      add_weighted_columns(block + begin, leading_, end - begin, d_, tables.factors.data() + begin,
                           largest, scratch.vectors.col(chunk.slot[begin]).data());
    }
  }

  void end(Index thread) {
    Tables& tables = tables_[thread];
    multiply(tables);
    if (tables.keep == 0) tables.product.setZero();
  }

  template <class Into>
  void flush(const Task& task, Index thread, Into into) const {
    into(batch_.shape().scatter_of(batch_.plan().cell(task, 0)), tables_[thread].product.data(),
         d_);
  }

 private:
  struct Tables {
    std::vector<S> block;
    Index fill = 0;
    MatrixOf<S> product;  // lower triangle
    S keep = 0;           // 0: what is in it counts no more
    std::array<double, kChunk> norms;
    std::array<S, kChunk> factors;
  };

  void multiply(Tables& tables) const {
    if (tables.fill == 0) return;
    const Eigen::Map<const MatrixOf<S>, 0, Eigen::OuterStride<>> block(
        tables.block.data(), tables.fill, d_, Eigen::OuterStride<>(leading_));
    linalg::syrk<S>(block.transpose(), tables.product, 1, tables.keep);
    tables.keep = 1;
    tables.fill = 0;
  }

  const Batch<T>& batch_;
  const Index d_;
  const Index limit_;    // rows of a block
  const Index leading_;  // from feature to feature in a block
  MatrixOf<S> centre_;
  std::vector<Tables> tables_;
};

/// Adds products of rows to scatters, tied or full, and merges a scatter as soon as it has those of
/// all its rows: while it is near the core.
class Scatters {
 public:
  Scatters(const MomentSums& sums, const MomentPlan& plan, CellSums& added)
      : sums_(sums), added_(added), scatters_(sums.n_scatters()) {
    std::vector<char> present(sums.n_cells(), 0);
    for (Index c = 0; c < sums.n_cells(); ++c) present[c] = added.weight[c] > 0;
    for (const Task& task : plan.tasks())
      if (plan.has_whole_cell(task)) present[plan.cell(task, 0)] = 1;
    for (Index c = 0; c < sums.n_cells(); ++c)
      if (present[c]) scatters_[sums.scatter_of(c)].cells.push_back(c);
    for (const Task& task : plan.tasks()) {
      if (plan.is_in_order())
        for (Scatter& scatter : scatters_) ++scatter.n_products;
      else
        ++scatters_[sums.scatter_of(plan.cell(task, 0))].n_products;
    }
  }

  template <class S>
  void add(Index which, const S* product, Index ld) {
    Scatter& scatter = scatters_[which];
    const Index d = sums_.n_features;
    if (scatter.cells.empty()) return;
    // A scatter of no rows is written before it is read.
    const bool first = !scatter.merge && !sums_.holds_rows(which);
    if (!scatter.merge) {
      scatter.merge.emplace(sums_, scatter.cells, added_.of(scatter.cells));
      scatter.merge->read_scatter();
    }
    add_lower(product, ld, d, sums_.scatter + which * d * d, first);
    if (--scatter.n_products > 0) return;
    const CellSums some = added_.of(scatter.cells);
    scatter.merge->finish(some.trace, some.quartic, some.cubic);
    scatter.merge.reset();
  }

 private:
  struct Scatter {
    std::vector<Index> cells;
    Index n_products = 0;  // that are still to come
    std::optional<ChanMerge> merge;
  };

  const MomentSums& sums_;
  CellSums& added_;
  std::vector<Scatter> scatters_;
};

/// Adds the rows of a batch to scatters, tied or full. The blocks hold sqrt(s) y, so that norms are
/// s |y|^2; s |y|^2 y is wanted too.
template <class Blocks, class T>
void add_products(const MomentSums& sums, Batch<T>& batch, CellSums& added, bool wait) {
  using Scratch = typename Batch<T>::Scratch;
  Scatters scatters(sums, batch.plan(), added);
  Blocks blocks(batch, added);
  batch.for_tasks(
      [&](const Task& task, Scratch& scratch, Index thread) {
        if (wait && batch.plan().has_whole_cell(task)) {
          batch.find_mean(task, scratch, added);
          blocks.centre(batch.plan().cell(task, 0), added);
        }
        blocks.begin(thread);
        batch.for_chunks(
            task, scratch.chunk, [&] { return blocks.room(thread); },
            [&](Chunk&) { blocks.add(scratch, thread); });
        blocks.end(thread);
      },
      [&](const Task& task, const Scratch& scratch, Index thread) {
        for (Index s = 0; s < task.n_slots; ++s) {
          const Index cell = batch.plan().cell(task, s);
          added.trace[cell] += scratch.squares(0, s);
          added.quartic[cell] += scratch.squares(1, s);
          added.cubic.col(cell) += scratch.vectors.col(s);
        }
        blocks.flush(task, thread, [&](Index which, const auto* product, Index ld) {
          scatters.add(which, product, ld);
        });
      });
}

/// Adds the rows of a batch, feature by feature.
template <class T>
void add_diagonal(const MomentSums& sums, Batch<T>& batch, const CellSums& added) {
  using Scratch = typename Batch<T>::Scratch;
  const Index d = sums.n_features;
  Matrix total = Matrix::Zero(3 * d, sums.n_cells());  // squares, cubes, fourth powers
  batch.for_tasks(
      [&](const Task& task, Scratch& scratch, Index) {
        batch.for_chunks(
            task, scratch.chunk, [] { return kChunk; },
            [&](Chunk& chunk) {
              add_powers(batch.read(scratch), added.mean.data(), chunk.cell.data(), chunk.weight,
                         scratch.vectors.data(), chunk.slot);
            });
      },
      [&](const Task& task, const Scratch& scratch, Index) {
        for (Index s = 0; s < task.n_slots; ++s)
          total.col(batch.plan().cell(task, s)) += scratch.vectors.col(s);
      });
  for (Index c = 0; c < sums.n_cells(); ++c)
    if (added.weight[c] > 0)
      merge_diagonal_cell(
          sums, c,
          {added.weight[c], added.weight_square[c], added.mean.col(c).data(), total.col(c).data(),
           total.col(c).data() + d, total.col(c).data() + 2 * d});
}

/// What is known of the rows of a call.
template <class T>
struct Addition {
  const RowsView<T>& rows;
  RowCells cells;
  Index n_threads;
  const Watch* watch;
};

/// Adds rows to the sums, of scatters to the lower triangles; these are spoilt when it throws.
/// Returns the weights of the rows by cell.
template <class T>
Vector add_batch(const MomentSums& sums, const Addition<T>& addition) {
  const auto& [rows, cells, n_threads, watch] = addition;
  const bool diagonal = sums.model == CovarianceModel::diagonal;
  const bool small = !diagonal && RowBlocks<T>::fits(sums);
  const Index table = small ? RowBlocks<T>::table_size(sums) : 0;
  const bool in_order = (small || diagonal) && table <= kTableSize &&
                        sums.n_cells() * sums.n_features <= kTableSize / 2;
  Batch<T> batch(
      sums, rows, cells,
      in_order ? MomentPlan::in_order(sums, rows.rows) : MomentPlan::sorted(sums, cells, rows.rows),
      diagonal ? 3 * sums.n_features : sums.n_features, n_threads, watch);
  // The merge of a scatter of several cells wants the means of all of them beforehand.
  const bool wait = sums.model == CovarianceModel::full;
  CellSums added = batch.find_means(wait);
  if (diagonal)
    add_diagonal(sums, batch, added);
  else if (small)
    add_products<RowBlocks<T>>(sums, batch, added, wait);
  else
    add_products<ColumnBlocks<T>>(sums, batch, added, wait);
  return added.weight;
}

/// Sums as they were, to go back to when an addition fails. Of what holds no rows nothing is kept,
/// nor read: to read memory that nobody has written yet costs as much as to write it. A scatter
/// that is a matrix is its own backup: additions write its lower triangle, and the upper one when
/// nothing can fail any more.
class Backup {
 public:
  explicit Backup(const MomentSums& sums)
      : sums_(sums),
        weight_(copy(sums.weight, sums.n_cells())),
        weight_square_(copy(sums.weight_square, sums.n_cells())),
        variances_(sums.n_scatters()) {
    if (std::none_of(weight_.begin(), weight_.end(), [](double w) { return w > 0; })) return;
    mean_ = copy(sums.mean, sums.n_cells() * sums.n_features);
    cubic_ = copy(sums.cubic, sums.n_cells() * sums.n_features);
    quartic_ = copy(sums.quartic, sums.n_cells() * sums.quartic_size());
    for (Index i = 0; i < sums.n_scatters(); ++i) {
      if (!sums.holds_rows(i)) continue;
      variances_[i].resize(sums.n_features);
      for (Index j = 0; j < sums.n_features; ++j) variances_[i][j] = variance_now(i, j);
    }
  }

  double variance(Index scatter, Index j) const {
    return variances_[scatter].empty() ? 0 : variances_[scatter][j];
  }

  void restore() const noexcept {
    const Index cells = sums_.n_cells(), d = sums_.n_features, size = sums_.scatter_size();
    put(weight_, sums_.weight, cells);
    put(weight_square_, sums_.weight_square, cells);
    put(mean_, sums_.mean, cells * d);
    put(cubic_, sums_.cubic, cells * d);
    put(quartic_, sums_.quartic, cells * sums_.quartic_size());
    for (Index i = 0; i < sums_.n_scatters(); ++i) {
      double* scatter = sums_.scatter + i * size;
      if (variances_[i].empty()) {
        std::fill_n(scatter, size, 0.0);
        continue;
      }
      for (Index j = 0; j < d; ++j) variance_now(i, j) = variances_[i][j];
      if (sums_.model == CovarianceModel::diagonal) continue;
      for (Index j = 0; j < d; ++j)
        for (Index k = j + 1; k < d; ++k) scatter[j * d + k] = scatter[k * d + j];
    }
  }

 private:
  static std::vector<double> copy(const double* from, Index n) { return {from, from + n}; }
  static void put(const std::vector<double>& kept, double* to, Index n) noexcept {
    if (kept.empty())
      std::fill_n(to, n, 0.0);
    else
      std::copy(kept.begin(), kept.end(), to);
  }
  double& variance_now(Index scatter, Index j) const {
    return sums_.scatter[scatter * sums_.scatter_size() + j * sums_.variance_stride()];
  }

  const MomentSums sums_;
  std::vector<double> weight_, weight_square_, mean_, cubic_, quartic_;
  std::vector<std::vector<double>> variances_;  // of every scatter
};

/// The weights of each scatter's heaviest row; empty where rows have none.
std::vector<double> largest_weights(const MomentShape& shape, const RowCells& cells, Index n_rows) {
  std::vector<double> largest;
  if (cells.weights == nullptr) return largest;
  largest.assign(shape.n_scatters(), 0.0);
  for (Index row = 0; row < n_rows; ++row) {
    const Index cell = cells.of(row);
    if (cell < 0) continue;
    double& own = largest[shape.scatter_of(cell)];
    own = std::max(own, cells.weights[row]);
  }
  return largest;
}

/// Whether the weights are of a size at which products of rows keep their digits.
template <class T>
bool ordinary_weights(const std::vector<double>& largest) {
  const double most = std::is_same_v<T, double> ? 1e100 : kLargestSquare;
  return std::all_of(largest.begin(), largest.end(),
                     [&](double w) { return w == 0 || (w > 1 / most && w < most); });
}

/// Whether any of some features, listed by scatter, varies among the rows of a cell.
template <class T>
bool any_varies(const MomentShape& shape, const Addition<T>& addition,
                const std::vector<std::vector<Index>>& features) {
  const RowsView<T>& rows = addition.rows;
  std::vector<Index> first(shape.n_cells(), -1);
  for (Index row = 0; row < rows.rows; ++row) {
    const Index cell = addition.cells.of(row);
    if (cell < 0) continue;
    if (first[cell] < 0) first[cell] = row;
    const T *own = rows.row(row), *other = rows.row(first[cell]);
    for (const Index j : features[shape.scatter_of(cell)])
      if (own[j * rows.col_stride] != other[j * rows.col_stride]) return true;
  }
  return false;
}

/// Whether squares of rows, summed in single precision, left its range. Rows of half precision do
/// not, nor do those of the diagonal model, whose squares are formed in double.
template <class T>
bool left_range(const MomentSums& sums, const Backup& before, const Vector& added,
                const Addition<T>& addition) {
  if (!std::is_same_v<T, float> || sums.model == CovarianceModel::diagonal) return false;
  Vector weight = Vector::Zero(sums.n_scatters());
  for (Index c = 0; c < sums.n_cells(); ++c) weight[sums.scatter_of(c)] += added[c];
  bool any = false;
  std::vector<std::vector<Index>> tiny(sums.n_scatters());  // constant, or too small to be squared
  for (Index i = 0; i < sums.n_scatters(); ++i) {
    if (!(weight[i] > 0)) continue;
    for (Index j = 0; j < sums.n_features; ++j) {
      const double after = sums.scatter[i * sums.scatter_size() + j * sums.variance_stride()];
      const double square = (after - before.variance(i, j)) / weight[i];
      if (!(square < kLargestSquare)) return true;
      if (square > kSmallestSquare) continue;
      tiny[i].push_back(j);
      any = true;
    }
  }
  return any && any_varies(sums, addition, tiny);
}

/// Adds rows whose products or weights leave the range of their precision: some at a time in
/// double, their weights over the largest, and then as a whole to the sums. Writes and returns what
/// `add_batch` does.
template <class T>
Vector add_out_of_range(const MomentSums& sums, const Addition<T>& addition,
                        const std::vector<double>& largest) {
  const RowsView<T>& rows = addition.rows;
  const RowCells& cells = addition.cells;
  const Index d = sums.n_features;
  // An even power of two: the roots of weights are what they were.
  int exponent = 0;
  const double most = largest.empty() ? 1.0 : *std::max_element(largest.begin(), largest.end());
  if (most > 0) exponent = 2 * (std::ilogb(most) / 2);
  Moments own(sums);
  const MomentSums own_sums = own.sums();
  const Index size = std::max<Index>(kChunk, (Index{1} << 22) / d);
  Matrix block;  // a row of X is a column here
  std::vector<double> weights;
  for (Index begin = 0; begin < rows.rows; begin += size) {
    const Index count = std::min(size, rows.rows - begin);
    block.resize(d, count);
    for (Index i = 0; i < count; ++i)
      for (Index j = 0; j < d; ++j)
        block(j, i) = static_cast<double>(rows.row(begin + i)[j * rows.col_stride]);
    if (cells.weights != nullptr) {
      weights.resize(count);
      for (Index i = 0; i < count; ++i)
        weights[i] = std::ldexp(cells.weights[begin + i], -exponent);
    }
    const RowsView<double> view{block.data(), count, d, d, 1};
    const RowCells some{cells.classes + begin, cells.groups + begin,
                        cells.weights ? weights.data() : nullptr, cells.n_groups};
    add_batch<double>(own_sums, {view, some, addition.n_threads, addition.watch});
  }
  const auto scale = [](double* values, Index n, int power) {
    for (Index i = 0; i < n; ++i) values[i] = std::ldexp(values[i], power);
  };
  scale(own_sums.weight, sums.n_cells(), exponent);
  scale(own_sums.weight_square, sums.n_cells(), 2 * exponent);
  scale(own_sums.scatter, sums.n_scatters() * sums.scatter_size(), exponent);
  scale(own_sums.cubic, sums.n_cells() * d, exponent);
  scale(own_sums.quartic, sums.n_cells() * sums.quartic_size(), exponent);
  merge_cells(sums, own_sums, {});
  return VectorView(own_sums.weight, sums.n_cells());
}

}  // namespace
}  // namespace detail

CovarianceModel covariance_model(const std::string& name) {
  if (name == "tied") return CovarianceModel::tied;
  if (name == "full") return CovarianceModel::full;
  if (name == "diagonal") return CovarianceModel::diagonal;
  throw std::invalid_argument("covariance must be 'tied', 'full' or 'diagonal', not '" + name +
                              "'");
}

bool MomentSums::holds_rows(Index which) const {
  if (model != CovarianceModel::tied) return weight[which] > 0;
  for (Index k = 0; k < n_classes; ++k)
    if (weight[k * n_groups + which] > 0) return true;
  return false;
}

Moments::Moments(const MomentShape& shape)
    : shape_(shape),
      weight_(shape.n_cells(), 0.0),
      weight_square_(shape.n_cells(), 0.0),
      mean_(shape.n_cells() * shape.n_features, 0.0),
      scatter_(shape.n_scatters() * shape.scatter_size(), 0.0),
      cubic_(shape.n_cells() * shape.n_features, 0.0),
      quartic_(shape.n_cells() * shape.quartic_size(), 0.0) {}

MomentSums Moments::sums() {
  return {shape_,          weight_.data(), weight_square_.data(), mean_.data(),
          scatter_.data(), cubic_.data(),  quartic_.data()};
}

void check_sums(const char* function, const char* argument, const MomentSums& sums) {
  const std::string name(argument);
  check_at_least(function, (name + ".n_classes").c_str(), sums.n_classes, 1);
  check_at_least(function, (name + ".n_groups").c_str(), sums.n_groups, 1);
  check_at_least(function, (name + ".n_features").c_str(), sums.n_features, 1);
  check_not_negative(function, (name + ".weight").c_str(), sums.weight, sums.n_cells());
  check_not_negative(function, (name + ".weight_square").c_str(), sums.weight_square,
                     sums.n_cells());
  const std::string mean = name + ".mean", scatter = name + ".scatter";
  const Index d = sums.n_features;
  for (Index c = 0; c < sums.n_cells(); ++c)
    if (sums.weight[c] > 0) check_finite(function, mean.c_str(), sums.mean + c * d, d);
  for (Index i = 0; i < sums.n_scatters(); ++i) {
    if (!sums.holds_rows(i)) continue;
    const double* variance = sums.scatter + i * sums.scatter_size();
    for (Index j = 0; j < d; ++j)
      check_not_negative(function, scatter.c_str(), variance + j * sums.variance_stride(), 1);
  }
}

template <class T>
void update_moments(const MomentSums& sums, const RowsView<T>& rows, const std::int64_t* classes,
                    const std::int64_t* groups, const double* weights, Index n_threads,
                    const Watch* watch) {
  check_sums("update_moments", "sums", sums);
  if (rows.cols != sums.n_features)
    throw std::invalid_argument("update_moments: X must have " + std::to_string(sums.n_features) +
                                " columns, not " + std::to_string(rows.cols));
  check_codes("update_moments: class codes", classes, rows.rows, sums.n_classes);
  check_codes("update_moments: group codes", groups, rows.rows, sums.n_groups);
  if (weights != nullptr) check_not_negative("update_moments", "weights", weights, rows.rows);

  const detail::RowCells cells{classes, groups, weights, sums.n_groups};
  const detail::Addition<T> addition{rows, cells, n_threads, watch};
  const std::vector<double> largest = detail::largest_weights(sums, cells, rows.rows);
  const detail::Backup before(sums);
  try {
    Vector added;
    bool in_range = detail::ordinary_weights<T>(largest);
    if (in_range) {
      added = detail::add_batch(sums, addition);
      in_range = !detail::left_range(sums, before, added, addition);
      if (!in_range) before.restore();
    }
    if (!in_range) added = detail::add_out_of_range(sums, addition, largest);
    detail::check_merged(sums, "a row is not finite, or too large to be squared");
    std::vector<char> changed(sums.n_scatters(), 0);
    for (Index c = 0; c < sums.n_cells(); ++c)
      if (added[c] > 0) changed[sums.scatter_of(c)] = 1;
    detail::complete_scatters(sums, changed, n_threads);
  } catch (...) {
    before.restore();
    throw;
  }
}

#define FAIRSTEER_UPDATE_MOMENTS(T)                                                        \
  template void update_moments(const MomentSums&, const RowsView<T>&, const std::int64_t*, \
                               const std::int64_t*, const double*, Index, const Watch*);
FAIRSTEER_UPDATE_MOMENTS(float)
FAIRSTEER_UPDATE_MOMENTS(double)
FAIRSTEER_UPDATE_MOMENTS(Eigen::half)

}  // namespace fairsteer
