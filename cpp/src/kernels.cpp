#include "kernels.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "fairsteer/interleave.hpp"
#include "fairsteer/row_sort.hpp"

// Compilers before GCC 10 do not have this question; the name is theirs, so that clang-tidy takes
// it for a mistake.
#if !defined(__has_builtin)
#define __has_builtin(name) 0  // NOLINT(bugprone-reserved-identifier)
#endif

#if defined(__GNUC__)
#define FAIRSTEER_INLINE inline __attribute__((always_inline))
#define FAIRSTEER_RESTRICT __restrict__
#else
#define FAIRSTEER_INLINE inline
#define FAIRSTEER_RESTRICT
#endif

// Every kernel is compiled once for each level of the instruction set, and the processor is asked
// which to run. GCC and clang know these attributes on every system.
#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define FAIRSTEER_LEVELS 1
#define FAIRSTEER_AVX2 __attribute__((target("avx2,fma")))
#define FAIRSTEER_AVX512 __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")))
#endif

namespace fairsteer::detail {
namespace {

// 64 bytes of numbers that are handled together; the compiler splits them where registers are
// narrower.
template <class S>
constexpr Index kWidth = static_cast<Index>(64 / sizeof(S));

#if __has_builtin(__builtin_shufflevector)
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

// Lanes of both in turn, of their first and of their second halves.
FAIRSTEER_INLINE void interleave(const Pack<float>& a, const Pack<float>& b, Pack<float>& first,
                                 Pack<float>& second) {
  first = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  second =
      __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
FAIRSTEER_INLINE void interleave(const Pack<double>& a, const Pack<double>& b, Pack<double>& first,
                                 Pack<double>& second) {
  first = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
  second = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}

// The sum of the lanes, by halves.
FAIRSTEER_INLINE float sum_of_lanes(const Pack<float>& x) {
  const auto a = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
                 __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
  const auto b =
      __builtin_shufflevector(a, a, 0, 1, 2, 3) + __builtin_shufflevector(a, a, 4, 5, 6, 7);
  return (b[0] + b[2]) + (b[1] + b[3]);
}
FAIRSTEER_INLINE double sum_of_lanes(const Pack<double>& x) {
  const auto a =
      __builtin_shufflevector(x, x, 0, 1, 2, 3) + __builtin_shufflevector(x, x, 4, 5, 6, 7);
  return (a[0] + a[2]) + (a[1] + a[3]);
}

// The same number of doubles, from numbers that lie at `from`.
FAIRSTEER_INLINE Pack<double> doubles(const float* from) {
  typedef float Floats __attribute__((vector_size(32), aligned(4), may_alias));
  return __builtin_convertvector(*reinterpret_cast<const Floats*>(from), Pack<double>);
}
FAIRSTEER_INLINE Pack<double> doubles(const double* from) {
  return *reinterpret_cast<const Pack<double>*>(from);
}
#else
template <class S>
struct Pack {
  S lane[kWidth<S>];
  S& operator[](Index l) { return lane[l]; }
  S operator[](Index l) const { return lane[l]; }
  Pack& operator+=(const Pack& other) {
    for (Index l = 0; l < kWidth<S>; ++l) lane[l] += other.lane[l];
    return *this;
  }
  friend Pack operator*(Pack a, const Pack& b) {
    for (Index l = 0; l < kWidth<S>; ++l) a.lane[l] *= b.lane[l];
    return a;
  }
  friend Pack operator*(S factor, Pack a) {
    for (Index l = 0; l < kWidth<S>; ++l) a.lane[l] *= factor;
    return a;
  }
  friend Pack operator-(Pack a, const Pack& b) {
    for (Index l = 0; l < kWidth<S>; ++l) a.lane[l] -= b.lane[l];
    return a;
  }
};

template <class S>
void interleave(const Pack<S>& a, const Pack<S>& b, Pack<S>& first, Pack<S>& second) {
  constexpr Index half = kWidth<S> / 2;
  for (Index l = 0; l < half; ++l) {
    first[2 * l] = a[l];
    first[2 * l + 1] = b[l];
    second[2 * l] = a[half + l];
    second[2 * l + 1] = b[half + l];
  }
}

template <class S>
S sum_of_lanes(const Pack<S>& x) {
  S sum = 0;
  for (Index l = 0; l < kWidth<S>; ++l) sum += x[l];
  return sum;
}

template <class S>
Pack<double> doubles(const S* from) {
  Pack<double> to;
  for (Index l = 0; l < kWidth<double>; ++l) to[l] = static_cast<double>(from[l]);
  return to;
}
#endif

template <class S>
FAIRSTEER_INLINE Pack<S>& pack(S* at) {
  return *reinterpret_cast<Pack<S>*>(at);
}
template <class S>
FAIRSTEER_INLINE const Pack<S>& pack(const S* at) {
  return *reinterpret_cast<const Pack<S>*>(at);
}

// As many packs as a pack has lanes: lane l of pack i goes to lane i of pack l.
template <class S>
FAIRSTEER_INLINE void transpose(Pack<S>* packs) {
  constexpr Index width = kWidth<S>, half = width / 2;
  Pack<S> other[width];
  for (Index stride = 1; stride < width; stride *= 2) {
    for (Index i = 0; i < half; ++i)
      interleave(packs[i], packs[i + half], other[2 * i], other[2 * i + 1]);
    for (Index i = 0; i < width; ++i) packs[i] = other[i];
  }
}

// The first cache lines of a row that is wanted soon.
FAIRSTEER_INLINE void prefetch(std::uintptr_t row, Index n_bytes) {
#if defined(__GNUC__)
  constexpr Index line = 64, lines = 4;
  for (Index i = 0; i < std::min(n_bytes, lines * line); i += line)
    __builtin_prefetch(reinterpret_cast<const void*>(row + static_cast<std::uintptr_t>(i)));
#else
  static_cast<void>(row), static_cast<void>(n_bytes);
#endif
}

template <class T>
FAIRSTEER_INLINE const T* row_of(const RowList<T>& rows, Index i) {
  if (!rows.which) {
    // By its address, because the row may lie beyond the last one: to ask for it does no harm.
    constexpr Index ahead = 64;
    const T* row = rows.data + i * rows.stride;
    prefetch(reinterpret_cast<std::uintptr_t>(row) +
                 static_cast<std::uintptr_t>(ahead * rows.stride) * sizeof(T),
             rows.n_features * static_cast<Index>(sizeof(T)));
    return row;
  }
  // Rows of one cell lie far apart, so that no processor guesses which comes next.
  constexpr Index ahead = 16;
  if (i + ahead < rows.count)
    prefetch(reinterpret_cast<std::uintptr_t>(rows.data + rows.which[i + ahead] * rows.stride),
             rows.n_features * static_cast<Index>(sizeof(T)));
  return rows.data + rows.which[i] * rows.stride;
}

// sum_j a_j b_j, by as many sums side by side as a pack has lanes.
template <class S>
FAIRSTEER_INLINE S dot(const S* a, const S* b, Index n) {
  constexpr Index width = kWidth<S>;
  const Index whole = n - n % width;
  Pack<S> products = {};
  for (Index j = 0; j < whole; j += width) products += pack(a + j) * pack(b + j);
  S sum = sum_of_lanes(products);
  for (Index j = whole; j < n; ++j) sum += a[j] * b[j];
  return sum;
}

// Packs of one feature of many rows: tiles of rows are turned on the way.
struct CentreColumns {
  template <class T>
  FAIRSTEER_INLINE static void run(const RowList<T>& rows, const T* centres, const Index* cells,
                                   const double* weights, T* block, Index ld, double* norms) {
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
            for (Index i = 0; i < n; ++i) out[l * ld + i] = tile[l][i];
        }
      }
      for (Index i = 0; i < n; ++i) {
        T norm = sum_of_lanes(squares[i]);
        for (Index j = whole; j < d; ++j) {
          const T value = (x[i][j] - centre[i][j]) * scale[i];
          block[start + i + j * ld] = value;
          norm += value * value;
        }
        norms[start + i] = static_cast<double>(norm);
      }
    }
  }
};

// Tiles of 8 columns by one pack of rows stay in registers over all rows of the block.
struct AddSmallProduct {
  template <class S>
  FAIRSTEER_INLINE static void run(const S* block, Index ld, Index count, Index d,
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
          double* into = product + (j0 + j) * ld + i0;
          for (Index l = 0; l < width; ++l) into[l] += static_cast<double>(sum[j][l]);
        }
      }
    }
  }
};

// Several rows of one cell at a time: its sums are read and written once.
template <Index kRows, class T>
FAIRSTEER_INLINE void add_some_rows(const RowList<T>& rows, Index first, const double* origin,
                                    const double* weights, double* sum) {
  const T* x[kRows];
  double weight[kRows];
  for (Index i = 0; i < kRows; ++i) {
    x[i] = row_of(rows, first + i);
    weight[i] = weights ? weights[first + i] : 1.0;
  }
  Index j = 0;
  for (; j + kWidth<double> <= rows.n_features; j += kWidth<double>) {
    const Pack<double> from = pack(origin + j);
    Pack<double> total = pack(sum + j);
    for (Index i = 0; i < kRows; ++i) total += weight[i] * (doubles(x[i] + j) - from);
    pack(sum + j) = total;
  }
  for (; j < rows.n_features; ++j)
    for (Index i = 0; i < kRows; ++i)
      sum[j] += weight[i] * (static_cast<double>(x[i][j]) - origin[j]);
}

struct AddRows {
  template <class T>
  FAIRSTEER_INLINE static void run(const RowList<T>& rows, const double* origins,
                                   const Index* cells, const double* weights, double* sums,
                                   const Index* slots) {
    constexpr Index several = 8, long_row = 64;
    const Index d = rows.n_features;
    Index i = 0;
    if (d >= long_row)
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
    for (; i < rows.count; ++i)
      add_some_rows<1>(rows, i, origins + cells[i] * d, weights, sums + slots[i] * d);
  }
};

struct CentreRows {
  template <class T>
  FAIRSTEER_INLINE static void run(const RowList<T>& rows, const T* centres, const Index* cells,
                                   const double* weights, T* block, const Index* positions,
                                   Index ld, double* squares, double* cubes, const Index* slots) {
    constexpr Index width = kWidth<T>;
    const Index count = rows.count, d = rows.n_features, whole = d - d % width;
    // The last numbers of a row are done as a pack that reaches back over some that have been.
    const bool reaches_back = whole > 0 && whole < d;
    const Index last = reaches_back ? d - width : whole;
    Pack<T> fresh = {};
    for (Index l = whole - last; l < width; ++l) fresh[l] = T(1);
    // Sums are kept in the steps in which y was written: it is still on its way to memory.
    const Index in_packs = whole > 0 ? d - d % kWidth<double> : 0;
    for (Index i = 0; i < count; ++i) {
      const T* x = row_of(rows, i);
      const T* centre = centres + cells[i] * d;
      T* y = block + positions[i] * ld;
      const double weight = weights ? weights[i] : 1.0, root = weights ? std::sqrt(weight) : 1.0;
      const T scale = static_cast<T>(root);
      Pack<T> lanes = {};
      for (Index j = 0; j < whole; j += width) {
        const Pack<T> value = scale * (pack(x + j) - pack(centre + j));
        pack(y + j) = value;
        lanes += value * value;
      }
      if (reaches_back) {
        Pack<T> value = scale * (pack(x + last) - pack(centre + last));
        pack(y + last) = value;
        value = value * fresh;
        lanes += value * value;
      }
      T sum = sum_of_lanes(lanes);
      if (!reaches_back) {
        for (Index j = whole; j < d; ++j) {
          y[j] = scale * (x[j] - centre[j]);
          sum += y[j] * y[j];
        }
      }
      for (Index j = d; j < ld; ++j) y[j] = T(0);
      const auto norm = static_cast<double>(sum);
      double* square = squares + 2 * slots[i];
      square[0] += norm;
      square[1] += weights ? norm * norm / weight : norm * norm;
      const double factor = weights ? norm / root : norm;
      double* cube = cubes + slots[i] * d;
      for (Index j = 0; j < in_packs; j += kWidth<double>)
        pack(cube + j) += factor * doubles(y + j);
      for (Index j = in_packs; j < d; ++j) cube[j] += factor * static_cast<double>(y[j]);
    }
  }
};

struct AddWeightedColumns {
  template <class S>
  FAIRSTEER_INLINE static void run(const S* block, Index ld, Index count, Index n_features,
                                   const S* factors, double scale, double* sums) {
    for (Index j = 0; j < n_features; ++j)
      sums[j] += scale * static_cast<double>(dot<S>(factors, block + j * ld, count));
  }
};

struct AddPowers {
  template <class T>
  FAIRSTEER_INLINE static void run(const RowList<T>& rows, const double* centres,
                                   const Index* cells, const double* weights, double* sums,
                                   const Index* slots) {
    const Index d = rows.n_features;
    for (Index i = 0; i < rows.count; ++i) {
      const T* x = row_of(rows, i);
      const double* centre = centres + cells[i] * d;
      double* second = sums + slots[i] * 3 * d;
      double* third = second + d;
      double* fourth = third + d;
      const double weight = weights ? weights[i] : 1.0;
      Index j = 0;
      for (; j + kWidth<double> <= d; j += kWidth<double>) {
        const Pack<double> y = doubles(x + j) - pack(centre + j);
        const Pack<double> square = weight * (y * y);
        pack(second + j) += square;
        pack(third + j) += square * y;
        pack(fourth + j) += square * y * y;
      }
      for (; j < d; ++j) {
        const double y = static_cast<double>(x[j]) - centre[j];
        const double square = weight * (y * y);
        second[j] += square;
        third[j] += square * y;
        fourth[j] += square * y * y;
      }
    }
  }
};

struct AddLower {
  template <class S>
  FAIRSTEER_INLINE static void run(const S* product, Index ld, Index d, double* sum, bool first) {
    for (Index j = 0; j < d; ++j) {
      double* to = sum + j * d;
      const S* from = product + j * ld;
      Index i = j;
      for (; i + kWidth<double> <= d; i += kWidth<double>) {
        Pack<double> total = first ? Pack<double>{} : pack(to + i);
        total += doubles(from + i);
        pack(to + i) = total;
      }
      for (; i < d; ++i) to[i] = static_cast<double>(from[i]) + (first ? 0.0 : to[i]);
    }
  }
};

struct AddOuter {
  FAIRSTEER_INLINE static void run(const double* x, double factor, Index d, double* sum) {
    for (Index j = 0; j < d; ++j) {
      double* column = sum + j * d;
      const double scaled = factor * x[j];
      Index i = j;
      for (; i + kWidth<double> <= d; i += kWidth<double>) pack(column + i) += scaled * pack(x + i);
      for (; i < d; ++i) column[i] += scaled * x[i];
    }
  }
};

// Tiles are turned in registers; a few of them stay near the core.
struct Mirror {
  FAIRSTEER_INLINE static void run(double* A, Index ld, Index d) {
    constexpr Index width = kWidth<double>, block = 4 * width;
    for (Index j0 = 0; j0 < d; j0 += block)
      for (Index i0 = j0; i0 < d; i0 += block)
        for (Index j = j0; j < std::min(d, j0 + block); j += width)
          for (Index i = std::max(i0, j); i < std::min(d, i0 + block); i += width) {
            if (i > j && i + width <= d) {
              Pack<double> tile[width];
              for (Index l = 0; l < width; ++l) tile[l] = pack(A + (j + l) * ld + i);
              transpose<double>(tile);
              for (Index l = 0; l < width; ++l) pack(A + (i + l) * ld + j) = tile[l];
            } else {
              for (Index l = j; l < std::min(d, j + width); ++l)
                for (Index m = std::max(i, l + 1); m < std::min(d, i + width); ++m)
                  A[m * ld + l] = A[l * ld + m];
            }
          }
  }
};

// Every number of the triangle is read once, for its row and for its column.
struct SymmetricTimes {
  FAIRSTEER_INLINE static void run(const double* lower, Index d, const double* x, double* out) {
    for (Index i = 0; i < d; ++i) out[i] = 0;
    for (Index j = 0; j < d; ++j) {
      const double* column = lower + j * d;
      const double factor = x[j];
      Pack<double> products = {};
      Index i = j + 1;
      for (; i + kWidth<double> <= d; i += kWidth<double>) {
        const Pack<double> some = pack(column + i);
        products += some * pack(x + i);
        pack(out + i) += factor * some;
      }
      double sum = column[j] * factor + sum_of_lanes(products);
      for (; i < d; ++i) {
        sum += column[i] * x[i];
        out[i] += factor * column[i];
      }
      out[j] += sum;
    }
  }
};

// Tiles of as many rows as columns are turned in registers.
struct Interleave {
  template <class T>
  FAIRSTEER_INLINE static void run(const T* const* columns, Index n_columns, Index n_rows, T* out,
                                   Index ld) {
    constexpr Index width = kWidth<T>;
    const Index whole = n_columns - n_columns % width;
    Pack<T> tile[width];
    for (Index i = 0; i < n_rows; i += width) {
      const Index n = std::min(width, n_rows - i);
      const Index in_tiles = n == width ? whole : 0;
      for (Index j = 0; j < in_tiles; j += width) {
        for (Index l = 0; l < width; ++l) tile[l] = pack(columns[j + l] + i);
        transpose<T>(tile);
        for (Index l = 0; l < width; ++l) pack(out + (i + l) * ld + j) = tile[l];
      }
      for (Index j = in_tiles; j < n_columns; ++j)
        for (Index l = 0; l < n; ++l) out[(i + l) * ld + j] = columns[j][i + l];
    }
  }
};

struct MapRow {
  template <class T>
  FAIRSTEER_INLINE static void run(const T* A, const T* x, Index d, T* out) {
    for (Index i = 0; i < d; ++i) out[i] = dot<T>(A + i * d, x, d);
  }
};

struct AddVectors {
  template <class T>
  FAIRSTEER_INLINE static void run(const T* a, const T* b, Index n, T* out) {
    for (Index i = 0; i < n; ++i) out[i] = a[i] + b[i];
  }
};

#if defined(FAIRSTEER_LEVELS)
enum class Level { baseline, avx2, avx512 };

const Level kLevel = [] {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Level::baseline;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return Level::avx512;
  return Level::avx2;
}();

template <class Kernel, class... Args>
FAIRSTEER_AVX2 void run_with_avx2(const Args&... args) {
  Kernel::run(args...);
}
template <class Kernel, class... Args>
FAIRSTEER_AVX512 void run_with_avx512(const Args&... args) {
  Kernel::run(args...);
}
#endif

template <class Kernel, class... Args>
void run(const Args&... args) {
#if defined(FAIRSTEER_LEVELS)
  if (kLevel == Level::avx512) return run_with_avx512<Kernel>(args...);
  if (kLevel == Level::avx2) return run_with_avx2<Kernel>(args...);
#endif
  Kernel::run(args...);
}

}  // namespace

template <class T>
void add_rows(const RowList<T>& rows, const double* origins, const Index* cells,
              const double* weights, double* sums, const Index* slots) {
  run<AddRows>(rows, origins, cells, weights, sums, slots);
}

template <class T>
void centre_rows(const RowList<T>& rows, const T* centres, const Index* cells,
                 const double* weights, T* block, const Index* positions, Index ld, double* squares,
                 double* cubes, const Index* slots) {
  run<CentreRows>(rows, centres, cells, weights, block, positions, ld, squares, cubes, slots);
}

template <class T>
void centre_columns(const RowList<T>& rows, const T* centres, const Index* cells,
                    const double* weights, T* block, Index ld, double* norms) {
  run<CentreColumns>(rows, centres, cells, weights, block, ld, norms);
}

template <class S>
void add_weighted_columns(const S* block, Index ld, Index count, Index n_features, const S* factors,
                          double scale, double* sums) {
  run<AddWeightedColumns>(block, ld, count, n_features, factors, scale, sums);
}

template <class T>
void add_powers(const RowList<T>& rows, const double* centres, const Index* cells,
                const double* weights, double* sums, const Index* slots) {
  run<AddPowers>(rows, centres, cells, weights, sums, slots);
}

template <class S>
void add_small_product(const S* block, Index ld, Index count, Index n_features, double* product) {
  run<AddSmallProduct>(block, ld, count, n_features, product);
}

template <class T>
void map_row(const T* A, const T* x, Index d, T* out) {
  run<MapRow>(A, x, d, out);
}

template <class S>
void add_lower(const S* product, Index ld, Index d, double* sum, bool first) {
  run<AddLower>(product, ld, d, sum, first);
}

void add_outer(const double* x, double factor, Index d, double* sum) {
  run<AddOuter>(x, factor, d, sum);
}

void mirror_lower(double* A, Index ld, Index d) { run<Mirror>(A, ld, d); }

void symmetric_times(const double* lower, Index d, const double* x, double* out) {
  run<SymmetricTimes>(lower, d, x, out);
}

template <class T>
void add_vectors(const T* a, const T* b, Index n, T* out) {
  run<AddVectors>(a, b, n, out);
}

#define FAIRSTEER_KERNELS(T)                                                                       \
  template void add_rows(const RowList<T>&, const double*, const Index*, const double*, double*,   \
                         const Index*);                                                            \
  template void centre_rows(const RowList<T>&, const T*, const Index*, const double*, T*,          \
                            const Index*, Index, double*, double*, const Index*);                  \
  template void centre_columns(const RowList<T>&, const T*, const Index*, const double*, T*,       \
                               Index, double*);                                                    \
  template void add_weighted_columns(const T*, Index, Index, Index, const T*, double, double*);    \
  template void add_powers(const RowList<T>&, const double*, const Index*, const double*, double*, \
                           const Index*);                                                          \
  template void add_small_product(const T*, Index, Index, Index, double*);                         \
  template void add_lower(const T*, Index, Index, double*, bool);                                  \
  template void map_row(const T*, const T*, Index, T*);                                            \
  template void add_vectors(const T*, const T*, Index, T*);
FAIRSTEER_KERNELS(float)
FAIRSTEER_KERNELS(double)

#if defined(FAIRSTEER_LEVELS)
namespace {

const bool kHasHalf = [] {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") != 0;  // every processor with AVX2 has F16C
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
#if defined(FAIRSTEER_LEVELS)
  if (kHasHalf) i = widen_by_eight(from, n, to);
#endif
  for (; i < n; ++i) to[i] = static_cast<float>(from[i]);
}

void narrow(const float* from, Index n, Eigen::half* to) {
  Index i = 0;
#if defined(FAIRSTEER_LEVELS)
  if (kHasHalf) i = narrow_by_eight(from, n, to);
#endif
  for (; i < n; ++i) to[i] = static_cast<Eigen::half>(from[i]);
}

}  // namespace fairsteer::detail

namespace fairsteer {

template <class T>
void interleave(const T* const* columns, Index n_columns, Index n_rows, T* out, Index stride) {
  detail::run<detail::Interleave>(columns, n_columns, n_rows, out, stride);
}
template void interleave(const float* const*, Index, Index, float*, Index);
template void interleave(const double* const*, Index, Index, double*, Index);

void check_codes(const char* name, const std::int64_t* codes, Index n_rows, Index n_codes) {
  std::int64_t largest = -1;
  for (Index i = 0; i < n_rows; ++i) largest = std::max(largest, codes[i]);
  if (largest >= n_codes)
    throw std::invalid_argument(std::string(name) + " must be below " + std::to_string(n_codes) +
                                ", but the largest is " + std::to_string(largest));
}

}  // namespace fairsteer
