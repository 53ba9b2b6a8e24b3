// Aggregation over the label graph (eq. 8), both directions in one pass over the states: launchers on device pointers
// of the current device. R = images x classes rows; strides are of rows, in elements.

#pragma once

#include <torch/headeronly/util/BFloat16.h>

#include <cstdint>

namespace ssgrl::cuda {

// Columns 0:D of out [R, 2D] get A h, columns D:2D A^T h, image by image, from adjacency [C, C] and h [R, D]; the sums
// in float. T is BFloat16 or Half. D and both strides are multiples of 8, both addresses of 16 bytes; the adjacency may
// be of any size at any address.
template <class T>
void aggregate(
    const T* adjacency, const T* h, int64_t h_stride, T* out, int64_t out_stride, int64_t images, int64_t classes,
    int64_t dim);

// The same in e4m3: columns 0:D of x8 [R, 4D] get h / s, D:2D A h inward / s, 2D:3D A^T h outward / s; 3D:4D are left.
// s = scale[row], a power of two, and so should inward and outward be. D and x8_stride are multiples of 16, h_stride of
// 8, and both addresses of 16 bytes.
void aggregate8(
    const c10::BFloat16* adjacency, const c10::BFloat16* h, int64_t h_stride, const float* scale, float inward,
    float outward, uint8_t* x8, int64_t x8_stride, int64_t images, int64_t classes, int64_t dim);

// scale [R] from h0 [images, C D]: for all rows of an image 2^(ceil(log2 m) - 8) with m = max(1, max|h0|), so that
// |h| / s <= 256 for h0 and every state that follows; NaN where the image holds a NaN or an infinity.
void state_scale(const c10::BFloat16* h0, float* scale, int64_t images, int64_t classes, int64_t dim);

}  // namespace ssgrl::cuda
