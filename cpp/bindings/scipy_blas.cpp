// SciPy publishes the routines of its BLAS and LAPACK as capsules in
// `scipy.linalg.cython_blas.__pyx_capi__` and `scipy.linalg.cython_lapack.__pyx_capi__`; the name
// of a capsule is the C signature of its routine. This file checks the signatures, keeps the
// pointers, and defines the names that Eigen calls under EIGEN_USE_BLAS and EIGEN_USE_LAPACKE.
// Hidden visibility keeps those names inside the module, away from any other BLAS of the process.
//
// Eigen's headers come first: their prototypes then check the definitions below.
#include <Eigen/Dense>

#include "scipy_blas.hpp"

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>

namespace fairsteer::scipy_blas {
namespace {

namespace py = pybind11;
using Eigen::Index;

constexpr const char* kBlas = "scipy.linalg.cython_blas";
constexpr const char* kLapack = "scipy.linalg.cython_lapack";

// How Cython spells a pointer to T in a capsule's name: plainly, or through the aliases `s` and `d`
// that SciPy declares for the two real types, such as `__pyx_t_5scipy_6linalg_11cython_blas_d *`.
bool ends_with(std::string_view text, std::string_view tail) {
  return text.size() >= tail.size() && text.substr(text.size() - tail.size()) == tail;
}

template <class T>
bool spells_pointer_to(std::string_view text);
template <>
bool spells_pointer_to<char>(std::string_view text) {
  return text == "char *";
}
template <>
bool spells_pointer_to<int>(std::string_view text) {
  return text == "int *";
}
template <>
bool spells_pointer_to<float>(std::string_view text) {
  return text == "float *" || ends_with(text, "_s *");
}
template <>
bool spells_pointer_to<double>(std::string_view text) {
  return text == "double *" || ends_with(text, "_d *");
}

[[noreturn]] void refuse(const std::string& what) {
  throw py::import_error(
      "fairsteer cannot use the BLAS and LAPACK of this SciPy: " + what +
      ". fairsteer needs the interface with 32-bit integers (LP64), which the SciPy wheels on "
      "PyPI have: pip install --force-reinstall --only-binary=scipy scipy");
}

// A Fortran routine: every argument is a pointer, constness is not spelled, nothing is returned.
template <class... Args>
class Routine {
 public:
  void load(const char* module, const std::string& name) {
    const std::string full_name = std::string(module) + "." + name;
    const py::dict capsules = py::module_::import(module).attr("__pyx_capi__");
    if (!capsules.contains(name)) refuse(full_name + " is missing");
    const py::object capsule = capsules[name.c_str()];
    if (!PyCapsule_CheckExact(capsule.ptr())) refuse(full_name + " is not a capsule");
    const char* signature = PyCapsule_GetName(capsule.ptr());
    if (signature == nullptr || !accepts(signature)) {
      refuse(full_name + " has the signature '" + (signature != nullptr ? signature : "") + "'");
    }
    function_ = reinterpret_cast<Function*>(PyCapsule_GetPointer(capsule.ptr(), signature));
  }

  void operator()(const Args*... args) const noexcept { function_(const_cast<Args*>(args)...); }

 private:
  using Function = void(Args*...);

  static bool accepts(std::string_view signature) {
    constexpr std::string_view head = "void (";
    if (signature.substr(0, head.size()) != head || signature.back() != ')') return false;
    std::string_view rest = signature.substr(head.size(), signature.size() - head.size() - 1);
    bool more = true;
    const auto next = [&] {
      const std::size_t comma = rest.find(", ");
      const std::string_view argument = rest.substr(0, comma);
      more = comma != std::string_view::npos;
      rest = more ? rest.substr(comma + 2) : std::string_view{};
      return argument;
    };
    return (... && (more && spells_pointer_to<Args>(next()))) && !more;
  }

  Function* function_ = nullptr;
};

// Written once by load(), read only afterwards.
template <class T>
struct Routines {
  static inline Routine<int, T, T, int, T, int> axpy;
  static inline Routine<char, int, int, T, T, int, T, int, T, T, int> gemv;
  static inline Routine<char, int, T, T, int, T, int, T, T, int> symv;
  static inline Routine<char, char, char, int, T, int, T, int> trmv;
  static inline Routine<char, char, int, int, int, T, T, int, T, int, T, T, int> gemm;
  static inline Routine<char, char, int, int, T, T, int, T, int, T, T, int> symm;
  static inline Routine<char, char, int, int, T, T, int, T, T, int> syrk;
  static inline Routine<char, char, char, char, int, int, T, T, int, T, int> trmm;
  static inline Routine<char, char, char, char, int, int, T, T, int, T, int> trsm;

  static inline Routine<char, int, T, int, int> potrf;
  static inline Routine<int, int, T, int, int, int> getrf;
  static inline Routine<int, int, T, int, T, T, int, int> geqrf;
  static inline Routine<int, int, T, int, int, T, T, int, int> geqp3;
  static inline Routine<char, char, int, T, int, T, T, int, int, int, int> syevd;
  static inline Routine<char, char, int, int, T, int, T, T, int, T, int, T, int, int> gesvd;

  static void load(char prefix) {
    const auto name = [prefix](const char* stem) { return prefix + std::string(stem); };
    axpy.load(kBlas, name("axpy"));
    gemv.load(kBlas, name("gemv"));
    symv.load(kBlas, name("symv"));
    trmv.load(kBlas, name("trmv"));
    gemm.load(kBlas, name("gemm"));
    symm.load(kBlas, name("symm"));
    syrk.load(kBlas, name("syrk"));
    trmm.load(kBlas, name("trmm"));
    trsm.load(kBlas, name("trsm"));
    potrf.load(kLapack, name("potrf"));
    getrf.load(kLapack, name("getrf"));
    geqrf.load(kLapack, name("geqrf"));
    geqp3.load(kLapack, name("geqp3"));
    syevd.load(kLapack, name("syevd"));
    gesvd.load(kLapack, name("gesvd"));
  }
};

// The LAPACKE layer: workspaces owned here, and the reference implementation's
// refusal of arguments that are not finite (with them syevd and gesvd may print, loop or return
// anything). `info` counts arguments as LAPACKE does, the layout being the first.

// Eigen ignores most of what LAPACKE answers, so that a mistake in our own code has to be loud:
// the transpose of a matrix, say, decomposed without having been evaluated.
void require_column_major(int layout) {
  if (layout != LAPACK_COL_MAJOR) throw std::logic_error("LAPACK was given a row-major matrix");
}

template <class T>
using Workspace = std::unique_ptr<T[]>;

template <class T>
Workspace<T> allocate(int size) noexcept {
  return Workspace<T>(new (std::nothrow) T[static_cast<std::size_t>(std::max(size, 1))]);
}

// A workspace query answers in the routine's own type, in which a size above 2^24 may have been
// rounded down.
template <class T>
int workspace_size(T answer) noexcept {
  const double size =
      std::ceil(static_cast<double>(answer) * (1.0 + std::numeric_limits<T>::epsilon()));
  return size < static_cast<double>(std::numeric_limits<int>::max()) ? static_cast<int>(size) : -1;
}

template <class T>
auto view(T* a, int rows, int cols, int lda) noexcept {
  using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic>;
  return Eigen::Map<Matrix, 0, Eigen::OuterStride<>>(a, rows, cols, Eigen::OuterStride<>(lda));
}

template <class T>
bool all_finite(const T* a, int rows, int cols, int lda) noexcept {
  for (Index j = 0; j < cols; ++j) {
    for (Index i = 0; i < rows; ++i) {
      if (!std::isfinite(a[j * lda + i])) return false;
    }
  }
  return true;
}

template <class T>
bool triangle_finite(char uplo, int n, const T* a, int lda) noexcept {
  for (Index j = 0; j < n; ++j) {
    const Index begin = uplo == 'L' ? j : 0;
    const Index end = uplo == 'L' ? Index{n} : j + 1;
    for (Index i = begin; i < end; ++i) {
      if (!std::isfinite(a[j * lda + i])) return false;
    }
  }
  return true;
}

template <class T>
constexpr T kNaN = std::numeric_limits<T>::quiet_NaN();

template <class T>
int potrf(int layout, char uplo, int n, T* a, int lda) {
  require_column_major(layout);
  if (!triangle_finite(uplo, n, a, lda)) return -4;
  int info = 0;
  Routines<T>::potrf(&uplo, &n, a, &lda, &info);
  return info;
}

// Eigen reads the pivots whatever `info` says; a refusal leaves the identity there and NaN in the
// factors.
template <class T>
int getrf(int layout, int m, int n, T* a, int lda, int* pivots) {
  require_column_major(layout);
  if (!all_finite(a, m, n, lda)) {
    view(a, m, n, lda).setConstant(kNaN<T>);
    for (int i = 0; i < std::min(m, n); ++i) pivots[i] = i + 1;
    return -4;
  }
  int info = 0;
  Routines<T>::getrf(&m, &n, a, &lda, pivots, &info);
  return info;
}

// Eigen ignores the `info` of the three that follow: on failure NaN in the results tells.
template <class T>
int geqrf(int layout, int m, int n, T* a, int lda, T* tau) {
  require_column_major(layout);
  T answer = 0;
  int size = -1;
  int info = 0;
  Routines<T>::geqrf(&m, &n, a, &lda, tau, &answer, &size, &info);
  size = workspace_size(answer);
  const Workspace<T> work = size > 0 ? allocate<T>(size) : nullptr;
  info = LAPACK_WORK_MEMORY_ERROR;
  if (work) Routines<T>::geqrf(&m, &n, a, &lda, tau, work.get(), &size, &info);
  if (info != 0) {
    view(a, m, n, lda).setConstant(kNaN<T>);
    std::fill_n(tau, std::min(m, n), kNaN<T>);
  }
  return info;
}

template <class T>
int geqp3(int layout, int m, int n, T* a, int lda, int* permutation, T* tau) {
  require_column_major(layout);
  T answer = 0;
  int size = -1;
  int info = 0;
  Routines<T>::geqp3(&m, &n, a, &lda, permutation, tau, &answer, &size, &info);
  size = workspace_size(answer);
  const Workspace<T> work = size > 0 ? allocate<T>(size) : nullptr;
  info = LAPACK_WORK_MEMORY_ERROR;
  if (work) Routines<T>::geqp3(&m, &n, a, &lda, permutation, tau, work.get(), &size, &info);
  if (info != 0) {
    view(a, m, n, lda).setConstant(kNaN<T>);
    std::fill_n(tau, std::min(m, n), kNaN<T>);
    for (int j = 0; j < n; ++j) permutation[j] = j + 1;
  }
  return info;
}

template <class T>
int gesvd(int layout, char jobu, char jobvt, int m, int n, T* a, int lda, T* s, T* u, int ldu,
          T* vt, int ldvt, T* superdiagonal) {
  require_column_major(layout);
  int info = -6;
  if (all_finite(a, m, n, lda)) {
    T answer = 0;
    int size = -1;
    Routines<T>::gesvd(&jobu, &jobvt, &m, &n, a, &lda, s, u, &ldu, vt, &ldvt, &answer, &size,
                       &info);
    size = workspace_size(answer);
    const Workspace<T> work = size > 0 ? allocate<T>(size) : nullptr;
    info = LAPACK_WORK_MEMORY_ERROR;
    if (work) {
      Routines<T>::gesvd(&jobu, &jobvt, &m, &n, a, &lda, s, u, &ldu, vt, &ldvt, work.get(), &size,
                         &info);
      std::copy_n(work.get() + 1, std::max(std::min(m, n) - 1, 0), superdiagonal);
    }
  }
  if (info != 0) std::fill_n(s, std::min(m, n), kNaN<T>);
  return info;
}

// Eigen asks for syev; syevd gives the same answer and is much faster where vectors are wanted.
template <class T>
int syev(int layout, char jobz, char uplo, int n, T* a, int lda, T* w) {
  require_column_major(layout);
  if (!triangle_finite(uplo, n, a, lda)) return -5;
  T answer = 0;
  int integer_answer = 0;
  int size = -1;
  int integer_size = -1;
  int info = 0;
  Routines<T>::syevd(&jobz, &uplo, &n, a, &lda, w, &answer, &size, &integer_answer, &integer_size,
                     &info);
  if (info != 0) return info;
  size = workspace_size(answer);
  integer_size = integer_answer;
  const Workspace<T> work = size > 0 ? allocate<T>(size) : nullptr;
  const Workspace<int> integer_work = allocate<int>(integer_size);
  if (!work || !integer_work) return LAPACK_WORK_MEMORY_ERROR;
  Routines<T>::syevd(&jobz, &uplo, &n, a, &lda, w, work.get(), &size, integer_work.get(),
                     &integer_size, &info);
  return info;
}

}  // namespace

void load() {
  for (const char* module : {kBlas, kLapack}) {
    const py::module_ scipy = py::module_::import(module);
    if (!py::hasattr(scipy, "__pyx_capi__")) refuse(std::string(module) + " publishes no routines");
    if (py::hasattr(scipy, "_blas_int_size")) {
      const int size = py::int_(scipy.attr("_blas_int_size")());
      if (size != 4)
        refuse(std::string(module) + " has " + std::to_string(8 * size) + "-bit integers (ILP64)");
    }
  }
  Routines<float>::load('s');
  Routines<double>::load('d');
}

}  // namespace fairsteer::scipy_blas

// The names that Eigen calls. They are C functions, so one definition a name and type; the macro
// writes both types. Routines of the Schur decomposition (?gees) and of the complex types are not
// bound: nothing here asks for them.

#define FAIRSTEER_BIND(p, T)                                                                       \
  int p##axpy_(const int* n, const T* alpha, const T* x, const int* incx, T* y, const int* incy) { \
    fairsteer::scipy_blas::Routines<T>::axpy(n, alpha, x, incx, y, incy);                          \
    return 0;                                                                                      \
  }                                                                                                \
  int p##gemv_(const char* trans, const int* m, const int* n, const T* alpha, const T* a,          \
               const int* lda, const T* x, const int* incx, const T* beta, T* y,                   \
               const int* incy) {                                                                  \
    fairsteer::scipy_blas::Routines<T>::gemv(trans, m, n, alpha, a, lda, x, incx, beta, y, incy);  \
    return 0;                                                                                      \
  }                                                                                                \
  int p##symv_(const char* uplo, const int* n, const T* alpha, const T* a, const int* lda,         \
               const T* x, const int* incx, const T* beta, T* y, const int* incy) {                \
    fairsteer::scipy_blas::Routines<T>::symv(uplo, n, alpha, a, lda, x, incx, beta, y, incy);      \
    return 0;                                                                                      \
  }                                                                                                \
  int p##trmv_(const char* uplo, const char* trans, const char* diag, const int* n, const T* a,    \
               const int* lda, T* x, const int* incx) {                                            \
    fairsteer::scipy_blas::Routines<T>::trmv(uplo, trans, diag, n, a, lda, x, incx);               \
    return 0;                                                                                      \
  }                                                                                                \
  int p##gemm_(const char* transa, const char* transb, const int* m, const int* n, const int* k,   \
               const T* alpha, const T* a, const int* lda, const T* b, const int* ldb,             \
               const T* beta, T* c, const int* ldc) {                                              \
    fairsteer::scipy_blas::Routines<T>::gemm(transa, transb, m, n, k, alpha, a, lda, b, ldb, beta, \
                                             c, ldc);                                              \
    return 0;                                                                                      \
  }                                                                                                \
  int p##symm_(const char* side, const char* uplo, const int* m, const int* n, const T* alpha,     \
               const T* a, const int* lda, const T* b, const int* ldb, const T* beta, T* c,        \
               const int* ldc) {                                                                   \
    fairsteer::scipy_blas::Routines<T>::symm(side, uplo, m, n, alpha, a, lda, b, ldb, beta, c,     \
                                             ldc);                                                 \
    return 0;                                                                                      \
  }                                                                                                \
  int p##syrk_(const char* uplo, const char* trans, const int* n, const int* k, const T* alpha,    \
               const T* a, const int* lda, const T* beta, T* c, const int* ldc) {                  \
    fairsteer::scipy_blas::Routines<T>::syrk(uplo, trans, n, k, alpha, a, lda, beta, c, ldc);      \
    return 0;                                                                                      \
  }                                                                                                \
  int p##trmm_(const char* side, const char* uplo, const char* transa, const char* diag,           \
               const int* m, const int* n, const T* alpha, const T* a, const int* lda, T* b,       \
               const int* ldb) {                                                                   \
    fairsteer::scipy_blas::Routines<T>::trmm(side, uplo, transa, diag, m, n, alpha, a, lda, b,     \
                                             ldb);                                                 \
    return 0;                                                                                      \
  }                                                                                                \
  int p##trsm_(const char* side, const char* uplo, const char* transa, const char* diag,           \
               const int* m, const int* n, const T* alpha, const T* a, const int* lda, T* b,       \
               const int* ldb) {                                                                   \
    fairsteer::scipy_blas::Routines<T>::trsm(side, uplo, transa, diag, m, n, alpha, a, lda, b,     \
                                             ldb);                                                 \
    return 0;                                                                                      \
  }                                                                                                \
  int LAPACKE_##p##potrf(int layout, char uplo, int n, T* a, int lda) {                            \
    return fairsteer::scipy_blas::potrf(layout, uplo, n, a, lda);                                  \
  }                                                                                                \
  int LAPACKE_##p##getrf(int layout, int m, int n, T* a, int lda, int* pivots) {                   \
    return fairsteer::scipy_blas::getrf(layout, m, n, a, lda, pivots);                             \
  }                                                                                                \
  int LAPACKE_##p##geqrf(int layout, int m, int n, T* a, int lda, T* tau) {                        \
    return fairsteer::scipy_blas::geqrf(layout, m, n, a, lda, tau);                                \
  }                                                                                                \
  int LAPACKE_##p##geqp3(int layout, int m, int n, T* a, int lda, int* permutation, T* tau) {      \
    return fairsteer::scipy_blas::geqp3(layout, m, n, a, lda, permutation, tau);                   \
  }                                                                                                \
  int LAPACKE_##p##syev(int layout, char jobz, char uplo, int n, T* a, int lda, T* w) {            \
    return fairsteer::scipy_blas::syev(layout, jobz, uplo, n, a, lda, w);                          \
  }                                                                                                \
  int LAPACKE_##p##gesvd(int layout, char jobu, char jobvt, int m, int n, T* a, int lda, T* s,     \
                         T* u, int ldu, T* vt, int ldvt, T* superdiagonal) {                       \
    return fairsteer::scipy_blas::gesvd(layout, jobu, jobvt, m, n, a, lda, s, u, ldu, vt, ldvt,    \
                                        superdiagonal);                                            \
  }

extern "C" {
FAIRSTEER_BIND(s, float)
FAIRSTEER_BIND(d, double)
}

#undef FAIRSTEER_BIND
