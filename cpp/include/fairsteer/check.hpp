// Preconditions, refused in one style: "function: argument must be ..., not value".
#pragma once

#include <cmath>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>

#include "fairsteer/types.hpp"

namespace fairsteer {

/// Throws std::invalid_argument with the sentence.
[[noreturn]] inline void refuse(const char* function, const std::string& argument,
                                const std::string& must, double value) {
  std::ostringstream text;
  text.precision(std::numeric_limits<double>::digits10);
  text << function << ": " << argument << " must " << must << ", not " << value;
  throw std::invalid_argument(text.str());
}

inline void check_at_least(const char* function, const char* argument, Index value, Index least) {
  if (value < least)
    refuse(function, argument, "be at least " + std::to_string(least), static_cast<double>(value));
}

/// An index below `n`.
inline void check_index(const char* function, const char* argument, Index value, Index n) {
  if (value < 0 || value >= n)
    refuse(function, argument, "lie in [0, " + std::to_string(n) + ")", static_cast<double>(value));
}

inline void check_finite(const char* function, const char* argument, const double* values,
                         Index n) {
  for (Index i = 0; i < n; ++i)
    if (!std::isfinite(values[i]))
      refuse(function, std::string(argument) + "[" + std::to_string(i) + "]", "be finite",
             values[i]);
}

inline void check_not_negative(const char* function, const char* argument, const double* values,
                               Index n) {
  for (Index i = 0; i < n; ++i)
    if (!(values[i] >= 0) || std::isinf(values[i]))
      refuse(function, std::string(argument) + "[" + std::to_string(i) + "]",
             "be finite and not negative", values[i]);
}

}  // namespace fairsteer
