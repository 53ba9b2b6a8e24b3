// exp, tanh and the logistic function for loops that the compiler vectorises: no tables, no branches.
//
// e^y for y <= 0 is 2^k (1 + m) with k = round(y / ln 2) and m = e^r - 1, |r| <= ln2 / 2, from its Taylor series. Using
// m instead of 1 + m keeps tanh accurate relative to its value down to x = 0; using q = e^(-2|x|) keeps the slope 4q /
// (1 + q)^2 accurate for large |x|. NaN stays NaN.
//
// This file is included inside the namespace of one instruction set (loops.h), so it must not include headers.

template <class A>
struct Exp {
  A q;      // e^y
  A minus;  // e^y - 1
};

inline float power_of_two(int k, float) {
  const unsigned bits = static_cast<unsigned>(k + 127) << 23;
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

inline double power_of_two(int k, double) {
  const unsigned long long bits = static_cast<unsigned long long>(static_cast<long long>(k) + 1023) << 52;
  double value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

// e^r - 1 for |r| <= 0.3466: the first omitted term is below half a unit in the last place of the result.
inline float expm1_series(float r) {
  float s = 1.f / 5040;
  s = s * r + 1.f / 720;
  s = s * r + 1.f / 120;
  s = s * r + 1.f / 24;
  s = s * r + 1.f / 6;
  s = s * r + 0.5f;
  return (s * r) * r + r;
}

inline double expm1_series(double r) {
  double s = 1. / 6227020800.;
  s = s * r + 1. / 479001600.;
  s = s * r + 1. / 39916800.;
  s = s * r + 1. / 3628800.;
  s = s * r + 1. / 362880.;
  s = s * r + 1. / 40320.;
  s = s * r + 1. / 5040.;
  s = s * r + 1. / 720.;
  s = s * r + 1. / 120.;
  s = s * r + 1. / 24.;
  s = s * r + 1. / 6.;
  s = s * r + 0.5;
  return (s * r) * r + r;
}

inline float lowest_exponent(float) { return -87.f; }  // e^-87 is still a normal number
inline double lowest_exponent(double) { return -708.; }
inline float ln2_high(float) { return 0.693359375f; }
inline double ln2_high(double) { return 6.93147180369123816490e-01; }
inline float ln2_low(float) { return -2.12194440e-4f; }
inline double ln2_low(double) { return 1.90821492927058770002e-10; }

template <class A>
inline Exp<A> exp_nonpositive(A y) {
  const A lowest = lowest_exponent(A());
  const A keep =
      y < lowest ? A(0) : A(1);  // below `lowest` e^y is exactly 0, so a saturated slope stops a gradient of any size
  y = y < lowest ? lowest : y;
  const int k = static_cast<int>(y * A(1.4426950408889634) - A(0.5));
  const A n = static_cast<A>(k);
  const A r = (y - n * ln2_high(A())) - n * ln2_low(A());
  const A scale = keep * power_of_two(k, A());
  const A m = expm1_series(r);
  return {scale + scale * m, scale * m + (scale - A(1))};
}

template <class A>
inline A magnitude(A x) {
  return x < A(0) ? -x : x;
}

template <class A>
struct Tanh {
  A value;
  A slope;  // 1 - tanh^2
};

template <class A>
inline Tanh<A> tanh_and_slope(A x) {
  const Exp<A> e = exp_nonpositive(A(-2) * magnitude(x));
  const A inverse = A(1) / (A(1) + e.q);
  const A value = -e.minus * inverse;
  return {x < A(0) ? -value : value, A(4) * e.q * inverse * inverse};
}

template <class A>
inline A tanh_value(A x) {
  const Exp<A> e = exp_nonpositive(A(-2) * magnitude(x));
  const A value = -e.minus / (A(2) + e.minus);
  return x < A(0) ? -value : value;
}

template <class A>
struct Logistic {
  A value;       // sigma(x)
  A complement;  // sigma(-x)
};

template <class A>
inline Logistic<A> logistic(A x) {
  const A q = exp_nonpositive(-magnitude(x)).q;
  const A large = A(1) / (A(1) + q);
  const A small = q * large;
  return {x < A(0) ? small : large, x < A(0) ? large : small};
}
