// The CPU loops compiled for the compiler's baseline instruction set.
#include "isa.h"

namespace ssgrl {
namespace generic {
#include "loops.h"
}  // namespace generic
}  // namespace ssgrl
