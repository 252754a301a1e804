// Rows grouped by an integer code: one stable counting sort, then every code is a contiguous range.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "fairsteer/types.hpp"

namespace fairsteer {

struct RowsByCode {
  std::vector<Index> rows;   ///< row numbers, ordered by code, ascending within a code
  std::vector<Index> begin;  ///< n_codes + 1 offsets into `rows`
  Index size(Index code) const { return begin[code + 1] - begin[code]; }
};

/// Sorts rows by code. Negative codes, and rows that `keep(i)` refuses, are left out.
/// Throws std::invalid_argument for a code of `n_codes` or more.
template <class Keep>
RowsByCode sort_rows_by_code(const std::int64_t* codes, Index n_rows, Index n_codes, Keep keep) {
  RowsByCode sorted;
  sorted.begin.assign(n_codes + 1, 0);
  for (Index i = 0; i < n_rows; ++i) {
    if (codes[i] >= n_codes)
      throw std::invalid_argument("codes must be below " + std::to_string(n_codes) + ", not " +
                                  std::to_string(codes[i]) + " (row " + std::to_string(i) + ")");
    if (codes[i] >= 0 && keep(i)) ++sorted.begin[codes[i] + 1];
  }
  for (std::size_t c = 1; c < sorted.begin.size(); ++c) sorted.begin[c] += sorted.begin[c - 1];
  sorted.rows.resize(sorted.begin.back());
  std::vector<Index> next(sorted.begin.begin(), sorted.begin.end() - 1);
  for (Index i = 0; i < n_rows; ++i)
    if (codes[i] >= 0 && keep(i)) sorted.rows[next[static_cast<std::size_t>(codes[i])]++] = i;
  return sorted;
}

inline RowsByCode sort_rows_by_code(const std::int64_t* codes, Index n_rows, Index n_codes) {
  return sort_rows_by_code(codes, n_rows, n_codes, [](Index) { return true; });
}

}  // namespace fairsteer
