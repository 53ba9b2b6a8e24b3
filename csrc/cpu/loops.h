// The loops of isa.h. Each isa_*.cpp selects an instruction set and includes this file inside the namespace
// ssgrl::<instruction set>.

#include "math.h"

inline float widen_one(float x) { return x; }
inline double widen_one(double x) { return x; }
inline float widen_one(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

inline void narrow_one(float x, float& out) { out = x; }
inline void narrow_one(double x, double& out) { out = x; }
inline void narrow_one(float x, BFloat16& out) {  // to nearest, ties to even; a NaN keeps its quiet bit
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out.bits = static_cast<uint16_t>(x == x ? rounded : 0x7fc0u);
}

template <class T>
inline Compute<T> bias_at(const T* bias, int64_t j) {
  return bias ? widen_one(bias[j]) : Compute<T>(0);
}

template <class A>
void attention_row(const A* u, const A* v, const A* p, int64_t locations, int64_t joint, A* out) {
  A top = 0;
  for (int64_t l = 0; l < locations; ++l) {
    const A* row = u + l * joint;
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < joint; ++k) {
      sum += p[k] * tanh_value(row[k] * v[k]);
    }
    out[l] = sum;
    top = l == 0 || sum > top ? sum : top;
  }
  A total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t l = 0; l < locations; ++l) {
    out[l] = exp_nonpositive(out[l] - top).q;
    total += out[l];
  }
  const A scale = A(1) / total;
#pragma omp simd
  for (int64_t l = 0; l < locations; ++l) {
    out[l] *= scale;
  }
}

template <class A>
void softmax_backward_row(const A* attention, int64_t locations, A* gradient) {
  A dot = 0;
#pragma omp simd reduction(+ : dot)
  for (int64_t l = 0; l < locations; ++l) {
    dot += attention[l] * gradient[l];
  }
#pragma omp simd
  for (int64_t l = 0; l < locations; ++l) {
    gradient[l] = attention[l] * (gradient[l] - dot);
  }
}

// With x = u v: d_u += d_scores p sech^2(x) v, d_v += d_scores p sech^2(x) u, d_p += d_scores tanh(x). The block of
// channels is the innermost, vectorised loop. d_v is summed per image and d_p per location first, so that sums in float
// stay short.
template <class A>
void joint_backward(
    const A* u, const A* v, const A* p, const A* d_scores, int64_t images, int64_t locations, int64_t classes,
    int64_t joint, int64_t begin, int64_t end, A* d_u, A* d_v, A* d_p, A* scratch) {
  const int64_t width = end - begin;
  A block_u[kJointBlock], block_p[kJointBlock], sum_u[kJointBlock], sum_p[kJointBlock], total_p[kJointBlock];
  for (int64_t k = 0; k < kJointBlock; ++k) {
    total_p[k] = 0;
    block_u[k] = 0;
    block_p[k] = k < width ? p[begin + k] : A(0);
  }
  A* block_v = scratch;                          // v of the block: [C, kJointBlock], zero beyond K
  A* image_v = scratch + classes * kJointBlock;  // d_v of one image: [C, kJointBlock]
  for (int64_t c = 0; c < classes; ++c) {
    for (int64_t k = 0; k < kJointBlock; ++k) {
      block_v[c * kJointBlock + k] = k < width ? v[c * joint + begin + k] : A(0);
      if (k < width) {
        d_v[c * joint + begin + k] = 0;
      }
    }
  }
  for (int64_t b = 0; b < images; ++b) {
    for (int64_t i = 0; i < classes * kJointBlock; ++i) {
      image_v[i] = 0;
    }
    for (int64_t l = 0; l < locations; ++l) {
      const int64_t at = (b * locations + l) * joint + begin;
      for (int64_t k = 0; k < width; ++k) {
        block_u[k] = u[at + k];
      }
      for (int64_t k = 0; k < kJointBlock; ++k) {
        sum_u[k] = 0;
        sum_p[k] = 0;
      }
      for (int64_t c = 0; c < classes; ++c) {
        const A g = d_scores[(b * classes + c) * locations + l];
        const A* row_v = block_v + c * kJointBlock;
        A* row_d = image_v + c * kJointBlock;
#pragma omp simd
        for (int64_t k = 0; k < kJointBlock; ++k) {
          const Tanh<A> t = tanh_and_slope(block_u[k] * row_v[k]);
          const A w = g * t.slope;
          sum_u[k] += w * row_v[k];
          row_d[k] += w * block_u[k];
          sum_p[k] += g * t.value;
        }
      }
      for (int64_t k = 0; k < width; ++k) {
        d_u[at + k] = sum_u[k] * block_p[k];
      }
      for (int64_t k = 0; k < kJointBlock; ++k) {
        total_p[k] += sum_p[k];
      }
    }
    for (int64_t c = 0; c < classes; ++c) {
      for (int64_t k = 0; k < width; ++k) {
        d_v[c * joint + begin + k] += image_v[c * kJointBlock + k] * block_p[k];
      }
    }
  }
  for (int64_t k = 0; k < width; ++k) {
    d_p[begin + k] = total_p[k];
  }
}

template <class T>
void gate(T* gates, const T* bias_z, const T* bias_r, T* x, int64_t dim) {
  T* z = gates;
  T* r = gates + dim;
  const T* h = x;
  T* reset = x + 3 * dim;
#pragma omp simd
  for (int64_t j = 0; j < dim; ++j) {
    narrow_one(widen_one(z[j]) + bias_at(bias_z, j), z[j]);
    narrow_one(widen_one(r[j]) + bias_at(bias_r, j), r[j]);
    narrow_one(logistic(widen_one(r[j])).value * widen_one(h[j]), reset[j]);
  }
}

template <class T>
void blend(T* gates, const T* bias_h, const T* h, T* out, int64_t dim) {
  const T* z = gates;
  T* n = gates + 2 * dim;
#pragma omp simd
  for (int64_t j = 0; j < dim; ++j) {
    narrow_one(widen_one(n[j]) + bias_at(bias_h, j), n[j]);
    const auto g = logistic(widen_one(z[j]));
    narrow_one(g.complement * widen_one(h[j]) + g.value * tanh_value(widen_one(n[j])), out[j]);
  }
}

template <class T>
void blend_backward(const T* d, const T* gates, const T* h, T* d_gates, T* d_x, int64_t dim) {
#pragma omp simd
  for (int64_t j = 0; j < dim; ++j) {
    const auto g = logistic(widen_one(gates[j]));
    const auto n = tanh_and_slope(widen_one(gates[2 * dim + j]));
    const auto grad = widen_one(d[j]);
    narrow_one(grad * (n.value - widen_one(h[j])) * g.value * g.complement, d_gates[j]);
    narrow_one(grad * g.value * n.slope, d_gates[2 * dim + j]);
    narrow_one(grad * g.complement, d_x[j]);
  }
}

template <class T>
void gate_backward(const T* gates, const T* h, T* d_gates, T* d_x, T* shared, int64_t dim) {
#pragma omp simd
  for (int64_t j = 0; j < dim; ++j) {
    const auto r = logistic(widen_one(gates[dim + j]));
    const auto grad = widen_one(d_x[3 * dim + j]);
    narrow_one(grad * widen_one(h[j]) * r.value * r.complement, d_gates[dim + j]);
    narrow_one(widen_one(d_x[j]) + grad * r.value, d_x[j]);
  }
  if (shared) {
#pragma omp simd
    for (int64_t j = 0; j < dim; ++j) {
      narrow_one(widen_one(d_gates[j]) + widen_one(d_gates[dim + j]), shared[j]);
    }
  }
}

template <class T>
Compute<T> class_logit(T* output, const T* bias, const T* weight, int64_t outputs) {
  Compute<T> sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t o = 0; o < outputs; ++o) {
    narrow_one(widen_one(output[o]) + bias_at(bias, o), output[o]);
    sum += tanh_value(widen_one(output[o])) * widen_one(weight[o]);
  }
  return sum;
}

template <class T>
void class_logit_backward(
    Compute<T> g, const T* output, const T* weight, int64_t outputs, T* d_output, Compute<T>* d_weight) {
#pragma omp simd
  for (int64_t o = 0; o < outputs; ++o) {
    const auto t = tanh_and_slope(widen_one(output[o]));
    narrow_one(g * widen_one(weight[o]) * t.slope, d_output[o]);
    d_weight[o] += g * t.value;
  }
}

template <class T>
void column_sums(const T* rows, int64_t count, int64_t stride, int64_t columns, T* out, double* scratch) {
  for (int64_t j = 0; j < columns; ++j) {
    scratch[j] = 0;
  }
  for (int64_t i = 0; i < count; ++i) {
    const T* row = rows + i * stride;
#pragma omp simd
    for (int64_t j = 0; j < columns; ++j) {
      scratch[j] += static_cast<double>(widen_one(row[j]));
    }
  }
  for (int64_t j = 0; j < columns; ++j) {
    narrow_one(static_cast<Compute<T>>(scratch[j]), out[j]);
  }
}

template <class T>
void widen(const T* in, int64_t count, Compute<T>* out) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    out[i] = widen_one(in[i]);
  }
}

template <class T>
void narrow(const Compute<T>* in, int64_t count, T* out) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    narrow_one(in[i], out[i]);
  }
}

template <class T>
const Loops<T>& table() {
  using A = Compute<T>;
  static const Loops<T> all = {
      {attention_row<A>, softmax_backward_row<A>, joint_backward<A>},
      {gate<T>, blend<T>, blend_backward<T>, gate_backward<T>, class_logit<T>, class_logit_backward<T>, column_sums<T>,
       widen<T>, narrow<T>},
  };
  return all;
}

template const Loops<float>& table<float>();
template const Loops<double>& table<double>();
template const Loops<BFloat16>& table<BFloat16>();
