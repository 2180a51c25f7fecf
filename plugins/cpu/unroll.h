#pragma once

// Kernels are unrolled by hand-picked counts. Sanitizers check every access of every copy: there,
// loops stay loops and tiles are small, so that they are built in a minute.
#define MOE_EXPORT_PRAGMA(text) _Pragma(#text)
#ifdef MOE_EXPORT_SANITIZED
#define MOE_EXPORT_UNROLL(count)
#define MOE_EXPORT_TILE(count) 2
#else
#define MOE_EXPORT_UNROLL(count) MOE_EXPORT_PRAGMA(GCC unroll count)
#define MOE_EXPORT_TILE(count) count
#endif
