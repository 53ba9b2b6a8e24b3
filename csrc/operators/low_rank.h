// The first step on the L rows of the features (identity 4): with h0 = a F, every product with M h0, M in {I, A, A^T},
// is (M a) (F W^T). The gradients of a and F are computed directly, without that of h0.
#pragma once

#include "gates.h"

namespace ssgrl {

// Whether products with h0 = a F need fewer multiplications on the L rows of F.
inline bool low_rank_pays(int64_t classes, int64_t locations, int64_t dim) {
  return locations * (classes + dim) < classes * dim;
}

struct LowRank {
  Tensor features;    // [B, L, D]
  Tensor factors[3];  // M a for M = I, A, A^T: [B, C, L] in the dtype of the state
  int64_t images, locations, classes, dim;

  Tensor flat_features() const { return reshaped(features, {images * locations, dim}); }
};

template <class Device>
LowRank low_rank(const Tensor& attention, const Tensor& features, const Tensor& adjacency) {
  LowRank low{dense(features),   {cast(attention, features.scalar_type())},
              features.size(0),  features.size(1),
              attention.size(1), features.size(2)};
  for (int m : {1, 2}) {
    low.factors[m] = empty_like(features, {low.images, low.classes, low.locations});
    Device::image_products(low.factors[m], m == 1 ? adjacency : transposed(adjacency), low.factors[0]);
  }
  return low;
}

// The products F W^T of all blocks and columns are stored one after the other in a buffer [products_rows(...), D].
inline int64_t products_rows(const GatePlan& plan, int64_t images, int64_t locations) {
  int64_t units = 0;
  for (const auto* list : {&plan.gates, &plan.candidate}) {
    for (const Block& block : *list) {
      units += block.width * (std::min(block.last, kReset) - std::min(block.first, kReset));
    }
  }
  return units * images * locations;
}

class Products {
 public:
  Products(const Tensor& buffer, const LowRank& low) : buffer_(buffer), low_(low) {}

  Tensor next(int64_t width) {  // [B L, width D]
    const int64_t flat = low_.images * low_.locations;
    const Tensor view = rows(buffer_, at_, at_ + width * flat);
    at_ += width * flat;
    return reshaped(view, {flat, width * low_.dim});
  }

 private:
  Tensor buffer_;
  const LowRank& low_;
  int64_t at_ = 0;
};

inline Tensor weight_column(const Block& block, int64_t column, int64_t dim) {
  return columns(block.weight, (column - block.first) * dim, (column - block.first + 1) * dim);
}

// F W_m^T of all columns m < 3 of a dense block by one product, stored in the next places of the buffer. Seen as
// [width D units, D], the weight has row r of W_m at r * units + m. `products` is a copy: the caller takes the same
// places again.
template <class Device>
void joint_products(const Block& block, const LowRank& low, Products products) {
  const int64_t units = block.last - block.first, wide = block.width * low.dim, flat = low.images * low.locations;
  const Tensor joint = empty_like(low.features, {flat, wide * units});
  Device::product(joint, low.flat_features(), transposed(reshaped(block.weight, {wide * units, low.dim})));
  for (int64_t m = 0; m < units; ++m) {
    Tensor unit = products.next(block.width);
    torch::stable::copy_(unit, torch::stable::select(reshaped(joint, {flat, wide, units}), 2, m));
  }
}

// out [R, width D] (+)= sum over the block's columns m < 3 of (M_m a) (F W_m^T)
template <class Device>
void low_rank_forward(const Block& block, const LowRank& low, Products& products, const Tensor& out, bool add) {
  const int64_t units = block.last - block.first;
  const bool joint =
      block.last <= kReset && units > 1 && block.weight.is_contiguous() &&
      Device::prefers_whole(out.scalar_type(), low.images * low.locations, low.dim, units * block.width * low.dim);
  if (joint) {
    joint_products<Device>(block, low, products);
  }
  for (int64_t m = block.first; m < std::min(block.last, kReset); ++m) {
    const Tensor on_locations = products.next(block.width);
    if (!joint) {
      Device::product(on_locations, low.flat_features(), transposed(weight_column(block, m, low.dim)));
    }
    Device::image_products(by_image(out, low.classes), low.factors[m], by_image(on_locations, low.locations), add);
    add = true;
  }
}

// From d_out [R, width D]:
//   d_weight += ((M a)^T d_out)^T F      d_features += ((M a)^T d_out) W      d_factors[m] += d_out (F W_m^T)^T
template <class Device>
void low_rank_backward(
    const Block& block, const LowRank& low, Products& products, const Tensor& d_out, const Tensor& d_weight,
    const Tensor* d_factors, const Tensor& d_features, bool need_features) {
  const int64_t flat = low.images * low.locations;
  const Tensor d_images = by_image(d_out, low.classes);
  for (int64_t m = block.first; m < std::min(block.last, kReset); ++m) {
    const Tensor on_locations = products.next(block.width);
    const Tensor d_locations = empty_like(low.features, {flat, block.width * low.dim});
    Device::image_products(by_image(d_locations, low.locations), transposed(low.factors[m]), d_images);
    Device::image_products(d_factors[m], d_images, transposed(by_image(on_locations, low.locations)), true);
    const int64_t at = (m - block.first) * low.dim;
    Device::product(columns(d_weight, at, at + low.dim), transposed(d_locations), low.flat_features(), true);
    if (need_features) {
      Device::product(reshaped(d_features, {flat, low.dim}), d_locations, weight_column(block, m, low.dim), true);
    }
  }
}

}  // namespace ssgrl
