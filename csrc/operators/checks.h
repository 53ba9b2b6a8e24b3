// Argument checks of the operators. The Python layer checks first and has more detailed messages; these checks ensure
// that a direct call of an operator does not read outside its tensors.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <initializer_list>
#include <optional>
#include <string>

namespace ssgrl {

using torch::stable::Tensor;

inline std::string shape_text(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t axis = 0; axis < tensor.dim(); ++axis) {
    text += (axis ? ", " : "") + std::to_string(tensor.size(axis));
  }
  return text + "]";
}

inline void check_shape(
    const char* op, const char* name, const Tensor& tensor, std::initializer_list<int64_t> expected) {
  bool same = tensor.dim() == static_cast<int64_t>(expected.size());
  std::string text = "[";
  int64_t axis = 0;
  for (int64_t size : expected) {
    text += (axis ? ", " : "") + std::to_string(size);
    same = same && tensor.size(axis) == size;
    ++axis;
  }
  STD_TORCH_CHECK(same, op, ": ", name, " must have shape ", text, "], got ", shape_text(tensor));
}

inline void check_dims(const char* op, const char* name, const Tensor& tensor, int64_t expected) {
  STD_TORCH_CHECK(
      tensor.dim() == expected, op, ": ", name, " must have ", expected, " dimensions, got ", shape_text(tensor));
}

inline void check_like(const char* op, const char* name, const Tensor& tensor, const Tensor& leader) {
  STD_TORCH_CHECK(
      tensor.is_cpu() == leader.is_cpu() && tensor.get_device_index() == leader.get_device_index(), op, ": ", name,
      " must be on the device of the features");
  STD_TORCH_CHECK(tensor.scalar_type() == leader.scalar_type(), op, ": ", name, " must have the dtype of the features");
}

// Raises for a function that returns an error message; an empty message means success.
inline void check_done(const char* op, const std::string& failure) {
  STD_TORCH_CHECK(failure.empty(), op, ": ", failure);
}

// Checks the factors of a state [B, C, D]: attention [B, C, L] and features [B, L, D], both or neither. Returns L, 0
// without factors.
inline int64_t check_factors(
    const char* op, const std::optional<Tensor>& attention, const std::optional<Tensor>& features,
    const Tensor& state) {
  STD_TORCH_CHECK(attention.has_value() == features.has_value(), op, ": attention and features come together");
  if (!features) {
    return 0;
  }
  check_dims(op, "features", *features, 3);
  const int64_t locations = features->size(1);
  check_shape(op, "features", *features, {state.size(0), locations, state.size(2)});
  check_shape(op, "attention", *attention, {state.size(0), state.size(1), locations});
  check_like(op, "features", *features, state);
  return locations;
}

}  // namespace ssgrl
