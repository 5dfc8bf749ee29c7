// The arithmetic of selective_scan.cpp, which includes this once for each instruction set, with
//   SET      name of the namespace
//   LANES    floats side by side in a register
//   TARGET   attribute that lets the compiler use the instruction set

#define INLINE static inline __attribute__((always_inline)) TARGET

namespace SET {

#include "vectors.h"

#include "scan.h"

#include "scan_backward.h"

#include "convolution.h"

#include "mixer.h"

}  // namespace SET

#undef INLINE
