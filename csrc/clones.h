// Copies of a function for the instructions that a processor may have; the best is chosen when the library is loaded.
//
// By features, never by "arch=haswell": GCC takes that copy on Intel's Haswell alone, and all other machines get the
// default, where each fmaf is a call. Before version 12 GCC cannot choose by level; its "fma" comes with AVX.
#pragma once

#if !defined(__x86_64__) || !defined(__GNUC__)
#define RMFAST_CLONES
#elif defined(__clang__) || __GNUC__ >= 12
#define RMFAST_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define RMFAST_CLONES __attribute__((target_clones("default", "fma")))
#endif
