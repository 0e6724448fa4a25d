// <immintrin.h> where AVX-512 is used. C headers and intrinsics only.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
// gcc 12's own AVX-512 headers warn (gcc bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
