// The routines of BLAS and LAPACK that the core calls: nothing else of linear algebra comes from
// outside. Whoever loads the core provides them, the Python module from SciPy's capsules, the C++
// tests from a library that they are linked with.
#pragma once

#include <cassert>

namespace fairsteer::blas {

/// A Fortran routine with 32-bit integers: every argument is a pointer, nothing is returned.
template <class... Args>
class Routine {
 public:
  using Function = void(Args*...);

  Routine& operator=(Function* function) noexcept {
    function_ = function;
    return *this;
  }
  /// Fortran does not spell constness: what a routine only reads may be const here.
  void operator()(const Args*... args) const noexcept {
    assert(function_ != nullptr);  // the library has been filled
    function_(const_cast<Args*>(args)...);
  }

 private:
  Function* function_ = nullptr;
};

template <class T>
using Gemm = Routine<char, char, int, int, int, T, T, int, T, int, T, T, int>;
template <class T>
using Syrk = Routine<char, char, int, int, T, T, int, T, T, int>;
using Symm = Routine<char, char, int, int, double, double, int, double, int, double, double, int>;
using Triangular =
    Routine<char, char, char, char, int, int, double, double, int, double, int>;  // trmm, trsm

struct Library {
  Gemm<float> sgemm;
  Gemm<double> dgemm;
  Syrk<float> ssyrk;
  Syrk<double> dsyrk;
  Symm dsymm;
  Triangular dtrmm;
  Triangular dtrsm;

  Routine<char, int, double, int, int> dpotrf;
  Routine<char, int, int, double, int, double, int, int> dpotrs;
  Routine<char, int, double, int, int> dpotri;
  Routine<int, int, double, int, int, int> dgetrf;
  Routine<char, int, int, double, int, int, double, int, int> dgetrs;
  Routine<int, double, int, int, double, int, int> dgetri;
  Routine<char, int, double, int, double, double, double, int, int> dgecon;
  Routine<int, int, double, int, double, double, int, int> dgeqrf;
  Routine<char, char, int, int, int, double, int, double, double, int, double, int, int> dormqr;
  Routine<char, char, int, double, int, double, double, int, int, int, int> dsyevd;
  Routine<char, int, int, double, int, double, double, int, double, int, double, int, int, int>
      dgesdd;
  Routine<char, char, int, int, double, int, double, double, int, double, int, double, int, int>
      dgesvd;
};

/// Calls `visit(name, routine)` for every routine of BLAS in `library`.
template <class Visit>
void each_of_blas(Library& library, Visit visit) {
  visit("sgemm", library.sgemm);
  visit("dgemm", library.dgemm);
  visit("ssyrk", library.ssyrk);
  visit("dsyrk", library.dsyrk);
  visit("dsymm", library.dsymm);
  visit("dtrmm", library.dtrmm);
  visit("dtrsm", library.dtrsm);
}

/// The same for LAPACK.
template <class Visit>
void each_of_lapack(Library& library, Visit visit) {
  visit("dpotrf", library.dpotrf);
  visit("dpotrs", library.dpotrs);
  visit("dpotri", library.dpotri);
  visit("dgetrf", library.dgetrf);
  visit("dgetrs", library.dgetrs);
  visit("dgetri", library.dgetri);
  visit("dgecon", library.dgecon);
  visit("dgeqrf", library.dgeqrf);
  visit("dormqr", library.dormqr);
  visit("dsyevd", library.dsyevd);
  visit("dgesdd", library.dgesdd);
  visit("dgesvd", library.dgesvd);
}

/// The library in use. Filled once, before anything else of the core is called, and only read
/// afterwards, by any number of threads.
Library& library() noexcept;

}  // namespace fairsteer::blas
