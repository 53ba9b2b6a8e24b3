// Aggregation over the label graph (eq. 8), both directions in one pass over the states: launchers on device pointers
// of the current device. R = images x classes rows; strides are of rows, in elements.

#pragma once

#include <torch/headeronly/util/BFloat16.h>

#include <cstdint>

namespace ssgrl::cuda {

// out [R, 2D]: A h in columns 0:D and A^T h in columns D:2D for each image, from adjacency [C, C] and h [R, D], with
// sums in float. T is BFloat16 or Half. D and both strides are multiples of 8; out and h are 16-byte aligned; the
// adjacency may have any size and address.
template <class T>
void aggregate(
    const T* adjacency, const T* h, int64_t h_stride, T* out, int64_t out_stride, int64_t images, int64_t classes,
    int64_t dim);

// The same with e4m3 output x8 [R, 4D]: h / s in columns 0:D, A h inward / s in D:2D, A^T h outward / s in 2D:3D;
// columns 3D:4D are not written. s = scale[row], a power of two; inward and outward should be powers of two as well. D
// and x8_stride are multiples of 16, h_stride of 8; x8 and h are 16-byte aligned.
void aggregate8(
    const c10::BFloat16* adjacency, const c10::BFloat16* h, int64_t h_stride, const float* scale, float inward,
    float outward, uint8_t* x8, int64_t x8_stride, int64_t images, int64_t classes, int64_t dim);

// scale [R] from h0 [images, C D]: for every row of an image 2^(ceil(log2 m) - 8) with m = max(1, max|h0|), so that
// |h| / scale <= 256 for h0 and all later states; NaN where the image contains a NaN or an infinity.
void state_scale(const c10::BFloat16* h0, float* scale, int64_t images, int64_t classes, int64_t dim);

}  // namespace ssgrl::cuda
