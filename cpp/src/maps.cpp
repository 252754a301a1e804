#include "fairsteer/maps.hpp"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "fairsteer/row_sort.hpp"
#include "kernels.hpp"
#include "linalg.hpp"
#include "parallel.hpp"

namespace fairsteer {
namespace {

template <class T>
using Single = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Up to this many rows of a group are mapped one by one: a product would not pay for its start.
constexpr Index kFewRows = 4;

// Rows of a block: enough of them to use the matrix many times once it has been read.
Index block_rows(Index n_features) {
  return std::clamp<Index>((Index{1} << 20) / n_features, 512, 2048);
}

template <class T>
void read_row(const RowsView<T>& rows, Index i, Single<T>* to) {
  const T* row = rows.row(i);
  if (rows.col_stride == 1) {
    if constexpr (std::is_same_v<T, Eigen::half>)
      detail::widen(row, rows.cols, to);
    else
      std::memcpy(to, row, static_cast<std::size_t>(rows.cols) * sizeof(T));
  } else {
    for (Index j = 0; j < rows.cols; ++j) to[j] = static_cast<Single<T>>(row[j * rows.col_stride]);
  }
}

/// Some rows of one group.
struct Part {
  Index group;
  Index begin, end;  ///< of the sorted rows
};

template <class T>
class Application {
  using S = Single<T>;

 public:
  Application(const RowsView<T>& rows, const RowsByCode& sorted, const S* linear, const S* offset,
              T* out)
      : rows_(rows), sorted_(sorted), linear_(linear), offset_(offset), out_(out) {
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
    const S* A = linear_ + part.group * d * d;
    const S* b = offset_ + part.group * d;
    for (Index i = 0; i < n; ++i) read_row(rows_, which[i], scratch.block.data() + i * d);
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
        detail::add(mapped, b, d, mapped);
        detail::narrow(mapped, d, out_ + which[i] * d);
      } else {
        detail::add(mapped, b, d, out_ + which[i] * d);
      }
    }
  }

  const RowsView<T>& rows_;
  const RowsByCode& sorted_;
  const S* linear_;
  const S* offset_;
  T* out_;
  std::vector<Part> parts_;
};

}  // namespace

template <class T>
void apply_maps(const RowsView<T>& rows, const std::int64_t* codes, Index n_groups,
                const Single<T>* linear, const Single<T>* offset, T* out, Index n_threads) {
  check_codes("codes", codes, rows.rows, n_groups);
  const RowsByCode sorted =
      sort_rows(rows.rows, n_groups, [&](Index i) { return static_cast<Index>(codes[i]); });
  Application<T>(rows, sorted, linear, offset, out).run(n_threads);
}

template void apply_maps(const RowsView<float>&, const std::int64_t*, Index, const float*,
                         const float*, float*, Index);
template void apply_maps(const RowsView<double>&, const std::int64_t*, Index, const double*,
                         const double*, double*, Index);
template void apply_maps(const RowsView<Eigen::half>&, const std::int64_t*, Index, const float*,
                         const float*, Eigen::half*, Index);

}  // namespace fairsteer
