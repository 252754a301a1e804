#include "fairsteer/moments.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <type_traits>
#include <vector>

#include "chan_merge.hpp"
#include "fairsteer/row_sort.hpp"
#include "kernels.hpp"
#include "linalg.hpp"
#include "parallel.hpp"

namespace fairsteer {
namespace {

using detail::RowList;

// Rows whose products are added up in single precision before they go to double.
constexpr Index kTaskRows = 4096;

// Rows that are read at a time.
constexpr Index kChunk = 256;

// Numbers in the tables of one thread, where rows are read in their own order.
constexpr Index kTableSize = Index{1} << 17;

// A block of centred rows: large enough that adding its product to the matrix of products is a
// small part of forming it, small enough to stay near the core.
Index block_rows(Index n_features) {
  return std::clamp<Index>((Index{1} << 19) / n_features, 512, 1024);
}

/// Rows of any type and layout as lists of float or double rows.
template <class T>
class Reader {
 public:
  using S = std::conditional_t<std::is_same_v<T, double>, double, float>;

  explicit Reader(const RowsView<T>& rows) : rows_(rows) {}

  /// Whether rows are read where they lie; otherwise they are copied to the `staging` of `read`.
  bool in_place() const { return std::is_same_v<T, S> && rows_.col_stride == 1; }

  RowList<S> read(const Index* which, Index count, S* staging) const {
    if constexpr (std::is_same_v<T, S>)
      if (in_place()) return {rows_.data, rows_.row_stride, which, count, rows_.cols};
    stage(which, count, staging);
    return {staging, rows_.cols, nullptr, count, rows_.cols};
  }

 private:
  void stage(const Index* which, Index count, S* out) const {
    const Index d = rows_.cols;
    if constexpr (std::is_same_v<T, Eigen::half>) {
      if (rows_.col_stride == 1) {
        for (Index i = 0; i < count; ++i) detail::widen(rows_.row(which[i]), d, out + i * d);
        return;
      }
    }
    // Where columns are the contiguous direction, a few of them are read side by side.
    constexpr Index kColumns = 16;
    for (Index j0 = 0; j0 < d; j0 += kColumns)
      for (Index i = 0; i < count; ++i) {
        const T* row = rows_.row(which[i]);
        for (Index j = j0; j < std::min(d, j0 + kColumns); ++j)
          out[i * d + j] = static_cast<S>(row[j * rows_.col_stride]);
      }
  }

  const RowsView<T>& rows_;
};

/// Where a task adds up the rows of one cell, until it is its turn to add them to the whole.
struct Slot {
  Index cell;
  Index begin, end;  ///< of the sorted rows
};

struct Task {
  Index first_slot, n_slots;
  Index begin, end;  ///< rows, where they are read in their own order
};

/// How the rows are cut into tasks. It does not depend on the number of threads.
struct Plan {
  /// Rows are read in their own order; every task has a slot for every cell.
  Plan(Index n_rows, Index n_cells) {
    for (Index cell = 0; cell < n_cells; ++cell) slots.push_back({cell, 0, 0});
    const Index size = std::max(2 * kTaskRows, 16 * n_cells);
    for (Index begin = 0; begin < n_rows; begin += size)
      tasks.push_back({0, n_cells, begin, std::min(n_rows, begin + size)});
  }

  /// Rows are read cell by cell; a task has rows of one scatter.
  Plan(const MomentSums& sums, const RowsByCode& rows) {
    const bool tied = sums.model == CovarianceModel::tied;
    Index task_rows = 0, scatter = -1;
    for (Index i = 0; i < sums.n_cells(); ++i) {
      // Tied: the cells of a group follow one another.
      const Index cell = tied ? i % sums.n_classes * sums.n_groups + i / sums.n_classes : i;
      for (Index begin = rows.begin[cell]; begin < rows.begin[cell + 1];) {
        if (scatter != detail::scatter_of(sums, cell) || task_rows == kTaskRows) {
          tasks.push_back({static_cast<Index>(slots.size()), 0, 0, 0});
          scatter = detail::scatter_of(sums, cell);
          task_rows = 0;
        }
        const Index end = std::min(rows.begin[cell + 1], begin + kTaskRows - task_rows);
        slots.push_back({cell, begin, end});
        ++tasks.back().n_slots;
        task_rows += end - begin;
        begin = end;
      }
    }
  }

  Index n_tasks() const { return static_cast<Index>(tasks.size()); }
  Index most_slots() const {
    Index most = 0;
    for (const Task& task : tasks) most = std::max(most, task.n_slots);
    return most;
  }

  std::vector<Slot> slots;
  std::vector<Task> tasks;
};

/// Some rows of a task, and the slots that they belong to.
struct Chunk {
  Index count;
  std::array<Index, kChunk> row;
  std::array<Index, kChunk> slot;  // within the task
  std::array<Index, kChunk> cell;
  std::array<Index, kChunk> position;  // in the block
  std::array<double, kChunk> weight;
};

/// Scratch of one thread.
template <class S>
struct Scratch {
  Chunk chunk;
  MatrixOf<S> staging;           // (d, kChunk) where rows cannot be read in place
  std::vector<S> block;          // rows of every scatter, `stride` apart
  std::vector<Index> fill;       // rows in the block of each scatter
  MatrixOf<S> product;           // lower triangle, for BLAS
  std::vector<double> products;  // the same of every scatter, for few features
  std::array<double, kChunk> norms;
  std::array<S, kChunk> factors;
  Matrix vectors;  // (d, slots): sums of a slot, of rows or of cubes
  Matrix squares;  // (2, slots): weights and their squares, or traces and fourth powers
};

template <class T>
class Update {
 public:
  using S = typename Reader<T>::S;

  Update(const MomentSums& sums, const RowsView<T>& rows, const std::int64_t* classes,
         const std::int64_t* groups, const double* weights, Index n_threads)
      : sums_(sums),
        rows_(rows),
        reader_(rows),
        classes_(classes),
        groups_(groups),
        weights_(weights),
        n_threads_(n_threads),
        diagonal_(sums.model == CovarianceModel::diagonal),
        small_(!diagonal_ && detail::has_small_product(sums.n_features)),
        stride_(small_ ? detail::small_product_stride<S>(sums.n_features) : sums.n_features),
        product_size_(stride_ * detail::small_product_columns(sums.n_features)),
        in_order_(reads_in_order()),
        sorted_(in_order_ ? RowsByCode{}
                          : sort_rows(rows.rows, sums.n_cells(),
                                      [&](Index row) { return cell_of(row); })),
        plan_(in_order_ ? Plan(rows.rows, sums.n_cells()) : Plan(sums, sorted_)),
        batch_(sums.n_features, sums.n_cells()) {}

  void run() {
    const Index d = sums_.n_features;
    scratch_.resize(std::max<Index>(1, std::min(n_threads_, plan_.n_tasks())));
    n_scatters_ = in_order_ && !diagonal_ ? detail::n_scatters(sums_) : 1;
    limit_ = in_order_ ? std::clamp<Index>(kTableSize / (n_scatters_ * stride_), 32, 512)
                       : block_rows(d);
    if (!in_order_) limit_ = std::min<Index>(limit_, std::max<Index>(1, sorted_.rows.size()));
    leading_ = limit_ + 16;  // off the powers of two, at which cache lines displace one another
    for (Scratch<S>& scratch : scratch_) {
      if (!reader_.in_place()) scratch.staging.resize(d, kChunk);
      scratch.vectors.resize(diagonal_ ? 3 * d : d, plan_.most_slots());
      scratch.squares.resize(2, plan_.most_slots());
      if (diagonal_) continue;
      scratch.block.resize(small_ ? n_scatters_ * limit_ * stride_ : leading_ * d);
      scratch.fill.resize(n_scatters_);
      if (small_)
        scratch.products.resize(n_scatters_ * product_size_);
      else
        scratch.product.resize(d, d);
    }
    for (Index c = 0; c < sums_.n_cells(); ++c) scatter_.push_back(detail::scatter_of(sums_, c));
    find_means();
    if (!(batch_.weight.sum() > 0)) return;
    if (diagonal_)
      add_diagonal();
    else
      add_products();
  }

 private:
  // Negative for a row that is left out.
  Index cell_of(Index row) const {
    const std::int64_t k = classes_[row], a = groups_[row];
    const bool counts = (k | a) >= 0 && (weights_ == nullptr || weights_[row] > 0);
    return counts ? k * sums_.n_groups + a : -1;
  }

  // Short rows are read in the order in which they lie, where the tables that this takes stay near
  // the core: jumping from row to row of a cell would cost more than everything else.
  bool reads_in_order() const {
    const Index d = sums_.n_features;
    if (!small_ && !diagonal_) return false;
    const Index products = diagonal_ ? 0 : detail::n_scatters(sums_) * product_size_;
    return products <= kTableSize && sums_.n_cells() * d <= kTableSize / 2;
  }

  /// Calls `function(chunk)` for all rows of a task, at most `most()` at a time.
  template <class Most, class Function>
  void for_chunks(const Task& task, Chunk& chunk, Most most, Function function) const {
    Slot slot{};
    Index s = -1, row = task.begin;
    for (bool more = true; more;) {
      const Index limit = std::min(kChunk, most());
      Index n = 0;
      if (in_order_) {
        for (; n < limit && row < task.end; ++row) {
          const Index cell = cell_of(row);
          chunk.row[n] = row;
          chunk.slot[n] = chunk.cell[n] = cell;
          n += cell >= 0;
        }
        more = row < task.end;
      } else {
        while (n < limit) {
          if (slot.begin == slot.end) {
            more = ++s < task.n_slots;
            if (!more) break;
            slot = plan_.slots[task.first_slot + s];
          }
          chunk.row[n] = sorted_.rows[slot.begin++];
          chunk.slot[n] = s;
          chunk.cell[n++] = slot.cell;
        }
      }
      if (weights_)
        for (Index i = 0; i < n; ++i) chunk.weight[i] = weights_[chunk.row[i]];
      chunk.count = n;
      if (n > 0) function(chunk);
    }
  }

  RowList<S> read(Scratch<S>& scratch) const {
    const Chunk& chunk = scratch.chunk;
    RowList<S> list = reader_.read(chunk.row.data(), chunk.count, scratch.staging.data());
    // Rows that follow one another are found without their numbers.
    if (in_order_ && list.which && chunk.row[chunk.count - 1] - chunk.row[0] == chunk.count - 1) {
      list.data += chunk.row[0] * list.stride;
      list.which = nullptr;
    }
    return list;
  }

  const double* weights_of(const Chunk& chunk) const {
    return weights_ ? chunk.weight.data() : nullptr;
  }

  Index cell(const Task& task, Index slot) const {
    return plan_.slots[task.first_slot + slot].cell;
  }

  // Calls `work(task, scratch)` on several threads, and `flush` in the order of the tasks.
  template <class Work, class Flush>
  void for_tasks(Work work, Flush flush) {
    detail::Turns turns;
    detail::for_each_task(
        plan_.n_tasks(), n_threads_,
        [&](Index t, Index thread) {
          const Task& task = plan_.tasks[t];
          scratch_[thread].vectors.setZero();
          scratch_[thread].squares.setZero();
          work(task, scratch_[thread]);
          turns.take(t, [&] { flush(task, scratch_[thread]); });
        },
        [&] { turns.give_up(); });
  }

  // A row of every cell: sums relative to it lose nothing to an offset.
  Matrix first_rows() {
    const Index d = sums_.n_features;
    Matrix origin = Matrix::Zero(d, sums_.n_cells());
    std::vector<char> found(sums_.n_cells(), 0);
    Index missing = sums_.n_cells();
    const auto visit = [&](Index row, Index c) {
      if (found[c]) return;
      found[c] = 1;
      --missing;
      Scratch<S>& scratch = scratch_.front();
      const RowList<S> list = reader_.read(&row, 1, scratch.staging.data());
      const S* first = list.data + (list.which ? row * list.stride : 0);
      origin.col(c) = Eigen::Map<const VectorOf<S>>(first, d).template cast<double>();
    };
    if (in_order_) {
      for (Index row = 0; row < rows_.rows && missing > 0; ++row)
        if (cell_of(row) >= 0) visit(row, cell_of(row));
    } else {
      for (const Slot& slot : plan_.slots) visit(sorted_.rows[slot.begin], slot.cell);
    }
    return origin;
  }

  // The exact mean of every cell before anything is squared: neither a large offset nor a cell's
  // share of a common scatter then costs digits.
  void find_means() {
    const Index d = sums_.n_features;
    const Matrix origin = first_rows();
    for_tasks(
        [&](const Task& task, Scratch<S>& scratch) {
          for_chunks(
              task, scratch.chunk, [] { return kChunk; },
              [&](Chunk& chunk) {
                for (Index i = 0; i < chunk.count; ++i) {
                  const double w = weights_ ? chunk.weight[i] : 1.0;
                  double* sums = scratch.squares.data() + 2 * chunk.slot[i];
                  sums[0] += w;
                  sums[1] += w * w;
                }
                detail::add_rows(read(scratch), origin.data(), chunk.cell.data(), weights_of(chunk),
                                 scratch.vectors.data(), chunk.slot.data());
              });
        },
        [&](const Task& task, const Scratch<S>& scratch) {
          for (Index s = 0; s < task.n_slots; ++s) {
            batch_.weight[cell(task, s)] += scratch.squares(0, s);
            batch_.weight_square[cell(task, s)] += scratch.squares(1, s);
            batch_.mean.col(cell(task, s)) += VectorView(scratch.vectors.data() + s * d, d);
          }
        });
    for (Index c = 0; c < sums_.n_cells(); ++c) {
      if (!(batch_.weight[c] > 0)) continue;
      batch_.mean.col(c) = origin.col(c) + batch_.mean.col(c) / batch_.weight[c];
      batch_.centre.col(c) = batch_.mean.col(c).template cast<S>().template cast<double>();
    }
  }

  void add_products() {
    std::vector<detail::ChanMerge> merges;
    std::vector<std::vector<Index>> cells(detail::n_scatters(sums_));
    for (Index c = 0; c < sums_.n_cells(); ++c)
      if (batch_.weight[c] > 0) cells[detail::scatter_of(sums_, c)].push_back(c);
    for (const auto& some : cells)
      if (!some.empty()) merges.emplace_back(sums_, some, batch_.of(some));

    const Index d = sums_.n_features;
    const MatrixOf<S> centre = batch_.centre.template cast<S>();
    for_tasks(
        [&](const Task& task, Scratch<S>& scratch) {
          std::fill(scratch.products.begin(), scratch.products.end(), 0.0);
          scratch.product.setZero();
          std::fill(scratch.fill.begin(), scratch.fill.end(), 0);
          for_chunks(
              task, scratch.chunk, [&] { return room(scratch); },
              [&](Chunk&) { add_chunk(centre, scratch); });
          for (Index scatter = 0; scatter < n_scatters_; ++scatter) multiply(scratch, scatter);
        },
        [&](const Task& task, const Scratch<S>& scratch) {
          for (Index s = 0; s < task.n_slots; ++s) {
            batch_.trace[cell(task, s)] += scratch.squares(0, s);
            batch_.quartic[cell(task, s)] += scratch.squares(1, s);
            batch_.cubic.col(cell(task, s)) += scratch.vectors.col(s);
          }
          for (Index scatter = 0; scatter < n_scatters_; ++scatter) {
            const Index whole = in_order_ ? scatter : detail::scatter_of(sums_, cell(task, 0));
            double* into = sums_.scatter + whole * d * d;
            if (small_)
              detail::add_lower(scratch.products.data() + scatter * product_size_, stride_, d,
                                into);
            else
              detail::add_lower(scratch.product.data(), d, d, into);
          }
        });
    detail::for_each_task(static_cast<Index>(merges.size()), n_threads_, [&](Index i, Index) {
      const detail::CellSums added = batch_.of(merges[i].cells());
      merges[i].finish(added.trace, added.quartic, added.cubic);
    });
  }

  // Rows that fit into every block; never so few that reading them in turn is what takes time.
  Index room(Scratch<S>& scratch) const {
    const Index least = std::min(kChunk, (limit_ + 1) / 2);
    Index most = 0;
    for (Index scatter = 0; scatter < n_scatters_; ++scatter) {
      if (limit_ - scratch.fill[scatter] < least) multiply(scratch, scatter);
      most = std::max(most, scratch.fill[scatter]);
    }
    return limit_ - most;
  }

  // Centres rows into the block of their scatter; tiny cells share one. The block holds sqrt(s) y,
  // so that its norms are s |y|^2; s |y|^2 y is wanted too.
  void add_chunk(const MatrixOf<S>& centre, Scratch<S>& scratch) const {
    Chunk& chunk = scratch.chunk;
    if (small_)
      centre_by_row(centre, scratch);
    else
      centre_by_column(centre, scratch);
    double* squares = scratch.squares.data();
    for (Index i = 0; i < chunk.count; ++i) {
      const double norm = scratch.norms[i];
      squares[2 * chunk.slot[i]] += norm;
      squares[2 * chunk.slot[i] + 1] += weights_ ? norm * norm / chunk.weight[i] : norm * norm;
      if (weights_) scratch.norms[i] = norm / std::sqrt(chunk.weight[i]);
    }
    if (small_)
      detail::add_weighted(scratch.block.data(), chunk.position.data(), stride_, chunk.count,
                           sums_.n_features, scratch.norms.data(), scratch.vectors.data(),
                           chunk.slot.data());
    else
      add_cubes_by_column(scratch);
  }

  void centre_by_row(const MatrixOf<S>& centre, Scratch<S>& scratch) const {
    Chunk& chunk = scratch.chunk;
    for (Index i = 0; i < chunk.count; ++i) {
      const Index scatter = in_order_ ? scatter_[chunk.cell[i]] : 0;
      chunk.position[i] = scatter * limit_ + scratch.fill[scatter]++;
    }
    detail::centre_rows(read(scratch), centre.data(), chunk.cell.data(), weights_of(chunk),
                        scratch.block.data(), chunk.position.data(), stride_, scratch.norms.data());
  }

  void centre_by_column(const MatrixOf<S>& centre, Scratch<S>& scratch) const {
    Chunk& chunk = scratch.chunk;
    detail::centre_columns(read(scratch), centre.data(), chunk.cell.data(), weights_of(chunk),
                           scratch.block.data() + scratch.fill[0], leading_, scratch.norms.data());
    scratch.fill[0] += chunk.count;
  }

  // For stretches of rows of one cell, relative to the largest factor: single precision suffices.
  void add_cubes_by_column(Scratch<S>& scratch) const {
    const Chunk& chunk = scratch.chunk;
    const S* block = scratch.block.data() + scratch.fill[0] - chunk.count;
    for (Index begin = 0, end; begin < chunk.count; begin = end) {
      end = begin + 1;
      while (end < chunk.count && chunk.slot[end] == chunk.slot[begin]) ++end;
      const double* factors = scratch.norms.data();
      const double largest = *std::max_element(factors + begin, factors + end);
      if (!(largest > 0)) continue;
      for (Index i = begin; i < end; ++i) scratch.factors[i] = static_cast<S>(factors[i] / largest);
      detail::add_weighted_columns(block + begin, leading_, end - begin, sums_.n_features,
                                   scratch.factors.data() + begin, largest,
                                   scratch.vectors.col(chunk.slot[begin]).data());
    }
  }

  void multiply(Scratch<S>& scratch, Index scatter) const {
    const Index d = sums_.n_features, filled = scratch.fill[scatter];
    if (filled == 0) return;
    if (small_) {
      detail::add_small_product(scratch.block.data() + scatter * limit_ * stride_, stride_, filled,
                                d, scratch.products.data() + scatter * product_size_);
    } else {
      const Eigen::Map<const MatrixOf<S>, 0, Eigen::OuterStride<>> block(
          scratch.block.data(), filled, d, Eigen::OuterStride<>(leading_));
      linalg::syrk<S>(block.transpose(), scratch.product);
    }
    scratch.fill[scatter] = 0;
  }

  void add_diagonal() {
    const Index d = sums_.n_features;
    Matrix total = Matrix::Zero(3 * d, sums_.n_cells());  // squares, cubes, fourth powers
    for_tasks(
        [&](const Task& task, Scratch<S>& scratch) {
          for_chunks(
              task, scratch.chunk, [] { return kChunk; },
              [&](Chunk& chunk) {
                detail::add_powers(read(scratch), batch_.mean.data(), chunk.cell.data(),
                                   weights_of(chunk), scratch.vectors.data(), chunk.slot.data());
              });
        },
        [&](const Task& task, const Scratch<S>& scratch) {
          for (Index s = 0; s < task.n_slots; ++s)
            total.col(cell(task, s)) += scratch.vectors.col(s);
        });
    for (Index c = 0; c < sums_.n_cells(); ++c)
      if (batch_.weight[c] > 0)
        detail::merge_diagonal_cell(
            sums_, c,
            {batch_.weight[c], batch_.weight_square[c], batch_.mean.col(c).data(),
             total.col(c).data(), total.col(c).data() + d, total.col(c).data() + 2 * d});
  }

  const MomentSums& sums_;
  const RowsView<T>& rows_;
  const Reader<T> reader_;
  const std::int64_t* const classes_;
  const std::int64_t* const groups_;
  const double* const weights_;
  const Index n_threads_;
  const bool diagonal_;
  const bool small_;          // own products instead of BLAS
  const Index stride_;        // of rows in a block
  const Index product_size_;  // of one scatter's
  const bool in_order_;
  const RowsByCode sorted_;
  const Plan plan_;
  detail::CellSums batch_;
  std::vector<Scratch<S>> scratch_;
  std::vector<Index> scatter_;  // of every cell
  Index limit_ = 0;             // rows of a block
  Index leading_ = 0;           // from feature to feature in a block for BLAS
  Index n_scatters_ = 0;        // of a task
};

}  // namespace

template <class T>
void update_moments(const MomentSums& sums, const RowsView<T>& rows, const std::int64_t* classes,
                    const std::int64_t* groups, const double* weights, Index n_threads) {
  check_codes("class codes", classes, rows.rows, sums.n_classes);
  check_codes("group codes", groups, rows.rows, sums.n_groups);
  Update<T>(sums, rows, classes, groups, weights, n_threads).run();
}

#define FAIRSTEER_UPDATE_MOMENTS(T)                                                        \
  template void update_moments(const MomentSums&, const RowsView<T>&, const std::int64_t*, \
                               const std::int64_t*, const double*, Index);
FAIRSTEER_UPDATE_MOMENTS(float)
FAIRSTEER_UPDATE_MOMENTS(double)
FAIRSTEER_UPDATE_MOMENTS(Eigen::half)

}  // namespace fairsteer
