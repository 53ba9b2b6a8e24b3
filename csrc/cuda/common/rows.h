// Launch configuration of the row kernels: one block per row, each thread takes V neighbouring channels at a time.
#pragma once

#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "launch.h"
#include "vector.cuh"

namespace ssgrl::cuda {

inline bool at_multiple(const void* address, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(address) % bytes == 0;
}

// Calls body with V as a compile-time constant: 16 bytes per access where the row length and every address are aligned
// for it, else one value.
template <class T, class Body>
void by_vector(int64_t dim, std::initializer_list<const void*> addresses, const Body& body) {
  bool fits = dim % kVector<T> == 0;
  for (const void* address : addresses) {
    fits = fits && at_multiple(address, 16);
  }
  if (fits) {
    body(std::integral_constant<int, kVector<T>>());
  } else {
    body(std::integral_constant<int, 1>());
  }
}

inline dim3 one_a_row(int64_t rows) {
  if (rows > 0x7fffffff) {
    throw std::runtime_error(
        "the CUDA kernels take fewer than 2^31 rows (images x classes), got " + std::to_string(rows));
  }
  return dim3(static_cast<unsigned>(rows));
}

// Block size: whole warps, no more threads than one pass over the row can use.
template <int V>
dim3 threads_for(int64_t dim, int64_t most = 256) {
  return dim3(static_cast<unsigned>(std::min(most, std::max<int64_t>(1, ceil_div(dim, 32 * V)) * 32)));
}

}  // namespace ssgrl::cuda
