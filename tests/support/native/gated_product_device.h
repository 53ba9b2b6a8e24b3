// What the checks of the products on a GPU share.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

[[noreturn]] inline void fail(const std::string& reason) {
  std::printf("%s\n", reason.c_str());
  std::exit(1);
}

inline void check(cudaError_t status) {
  if (status != cudaSuccess) {
    fail(cudaGetErrorString(status));
  }
}

// A copy on the device; the program's end frees it.
template <class T>
T* upload(const std::vector<T>& values) {
  T* device = nullptr;
  check(cudaMalloc(&device, values.size() * sizeof(T)));
  check(cudaMemcpy(device, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  return device;
}

template <class T>
std::vector<T> download(const T* device, int64_t count) {
  std::vector<T> values(count);
  check(cudaMemcpy(values.data(), device, count * sizeof(T), cudaMemcpyDeviceToHost));
  return values;
}

template <class T>
std::vector<T> draw(std::mt19937& random, int64_t count, float scale) {
  std::normal_distribution<float> normal;
  std::vector<T> values(count);
  for (T& value : values) {
    value = T(scale * normal(random));
  }
  return values;
}

// Of a call with so many multiply-adds.
template <class Call>
double teraflops(Call&& call, double multiply_adds) {
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  call();
  check(cudaEventRecord(begin));
  constexpr int kTimes = 20;
  for (int i = 0; i < kTimes; ++i) {
    call();
  }
  check(cudaEventRecord(end));
  check(cudaEventSynchronize(end));
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, begin, end));
  return 2e-9 * kTimes * multiply_adds / milliseconds;
}
