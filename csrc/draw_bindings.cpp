// The draw of tokens as torch sees it.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "draw.h"

using torch::stable::Tensor;
using torch::headeronly::ScalarType;

namespace {

template <class T>
T* vector_of(const Tensor& tensor, ScalarType type, int64_t rows) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == type && tensor.numel() == rows && tensor.is_contiguous(),
                  "keys, positions and results must be contiguous, of a number for each row");
  return static_cast<T*>(tensor.data_ptr());
}

template <class T>
const T* matrix_of(const Tensor& tensor, ScalarType type, int64_t rows, int64_t size) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == type && tensor.dim() == 2 && tensor.size(0) == rows &&
                      tensor.size(1) == size && tensor.stride(1) == 1,
                  "logits must be fp32 and seen bool, of one shape and with contiguous rows");
  return static_cast<const T*>(tensor.data_ptr());
}

void draw_tokens(
    Tensor logits, Tensor keys, Tensor positions, std::optional<Tensor> seen, double temperature, int64_t top_k,
    double top_p, double log_min_p, double penalty, int64_t first, Tensor tokens, Tensor log_prob, Tensor behaviour) {
  const int64_t rows = keys.numel(), size = logits.size(1);
  const float* scores = matrix_of<float>(logits, ScalarType::Float, rows, size);
  const uint8_t* marks = seen ? matrix_of<uint8_t>(*seen, ScalarType::Bool, rows, size) : nullptr;
  const int64_t stride = logits.stride(0), seen_stride = seen ? seen->stride(0) : 0;
  const int64_t* key = vector_of<int64_t>(keys, ScalarType::Long, rows);
  const int64_t* position = vector_of<int64_t>(positions, ScalarType::Long, rows);
  int64_t* token = vector_of<int64_t>(tokens, ScalarType::Long, rows);
  float* raw = vector_of<float>(log_prob, ScalarType::Float, rows);
  float* drawn_from = vector_of<float>(behaviour, ScalarType::Float, rows);
  const rmfast::DrawOptions options{static_cast<float>(temperature), static_cast<float>(penalty), top_k, top_p, log_min_p};
  torch::stable::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    rmfast::DrawBuffers buffers;
    for (int64_t r = begin; r < end; ++r) {
      const rmfast::DrawRow row{scores + r * stride, marks ? marks + r * seen_stride : nullptr, size, first,
                                static_cast<uint64_t>(key[r]), static_cast<uint64_t>(position[r])};
      const rmfast::DrawnToken drawn = rmfast::draw_row_cpu(row, options, buffers);
      token[r] = drawn.token;
      raw[r] = drawn.log_prob;
      drawn_from[r] = drawn.behaviour;
    }
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(rmfast_C, m) {
  m.def(
      "draw_tokens_(Tensor logits, Tensor keys, Tensor positions, Tensor? seen, float temperature, int top_k, "
      "float top_p, float log_min_p, float penalty, int first, Tensor(a!) tokens, Tensor(b!) log_prob, "
      "Tensor(c!) behaviour) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(rmfast_C, CPU, m) { m.impl("draw_tokens_", TORCH_BOX(&draw_tokens)); }
