#include "fairsteer/maps.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "fairsteer/check.hpp"
#include "fairsteer/row_sort.hpp"
#include "kernels.hpp"
#include "linalg.hpp"
#include "parallel.hpp"

namespace fairsteer {
namespace {

// Up to this many rows of a group are mapped one by one: a product would not pay for its start.
constexpr Index kFewRows = 4;

// Rows that an elementwise map reads at a time.
constexpr Index kTile = 64;

// Rows of a block: enough of them to use the matrix many times once it has been read.
Index block_rows(Index n_features) {
  return std::clamp<Index>((Index{1} << 20) / n_features, 512, 2048);
}

template <class T>
void read_row(const RowsView<T>& rows, Index i, MapScalar<T>* to) {
  const T* row = rows.row(i);
  if (rows.col_stride == 1) {
    if constexpr (std::is_same_v<T, Eigen::half>)
      detail::widen(row, rows.cols, to);
    else
      std::memcpy(to, row, static_cast<std::size_t>(rows.cols) * sizeof(T));
  } else {
    for (Index j = 0; j < rows.cols; ++j)
      to[j] = static_cast<MapScalar<T>>(row[j * rows.col_stride]);
  }
}

template <class T>
void write_row(const MapScalar<T>* mapped, Index d, T* out) {
  if constexpr (std::is_same_v<T, Eigen::half>)
    detail::narrow(mapped, d, out);
  else
    std::memcpy(out, mapped, static_cast<std::size_t>(d) * sizeof(T));
}

// out = the map of group a applied to x, feature by feature; the two may be the same.
template <class S>
void map_elementwise(const MapsView<S>& maps, Index a, const S* x, S* out) {
  const Index d = maps.n_features;
  const S* b = maps.offset + a * d;
  if (maps.kind == MapKind::translation) {
    for (Index j = 0; j < d; ++j) out[j] = x[j] + b[j];
  } else {
    const S* scale = maps.linear + a * d;
    const S* centre = maps.centre + a * d;
    for (Index j = 0; j < d; ++j) out[j] = scale[j] * (x[j] - centre[j]) + b[j];
  }
}

template <class T>
void apply_elementwise(const RowsView<T>& rows, const std::int64_t* codes,
                       const MapsView<MapScalar<T>>& maps, T* out, Index n_threads,
                       const Watch* watch) {
  using S = MapScalar<T>;
  const Index d = rows.cols;
  const Index size = std::max<Index>(kTile, (Index{1} << 18) / d / kTile * kTile);  // of a task
  const Index n_tasks = (rows.rows + size - 1) / size;
  const Index n = std::max<Index>(1, std::min(n_threads, n_tasks));
  constexpr bool kDirect = std::is_same_v<T, S>;
  const bool in_place = kDirect && rows.col_stride == 1;
  std::vector<std::vector<S>> scratch(n);
  if (!in_place)
    for (auto& own : scratch) own.resize(static_cast<std::size_t>(kTile * d));
  detail::for_each_task(n_tasks, n, [&](Index task, Index thread) {
    if (watch != nullptr) watch->stop();
    const Index end = std::min(rows.rows, (task + 1) * size);
    for (Index begin = task * size; begin < end; begin += kTile) {
      const Index count = std::min(kTile, end - begin);
      S* staged = scratch[thread].data();
      if (!in_place && rows.col_stride == 1) {
        for (Index i = 0; i < count; ++i) read_row(rows, begin + i, staged + i * d);
      } else if (!in_place) {
        // Where columns are the contiguous direction, a few of them are read side by side.
        constexpr Index kColumns = 16;
        for (Index j0 = 0; j0 < d; j0 += kColumns)
          for (Index i = 0; i < count; ++i) {
            const T* row = rows.row(begin + i);
            for (Index j = j0; j < std::min(d, j0 + kColumns); ++j)
              staged[i * d + j] = static_cast<S>(row[j * rows.col_stride]);
          }
      }
      for (Index i = 0; i < count; ++i) {
        const auto code = static_cast<Index>(codes[begin + i]);
        if (code < 0) continue;
        T* to = out + (begin + i) * d;
        if constexpr (kDirect) {
          map_elementwise(maps, code, in_place ? rows.row(begin + i) : staged + i * d, to);
        } else {
          map_elementwise(maps, code, staged + i * d, staged + i * d);
          write_row<T>(staged + i * d, d, to);
        }
      }
    }
  });
}

/// Some rows of one group.
struct Part {
  Index group;
  Index begin, end;  ///< of the sorted rows
};

template <class T>
class Application {
  using S = MapScalar<T>;

 public:
  Application(const RowsView<T>& rows, const RowsByCode& sorted, const MapsView<S>& maps, T* out,
              const Watch* watch)
      : rows_(rows), sorted_(sorted), maps_(maps), out_(out), watch_(watch) {
    centre_.assign(maps.centre, maps.centre + maps.n_groups * maps.n_features);
    for (S& value : centre_) value = -value;
    const auto n_groups = static_cast<Index>(sorted.begin.size()) - 1;
    const Index limit = block_rows(rows.cols);
    for (Index a = 0; a < n_groups; ++a)
      for (Index begin = sorted.begin[a]; begin < sorted.begin[a + 1]; begin += limit)
        parts_.push_back({a, begin, std::min(begin + limit, sorted.begin[a + 1])});
  }

  void run(Index n_threads) {
    Index longest = 1;
    for (const Part& part : parts_) longest = std::max(longest, part.end - part.begin);
    const Index n = std::max<Index>(1, std::min(n_threads, static_cast<Index>(parts_.size())));
    std::vector<Scratch> scratch(n);
    for (Scratch& own : scratch) {
      own.block.resize(rows_.cols, longest);
      own.mapped.resize(rows_.cols, longest);
    }
    detail::for_each_task(static_cast<Index>(parts_.size()), n,
                          [&](Index p, Index thread) { map(parts_[p], scratch[thread]); });
  }

 private:
  struct Scratch {
    MatrixOf<S> block;  // a row of X is a column here
    MatrixOf<S> mapped;
  };

  void map(const Part& part, Scratch& scratch) const {
    const Index d = rows_.cols, n = part.end - part.begin;
    const Index* which = sorted_.rows.data() + part.begin;
    const S* A = maps_.linear + part.group * d * d;
    const S* b = maps_.offset + part.group * d;
    const S* away = centre_.data() + part.group * d;
    if (watch_ != nullptr) watch_->stop();
    for (Index i = 0; i < n; ++i) {
      S* row = scratch.block.data() + i * d;
      if constexpr (std::is_same_v<T, S>) {
        if (rows_.col_stride == 1) {
          detail::add_vectors(rows_.row(which[i]), away, d, row);
          continue;
        }
      }
      read_row(rows_, which[i], row);
      detail::add_vectors(row, away, d, row);
    }
    if (n <= kFewRows) {
      for (Index i = 0; i < n; ++i)
        detail::map_row(A, scratch.block.data() + i * d, d, scratch.mapped.data() + i * d);
    } else {
      // Row-major storage read as column-major is the transpose.
      const Eigen::Map<const MatrixOf<S>> transposed(A, d, d);
      linalg::gemm<S>(transposed.transpose(), scratch.block.leftCols(n), scratch.mapped.leftCols(n),
                      1, 0);
    }
    for (Index i = 0; i < n; ++i) {
      S* mapped = scratch.mapped.data() + i * d;
      if constexpr (std::is_same_v<T, Eigen::half>) {
        detail::add_vectors(mapped, b, d, mapped);
        detail::narrow(mapped, d, out_ + which[i] * d);
      } else {
        detail::add_vectors(mapped, b, d, out_ + which[i] * d);
      }
    }
  }

  const RowsView<T>& rows_;
  const RowsByCode& sorted_;
  const MapsView<S>& maps_;
  std::vector<S> centre_;  // with the other sign
  T* out_;
  const Watch* watch_;
  std::vector<Part> parts_;
};

}  // namespace

template <class T>
void apply_maps(const RowsView<T>& rows, const std::int64_t* codes,
                const MapsView<MapScalar<T>>& maps, T* out, Index n_threads, const Watch* watch) {
  check_at_least("apply_maps", "n_features", maps.n_features, 1);
  if (rows.cols != maps.n_features)
    throw std::invalid_argument("apply_maps: X must have " + std::to_string(maps.n_features) +
                                " columns, not " + std::to_string(rows.cols));
  check_codes("apply_maps: codes", codes, rows.rows, maps.n_groups);
  if (maps.kind != MapKind::dense) {
    apply_elementwise(rows, codes, maps, out, n_threads, watch);
    return;
  }
  const RowsByCode sorted =
      sort_rows(rows.rows, maps.n_groups, [&](Index i) { return static_cast<Index>(codes[i]); });
  Application<T>(rows, sorted, maps, out, watch).run(n_threads);
}

template void apply_maps(const RowsView<float>&, const std::int64_t*, const MapsView<float>&,
                         float*, Index, const Watch*);
template void apply_maps(const RowsView<double>&, const std::int64_t*, const MapsView<double>&,
                         double*, Index, const Watch*);
template void apply_maps(const RowsView<Eigen::half>&, const std::int64_t*, const MapsView<float>&,
                         Eigen::half*, Index, const Watch*);

}  // namespace fairsteer
