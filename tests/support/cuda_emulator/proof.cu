// Small kernels that prove the emulator itself (tests/cuda/test_cuda_emulator.py).

#include "bindings.h"
#include "cuda/common/intrinsics.cuh"

using namespace ssgrl::cuda;

namespace {

// out[block] = the sum of its 128 values, by shuffles and shared memory.
__global__ void sum_kernel(const float* in, float* out, int64_t count) {
  __shared__ float partial[4];
  const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  float value = at < count ? in[at] : 0.f;
  for (int bits = 16; bits > 0; bits /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, bits);
  }
  if (threadIdx.x % 32 == 0) {
    partial[threadIdx.x / 32] = value;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    out[blockIdx.x] = partial[0] + partial[1] + partial[2] + partial[3];
  }
}

// Every shuffle and vote of one warp: out [6, 32].
__global__ void shuffle_kernel(const double* in, double* out) {
  const int lane = threadIdx.x;
  const double value = in[lane];
  out[lane] = __shfl_sync(0xffffffffu, value, 7);
  out[32 + lane] = __shfl_xor_sync(0xffffffffu, value, 5);
  out[64 + lane] = __shfl_down_sync(0xffffffffu, value, 3u);
  out[96 + lane] = __shfl_up_sync(0xffffffffu, value, 2u, 8);
  out[128 + lane] = __ballot_sync(0xffffffffu, value > 0);
  if (lane < 16) {
    out[160 + lane] = __any_sync(0x0000ffffu, lane == 3) + 2 * __all_sync(0x0000ffffu, lane < 16);
  } else {
    out[160 + lane] = __any_sync(0xffff0000u, lane < 3) + 2 * __all_sync(0xffff0000u, lane != 20);
  }
}

// d [16, 8] += a [16, 16] b [16, 8], a and b in memory by rows and columns as the instruction takes them, loaded by
// hand or by ldmatrix.
template <class Tag>
__global__ void product_kernel(const uint16_t* a, const uint16_t* b, float* d, bool by_ldmatrix) {
  SSGRL_SHARED(uint16_t, tiles);  // a, then b
  for (int i = threadIdx.x; i < 384; i += 32) {
    tiles[i] = i < 256 ? a[i] : b[i - 256];
  }
  __syncwarp();
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  uint32_t left[4], right[2];
  if (by_ldmatrix) {
    ldmatrix_x4(left, tiles + (lane % 16) * 16 + lane / 16 * 8);
    ldmatrix_x2_trans(right, tiles + 256 + (lane % 16) * 8);
  } else {
    for (int i = 0; i < 4; ++i) {
      const uint16_t* from = tiles + (g + i % 2 * 8) * 16 + 2 * t + i / 2 * 8;
      left[i] = from[0] | static_cast<uint32_t>(from[1]) << 16;
    }
    for (int i = 0; i < 2; ++i) {
      const uint16_t* from = tiles + 256 + (2 * t + 8 * i) * 8 + g;
      right[i] = from[0] | static_cast<uint32_t>(from[8]) << 16;
    }
  }
  float sums[4];
  for (int i = 0; i < 4; ++i) {
    sums[i] = d[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
  }
  mma_16x8x16(sums, left, right, Tag());
  for (int i = 0; i < 4; ++i) {
    d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sums[i];
  }
}

// Thread i copies bytes[i] of kWidth bytes; first what is read before the wait, then after it.
template <int kWidth>
__global__ void copy_kernel(const unsigned char* in, const int* bytes, unsigned char* early, unsigned char* late) {
  SSGRL_SHARED(unsigned char, buffer);
  unsigned char* own = buffer + kWidth * threadIdx.x;
  if (kWidth == 16) {
    cp_async_16(own, in + kWidth * threadIdx.x, bytes[threadIdx.x]);
  } else {
    cp_async_8(own, in + kWidth * threadIdx.x, bytes[threadIdx.x]);
  }
  cp_async_commit();
  for (int i = 0; i < kWidth; ++i) {
    early[kWidth * threadIdx.x + i] = own[i];
  }
  cp_async_wait<0>();
  for (int i = 0; i < kWidth; ++i) {
    late[kWidth * threadIdx.x + i] = own[i];
  }
}

enum Fault { kWarpLeaves, kBlockLeaves, kWarpDiverges, kMissingLane, kBehindShared, kMisaligned, kStuck };

__global__ void fault_kernel(int fault) {
  SSGRL_SHARED(float, buffer);
  const int lane = threadIdx.x % 32;
  float value = 1.f;
  uint32_t r[4];
  if (fault == kWarpLeaves && lane >= 16) {
    return;
  }
  if (fault == kBlockLeaves && threadIdx.x >= 32) {
    return;
  }
  if (fault == kWarpDiverges && lane == 0) {
    __syncwarp();
  }
  if (fault == kMissingLane) {
    value = __shfl_sync(0xffffffffu, value, 0) + __shfl_sync(0x1u, value, 0);
  }
  if (fault == kStuck && lane < 16) {
    __syncthreads();
  }
  if (fault == kMisaligned) {
    ldmatrix_x4(r, buffer + 1);
  }
  value = __shfl_xor_sync(0xffffffffu, value, 1);
  __syncthreads();
  buffer[threadIdx.x + (fault == kBehindShared)] = value;
}

// Reads element `at` of an array.
__global__ void read_kernel(const float* in, float* out, int64_t at) { out[0] = in[at]; }

// A race: each thread reads its neighbour's value without a barrier. By order of the threads it reads old or new.
__global__ void race_kernel(float* out) {
  __shared__ float values[32];
  values[threadIdx.x] = -1.f;
  __syncthreads();
  values[threadIdx.x] = static_cast<float>(threadIdx.x);
  out[threadIdx.x] = values[(threadIdx.x + 1) % 32];
}

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default"))) const char*

EXPORTED emulated_sum(bool backwards, const float* in, float* out, int64_t count) {
  return emulated(backwards, [&] {
    launch(sum_kernel, dim3(static_cast<unsigned>(ceil_div(count, 128))), dim3(128), 0, in, out, count);
  });
}

EXPORTED emulated_shuffles(bool backwards, const double* in, double* out) {
  return emulated(backwards, [&] { launch(shuffle_kernel, dim3(1), dim3(32), 0, in, out); });
}

EXPORTED emulated_product(
    bool backwards, const uint16_t* a, const uint16_t* b, float* d, int64_t half, int64_t by_ldmatrix) {
  return emulated(backwards, [&] {
    launch(half ? product_kernel<f16> : product_kernel<bf16>, dim3(1), dim3(32), 768, a, b, d, by_ldmatrix != 0);
  });
}

EXPORTED emulated_copies(
    bool backwards, int64_t width, const unsigned char* in, const int* bytes, unsigned char* early,
    unsigned char* late) {
  const dim3 threads(static_cast<unsigned>(width + 1));
  return emulated(backwards, [&] {
    launch(
        width == 16 ? copy_kernel<16> : copy_kernel<8>, dim3(1), threads, (width + 1) * width, in, bytes, early, late);
  });
}

EXPORTED emulated_fault(bool backwards, int64_t fault) {
  return emulated(backwards, [&] { launch(fault_kernel, dim3(2), dim3(64), 256, static_cast<int>(fault)); });
}

EXPORTED emulated_read(bool backwards, const float* in, float* out, int64_t at) {
  return emulated(backwards, [&] { launch(read_kernel, dim3(1), dim3(1), 0, in, out, at); });
}

EXPORTED emulated_race(bool backwards, float* out) {
  return emulated(backwards, [&] { launch(race_kernel, dim3(1), dim3(32), 0, out); });
}

EXPORTED emulated_grid(bool backwards, int64_t x, int64_t y, int64_t threads) {
  return emulated(backwards, [&] {
    float out[32];
    launch(
        race_kernel, dim3(static_cast<unsigned>(x), static_cast<unsigned>(y)), dim3(static_cast<unsigned>(threads)), 0,
        static_cast<float*>(out));
  });
}
