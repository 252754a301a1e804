#include "kernels.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "fairsteer/row_sort.hpp"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

// One copy of a function for each level of the instruction set. A sanitizer's checks would run
// before its runtime is ready in the code that chooses, and clang wants other names.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && \
    __GNUC__ >= 12 && !defined(__SANITIZE_ADDRESS__)
#define FAIRSTEER_CLONES \
  __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define FAIRSTEER_CLONES
#endif

// The bodies are inlined into every copy, so that none of them is shared between instruction sets.
#if defined(__GNUC__)
#define FAIRSTEER_INLINE inline __attribute__((always_inline))
#else
#define FAIRSTEER_INLINE inline
#endif

namespace fairsteer::detail {
namespace {

// 64 bytes of numbers that are handled together; the compiler splits them where registers are
// narrower. (Without such types the loops below are plain ones over an array.)
template <class S>
constexpr Index kWidth = static_cast<Index>(64 / sizeof(S));

#if defined(__GNUC__)
template <class S>
struct PackOf;
template <>
struct PackOf<float> {
  typedef float type __attribute__((vector_size(64), aligned(4), may_alias));
};
template <>
struct PackOf<double> {
  typedef double type __attribute__((vector_size(64), aligned(8), may_alias));
};
template <class S>
using Pack = typename PackOf<S>::type;

template <class S>
FAIRSTEER_INLINE Pack<S>& pack(S* at) {
  return *reinterpret_cast<Pack<S>*>(at);
}
template <class S>
FAIRSTEER_INLINE const Pack<S>& pack(const S* at) {
  return *reinterpret_cast<const Pack<S>*>(at);
}
#else
template <class S>
struct Pack {
  S lane[kWidth<S>];
  Pack& operator+=(const Pack& other) {
    for (Index l = 0; l < kWidth<S>; ++l) lane[l] += other.lane[l];
    return *this;
  }
  friend Pack operator*(Pack a, const Pack& b) {
    for (Index l = 0; l < kWidth<S>; ++l) a.lane[l] *= b.lane[l];
    return a;
  }
  friend Pack operator+(Pack a, const Pack& b) { return a += b; }
  friend Pack operator-(Pack a, const Pack& b) {
    for (Index l = 0; l < kWidth<S>; ++l) a.lane[l] -= b.lane[l];
    return a;
  }
  friend Pack operator*(S factor, Pack a) {
    for (Index l = 0; l < kWidth<S>; ++l) a.lane[l] *= factor;
    return a;
  }
};
template <class S>
Pack<S>& pack(S* at) {
  return *reinterpret_cast<Pack<S>*>(at);
}
template <class S>
const Pack<S>& pack(const S* at) {
  return *reinterpret_cast<const Pack<S>*>(at);
}
#endif

// The same number of doubles, from numbers that lie at `from`.
#if defined(__GNUC__)
typedef float Floats8 __attribute__((vector_size(32), aligned(4), may_alias));
FAIRSTEER_INLINE Pack<double> doubles(const float* from) {
  return __builtin_convertvector(*reinterpret_cast<const Floats8*>(from), Pack<double>);
}
#else
inline Pack<double> doubles(const float* from) {
  Pack<double> to;
  for (Index l = 0; l < kWidth<double>; ++l) to.lane[l] = static_cast<double>(from[l]);
  return to;
}
#endif
FAIRSTEER_INLINE Pack<double> doubles(const double* from) { return pack(from); }

template <class S>
FAIRSTEER_INLINE S lane(const Pack<S>& x, Index i) {
#if defined(__GNUC__)
  return x[i];
#else
  return x.lane[i];
#endif
}

// The sum of the lanes, by halves.
template <class S>
FAIRSTEER_INLINE S sum_of_lanes(const Pack<S>& lanes);
#if defined(__GNUC__)
template <>
FAIRSTEER_INLINE float sum_of_lanes(const Pack<float>& x) {
  const auto a = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
                 __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
  const auto b =
      __builtin_shufflevector(a, a, 0, 1, 2, 3) + __builtin_shufflevector(a, a, 4, 5, 6, 7);
  return (b[0] + b[2]) + (b[1] + b[3]);
}
template <>
FAIRSTEER_INLINE double sum_of_lanes(const Pack<double>& x) {
  const auto a =
      __builtin_shufflevector(x, x, 0, 1, 2, 3) + __builtin_shufflevector(x, x, 4, 5, 6, 7);
  return (a[0] + a[2]) + (a[1] + a[3]);
}
#else
template <class S>
S sum_of_lanes(const Pack<S>& x) {
  S sum = S(0);
  for (Index l = 0; l < kWidth<S>; ++l) sum += x.lane[l];
  return sum;
}
#endif

// Lanes of both in turn, of their first and of their second halves.
template <class S>
FAIRSTEER_INLINE void interleave(const Pack<S>& a, const Pack<S>& b, Pack<S>& first,
                                 Pack<S>& second);
#if defined(__GNUC__)
template <>
FAIRSTEER_INLINE void interleave<float>(const Pack<float>& a, const Pack<float>& b,
                                        Pack<float>& first, Pack<float>& second) {
  first = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  second =
      __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
template <>
FAIRSTEER_INLINE void interleave<double>(const Pack<double>& a, const Pack<double>& b,
                                         Pack<double>& first, Pack<double>& second) {
  first = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
  second = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}
#else
template <class S>
void interleave(const Pack<S>& a, const Pack<S>& b, Pack<S>& first, Pack<S>& second) {
  constexpr Index half = kWidth<S> / 2;
  for (Index l = 0; l < half; ++l) {
    first.lane[2 * l] = a.lane[l];
    first.lane[2 * l + 1] = b.lane[l];
    second.lane[2 * l] = a.lane[half + l];
    second.lane[2 * l + 1] = b.lane[half + l];
  }
}
#endif

// As many packs as a pack has lanes: lane l of pack i goes to lane i of pack l.
template <class S>
FAIRSTEER_INLINE void transpose(Pack<S>* packs) {
  constexpr Index width = kWidth<S>, half = width / 2;
  Pack<S> other[width];
  for (Index stride = 1; stride < width; stride *= 2) {
    for (Index i = 0; i < half; ++i)
      interleave<S>(packs[i], packs[i + half], other[2 * i], other[2 * i + 1]);
    for (Index i = 0; i < width; ++i) packs[i] = other[i];
  }
}

// The first cache lines of a row that is wanted soon.
template <class T>
FAIRSTEER_INLINE void prefetch(const T* row, Index n_features) {
#if defined(__GNUC__)
  constexpr Index line = static_cast<Index>(64 / sizeof(T)), lines = 4;
  for (Index j = 0; j < std::min(n_features, lines * line); j += line) __builtin_prefetch(row + j);
#endif
}

template <class T>
FAIRSTEER_INLINE const T* row_of(const RowList<T>& rows, Index i) {
  if (!rows.which) {
    const T* row = rows.data + i * rows.stride;
    prefetch(row + 64 * rows.stride, rows.n_features);  // a row that is not there does no harm
    return row;
  }
  // Rows of one cell lie far apart, so that no processor guesses which comes next.
  constexpr Index ahead = 16;
  if (i + ahead < rows.count)
    prefetch(rows.data + rows.which[i + ahead] * rows.stride, rows.n_features);
  return rows.data + rows.which[i] * rows.stride;
}

// Several rows of one cell at a time: its sums are read and written once.
template <Index kRows, class T>
FAIRSTEER_INLINE void add_some_rows(const RowList<T>& rows, Index first, const double* origin,
                                    const double* weights, double* sum) {
  const Index d = rows.n_features;
  const T* x[kRows];
  double weight[kRows];
  for (Index i = 0; i < kRows; ++i) {
    x[i] = row_of(rows, first + i);
    weight[i] = weights ? weights[first + i] : 1.0;
  }
  Index j = 0;
  for (; j + kWidth<double> <= d; j += kWidth<double>) {
    const Pack<double> from = pack(origin + j);
    Pack<double> total = pack(sum + j);
    for (Index i = 0; i < kRows; ++i) total += weight[i] * (doubles(x[i] + j) - from);
    pack(sum + j) = total;
  }
  for (; j < d; ++j)
    for (Index i = 0; i < kRows; ++i)
      sum[j] += weight[i] * (static_cast<double>(x[i][j]) - origin[j]);
}

template <class T>
FAIRSTEER_INLINE void add_rows_of(const RowList<T>& rows, const double* origins, const Index* cells,
                                  const double* weights, double* sums, const Index* slots) {
  constexpr Index several = 8, long_row = 64;
  const Index d = rows.n_features;
  Index i = 0;
  if (d >= long_row) {
    while (i + several <= rows.count) {
      Index same = 1;
      while (same < several && slots[i + same] == slots[i]) ++same;
      if (same == several) {
        add_some_rows<several>(rows, i, origins + cells[i] * d, weights, sums + slots[i] * d);
        i += several;
      } else {
        for (const Index end = i + same; i < end; ++i)
          add_some_rows<1>(rows, i, origins + cells[i] * d, weights, sums + slots[i] * d);
      }
    }
  }
  for (; i < rows.count; ++i)
    add_some_rows<1>(rows, i, origins + cells[i] * d, weights, sums + slots[i] * d);
}

template <class T>
FAIRSTEER_INLINE void centre_rows_of(const RowList<T>& rows, const T* centres, const Index* cells,
                                     const double* weights, T* block, const Index* positions,
                                     Index ld, double* norms) {
  constexpr Index width = kWidth<T>;
  const Index d = rows.n_features, whole = d - d % width;
  for (Index i = 0; i < rows.count; ++i) {
    const T* x = row_of(rows, i);
    const T* centre = centres + cells[i] * d;
    T* y = block + positions[i] * ld;
    const T scale = weights ? static_cast<T>(std::sqrt(weights[i])) : T(1);
    Pack<T> squares = {};
    for (Index j = 0; j < whole; j += width) {
      const Pack<T> value = scale * (pack(x + j) - pack(centre + j));
      pack(y + j) = value;
      squares += value * value;
    }
    T norm = sum_of_lanes<T>(squares);
    for (Index j = whole; j < d; ++j) {
      y[j] = (x[j] - centre[j]) * scale;
      norm += y[j] * y[j];
    }
    for (Index j = d; j < ld; ++j) y[j] = T(0);
    norms[i] = static_cast<double>(norm);
  }
}

// Packs of one feature of many rows: tiles of rows are turned on the way.
template <class T>
FAIRSTEER_INLINE void centre_columns_of(const RowList<T>& rows, const T* centres,
                                        const Index* cells, const double* weights, T* block,
                                        Index ld, double* norms) {
  constexpr Index width = kWidth<T>;
  const Index d = rows.n_features, whole = d - d % width;
  Pack<T> tile[width];
  for (Index start = 0; start < rows.count; start += width) {
    const Index n = std::min(width, rows.count - start);
    const T* x[width];
    const T* centre[width];
    T scale[width];
    Pack<T> squares[width];
    for (Index i = 0; i < n; ++i) {
      x[i] = row_of(rows, start + i);
      centre[i] = centres + cells[start + i] * d;
      scale[i] = weights ? static_cast<T>(std::sqrt(weights[start + i])) : T(1);
      squares[i] = Pack<T>{};
    }
    for (Index i = n; i < width; ++i) tile[i] = Pack<T>{};
    for (Index j = 0; j < whole; j += width) {
      for (Index i = 0; i < n; ++i) {
        tile[i] = scale[i] * (pack(x[i] + j) - pack(centre[i] + j));
        squares[i] += tile[i] * tile[i];
      }
      transpose<T>(tile);
      T* out = block + start + j * ld;
      if (n == width) {
        for (Index l = 0; l < width; ++l) pack(out + l * ld) = tile[l];
      } else {
        for (Index l = 0; l < width; ++l)
          for (Index i = 0; i < n; ++i) out[l * ld + i] = lane<T>(tile[l], i);
      }
    }
    for (Index i = 0; i < n; ++i) {
      T norm = sum_of_lanes<T>(squares[i]);
      for (Index j = whole; j < d; ++j) {
        const T value = (x[i][j] - centre[i][j]) * scale[i];
        block[start + i + j * ld] = value;
        norm += value * value;
      }
      norms[start + i] = static_cast<double>(norm);
    }
  }
}

template <class S>
FAIRSTEER_INLINE void add_weighted_columns_of(const S* block, Index ld, Index count, Index d,
                                              const S* factors, double scale, double* sums) {
  constexpr Index width = kWidth<S>;
  const Index whole = count - count % width;
  for (Index j = 0; j < d; ++j) {
    const S* column = block + j * ld;
    Pack<S> products = {};
    for (Index i = 0; i < whole; i += width) products += pack(factors + i) * pack(column + i);
    S sum = sum_of_lanes<S>(products);
    for (Index i = whole; i < count; ++i) sum += factors[i] * column[i];
    sums[j] += scale * static_cast<double>(sum);
  }
}

template <class S>
FAIRSTEER_INLINE void add_weighted_of(const S* block, const Index* positions, Index ld, Index count,
                                      Index d, const double* factors, double* sums,
                                      const Index* slots) {
  for (Index i = 0; i < count; ++i) {
    const double factor = factors[i];
    const S* y = block + positions[i] * ld;
    double* sum = sums + slots[i] * d;
    Index j = 0;
    for (; j + kWidth<double> <= d; j += kWidth<double>) pack(sum + j) += factor * doubles(y + j);
    for (; j < d; ++j) sum[j] += factor * static_cast<double>(y[j]);
  }
}

template <class T>
FAIRSTEER_INLINE void add_powers_of(const RowList<T>& rows, const double* centres,
                                    const Index* cells, const double* weights, double* sums,
                                    const Index* slots) {
  const Index d = rows.n_features;
  for (Index i = 0; i < rows.count; ++i) {
    const T* x = row_of(rows, i);
    const double* centre = centres + cells[i] * d;
    double* sum = sums + slots[i] * 3 * d;
    const double weight = weights ? weights[i] : 1.0;
    Index j = 0;
    for (; j + kWidth<double> <= d; j += kWidth<double>) {
      const Pack<double> y = doubles(x + j) - pack(centre + j);
      const Pack<double> square = weight * (y * y);
      pack(sum + j) += square;
      pack(sum + d + j) += square * y;
      pack(sum + 2 * d + j) += square * y * y;
    }
    for (; j < d; ++j) {
      const double y = static_cast<double>(x[j]) - centre[j];
      const double square = weight * y * y;
      sum[j] += square;
      sum[d + j] += square * y;
      sum[2 * d + j] += square * y * y;
    }
  }
}

// Tiles of 8 columns by one pack of rows stay in registers over all rows of the block.
template <class S>
FAIRSTEER_INLINE void add_small_product_of(const S* block, Index ld, Index count, Index d,
                                           double* product) {
  constexpr Index width = kWidth<S>, columns = 8;
  for (Index i0 = 0; i0 < d; i0 += width) {
    for (Index j0 = 0; j0 < std::min(d, i0 + width); j0 += columns) {
      Pack<S> sum[columns] = {};
      const S* y = block;
      for (Index r = 0; r < count; ++r, y += ld) {
        const Pack<S> some = pack(y + i0);
        for (Index j = 0; j < columns; ++j) sum[j] += y[j0 + j] * some;
      }
      for (Index j = 0; j < columns; ++j) {
        alignas(64) S lanes[width];
        pack(lanes) = sum[j];
        double* into = product + (j0 + j) * ld + i0;
        for (Index l = 0; l < width; ++l) into[l] += static_cast<double>(lanes[l]);
      }
    }
  }
}

template <class S>
FAIRSTEER_INLINE void add_lower_of(const S* product, Index ld, Index d, double* sum) {
  for (Index j = 0; j < d; ++j)
    for (Index i = j; i < d; ++i) sum[j * d + i] += static_cast<double>(product[j * ld + i]);
}

template <class T>
FAIRSTEER_INLINE void map_row_of(const T* A, const T* x, Index d, T* out) {
  constexpr Index width = kWidth<T>;
  const Index whole = d - d % width;
  for (Index i = 0; i < d; ++i) {
    const T* a = A + i * d;
    Pack<T> products = {};
    for (Index j = 0; j < whole; j += width) products += pack(a + j) * pack(x + j);
    T sum = sum_of_lanes<T>(products);
    for (Index j = whole; j < d; ++j) sum += a[j] * x[j];
    out[i] = sum;
  }
}

template <class T>
FAIRSTEER_INLINE void add_of(const T* a, const T* b, Index n, T* out) {
  constexpr Index width = kWidth<T>;
  Index i = 0;
  for (; i + width <= n; i += width) pack(out + i) = pack(a + i) + pack(b + i);
  for (; i < n; ++i) out[i] = a[i] + b[i];
}

}  // namespace

FAIRSTEER_CLONES std::int64_t largest_of(const std::int64_t* numbers, Index n) {
  std::int64_t largest = -1;
  for (Index i = 0; i < n; ++i) largest = std::max(largest, numbers[i]);
  return largest;
}

#define FAIRSTEER_FOR_ROW_TYPES(DEFINE) \
  DEFINE(float)                         \
  DEFINE(double)

#define FAIRSTEER_KERNELS(T)                                                                       \
  FAIRSTEER_CLONES void add_rows(const RowList<T>& rows, const double* origins,                    \
                                 const Index* cells, const double* weights, double* sums,          \
                                 const Index* slots) {                                             \
    add_rows_of(rows, origins, cells, weights, sums, slots);                                       \
  }                                                                                                \
  FAIRSTEER_CLONES void centre_rows(const RowList<T>& rows, const T* centres, const Index* cells,  \
                                    const double* weights, T* block, const Index* positions,       \
                                    Index ld, double* norms) {                                     \
    centre_rows_of(rows, centres, cells, weights, block, positions, ld, norms);                    \
  }                                                                                                \
  FAIRSTEER_CLONES void add_weighted(const T* block, const Index* positions, Index ld,             \
                                     Index count, Index n_features, const double* factors,         \
                                     double* sums, const Index* slots) {                           \
    add_weighted_of(block, positions, ld, count, n_features, factors, sums, slots);                \
  }                                                                                                \
  FAIRSTEER_CLONES void centre_columns(const RowList<T>& rows, const T* centres,                   \
                                       const Index* cells, const double* weights, T* block,        \
                                       Index ld, double* norms) {                                  \
    centre_columns_of(rows, centres, cells, weights, block, ld, norms);                            \
  }                                                                                                \
  FAIRSTEER_CLONES void add_weighted_columns(const T* block, Index ld, Index count,                \
                                             Index n_features, const T* factors, double scale,     \
                                             double* sums) {                                       \
    add_weighted_columns_of(block, ld, count, n_features, factors, scale, sums);                   \
  }                                                                                                \
  FAIRSTEER_CLONES void add_powers(const RowList<T>& rows, const double* centres,                  \
                                   const Index* cells, const double* weights, double* sums,        \
                                   const Index* slots) {                                           \
    add_powers_of(rows, centres, cells, weights, sums, slots);                                     \
  }                                                                                                \
  FAIRSTEER_CLONES void add_small_product(const T* block, Index ld, Index count, Index n_features, \
                                          double* product) {                                       \
    add_small_product_of(block, ld, count, n_features, product);                                   \
  }                                                                                                \
  FAIRSTEER_CLONES void map_row(const T* A, const T* x, Index d, T* out) {                         \
    map_row_of(A, x, d, out);                                                                      \
  }                                                                                                \
  FAIRSTEER_CLONES void add(const T* a, const T* b, Index n, T* out) { add_of(a, b, n, out); }
FAIRSTEER_FOR_ROW_TYPES(FAIRSTEER_KERNELS)

#define FAIRSTEER_ADD_LOWER(T)                                                        \
  FAIRSTEER_CLONES void add_lower(const T* product, Index ld, Index d, double* sum) { \
    add_lower_of(product, ld, d, sum);                                                \
  }
FAIRSTEER_FOR_ROW_TYPES(FAIRSTEER_ADD_LOWER)

#if defined(__x86_64__) && defined(__GNUC__)
namespace {

const bool kHasHalf = [] {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx") && __builtin_cpu_supports("f16c");
}();

__attribute__((target("avx,f16c"))) Index widen_by_eight(const Eigen::half* from, Index n,
                                                         float* to) {
  Index i = 0;
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(to + i,
                     _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
  return i;
}

__attribute__((target("avx,f16c"))) Index narrow_by_eight(const float* from, Index n,
                                                          Eigen::half* to) {
  Index i = 0;
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
  return i;
}

}  // namespace
#endif

void widen(const Eigen::half* from, Index n, float* to) {
  Index i = 0;
#if defined(__x86_64__) && defined(__GNUC__)
  if (kHasHalf) i = widen_by_eight(from, n, to);
#endif
  for (; i < n; ++i) to[i] = static_cast<float>(from[i]);
}

void narrow(const float* from, Index n, Eigen::half* to) {
  Index i = 0;
#if defined(__x86_64__) && defined(__GNUC__)
  if (kHasHalf) i = narrow_by_eight(from, n, to);
#endif
  for (; i < n; ++i) to[i] = static_cast<Eigen::half>(from[i]);
}

}  // namespace fairsteer::detail

namespace fairsteer {

void check_codes(const char* name, const std::int64_t* codes, Index n_rows, Index n_codes) {
  const std::int64_t largest = detail::largest_of(codes, n_rows);
  if (largest >= n_codes)
    throw std::invalid_argument(std::string(name) + " must be below " + std::to_string(n_codes) +
                                ", but the largest is " + std::to_string(largest));
}

}  // namespace fairsteer
