// Rows grouped by an integer code: one stable counting sort, then every code is a contiguous range.
#pragma once

#include <cstdint>
#include <vector>

#include "fairsteer/types.hpp"

namespace fairsteer {

struct RowsByCode {
  std::vector<Index> rows;   ///< row numbers, ordered by code, ascending within a code
  std::vector<Index> begin;  ///< n_codes + 1 offsets into `rows`
  Index size(Index code) const { return begin[code + 1] - begin[code]; }
};

/// Throws std::invalid_argument for a code of `n_codes` or more.
void check_codes(const char* name, const std::int64_t* codes, Index n_rows, Index n_codes);

/// Sorts rows by `code_of(row)`, below `n_codes`. Rows with a negative code are left out.
template <class CodeOf>
RowsByCode sort_rows(Index n_rows, Index n_codes, CodeOf code_of) {
  RowsByCode sorted;
  sorted.begin.assign(n_codes + 1, 0);
  for (Index i = 0; i < n_rows; ++i) {
    const Index code = code_of(i);
    if (code >= 0) ++sorted.begin[code + 1];
  }
  for (std::size_t c = 1; c < sorted.begin.size(); ++c) sorted.begin[c] += sorted.begin[c - 1];
  sorted.rows.resize(sorted.begin.back());
  std::vector<Index> next(sorted.begin.begin(), sorted.begin.end() - 1);
  for (Index i = 0; i < n_rows; ++i) {
    const Index code = code_of(i);
    if (code >= 0) sorted.rows[next[code]++] = i;
  }
  return sorted;
}

}  // namespace fairsteer
