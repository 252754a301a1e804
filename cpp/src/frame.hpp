// The common frame that moves the data least (theory section 7).
#pragma once

#include <vector>

#include "fairsteer/ideal.hpp"

namespace fairsteer::detail {

/// First two moments of a group over its classes.
struct GroupMoments {
  double weight;
  Vector mean;
  Matrix covariance;  ///< within plus between classes
};
std::vector<GroupMoments> group_moments(const Subgroups& subgroups);

/// u = linear z + offset, the pooled least-squares regression of x on z = E_a x + t_a.
struct Frame {
  Matrix linear;
  Vector offset;
};
Frame least_squares_frame(const std::vector<GroupMoments>& groups, const std::vector<Matrix>& E,
                          const std::vector<Vector>& t);

/// Whether the frame can be inverted; features are measured in `scale`.
bool is_invertible(const Frame& frame, const ConstVectorRef& scale);

/// Standard deviation of every feature over all groups (1 for a constant one).
Vector feature_scale(const std::vector<GroupMoments>& groups);

}  // namespace fairsteer::detail
