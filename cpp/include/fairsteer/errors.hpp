// What the core throws. Bindings translate it; Python puts the labels in.
#pragma once

#include <stdexcept>
#include <string>

#include "fairsteer/types.hpp"

namespace fairsteer {

/// A factorisation failed although the input was finite. `class_index` and `group_index` name the
/// cell it happened in (-1: all of them).
class NumericalError : public std::runtime_error {
 public:
  NumericalError(const std::string& what, Index k, Index a)
      : std::runtime_error(what), class_index(k), group_index(a) {}

  Index class_index;
  Index group_index;
};

}  // namespace fairsteer
