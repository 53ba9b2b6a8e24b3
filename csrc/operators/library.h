// The torch.ops namespace of the operators. The tests build the operators a second time under another name.
#pragma once

#include <torch/csrc/stable/library.h>

#if !defined(SSGRL_LIBRARY)
#define SSGRL_LIBRARY ssgrl_fast
#endif
