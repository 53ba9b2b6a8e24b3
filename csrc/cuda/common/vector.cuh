// Loads and stores of up to 16 bytes of a row in one access, converted to and from the type of arithmetic.
#pragma once

#include "types.cuh"

namespace ssgrl::cuda {

template <class T>
constexpr int kVector = 16 / sizeof(T);  // values in one access

template <class T, int V>
struct alignas(sizeof(T) * V) Stored {
  T values[V];
};

template <int V, class T>
__device__ __forceinline__ void load(const T* from, Compute<T> (&to)[V]) {
  const auto stored = *reinterpret_cast<const Stored<T, V>*>(from);
#pragma unroll
  for (int i = 0; i < V; ++i) {
    to[i] = static_cast<Compute<T>>(stored.values[i]);
  }
}

// Loads the values, or zeros where the row is outside the matrix.
template <int V, class T>
__device__ __forceinline__ void load_or_zero(const T* from, Compute<T> (&to)[V]) {
  if (from) {
    load(from, to);
    return;
  }
#pragma unroll
  for (int i = 0; i < V; ++i) {
    to[i] = 0;
  }
}

template <int V, class T>
__device__ __forceinline__ void store(const Compute<T> (&from)[V], T* to) {
  Stored<T, V> stored;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    stored.values[i] = static_cast<T>(from[i]);
  }
  *reinterpret_cast<Stored<T, V>*>(to) = stored;
}

}  // namespace ssgrl::cuda
