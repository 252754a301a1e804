// A test harness of one header: TEST registers, CHECK and CHECK_NEAR count, run_all() tells.
#pragma once

#include <cmath>
#include <exception>
#include <iostream>
#include <vector>

namespace fairsteer::testing {

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> registered;
  return registered;
}

inline int& failed_checks() {
  static int count = 0;
  return count;
}

struct Registration {
  Registration(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

inline void fail(const char* file, int line, const char* expression) {
  ++failed_checks();
  std::cerr << file << ":" << line << ": " << expression << "\n";
}

inline void check(bool holds, const char* file, int line, const char* expression) {
  if (!holds) fail(file, line, expression);
}

// NaN is near nothing.
inline void check_near(double actual, double expected, double tolerance, const char* file, int line,
                       const char* expression) {
  if (std::abs(actual - expected) <= tolerance) return;
  fail(file, line, expression);
  const auto precision = std::cerr.precision(17);
  std::cerr << "  " << actual << " is not within " << tolerance << " of " << expected << "\n";
  std::cerr.precision(precision);
}

/// Runs every registered test, prints `N passed, N failed`, and returns the exit status of the
/// process.
inline int run_all() {
  int passed = 0;
  int failed = 0;
  for (const Test& test : tests()) {
    const int before = failed_checks();
    try {
      test.run();
    } catch (const std::exception& error) {
      ++failed_checks();
      std::cerr << test.name << " threw: " << error.what() << "\n";
    }
    const bool ok = failed_checks() == before;
    ++(ok ? passed : failed);
    if (!ok) std::cerr << "FAILED " << test.name << "\n";
  }
  std::cout << passed << " passed, " << failed << " failed\n";
  return failed == 0 && passed > 0 ? 0 : 1;
}

}  // namespace fairsteer::testing

#define TEST(name)                                                                  \
  static void name();                                                               \
  static const ::fairsteer::testing::Registration name##_registration(#name, name); \
  static void name()

#define CHECK(condition)                                                        \
  ::fairsteer::testing::check(static_cast<bool>(condition), __FILE__, __LINE__, \
                              "CHECK(" #condition ")")

#define CHECK_NEAR(actual, expected, tolerance)                                           \
  ::fairsteer::testing::check_near((actual), (expected), (tolerance), __FILE__, __LINE__, \
                                   "CHECK_NEAR(" #actual ", " #expected ", " #tolerance ")")

#define CHECK_THROWS_AS(expression, exception)                                       \
  do {                                                                               \
    bool thrown = false;                                                             \
    try {                                                                            \
      static_cast<void>(expression);                                                 \
    } catch (const exception&) {                                                     \
      thrown = true;                                                                 \
    }                                                                                \
    ::fairsteer::testing::check(thrown, __FILE__, __LINE__,                          \
                                "CHECK_THROWS_AS(" #expression ", " #exception ")"); \
  } while (false)
