// doctest, and the comparison that most of these tests make.
#pragma once

#include <doctest/doctest.h>

#include <cmath>

/// NaN is near nothing.
#define CHECK_NEAR(actual, expected, tolerance) \
  CHECK(std::abs((actual) - (expected)) <= (tolerance))
