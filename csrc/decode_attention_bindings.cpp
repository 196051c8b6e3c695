// Decode attention as torch sees it.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <optional>
#include <vector>

#include "decode_attention.h"

using torch::stable::Tensor;
using torch::headeronly::ScalarType;

namespace {

// Also that the last dimension is contiguous.
const float* floats(const Tensor& tensor, int64_t dims) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float && tensor.dim() == dims && tensor.is_cpu(),
                  "decode_attention: tensors must be fp32 on the CPU, q [R, Hq, D] and pools [2, tokens, Hkv, D]");
  STD_TORCH_CHECK(tensor.numel() == 0 || tensor.stride(dims - 1) == 1, "decode_attention: heads must be contiguous");
  return static_cast<const float*>(tensor.data_ptr());
}

void check_ranges(const char* name, const int32_t* begin, const int32_t* end, int64_t rows, int64_t tokens) {
  for (int64_t row = 0; row < rows; ++row) {
    STD_TORCH_CHECK(begin[row] >= end[row] || (begin[row] >= 0 && end[row] <= tokens), "decode_attention: row ", row,
                    " has the range ", begin[row], " to ", end[row], " of ", name, ", which holds ", tokens, " tokens");
  }
}

void decode_attention(
    Tensor out, Tensor q, Tensor prompt_kv, Tensor own_kv, Tensor layout, std::optional<Tensor> k,
    std::optional<Tensor> v, double scale, int64_t window) {
  const int64_t rows = q.size(0);
  STD_TORCH_CHECK(layout.scalar_type() == ScalarType::Int && layout.is_contiguous() && layout.numel() == 4 * rows,
                  "decode_attention: layout must be int32 [4, R], contiguous");
  const auto* ranges = static_cast<const int32_t*>(layout.data_ptr());
  rmfast::DecodeAttention op{};
  op.out = const_cast<float*>(floats(out, 3));
  op.q = floats(q, 3), op.q_row = q.stride(0), op.q_head = q.stride(1);
  op.prompt = floats(prompt_kv, 4), op.prompt_plane = prompt_kv.stride(0), op.prompt_token = prompt_kv.stride(1);
  op.own_pool = const_cast<float*>(floats(own_kv, 4)), op.own_plane = own_kv.stride(0), op.own_token = own_kv.stride(1);
  op.layout = ranges;
  if (k && v) {
    op.k = floats(*k, 3), op.k_row = k->stride(0), op.k_head = k->stride(1);
    op.v = floats(*v, 3), op.v_row = v->stride(0), op.v_head = v->stride(1);
  }
  op.rows = rows, op.heads = q.size(1), op.kv_heads = own_kv.size(2), op.dim = q.size(2);
  op.scale = static_cast<float>(scale / std::log(2.0)), op.window = window;
  check_ranges("prompt_kv", ranges, ranges + rows, rows, prompt_kv.size(1));
  check_ranges("own_kv", ranges + 2 * rows, ranges + 3 * rows, rows, own_kv.size(1));

  std::vector<int64_t> edges{0};  // of runs of rows with one prompt
  for (int64_t row = 1; row < rows; ++row) {
    if (ranges[row] != ranges[row - 1] || ranges[rows + row] != ranges[rows + row - 1]) edges.push_back(row);
  }
  if (rows) edges.push_back(rows);
  // Few runs are spread over threads by key heads too.
  const int64_t runs = static_cast<int64_t>(edges.size()) - 1, parts = runs < 16 ? op.kv_heads : 1;
  torch::stable::parallel_for(0, runs * parts, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t run = item / parts, head = item % parts * (op.kv_heads / parts);
      rmfast::decode_attention_cpu(op, edges[run], edges[run + 1], head, head + op.kv_heads / parts, scratch);
    }
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(rmfast_C, m) {
  m.def(
      "decode_attention_(Tensor(a!) out, Tensor q, Tensor prompt_kv, Tensor(b!) own_kv, Tensor layout, Tensor? k, "
      "Tensor? v, float scale, int window) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(rmfast_C, CPU, m) { m.impl("decode_attention_", TORCH_BOX(&decode_attention)); }
