#include "chan_merge.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>

#include "fairsteer/check.hpp"
#include "fairsteer/errors.hpp"
#include "kernels.hpp"
#include "linalg.hpp"
#include "parallel.hpp"

namespace fairsteer {
namespace detail {
namespace {

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

// The same, feature by feature, about the mean.
void shift_diagonal_model(double weight, const ConstVectorRef& variance, const Vector& delta,
                          Eigen::Ref<Vector> cubic, Eigen::Ref<Vector> quartic) {
  const auto d = delta.array();
  quartic.array() +=
      4 * cubic.array() * d + 6 * variance.array() * d.square() + weight * d.square().square();
  cubic.array() += 3 * variance.array() * d + weight * d.cube();
}

// A symmetric matrix, of which the lower triangle is read, times a few columns.
Matrix product(const MatrixView& lower, const Matrix& columns) {
  if (columns.cols() != 1) return linalg::symmetric_product(lower, columns);
  Matrix column(columns.rows(), 1);
  symmetric_times(lower.data(), lower.rows(), columns.data(), column.data());
  return column;
}

// Lower triangle of sum += factor columns columns^T.
void add_squares(const Matrix& columns, double factor, Eigen::Map<Matrix>& sum) {
  if (columns.cols() == 1)
    add_outer(columns.data(), factor, columns.rows(), sum.data());
  else
    linalg::syrk<double>(columns, sum, factor);
}

}  // namespace

ChanMerge::ChanMerge(const MomentSums& sums, std::vector<Index> cells, CellSums added)
    : sums_(sums), cells_(std::move(cells)), added_(std::move(added)) {
  const Index d = sums.n_features, target = sums.scatter_of(cells_.front());
  const auto m = static_cast<Index>(cells_.size());
  scatter_ = sums.scatter + target * d * d;
  if (sums.model == CovarianceModel::tied)
    for (Index k = 0; k < sums.n_classes; ++k)
      old_total_ += sums.weight[k * sums.n_groups + target];
  else
    old_total_ = sums.weight[target];
  old_weight_.resize(m);
  difference_ = old_shift_ = Matrix::Zero(d, m);
  new_shift_ = added_.centre - added_.mean;
  for (Index i = 0; i < m; ++i) {
    const double n1 = old_weight_[i] = sums.weight[cells_[i]], n2 = added_.weight[i];
    if (!(n1 > 0)) continue;
    difference_.col(i) = added_.mean.col(i) - VectorView(sums.mean + cells_[i] * d, d);
    old_shift_.col(i) = -(n2 / (n1 + n2)) * difference_.col(i);
    new_shift_.col(i) += n1 / (n1 + n2) * difference_.col(i);
  }
}

void ChanMerge::read_scatter() {
  if (!(old_total_ > 0)) return;
  const Index d = sums_.n_features;
  const MatrixView scatter(scatter_, d, d);
  old_trace_ = scatter.trace();
  old_moved_ = product(scatter, old_shift_);
  new_moved_ = product(scatter, new_shift_);
}

void ChanMerge::finish(const Vector& trace, const Vector& quartic, const Matrix& cubic) {
  const Index d = sums_.n_features;
  Eigen::Map<Matrix> scatter(scatter_, d, d);
  // The scatter of the new rows times what they shift by.
  Matrix moved = Matrix::Zero(d, new_shift_.cols());
  if (!new_shift_.isZero(0)) moved = product(MatrixView(scatter_, d, d), new_shift_);
  if (old_total_ > 0) moved -= new_moved_;
  Matrix rounding = added_.mean - added_.centre;
  const Vector zero = Vector::Zero(d);
  const double new_total = added_.weight.sum();
  for (Index i = 0; i < rounding.cols(); ++i) {
    const Index c = cells_[i];
    const double n1 = old_weight_[i], n2 = added_.weight[i];
    Eigen::Map<Vector> own_mean(sums_.mean + c * d, d), own_cubic(sums_.cubic + c * d, d);
    double& own_quartic = sums_.quartic[c];
    // The tied model keeps no scatter of a cell: it gets its share of the group's.
    if (!(n1 > 0)) {
      own_cubic.setZero();
      own_quartic = sums_.weight_square[c] = 0;
    } else {
      const double share = n1 / old_total_;
      shift_matrix_model(n1, share * old_trace_, zero, share * old_moved_.col(i), old_shift_.col(i),
                         own_cubic, own_quartic);
    }
    Vector new_cubic = cubic.col(i);
    double new_quartic = quartic[i];
    shift_matrix_model(n2, trace[i], n2 * rounding.col(i), n2 / new_total * moved.col(i),
                       new_shift_.col(i), new_cubic, new_quartic);
    own_cubic += new_cubic;
    own_quartic += new_quartic;
    if (own_quartic < 0) own_quartic = 0;  // what is not a number stays so
    if (n1 > 0)
      own_mean += n2 / (n1 + n2) * difference_.col(i);
    else
      own_mean = added_.mean.col(i);
    sums_.weight[c] = n1 + n2;
    sums_.weight_square[c] += added_.weight_square[i];
    difference_.col(i) *= std::sqrt(n1 / (n1 + n2) * n2);
    rounding.col(i) *= std::sqrt(n2);
  }
  if (old_total_ > 0) add_squares(difference_, 1.0, scatter);
  if (!rounding.isZero(0)) add_squares(rounding, -1.0, scatter);
  for (Index j = 0; j < d; ++j)
    if (scatter(j, j) < 0) scatter(j, j) = 0;
}

void merge_diagonal_cell(const MomentSums& sums, Index cell, const DiagonalCell& other) {
  const Index d = sums.n_features;
  Eigen::Map<Vector> mean(sums.mean + cell * d, d), variance(sums.scatter + cell * d, d),
      cubic(sums.cubic + cell * d, d), quartic(sums.quartic + cell * d, d);
  const VectorView other_mean(other.mean, d), other_variance(other.variance, d);
  const double n1 = sums.weight[cell], n2 = other.weight;
  if (n1 > 0) {
    Vector other_cubic = VectorView(other.cubic, d), other_quartic = VectorView(other.quartic, d);
    const Vector difference = other_mean - mean;
    shift_diagonal_model(n1, variance, -(n2 / (n1 + n2)) * difference, cubic, quartic);
    shift_diagonal_model(n2, other_variance, (n1 / (n1 + n2)) * difference, other_cubic,
                         other_quartic);
    variance.array() += n1 / (n1 + n2) * n2 * difference.array().square();
    mean += n2 / (n1 + n2) * difference;
    variance += other_variance;
    cubic += other_cubic;
    quartic += other_quartic;
    sums.weight_square[cell] += other.weight_square;
  } else {
    mean = other_mean;
    variance = other_variance;
    cubic = VectorView(other.cubic, d);
    quartic = VectorView(other.quartic, d);
    sums.weight_square[cell] = other.weight_square;
  }
  sums.weight[cell] = n1 + n2;
}

void merge_cells(const MomentSums& sums, const MomentSums& other, const std::vector<Index>& cells) {
  const Index d = sums.n_features;
  const auto cell_of = [&](Index c) { return cells.empty() ? c : cells[c]; };
  if (sums.model == CovarianceModel::diagonal) {
    for (Index c = 0; c < other.n_cells(); ++c)
      if (other.weight[c] > 0)
        merge_diagonal_cell(sums, cell_of(c),
                            {other.weight[c], other.weight_square[c], other.mean + c * d,
                             other.scatter + c * d, other.cubic + c * d, other.quartic + c * d});
    return;
  }
  for (Index from = 0; from < other.n_scatters(); ++from) {
    std::vector<Index> here, there;
    for (Index c = 0; c < other.n_cells(); ++c)
      if (other.scatter_of(c) == from && other.weight[c] > 0) {
        here.push_back(cell_of(c));
        there.push_back(c);
      }
    if (here.empty()) continue;
    const auto m = static_cast<Index>(here.size());
    const MatrixView scatter(other.scatter + from * d * d, d, d);
    CellSums added(d, m);
    added.add_products();
    for (Index i = 0; i < m; ++i) {
      added.weight[i] = other.weight[there[i]];
      added.weight_square[i] = other.weight_square[there[i]];
      added.quartic[i] = other.quartic[there[i]];
      added.mean.col(i) = VectorView(other.mean + there[i] * d, d);
      added.cubic.col(i) = VectorView(other.cubic + there[i] * d, d);
    }
    added.centre = added.mean;
    added.trace = added.weight * (scatter.trace() / added.weight.sum());
    const Index target = sums.scatter_of(here[0]);
    ChanMerge merge(sums, std::move(here), added);
    merge.read_scatter();
    add_lower(scatter.data(), d, d, sums.scatter + target * d * d, !sums.holds_rows(target));
    merge.finish(added.trace, added.quartic, added.cubic);
  }
}

void complete_scatters(const MomentSums& sums, const std::vector<char>& which, Index n_threads) {
  if (sums.model == CovarianceModel::diagonal) return;
  const Index d = sums.n_features;
  for_each_task(sums.n_scatters(), n_threads, [&](Index i, Index) {
    if (which[i]) linalg::mirror(Eigen::Map<Matrix>(sums.scatter + i * d * d, d, d));
  });
}

void check_merged(const MomentSums& sums, const char* what) {
  const Index d = sums.n_features;
  for (Index c = 0; c < sums.n_cells(); ++c) {
    bool finite = std::isfinite(sums.weight[c]) && std::isfinite(sums.weight_square[c]);
    for (Index j = 0; finite && sums.weight[c] > 0 && j < d; ++j)
      finite = std::isfinite(sums.mean[c * d + j]);
    if (!finite) throw NumericalError(what, c / sums.n_groups, c % sums.n_groups);
  }
  const bool tied = sums.model == CovarianceModel::tied;
  for (Index i = 0; i < sums.n_scatters(); ++i) {
    if (!sums.holds_rows(i)) continue;
    for (Index j = 0; j < d; ++j)
      if (!std::isfinite(sums.scatter[i * sums.scatter_size() + j * sums.variance_stride()]))
        throw NumericalError(what, tied ? -1 : i / sums.n_groups, i % sums.n_groups);
  }
}

}  // namespace detail

namespace {

bool overlap(const double* one, Index n, const double* other, Index m) {
  const std::less<const double*> before;
  return before(one, other + m) && before(other, one + n);
}

}  // namespace

void merge_moments(const MomentSums& sums, const MomentSums& other, const std::int64_t* cells) {
  const char* const function = "merge_moments";
  check_sums(function, "sums", sums);
  check_sums(function, "other", other);
  if (other.model != sums.model)
    throw std::invalid_argument("merge_moments: other must be of the model of sums");
  if (other.n_features != sums.n_features)
    refuse(function, "other.n_features", "be " + std::to_string(sums.n_features),
           static_cast<double>(other.n_features));
  const Index d = sums.n_features;
  if (overlap(sums.weight, sums.n_cells(), other.weight, other.n_cells()) ||
      overlap(sums.weight_square, sums.n_cells(), other.weight_square, other.n_cells()) ||
      overlap(sums.mean, sums.n_cells() * d, other.mean, other.n_cells() * d) ||
      overlap(sums.scatter, sums.n_scatters() * sums.scatter_size(), other.scatter,
              other.n_scatters() * other.scatter_size()) ||
      overlap(sums.cubic, sums.n_cells() * d, other.cubic, other.n_cells() * d) ||
      overlap(sums.quartic, sums.n_cells() * sums.quartic_size(), other.quartic,
              other.n_cells() * other.quartic_size()))
    throw std::invalid_argument("merge_moments: other must not share memory with sums");
  std::vector<Index> to;
  std::vector<char> taken(sums.n_cells(), 0);
  std::vector<Index> scatter(other.n_scatters(), -1);
  for (Index c = 0; c < other.n_cells(); ++c) {
    const auto cell = static_cast<Index>(cells[c]);
    const std::string name = "cells[" + std::to_string(c) + "]";
    check_index(function, name.c_str(), cell, sums.n_cells());
    if (taken[cell]++) refuse(function, name, "differ from the others", static_cast<double>(cell));
    Index& own = scatter[other.scatter_of(c)];
    if (own < 0) own = sums.scatter_of(cell);
    if (own != sums.scatter_of(cell))
      refuse(function, name, "lie in group " + std::to_string(own) + ", as its group's others do",
             static_cast<double>(cell));
    to.push_back(cell);
  }
  std::vector<char> changed(sums.n_scatters(), 0);
  for (Index c = 0; c < other.n_cells(); ++c)
    if (other.weight[c] > 0) changed[sums.scatter_of(to[c])] = 1;
  detail::merge_cells(sums, other, to);
  detail::complete_scatters(sums, changed);
  detail::check_merged(sums, "the merged moments are too large");
}

}  // namespace fairsteer
