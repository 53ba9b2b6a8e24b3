// The type in which values stored as T are computed with: double for double, float for every other.
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
