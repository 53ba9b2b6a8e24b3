// The CPU loops compiled for x86-64-v4.
#ifdef __x86_64__
#include "isa.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("arch=x86-64-v4"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
#endif

namespace ssgrl {
namespace avx512 {
#include "loops.h"
}  // namespace avx512
}  // namespace ssgrl

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
