// Decode attention on the CPU: what its loops and its bindings share. No header of torch.
#pragma once

#include <cstdint>
#include <vector>

namespace rmfast {

// Strides are in elements; those of the last dimension, and of heads within a pool, are what contiguous memory has.
struct DecodeAttention {
  float* out;  // [rows, heads, dim], contiguous
  const float* q;
  int64_t q_row, q_head;
  const float* prompt;  // keys; values are a plane behind them
  int64_t prompt_plane, prompt_token;
  float* own_pool;  // keys of the rows' tokens after their prompts; values likewise
  int64_t own_plane, own_token;
  const int32_t* layout;  // [4, rows]
  const float *k, *v;     // current tokens to append, or null
  int64_t k_row, k_head, v_row, v_head;
  int64_t rows, heads, kv_heads, dim;
  float scale;     // of logits as base-2 exponents
  int64_t window;  // 0: none
};

// Rows [first, last), which share a prompt, and the query heads of key heads [first_head, last_head). `scratch` is any
// vector, to be used again.
void decode_attention_cpu(
    const DecodeAttention& op, int64_t first, int64_t last, int64_t first_head, int64_t last_head,
    std::vector<float>& scratch);

}  // namespace rmfast
