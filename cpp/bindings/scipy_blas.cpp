// SciPy publishes the routines of its BLAS and LAPACK as capsules in
// `scipy.linalg.cython_blas.__pyx_capi__` and `scipy.linalg.cython_lapack.__pyx_capi__`; the name
// of a capsule is the C signature of its routine. This file checks the signatures and hands the
// pointers to the core.
#include "scipy_blas.hpp"

#include <pybind11/pybind11.h>

#include <string>
#include <string_view>

#include "fairsteer/blas.hpp"

namespace fairsteer::scipy_blas {
namespace {

namespace py = pybind11;

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

// Whether a signature is that of a routine whose arguments are pointers to these types.
template <class... Args>
bool accepts(std::string_view signature) {
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

template <class... Args>
void bind(blas::Routine<Args...>& routine, const char* module, const py::dict& capsules,
          const char* name) {
  const std::string full_name = std::string(module) + "." + name;
  if (!capsules.contains(name)) refuse(full_name + " is missing");
  const py::object capsule = capsules[name];
  if (!PyCapsule_CheckExact(capsule.ptr())) refuse(full_name + " is not a capsule");
  const char* signature = PyCapsule_GetName(capsule.ptr());
  if (signature == nullptr || !accepts<Args...>(signature))
    refuse(full_name + " has the signature '" + (signature != nullptr ? signature : "") + "'");
  using Function = typename blas::Routine<Args...>::Function;
  routine = reinterpret_cast<Function*>(PyCapsule_GetPointer(capsule.ptr(), signature));
}

py::dict capsules_of(const char* module) {
  const py::module_ scipy = py::module_::import(module);
  if (!py::hasattr(scipy, "__pyx_capi__")) refuse(std::string(module) + " publishes no routines");
  if (py::hasattr(scipy, "_blas_int_size")) {
    const int size = py::int_(scipy.attr("_blas_int_size")());
    if (size != 4)
      refuse(std::string(module) + " has " + std::to_string(8 * size) + "-bit integers (ILP64)");
  }
  return scipy.attr("__pyx_capi__");
}

}  // namespace

void load() {
  const py::dict of_blas = capsules_of(kBlas), of_lapack = capsules_of(kLapack);
  blas::each_of_blas(blas::library(),
                     [&](const char* name, auto& routine) { bind(routine, kBlas, of_blas, name); });
  blas::each_of_lapack(blas::library(), [&](const char* name, auto& routine) {
    bind(routine, kLapack, of_lapack, name);
  });
}

}  // namespace fairsteer::scipy_blas
