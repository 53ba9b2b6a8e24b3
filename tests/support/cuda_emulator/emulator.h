// CUDA's names in plain C++, so that the kernels of csrc/cuda compile with a host compiler and run on host memory.
//
// g++ -x c++ -std=c++17 -DSSGRL_EMULATED -I tests/support/cuda_emulator. Kernels are proved by value, in both orders of
// beginning their threads; speed, and races that no order of fibers shows, are not. Included by
// csrc/cuda/common/launch.h alone.

#pragma once

#include <math.h>

#include <algorithm>
#include <tuple>

#include "scheduler.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

inline int min(int a, int b) { return a < b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline long min(long a, long b) { return a < b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline long max(long a, long b) { return a > b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }

template <class To, class From>
inline To emulated_bits(From value) {
  static_assert(sizeof(To) == sizeof(From), "only the type of the bits changes");
  To result;
  std::memcpy(&result, &value, sizeof result);
  return result;
}
inline unsigned __float_as_uint(float x) { return emulated_bits<unsigned>(x); }
inline int __float_as_int(float x) { return emulated_bits<int>(x); }
inline float __uint_as_float(unsigned x) { return emulated_bits<float>(x); }
inline float __int_as_float(int x) { return emulated_bits<float>(x); }
inline long long __double_as_longlong(double x) { return emulated_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emulated_bits<double>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }
template <class T>
inline T __ldg(const T* p) {
  return *p;
}

template <class T>
inline T atomicAdd(T* address, T value) {  // one thread runs at a time
  const T before = *address;
  *address = before + value;
  return before;
}

template <class T>
inline T atomicMax(T* address, T value) {
  const T before = *address;
  *address = before < value ? value : before;
  return before;
}

inline void __syncthreads() { ssgrl::emulator::barrier("__syncthreads", false); }
inline int __syncthreads_count(int p) { return ssgrl::emulator::barrier("__syncthreads_count", p != 0); }
inline int __syncthreads_or(int p) { return ssgrl::emulator::barrier("__syncthreads_or", p != 0) > 0; }
inline int __syncthreads_and(int p) { return ssgrl::emulator::barrier("__syncthreads_and", p == 0) == 0; }

namespace ssgrl::emulator {

// Each lane of the mask reads the value of the lane that source(own lane) names.
template <class T, class Source>
T shuffle(const char* kind, uint32_t mask, T value, Source source) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a shuffle moves 4 or 8 bytes");
  const int from = source(lane());
  if (from < 0 || from >= kWarp || !(mask >> from & 1)) {
    fail(std::string(kind) + ": reads lane " + std::to_string(from) + ", which the mask leaves out");
  }
  const Slot slot = meet(
      kind, mask,
      [&](Slot& own) {
        std::memcpy(own.in, &value, sizeof value);
        own.in[7] = static_cast<uint32_t>(from);
      },
      [](Meeting& all) {
        for (Slot& each : all.slots) {
          const Slot& source_slot = all.slots[each.in[7] % kWarp];
          std::memcpy(each.out, source_slot.in, sizeof(T));
        }
      });
  T result;
  std::memcpy(&result, slot.out, sizeof result);
  return result;
}

inline uint32_t ballot(const char* kind, uint32_t mask, bool predicate) {
  const Slot slot = meet(
      kind, mask, [&](Slot& own) { own.in[0] = predicate; },
      [](Meeting& all) {
        uint32_t bits = 0;
        for (int i = 0; i < kWarp; ++i) {
          bits |= all.mask >> i & 1 ? all.slots[i].in[0] << i : 0;
        }
        for (Slot& each : all.slots) {
          each.out[0] = bits;
        }
      });
  return slot.out[0];
}

inline int segment_end(int lane, int width) { return (lane & ~(width - 1)) + width - 1; }

// The grid must be one that a GPU takes; then its blocks run in order, x fastest.
template <class Kernel>
void run(dim3 grid, dim3 block, size_t shared_bytes, const Kernel& kernel) {
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.z > 64) {
    throw std::runtime_error("a block of " + std::to_string(threads) + " threads; a GPU takes 1 to 1024");
  }
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    throw std::runtime_error("a grid beyond 2147483647 x 65535 x 65535 blocks");
  }
  if (shared_bytes > kSharedLimit) {
    throw std::runtime_error(std::to_string(shared_bytes) + " bytes of dynamic shared memory are over the limit");
  }
  const AccessGuard guard;
  State& s = state();
  s.shared.resize(shared_bytes + kFence);
  s.kernel = kernel;
  blockDim = block;
  gridDim = grid;
  s.place = [block](int thread) {
    const unsigned at = static_cast<unsigned>(thread);
    threadIdx = {at % block.x, at / block.x % block.y, at / (block.x * block.y)};
  };
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        run_block(static_cast<int>(threads), shared_bytes);
      }
    }
  }
}

inline void* shared_memory() {  // 16-byte aligned, as operator new aligns
  return state().shared.data();
}

}  // namespace ssgrl::emulator

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  ssgrl::emulator::meet("__syncwarp", mask, [](auto&) {}, [](auto&) {});
}
template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  return ssgrl::emulator::shuffle(
      "__shfl_sync", mask, value, [=](int lane) { return (lane & ~(width - 1)) | (source & (width - 1)); });
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  return ssgrl::emulator::shuffle("__shfl_xor_sync", mask, value, [=](int lane) {
    return (lane ^ bits) <= ssgrl::emulator::segment_end(lane, width) ? lane ^ bits : lane;
  });
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
  return ssgrl::emulator::shuffle("__shfl_down_sync", mask, value, [=](int lane) {
    const int from = lane + static_cast<int>(by);
    return from <= ssgrl::emulator::segment_end(lane, width) ? from : lane;
  });
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
  return ssgrl::emulator::shuffle("__shfl_up_sync", mask, value, [=](int lane) {
    const int from = lane - static_cast<int>(by);
    return from >= (lane & ~(width - 1)) ? from : lane;
  });
}
inline unsigned __ballot_sync(unsigned mask, int p) { return ssgrl::emulator::ballot("__ballot_sync", mask, p != 0); }
inline int __any_sync(unsigned mask, int p) { return ssgrl::emulator::ballot("__any_sync", mask, p != 0) != 0; }
inline int __all_sync(unsigned mask, int p) { return ssgrl::emulator::ballot("__all_sync", mask, p == 0) == 0; }
