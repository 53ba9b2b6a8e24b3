// PyTorch's current stream of a device, for sources of g++ and of nvcc; a null pointer in the emulator.
#pragma once

#if !defined(SSGRL_EMULATED)
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/util/shim_utils.h>
#endif

namespace ssgrl::cuda {

inline void* current_stream([[maybe_unused]] int device) {  // a cudaStream_t
  void* stream = nullptr;
#if !defined(SSGRL_EMULATED)
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
#endif
  return stream;
}

}  // namespace ssgrl::cuda
