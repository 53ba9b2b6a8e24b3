// Compute<T>: the type of arithmetic on values stored as T, double for double and float for all others.
#pragma once

namespace ssgrl {

template <class T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class T>
using Compute = typename ComputeOf<T>::type;

}  // namespace ssgrl
