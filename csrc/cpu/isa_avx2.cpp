// The CPU loops compiled for x86-64-v3.
#ifdef __x86_64__
#include "isa.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("arch=x86-64-v3"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#endif

namespace ssgrl {
namespace avx2 {
#include "loops.h"
}  // namespace avx2
}  // namespace ssgrl

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
