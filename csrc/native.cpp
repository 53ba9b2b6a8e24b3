// ssgrl_fast._native: facts about the build and the CPU, shown by `ssgrl-fast env`.
//
// Includes no torch header, so it compiles in seconds and works with any torch. The SSGRL_* macros come from
// ssgrl_fast/backends/build.py.

#include <pybind11/pybind11.h>

#include <string>

#include "cpu/cpu_features.h"

namespace py = pybind11;

namespace {

#define SSGRL_TEXT_OF(value) #value
#define SSGRL_TEXT(value) SSGRL_TEXT_OF(value)

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "not known";
#endif
}

py::dict build_info() {
  py::dict facts;
  facts["version"] = SSGRL_VERSION;
  facts["compiler"] = compiler();
  facts["flags"] = SSGRL_FLAGS;
  facts["torch_target"] = SSGRL_TORCH_TARGET;
  facts["built_with_torch"] = SSGRL_BUILD_TORCH;
  facts["built_for_python"] = SSGRL_TEXT(PY_MAJOR_VERSION) "." SSGRL_TEXT(PY_MINOR_VERSION);
  facts["pybind11"] = SSGRL_TEXT(PYBIND11_VERSION_MAJOR) "." SSGRL_TEXT(PYBIND11_VERSION_MINOR);
  facts["sources"] = SSGRL_SOURCES;
  facts["nvcc"] = SSGRL_NVCC;
  facts["cuda_targets"] = SSGRL_CUDA_TARGETS;
  facts["cutlass"] = SSGRL_CUTLASS;
  return facts;
}

py::tuple kernel_isas() {
#ifdef __x86_64__
  return py::make_tuple(
      ssgrl::isa_name(ssgrl::Isa::generic), ssgrl::isa_name(ssgrl::Isa::avx2), ssgrl::isa_name(ssgrl::Isa::avx512));
#else
  return py::make_tuple(ssgrl::isa_name(ssgrl::Isa::generic));
#endif
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "Facts of the build and of the CPU.";
  module.def("build_info", &build_info, "How the compiled modules were built, by name; empty: not built.");
  module.def("kernel_isas", &kernel_isas, "The instruction sets that the CPU kernels were compiled for.");
  module.def(
      "cpu_isa", [] { return ssgrl::isa_name(ssgrl::detect_isa()); },
      "The instruction set that the CPU kernels use on this machine.");
  module.def(
      "product_library",
      [] { return ssgrl::product_library() == ssgrl::ProductLibrary::onednn ? "oneDNN" : "PyTorch's BLAS"; },
      "The library of the CPU kernels' large float32 products on this machine.");
}
