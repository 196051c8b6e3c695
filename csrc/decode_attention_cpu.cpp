// Decode attention on the CPU: its loops for each kind of vectors, and the choice between them at run time.
#include "decode_attention.h"

#include <algorithm>
#include <limits>
#include <utility>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define RMFAST_X86
#endif

#ifdef __GNUC__
// Vectors are passed between functions that are always inlined: no interface of theirs is ever used.
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

namespace rmfast {
namespace plain {
constexpr int WIDTH = 4;
#include "decode_attention_tile.h"
#include "decode_attention_run.h"
}  // namespace plain

#ifdef RMFAST_X86
// A product and a sum become one rounding here, unlike in the other files.
#pragma GCC push_options
#pragma GCC optimize("fp-contract=fast")
#pragma GCC target("arch=haswell")
namespace avx2 {
constexpr int WIDTH = 8;
#include "decode_attention_tile.h"
#include "decode_attention_run.h"
}  // namespace avx2
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC optimize("fp-contract=fast")
#pragma GCC target("arch=x86-64-v4")
namespace avx512 {
constexpr int WIDTH = 16;
#include "decode_attention_tile.h"
#include "decode_attention_run.h"
}  // namespace avx512
#pragma GCC pop_options
#endif

void decode_attention_cpu(
    const DecodeAttention& op, int64_t first, int64_t last, int64_t first_head, int64_t last_head,
    std::vector<float>& scratch) {
#ifdef RMFAST_X86
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq")) {
    return avx512::attend(op, first, last, first_head, last_head, scratch);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) {
    return avx2::attend(op, first, last, first_head, last_head, scratch);
  }
#endif
  plain::attend(op, first, last, first_head, last_head, scratch);
}

}  // namespace rmfast
