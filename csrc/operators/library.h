// The namespace of the operators; the tests build them a second time under another name.
#pragma once

#include <torch/csrc/stable/library.h>

#if !defined(SSGRL_LIBRARY)
#define SSGRL_LIBRARY ssgrl_fast
#endif
