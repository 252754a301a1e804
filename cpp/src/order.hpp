// An order of classes and groups that follows from their numbers, so that names decide nothing.
#pragma once

#include <vector>

#include "fairsteer/ideal.hpp"

namespace fairsteer::detail {

struct Order {
  std::vector<Index> classes;  ///< the class that comes k-th
  std::vector<Index> groups;
};

/// Heaviest first; of equal weight, the one whose mean lies nearest to that of all rows, then the
/// one that varies least, then by the weights of its cells, then feature by feature. Numbers that
/// agree to nine digits are equal. Only the last rule, for what nothing else tells apart, depends
/// on the coordinates.
Order order_by_data(const Subgroups& subgroups);

/// The same subgroups in that order.
Subgroups reordered(const Subgroups& subgroups, const Order& order);

/// Puts the classes and groups of a result back into the order in which they were given.
void restore_order(const Order& order, CovarianceModel model, IdealResult& result);

}  // namespace fairsteer::detail
