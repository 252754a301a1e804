#include "order.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

namespace fairsteer::detail {
namespace {

// Numbers of a key are of order one, or follow from such.
constexpr double kEqual = 1e-9;

// What one class or group is known by: the first number that differs decides.
using Key = std::vector<double>;
using Cells = std::vector<std::pair<Index, Index>>;

// Sorts a stretch by one number of the keys, and each run of equal ones by the next. A stretch that
// is one run stays in the loop: the keys of classes have a number for every group, and so deep must
// the recursion not go.
void sort_stretch(std::vector<Index>& order, std::size_t begin, std::size_t end,
                  const std::vector<Key>& keys, std::size_t number) {
  const auto value = [&](std::size_t i) { return keys[order[i]][number]; };
  for (; end - begin > 1 && number < keys[order[begin]].size(); ++number) {
    std::stable_sort(order.begin() + static_cast<std::ptrdiff_t>(begin),
                     order.begin() + static_cast<std::ptrdiff_t>(end),
                     [&](Index a, Index b) { return keys[a][number] < keys[b][number]; });
    const double scale = std::max({1.0, std::abs(value(begin)), std::abs(value(end - 1))});
    std::size_t first = begin;
    for (std::size_t i = begin + 1; i < end; ++i)
      if (value(i) - value(i - 1) > kEqual * scale) {
        sort_stretch(order, first, i, keys, number + 1);
        first = i;
      }
    begin = first;  // the last run
  }
}

std::vector<Index> sorted(const std::vector<Key>& keys) {
  std::vector<Index> order(keys.size());
  std::iota(order.begin(), order.end(), Index{0});
  sort_stretch(order, 0, order.size(), keys, 0);
  return order;
}

Vector variances_of(const Subgroups& subgroups, Index k, Index a) {
  if (subgroups.model == CovarianceModel::diagonal) return subgroups.variance(k, a);
  return subgroups.covariance(k, a).diagonal();
}

/// Mean and average variances of some cells.
struct Pooled {
  double weight = 0;
  Vector mean, variances;

  Pooled(const Subgroups& subgroups, const Cells& cells)
      : mean(Vector::Zero(subgroups.n_features)), variances(Vector::Zero(subgroups.n_features)) {
    for (const auto& [k, a] : cells) {
      if (!subgroups.seen(k, a)) continue;
      const double w = subgroups.weight(k, a);
      weight += w;
      mean += w * subgroups.mean(k, a);
      variances += w * variances_of(subgroups, k, a);
    }
    mean /= weight;
    variances /= weight;
  }
};

Key key_of(const Subgroups& subgroups, const Pooled& all, const Cells& cells) {
  const Pooled own(subgroups, cells);
  const Vector difference = own.mean - all.mean;
  const double variance = all.variances.sum();
  Key key{-own.weight, difference.squaredNorm() / variance, own.variances.sum() / variance};
  Key weights;
  for (const auto& [k, a] : cells) weights.push_back(-subgroups.weight(k, a));
  std::sort(weights.begin(), weights.end());
  key.insert(key.end(), weights.begin(), weights.end());
  for (Index j = 0; j < subgroups.n_features; ++j) {
    key.push_back(difference[j] / std::sqrt(all.variances[j]));
    key.push_back(own.variances[j] / all.variances[j]);
  }
  return key;
}

}  // namespace

Order order_by_data(const Subgroups& subgroups) {
  const Index K = subgroups.n_classes, G = subgroups.n_groups;
  std::vector<Cells> classes(K), groups(G);
  Cells cells;
  for (Index k = 0; k < K; ++k)
    for (Index a = 0; a < G; ++a) {
      cells.emplace_back(k, a);
      classes[k].emplace_back(k, a);
      groups[a].emplace_back(k, a);
    }
  const Pooled all(subgroups, cells);
  const auto order = [&](const std::vector<Cells>& parts) {
    std::vector<Key> keys;
    keys.reserve(parts.size());
    for (const Cells& part : parts) keys.push_back(key_of(subgroups, all, part));
    return sorted(keys);
  };
  return {order(classes), order(groups)};
}

Subgroups reordered(const Subgroups& subgroups, const Order& order) {
  Subgroups other = subgroups;
  const auto behind = [](const std::vector<Index>& at, const std::vector<Index>& places) {
    if (at.empty()) return places;
    std::vector<Index> composed;
    composed.reserve(places.size());
    for (const Index place : places) composed.push_back(at[place]);
    return composed;
  };
  other.class_at = behind(subgroups.class_at, order.classes);
  other.group_at = behind(subgroups.group_at, order.groups);
  for (Index k = 0; k < subgroups.n_classes; ++k)
    for (Index a = 0; a < subgroups.n_groups; ++a)
      other.weight(k, a) = subgroups.weight(order.classes[k], order.groups[a]);
  return other;
}

void restore_order(const Order& order, CovarianceModel model, IdealResult& result) {
  const auto inverse = [](const std::vector<Index>& at) {
    std::vector<Index> position(at.size());
    for (std::size_t i = 0; i < at.size(); ++i) position[at[i]] = static_cast<Index>(i);
    return position;
  };
  const std::vector<Index> classes = inverse(order.classes), groups = inverse(order.groups);
  const auto take = [](auto& items, const std::vector<Index>& which) {
    auto from = std::move(items);
    items.clear();
    for (const Index i : which) items.push_back(std::move(from[i]));
  };
  result.class_prior = Vector(result.class_prior(classes));
  result.group_prior = Vector(result.group_prior(groups));
  result.cell_divergence = Matrix(result.cell_divergence(classes, groups));
  result.canonical_mean = Matrix(result.canonical_mean(Eigen::all, classes));
  take(result.linear, groups);
  take(result.offset, groups);
  if (model == CovarianceModel::diagonal)
    result.canonical_covariance[0] = Matrix(result.canonical_covariance[0](Eigen::all, classes));
  else if (model == CovarianceModel::full)
    take(result.canonical_covariance, classes);
}

}  // namespace fairsteer::detail
