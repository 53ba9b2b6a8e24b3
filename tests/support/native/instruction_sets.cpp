// Runs the vectorised loops of every instruction set this processor has and prints, for each set, storage type and
// loop, the largest relative error against the same formula in long double with the C++ library's exp and tanh.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <vector>

#include "cpu/isa.h"

using ssgrl::BFloat16;
using ssgrl::Compute;
using Real = long double;

template <class T>
T stored(Real x) {
  return static_cast<T>(x);
}
template <>
BFloat16 stored<BFloat16>(Real x) {
  const float value = static_cast<float>(x);
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
template <class T>
Real real(T x) {
  return x;
}
template <>
Real real<BFloat16>(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

uint64_t state = 1;
Real draw() {  // about uniform in [-4, 4], now and then up to 400: saturated
  state = state * 6364136223846793005ull + 1442695040888963407ull;
  const Real x = static_cast<Real>(static_cast<int64_t>(state) >> 11) / static_cast<Real>(1ll << 50);
  return (state >> 33) % 37 == 0 ? 100 * x : x;
}
template <class T>
std::vector<T> drawn(size_t count, Real scale = 1) {
  std::vector<T> values(count);
  for (T& value : values) {
    value = stored<T>(scale * draw());
  }
  return values;
}

struct Worst {
  Real error = 0;
  void see(Real got, Real truth, Real scale) {
    const Real relative = std::fabs(got - truth) / std::max(scale, Real(1e-20));  // e^-87 stands for anything below it
    error = relative == relative ? std::max(error, relative) : std::numeric_limits<Real>::infinity();
  }
};

Real sigma(Real x) { return 1 / (1 + std::exp(-x)); }
Real slope(Real x) {
  const Real q = std::exp(-2 * std::fabs(x));
  return 4 * q / ((1 + q) * (1 + q));
}

template <class T>
void print(const char* set, const char* loop, const Worst& worst) {
  const char* type = sizeof(T) == 2 ? "bfloat16" : sizeof(T) == 4 ? "float32" : "float64";
  std::printf("%s %s %s %.3Le\n", set, type, loop, worst.error);
}

template <class T>
void run(const char* set, const ssgrl::Loops<T>& loops) {
  using A = Compute<T>;
  const int64_t dim = 1037, locations = 7, classes = 5, joint = 45, images = 2;
  Worst attention, joint_worst, gate, blend, blend_backward, gate_backward, score, score_backward, sums;

  const auto u = drawn<A>(images * locations * joint), v = drawn<A>(classes * joint), p = drawn<A>(joint, 0.1L);
  for (int64_t c = 0; c < classes; ++c) {
    std::vector<A> out(locations);
    loops.attention.attention_row(u.data(), v.data() + c * joint, p.data(), locations, joint, out.data());
    std::vector<Real> e(locations);
    Real total = 0;
    for (int64_t l = 0; l < locations; ++l) {
      for (int64_t k = 0; k < joint; ++k) {
        e[l] += static_cast<Real>(p[k]) * std::tanh(static_cast<Real>(u[l * joint + k]) * v[c * joint + k]);
      }
      total += std::exp(e[l]);
    }
    for (int64_t l = 0; l < locations; ++l) {
      attention.see(out[l], std::exp(e[l]) / total, std::exp(e[l]) / total);
    }
  }

  const auto g = drawn<A>(images * classes * locations);
  std::vector<A> d_u(u.size()), d_v(v.size()), d_p(p.size()), scratch(2 * classes * ssgrl::kJointBlock);
  for (int64_t begin = 0; begin < joint; begin += ssgrl::kJointBlock) {
    loops.attention.joint_backward(
        u.data(), v.data(), p.data(), g.data(), images, locations, classes, joint, begin,
        std::min(joint, begin + ssgrl::kJointBlock), d_u.data(), d_v.data(), d_p.data(), scratch.data());
  }
  std::vector<Real> t_u(u.size()), t_v(v.size()), t_p(p.size()), m_u(u.size()), m_v(v.size()), m_p(p.size());
  for (int64_t b = 0; b < images; ++b)
    for (int64_t l = 0; l < locations; ++l)
      for (int64_t c = 0; c < classes; ++c)
        for (int64_t k = 0; k < joint; ++k) {
          const int64_t iu = (b * locations + l) * joint + k, iv = c * joint + k;
          const Real x = static_cast<Real>(u[iu]) * v[iv], w = g[(b * classes + c) * locations + l];
          const Real du = w * p[k] * slope(x) * v[iv], dv = w * p[k] * slope(x) * u[iu], dp = w * std::tanh(x);
          t_u[iu] += du, t_v[iv] += dv, t_p[k] += dp;
          m_u[iu] += std::fabs(du), m_v[iv] += std::fabs(dv), m_p[k] += std::fabs(dp);
        }
  for (size_t i = 0; i < u.size(); ++i) joint_worst.see(d_u[i], t_u[i], m_u[i]);
  for (size_t i = 0; i < v.size(); ++i) joint_worst.see(d_v[i], t_v[i], m_v[i]);
  for (size_t i = 0; i < p.size(); ++i) joint_worst.see(d_p[i], t_p[i], m_p[i]);

  auto gates = drawn<T>(3 * dim), x = drawn<T>(4 * dim), bz = drawn<T>(dim), br = drawn<T>(dim), bn = drawn<T>(dim);
  const auto before = gates;
  loops.rows.gate(gates.data(), bz.data(), br.data(), x.data(), dim);
  std::vector<T> next(dim);
  loops.rows.blend(gates.data(), bn.data(), x.data(), next.data(), dim);
  auto d = drawn<T>(dim), d_x = drawn<T>(4 * dim), d_gates = drawn<T>(3 * dim), shared = drawn<T>(dim);
  const auto d_reset = d_x;
  loops.rows.blend_backward(d.data(), gates.data(), x.data(), d_gates.data(), d_x.data(), dim);
  const auto d_before = d_x;
  loops.rows.gate_backward(gates.data(), x.data(), d_gates.data(), d_x.data(), shared.data(), dim);
  for (int64_t j = 0; j < dim; ++j) {
    const Real z = real(gates[j]), r = real(gates[dim + j]), n = real(gates[2 * dim + j]), h = real(x[j]);
    const Real biases[3] = {real(bz[j]), real(br[j]), real(bn[j])};
    for (int i = 0; i < 3; ++i) {
      const Real a = real(before[i * dim + j]);
      gate.see(real(gates[i * dim + j]), a + biases[i], std::fabs(a) + std::fabs(biases[i]));
    }
    gate.see(real(x[3 * dim + j]), sigma(r) * h, std::fabs(sigma(r) * h));
    const Real keep = sigma(-z) * h, take = sigma(z) * std::tanh(n), grad = real(d[j]),
               back = real(d_reset[3 * dim + j]);
    blend.see(real(next[j]), keep + take, std::fabs(keep) + std::fabs(take));
    const Real dz = grad * (std::tanh(n) - h) * sigma(z) * sigma(-z), dn = grad * sigma(z) * slope(n);
    blend_backward.see(
        real(d_gates[j]), dz, std::fabs(grad) * (std::fabs(std::tanh(n)) + std::fabs(h)) * sigma(z) * sigma(-z));
    blend_backward.see(real(d_gates[2 * dim + j]), dn, std::fabs(dn));
    blend_backward.see(real(d_before[j]), grad * sigma(-z), std::fabs(grad * sigma(-z)));
    const Real dr = back * h * sigma(r) * sigma(-r);
    gate_backward.see(real(d_gates[dim + j]), dr, std::fabs(dr));
    const Real first = real(d_before[j]), second = back * sigma(r);
    gate_backward.see(real(d_x[j]), first + second, std::fabs(first) + std::fabs(second));
    const Real a = real(d_gates[j]), b = real(d_gates[dim + j]);
    gate_backward.see(real(shared[j]), a + b, std::fabs(a) + std::fabs(b));
  }

  auto output = drawn<T>(dim), weight = drawn<T>(dim), bias = drawn<T>(dim);
  const Real sum = loops.rows.class_logit(output.data(), bias.data(), weight.data(), dim);
  std::vector<A> d_weight(dim, A(1));
  std::vector<T> d_output(dim);
  loops.rows.class_logit_backward(A(0.5), output.data(), weight.data(), dim, d_output.data(), d_weight.data());
  Real truth = 0, size = 0;
  for (int64_t o = 0; o < dim; ++o) {
    const Real t = std::tanh(real(output[o])), s = slope(real(output[o])) * real(weight[o]) / 2;
    truth += t * real(weight[o]);
    size += std::fabs(t * real(weight[o]));
    score_backward.see(real(d_output[o]), s, std::fabs(s));
    score_backward.see(d_weight[o], 1 + t / 2, 1 + std::fabs(t) / 2);
  }
  score.see(sum, truth, size);

  const int64_t count = 33;
  const auto rows = drawn<T>(count * dim);
  std::vector<T> out(dim);
  std::vector<double> columns(dim);
  loops.rows.column_sums(rows.data(), count, dim, dim, out.data(), columns.data());
  for (int64_t j = 0; j < dim; ++j) {
    Real total = 0, scale = 0;
    for (int64_t i = 0; i < count; ++i) {
      total += real(rows[i * dim + j]);
      scale += std::fabs(real(rows[i * dim + j]));
    }
    sums.see(real(out[j]), total, scale);
  }

  print<T>(set, "attention_row", attention);
  print<T>(set, "joint_backward", joint_worst);
  print<T>(set, "gate", gate);
  print<T>(set, "blend", blend);
  print<T>(set, "blend_backward", blend_backward);
  print<T>(set, "gate_backward", gate_backward);
  print<T>(set, "score", score);
  print<T>(set, "score_backward", score_backward);
  print<T>(set, "column_sums", sums);
}

#define SSGRL_RUN(set)                            \
  run<float>(#set, ssgrl::set::table<float>());   \
  run<double>(#set, ssgrl::set::table<double>()); \
  run<BFloat16>(#set, ssgrl::set::table<BFloat16>())

int main() {
  SSGRL_RUN(generic);
#ifdef __x86_64__
  const ssgrl::Isa best = ssgrl::detect_isa();
  if (best != ssgrl::Isa::generic) {
    SSGRL_RUN(avx2);
  }
  if (best == ssgrl::Isa::avx512) {
    SSGRL_RUN(avx512);
  }
#endif
}
