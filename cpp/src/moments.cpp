#include "fairsteer/moments.hpp"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "fairsteer/row_sort.hpp"

namespace fairsteer {
namespace {

// A block of gathered rows stays in cache, and is long enough that adding its product to the
// double-precision scatter is a small part of forming it.
Index block_rows(Index n_features) {
  return std::clamp<Index>((Index{1} << 19) / n_features, 128, 1024);
}

/// One cell's sums, about its own mean. The scatter is a matrix, or a column of variances.
struct CellSums {
  CellSums(Index d, bool is_diagonal)
      : mean(Vector::Zero(d)),
        scatter(Matrix::Zero(d, is_diagonal ? 1 : d)),
        cubic(Vector::Zero(d)),
        quartic(Vector::Zero(is_diagonal ? d : 1)),
        diagonal(is_diagonal) {}

  void set_zero() {
    weight = weight_square = 0;
    mean.setZero();
    scatter.setZero();
    cubic.setZero();
    quartic.setZero();
  }

  double weight = 0;
  double weight_square = 0;
  Vector mean;
  Matrix scatter;
  Vector cubic;
  Vector quartic;
  bool diagonal;
};

// Third and fourth moments about c - delta, from those about c: y becomes y + delta.
// `sum` is sum s_i y_i about c (zero when c is the mean), `scatter_delta` the scatter times delta.
void shift_matrix_model(double weight, double trace, const Vector& sum, const Vector& scatter_delta,
                        const Vector& delta, Eigen::Ref<Vector> cubic, double& quartic) {
  const double square = delta.squaredNorm();
  const double sum_delta = sum.dot(delta);
  quartic += 4 * delta.dot(scatter_delta) + 4 * cubic.dot(delta) + 2 * trace * square +
             4 * square * sum_delta + weight * square * square;
  cubic += trace * delta + 2 * scatter_delta + 2 * sum_delta * delta + square * sum +
           weight * square * delta;
}

// The same, feature by feature.
void shift_diagonal_model(double weight, const Vector& variance, const Vector& sum,
                          const Vector& delta, Eigen::Ref<Vector> cubic,
                          Eigen::Ref<Vector> quartic) {
  const auto d = delta.array();
  quartic.array() += 4 * cubic.array() * d + 6 * variance.array() * d.square() +
                     4 * sum.array() * d.cube() + weight * d.square().square();
  cubic.array() += 3 * variance.array() * d + 3 * sum.array() * d.square() + weight * d.cube();
}

// Reads rows into the columns of `block`, minus `shift`, times the square root of their weight.
template <class T, class S>
void gather(const RowsView<T>& rows, const Index* which, Index count, const Vector& shift,
            const double* weights, MatrixOf<S>& block) {
  const Index d = rows.cols;
  if (rows.col_stride == 1 || rows.col_stride < rows.row_stride) {
    for (Index i = 0; i < count; ++i) {
      const T* source = rows.row(which[i]);
      const double scale = weights ? std::sqrt(weights[which[i]]) : 1.0;
      S* target = block.data() + i * d;
      if (rows.col_stride == 1) {
        for (Index j = 0; j < d; ++j)
          target[j] = static_cast<S>((static_cast<double>(source[j]) - shift[j]) * scale);
      } else {
        for (Index j = 0; j < d; ++j)
          target[j] =
              static_cast<S>((static_cast<double>(source[j * rows.col_stride]) - shift[j]) * scale);
      }
    }
    return;
  }
  // Columns are the contiguous direction: walk them in the outer loop.
  for (Index j = 0; j < d; ++j) {
    const T* column = rows.data + j * rows.col_stride;
    for (Index i = 0; i < count; ++i) {
      const double scale = weights ? std::sqrt(weights[which[i]]) : 1.0;
      block(j, i) = static_cast<S>(
          (static_cast<double>(column[which[i] * rows.row_stride]) - shift[j]) * scale);
    }
  }
}

template <class T>
Vector mean_of_rows(const RowsView<T>& rows, const Index* which, Index count) {
  Vector mean = Vector::Zero(rows.cols);
  for (Index i = 0; i < count; ++i) {
    const T* source = rows.row(which[i]);
    for (Index j = 0; j < rows.cols; ++j)
      mean[j] += static_cast<double>(source[j * rows.col_stride]);
  }
  return mean / static_cast<double>(count);
}

/// Scratch of one call, reused for every cell.
template <class S>
struct Scratch {
  Scratch(Index d, Index rows) : block(d, rows), norm(rows), factor(rows) {}
  MatrixOf<S> block;
  MatrixOf<S> product;
  Vector norm;
  VectorOf<S> factor;
};

template <class T, class S>
void sum_cell(const RowsView<T>& rows, const Index* which, Index count, const double* weights,
              Scratch<S>& scratch, CellSums& cell) {
  const Index d = rows.cols;
  const Index limit = scratch.block.cols();
  cell.set_zero();
  // Any point near the rows serves as the provisional centre; their mean is not known yet.
  const Vector centre = mean_of_rows(rows, which, std::min<Index>(count, 64));
  Vector sum = Vector::Zero(d);
  for (Index start = 0; start < count; start += limit) {
    const Index n = std::min(limit, count - start);
    const Index* some = which + start;
    gather<T, S>(rows, some, n, centre, weights, scratch.block);
    const auto block = scratch.block.leftCols(n);
    for (Index i = 0; i < n; ++i) {
      const double w = weights ? weights[some[i]] : 1.0;
      cell.weight += w;
      cell.weight_square += w * w;
    }
    auto factor = scratch.factor.head(n);
    if (weights) {
      for (Index i = 0; i < n; ++i) factor[i] = static_cast<S>(std::sqrt(weights[some[i]]));
    } else {
      factor.setOnes();
    }
    sum += (block * factor).template cast<double>();
    if (cell.diagonal) {
      for (Index i = 0; i < n; ++i) {
        const double w = weights ? weights[some[i]] : 1.0;
        const auto y = block.col(i).template cast<double>().array();  // sqrt(s) (x - centre)
        cell.scatter.col(0).array() += y.square();
        cell.cubic.array() += y.cube() / std::sqrt(w);
        cell.quartic.array() += y.square().square() / w;
      }
      continue;
    }
    for (Index i = 0; i < n; ++i) {
      const double w = weights ? weights[some[i]] : 1.0;
      const double square = block.col(i).template cast<double>().squaredNorm();  // s |x - centre|^2
      cell.quartic[0] += square * square / w;
      factor[i] = static_cast<S>(square / std::sqrt(w));
    }
    cell.cubic += (block * factor).template cast<double>();
    if constexpr (std::is_same_v<S, double>) {
      cell.scatter.template selfadjointView<Eigen::Lower>().rankUpdate(block);
    } else {
      scratch.product.setZero(d, d);
      scratch.product.template selfadjointView<Eigen::Lower>().rankUpdate(block);
      cell.scatter.template triangularView<Eigen::Lower>() +=
          scratch.product.template cast<double>();
    }
  }
  // From the provisional centre to the mean.
  const Vector shift = sum / cell.weight;
  cell.mean = centre + shift;
  if (cell.diagonal) {
    shift_diagonal_model(cell.weight, cell.scatter.col(0), sum, -shift, cell.cubic, cell.quartic);
    cell.scatter.col(0).array() -= cell.weight * shift.array().square();
    cell.scatter = cell.scatter.cwiseMax(0.0);
    cell.quartic = cell.quartic.cwiseMax(0.0);
    return;
  }
  const Vector scatter_delta = -(cell.scatter.template selfadjointView<Eigen::Lower>() * shift);
  shift_matrix_model(cell.weight, cell.scatter.trace(), sum, scatter_delta, -shift, cell.cubic,
                     cell.quartic[0]);
  cell.scatter.template selfadjointView<Eigen::Lower>().rankUpdate(shift, -cell.weight);
  cell.scatter.template triangularView<Eigen::StrictlyUpper>() = cell.scatter.transpose();
  cell.scatter.diagonal() = cell.scatter.diagonal().cwiseMax(0.0);
  cell.quartic[0] = std::max(cell.quartic[0], 0.0);
}

struct CellView {
  double weight;
  double weight_square;
  const double* mean;
  const double* scatter;
  const double* cubic;
  const double* quartic;
};

// Chan's merge of one cell, but for the sum of the two scatters, which is left to the caller: the
// tied model has one for all cells of a group. The scales turn a group's scatter into the share of
// the cell (one in the other models).
void merge_cell(const MomentSums& sums, Index cell, const CellView& other, double own_scale,
                double other_scale) {
  const Index d = sums.n_features;
  const bool diagonal = sums.model == CovarianceModel::diagonal;
  const Index which = sums.model == CovarianceModel::tied ? cell % sums.n_groups : cell;
  const Index size = diagonal ? d : d * d;
  Eigen::Map<Vector> mean(sums.mean + cell * d, d);
  Eigen::Map<Vector> cubic(sums.cubic + cell * d, d);
  Eigen::Map<Vector> quartic(sums.quartic + cell * (diagonal ? d : 1), diagonal ? d : 1);
  Eigen::Map<Matrix> scatter(sums.scatter + which * size, d, diagonal ? 1 : d);
  const VectorView other_mean(other.mean, d);
  const MatrixView other_scatter(other.scatter, d, diagonal ? 1 : d);
  Vector other_cubic = VectorView(other.cubic, d);
  Vector other_quartic = VectorView(other.quartic, diagonal ? d : 1);

  const double n1 = sums.weight[cell];
  const double n2 = other.weight;
  const double total = n1 + n2;
  const Vector difference = other_mean - mean;
  if (n1 > 0) {
    const Vector delta1 = -(n2 / total) * difference;  // old rows about the new mean
    const Vector delta2 = (n1 / total) * difference;
    const Vector zero = Vector::Zero(d);
    if (diagonal) {
      shift_diagonal_model(n1, scatter.col(0), zero, delta1, cubic, quartic);
      shift_diagonal_model(n2, other_scatter.col(0), zero, delta2, other_cubic, other_quartic);
    } else {
      shift_matrix_model(n1, own_scale * scatter.trace(), zero, own_scale * (scatter * delta1),
                         delta1, cubic, quartic[0]);
      shift_matrix_model(n2, other_scale * other_scatter.trace(), zero,
                         other_scale * (other_scatter * delta2), delta2, other_cubic,
                         other_quartic[0]);
    }
  }
  cubic += other_cubic;
  quartic += other_quartic;
  if (n1 > 0) {
    const double between = n1 * n2 / total;
    if (diagonal)
      scatter.col(0).array() += between * difference.array().square();
    else
      scatter.noalias() += (between * difference) * difference.transpose();
    mean += (n2 / total) * difference;
  } else {
    mean = other_mean;
  }
  sums.weight[cell] = total;
  sums.weight_square[cell] += other.weight_square;
}

double group_weight(const MomentSums& sums, Index group) {
  double total = 0;
  for (Index k = 0; k < sums.n_classes; ++k) total += sums.weight[k * sums.n_groups + group];
  return total;
}

}  // namespace

template <class T>
void update_moments(const MomentSums& sums, const RowsView<T>& rows, const std::int64_t* codes,
                    const double* weights) {
  using S = std::conditional_t<std::is_same_v<T, double>, double, float>;
  const Index d = sums.n_features;
  const bool diagonal = sums.model == CovarianceModel::diagonal;
  const RowsByCode sorted = sort_rows_by_code(codes, rows.rows, sums.n_cells(), [&](Index i) {
    return weights == nullptr || weights[i] > 0;
  });
  Index longest = 1;
  for (Index c = 0; c < sums.n_cells(); ++c) longest = std::max(longest, sorted.size(c));
  Scratch<S> scratch(d, std::min(longest, block_rows(d)));
  CellSums cell(d, diagonal);
  for (Index c = 0; c < sums.n_cells(); ++c) {
    if (sorted.size(c) == 0) continue;
    sum_cell<T, S>(rows, sorted.rows.data() + sorted.begin[c], sorted.size(c), weights, scratch,
                   cell);
    const CellView view{cell.weight,         cell.weight_square, cell.mean.data(),
                        cell.scatter.data(), cell.cubic.data(),  cell.quartic.data()};
    const Index group = c % sums.n_groups;
    const bool tied = sums.model == CovarianceModel::tied;
    const double total = tied ? group_weight(sums, group) : 0;
    merge_cell(sums, c, view, tied && total > 0 ? sums.weight[c] / total : 1.0, 1.0);
    const Index which = tied ? group : c;
    Eigen::Map<Matrix>(sums.scatter + which * cell.scatter.size(), d, cell.scatter.cols()) +=
        cell.scatter;
  }
}

template void update_moments(const MomentSums&, const RowsView<float>&, const std::int64_t*,
                             const double*);
template void update_moments(const MomentSums&, const RowsView<double>&, const std::int64_t*,
                             const double*);
template void update_moments(const MomentSums&, const RowsView<Eigen::half>&, const std::int64_t*,
                             const double*);

void merge_moments(const MomentSums& sums, const MomentSums& other, const std::int64_t* cells) {
  const Index d = sums.n_features;
  const bool tied = sums.model == CovarianceModel::tied;
  const bool diagonal = sums.model == CovarianceModel::diagonal;
  const Index size = diagonal ? d : d * d;
  std::vector<double> before(sums.n_groups, 1.0);
  if (tied)
    for (Index a = 0; a < sums.n_groups; ++a) before[a] = group_weight(sums, a);
  for (Index c = 0; c < other.n_cells(); ++c) {
    if (other.weight[c] <= 0) continue;
    const Index which = tied ? c % other.n_groups : c;
    const CellView view{other.weight[c],     other.weight_square[c],
                        other.mean + c * d,  other.scatter + which * size,
                        other.cubic + c * d, other.quartic + c * (diagonal ? d : 1)};
    const double here = before[cells[c] % sums.n_groups];
    merge_cell(sums, cells[c], view, tied && here > 0 ? sums.weight[cells[c]] / here : 1.0,
               tied ? other.weight[c] / group_weight(other, which) : 1.0);
  }
  for (Index i = 0; i < (tied ? other.n_groups : other.n_cells()); ++i) {
    const Index into = tied ? cells[i] % sums.n_groups : cells[i];
    Eigen::Map<Vector>(sums.scatter + into * size, size) +=
        VectorView(other.scatter + i * size, size);
  }
}

}  // namespace fairsteer
