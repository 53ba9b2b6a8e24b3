// The elementwise arithmetic in the epilogues of the gated products and the classifier product, in float.
//
// Plain functors without CUTLASS, which g++ compiles too: a test compares them with float64 on the CPU. There the
// approximate instructions are replaced by exact functions, so the test covers the formulas, not the hardware.
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define SSGRL_ELEMENT __host__ __device__ __forceinline__
#else
#define SSGRL_ELEMENT inline
#endif

namespace ssgrl::cuda {

// 1 / (1 + e^-x). The fast exponential and division are accurate to a few float roundings; for x < -88 the denominator
// is infinite and the result 0.
SSGRL_ELEMENT float gate_sigmoid(float x) {
#if defined(__CUDA_ARCH__)
  return __fdividef(1.0f, 1.0f + __expf(-x));
#else
  return 1.0f / (1.0f + std::exp(-x));
#endif
}

// tanh by one instruction, relative error 2^-11: less than the rounding of bfloat16, more than that of float16.
struct FastTanh {
  SSGRL_ELEMENT float operator()(float x) const {
#if defined(__CUDA_ARCH__)
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return std::tanh(x);
#endif
  }
};

// tanh x = 1 - 2 / (1 + e^2x); for |x| < 1/8, where the difference cancels, its series. Relative error about 2^-20.
struct ExactTanh {
  SSGRL_ELEMENT float operator()(float x) const {
    const float square = x * x;
    const float series = x * (1.0f + square * (-1.0f / 3.0f + square * (2.0f / 15.0f)));
    const float wide = 2.0f * gate_sigmoid(2.0f * x) - 1.0f;
    return square < 0.015625f ? series : wide;
  }
};

// sigma(sum + bias) for the update gate z, sigma(sum + bias) h for the reset gate r. The factor h is selected rather
// than multiplied by zero or one, so that an infinite or NaN h does not affect z.
struct GateElement {
  bool reset;
  SSGRL_ELEMENT static GateElement of_batch(int batch) { return {batch == 1}; }
  SSGRL_ELEMENT float operator()(float sum, float bias, float h) const {
    const float gate = gate_sigmoid(sum + bias);
    return reset ? gate * h : gate;
  }
};

// (1 - z) h + z tanh(sum + bias) (eq. 9, last line)
template <class Tanh>
struct BlendElement {
  SSGRL_ELEMENT static BlendElement of_batch(int) { return {}; }
  SSGRL_ELEMENT float operator()(float sum, float bias, float h, float z) const {
    const float n = Tanh{}(sum + bias);
    return (1.0f - z) * h + z * n;
  }
};

// One term of the sum in eq. 10: tanh(f_o) times the element of the row of the class.
template <class Tanh>
struct ClassTerm {
  SSGRL_ELEMENT float operator()(float sum, float bias, float weight) const { return Tanh{}(sum + bias) * weight; }
};

// 1 / s for a power of two s, exactly.
SSGRL_ELEMENT float inverse_power(float s) {
#if defined(__CUDA_ARCH__)
  return __int_as_float(0x7f000000 - __float_as_int(s));
#else
  return 1.0f / s;
#endif
}

// The gates and the blend for a product of scaled operands. `scale` belongs to the output channel, `image` to the
// states of the row's image; both are powers of two. They multiply the sum one after the other, because their product
// may exceed the largest float where the sum is 0. r h is stored divided by the image's scale. If that scale is NaN, z,
// r h and the new h are NaN.
struct ScaledUpdate {
  SSGRL_ELEMENT static ScaledUpdate of_batch(int) { return {}; }
  SSGRL_ELEMENT float operator()(float sum, float scale, float bias, float image) const {
    return gate_sigmoid(sum * scale * image + bias);
  }
};

struct ScaledReset {
  SSGRL_ELEMENT static ScaledReset of_batch(int) { return {}; }
  SSGRL_ELEMENT float operator()(float sum, float scale, float bias, float image, float h) const {
    return gate_sigmoid(sum * scale * image + bias) * h * inverse_power(image);
  }
};

template <class Tanh>
struct ScaledBlend {
  SSGRL_ELEMENT static ScaledBlend of_batch(int) { return {}; }
  SSGRL_ELEMENT float operator()(float sum, float scale, float bias, float image, float h, float z) const {
    return BlendElement<Tanh>{}(sum * scale * image, bias, h, z);
  }
};

}  // namespace ssgrl::cuda
