// The C++ tests, with the BLAS and LAPACK that they were linked with.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include "fairsteer/blas.hpp"

// What the library puts before a routine's Fortran name: nothing, mostly.
#ifndef FAIRSTEER_BLAS_PREFIX
#define FAIRSTEER_BLAS_PREFIX
#endif
#define FAIRSTEER_JOIN_NAMES(prefix, name) prefix##name##_
#define FAIRSTEER_EXPAND(prefix, name) FAIRSTEER_JOIN_NAMES(prefix, name)
#define FAIRSTEER_SYMBOL(name) FAIRSTEER_EXPAND(FAIRSTEER_BLAS_PREFIX, name)

// Two runs of clang-format disagree on how a list of macros is laid out.
// clang-format off
#define FAIRSTEER_EACH_ROUTINE(APPLY) \
  APPLY(sgemm) APPLY(dgemm) APPLY(ssyrk) APPLY(dsyrk) APPLY(dsymm) APPLY(dtrmm) APPLY(dtrsm) \
  APPLY(dpotrf) APPLY(dpotrs) APPLY(dpotri) APPLY(dgetrf) APPLY(dgetrs) APPLY(dgetri) APPLY(dgecon) \
  APPLY(dgeqrf) APPLY(dormqr) APPLY(dsyevd) APPLY(dgesdd) APPLY(dgesvd)
// clang-format on

extern "C" {
#define FAIRSTEER_DECLARE(name) void FAIRSTEER_SYMBOL(name)();
FAIRSTEER_EACH_ROUTINE(FAIRSTEER_DECLARE)
}

namespace {

template <class... Args>
void bind(fairsteer::blas::Routine<Args...>& routine, void (*symbol)()) {
  routine = reinterpret_cast<typename fairsteer::blas::Routine<Args...>::Function*>(symbol);
}

}  // namespace

int main(int argc, char** argv) {
  fairsteer::blas::Library& library = fairsteer::blas::library();
#define FAIRSTEER_BIND(name) bind(library.name, &FAIRSTEER_SYMBOL(name));
  FAIRSTEER_EACH_ROUTINE(FAIRSTEER_BIND)
  return doctest::Context(argc, argv).run();
}
