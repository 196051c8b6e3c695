// The ops as torch sees them, through LibTorch's stable ABI: one build loads into every torch from 2.11 on.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "multi_tensor.h"

using rmfast::Slot;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;
using torch::headeronly::ScalarType;

namespace {

rmfast::Type type_of(const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16, "tensors must be fp32 or bf16");
  return type == ScalarType::Float ? rmfast::F32 : rmfast::BF16;
}

void check(const Tensors& tensors, const Tensors& like, bool fp32) {
  STD_TORCH_CHECK(tensors.size() == like.size(), "lists of ", tensors.size(), " and ", like.size(), " tensors");
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& t = tensors[i];
    STD_TORCH_CHECK(t.numel() == like[i].numel() && t.is_contiguous(), "tensors must be contiguous and of one size");
    STD_TORCH_CHECK(t.is_cpu() == like[0].is_cpu() && t.get_device_index() == like[0].get_device_index(),
                    "tensors must be on one device");
    STD_TORCH_CHECK(!fp32 || t.scalar_type() == ScalarType::Float, "masters and moments must be fp32");
  }
}

const void* scalar(const std::optional<Tensor>& tensor, const Tensors& like, ScalarType type, int64_t size = 1) {
  if (!tensor) return nullptr;
  STD_TORCH_CHECK(tensor->scalar_type() == type && tensor->numel() == size, "a scalar has the wrong type or size");
  STD_TORCH_CHECK(like.empty() || tensor->is_cpu() == like[0].is_cpu(), "scalars must be on the tensors' device");
  return tensor->data_ptr();
}

[[maybe_unused]] void succeed(const char* error) {
  STD_TORCH_CHECK(error == nullptr, "CUDA: ", error ? error : "");
}

// `one(slot, begin, end)` for every chunk, over torch's threads; chunks do not depend on their number.
template <class One>
void each_chunk(const std::vector<Slot>& slots, const One& one) {
  std::vector<int64_t> first{0};
  for (const Slot& slot : slots) first.push_back(first.back() + rmfast::chunks(slot.size));
  torch::stable::parallel_for(0, first.back(), 1, [&](int64_t begin, int64_t end) {
    size_t i = 0;
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      while (first[i + 1] <= chunk) ++i;
      const int64_t at = (chunk - first[i]) * rmfast::CHUNK;
      one(slots[i], at, std::min(at + rmfast::CHUNK, slots[i].size), chunk);
    }
  });
}

bool on_cpu(const Tensors& tensors) { return tensors.empty() || tensors[0].is_cpu(); }

#ifdef RMFAST_CUDA
#define RMFAST_ON_GPU(call) succeed(call)
#else
#define RMFAST_ON_GPU(call) STD_TORCH_CHECK(false, "built without CUDA")
#endif

void adamw(
    Tensors weights, Tensors grads, Tensors exp_avg, Tensors exp_avg_sq, std::vector<double> weight_decay, Tensor scalars,
    std::optional<Tensor> grad_scale, std::optional<Tensor> skip, double beta1, double beta2, double eps,
    int64_t stream) {
  check(weights, weights, true);
  check(grads, weights, false);
  check(exp_avg, weights, true);
  check(exp_avg_sq, weights, true);
  STD_TORCH_CHECK(weight_decay.size() == weights.size(), "a weight decay for each tensor");
  std::vector<Slot> slots;
  for (size_t i = 0; i < weights.size(); ++i) {
    slots.push_back({static_cast<float*>(weights[i].data_ptr()), static_cast<float*>(exp_avg[i].data_ptr()),
                     static_cast<float*>(exp_avg_sq[i].data_ptr()), grads[i].data_ptr(), nullptr, weights[i].numel(),
                     weight_decay[i], type_of(grads[i]), rmfast::F32});
  }
  const rmfast::AdamWOptions options{
      static_cast<const double*>(scalar(scalars, weights, ScalarType::Double, 3)),
      static_cast<const float*>(scalar(grad_scale, weights, ScalarType::Float)),
      static_cast<const uint8_t*>(scalar(skip, weights, ScalarType::Bool)), beta1, beta2, eps};
  if (on_cpu(weights)) {
    each_chunk(slots, [&](const Slot& slot, int64_t begin, int64_t end, int64_t) {
      rmfast::adamw_cpu(slot, options, begin, end);
    });
  } else {
    RMFAST_ON_GPU(rmfast::adamw_cuda(slots.data(), slots.size(), options, reinterpret_cast<void*>(stream)));
  }
}

// grads empty: targets become the masters.
void perturb(Tensors targets, Tensors masters, Tensors grads, std::optional<Tensor> eta, int64_t stream) {
  check(masters, masters, true);
  check(targets, masters, false);
  if (!grads.empty()) check(grads, masters, false);
  const float* step = static_cast<const float*>(scalar(eta, masters, ScalarType::Float));
  STD_TORCH_CHECK(grads.empty() || step, "grads need eta");
  std::vector<Slot> slots;
  for (size_t i = 0; i < masters.size(); ++i) {
    slots.push_back({static_cast<float*>(masters[i].data_ptr()), nullptr, nullptr,
                     grads.empty() ? nullptr : grads[i].data_ptr(), targets[i].data_ptr(), masters[i].numel(), 0.0,
                     grads.empty() ? rmfast::F32 : type_of(grads[i]), type_of(targets[i])});
  }
  if (on_cpu(masters)) {
    each_chunk(slots, [&](const Slot& slot, int64_t begin, int64_t end, int64_t) {
      rmfast::perturb_cpu(slot, step, begin, end);
    });
  } else {
    RMFAST_ON_GPU(rmfast::perturb_cuda(slots.data(), slots.size(), step, reinterpret_cast<void*>(stream)));
  }
}

int64_t norm_partials(Tensors grads) {
  int64_t count = 0;
  for (const Tensor& grad : grads) count += rmfast::chunks(grad.numel());
  return count;
}

void gradient_norm(Tensors grads, Tensor partials, Tensor out, int64_t stream) {
  check(grads, grads, false);
  STD_TORCH_CHECK(partials.scalar_type() == ScalarType::Double && partials.numel() == norm_partials(grads) &&
                      out.scalar_type() == ScalarType::Float && out.numel() == 1,
                  "partials or out have the wrong type or size");
  std::vector<Slot> slots;
  for (const Tensor& grad : grads) {
    slots.push_back({nullptr, nullptr, nullptr, grad.data_ptr(), nullptr, grad.numel(), 0.0, type_of(grad), rmfast::F32});
  }
  double* sums = static_cast<double*>(partials.data_ptr());
  float* norm = static_cast<float*>(out.data_ptr());
  if (on_cpu(grads)) {
    each_chunk(slots, [&](const Slot& slot, int64_t begin, int64_t end, int64_t chunk) {
      sums[chunk] = rmfast::square_sum_cpu(slot, begin, end);
    });
    double sum = 0;
    for (int64_t i = 0; i < partials.numel(); ++i) sum += sums[i];
    *norm = static_cast<float>(std::sqrt(sum));
  } else {
    RMFAST_ON_GPU(rmfast::norm_cuda(slots.data(), slots.size(), sums, norm, reinterpret_cast<void*>(stream)));
  }
}

int64_t source() { return RMFAST_SOURCE; }

bool has_cuda() {
#ifdef RMFAST_CUDA
  return true;
#else
  return false;
#endif
}

}  // namespace

STABLE_TORCH_LIBRARY(rmfast_C, m) {
  m.def(
      "adamw_(Tensor(a!)[] weights, Tensor[] grads, Tensor(b!)[] exp_avg, Tensor(c!)[] exp_avg_sq, "
      "float[] weight_decay, Tensor scalars, Tensor? grad_scale, Tensor? skip, float beta1, float beta2, float eps, "
      "int stream) -> ()");
  m.def("perturb_(Tensor(a!)[] targets, Tensor[] masters, Tensor[] grads, Tensor? eta, int stream) -> ()");
  m.def("norm_partials(Tensor[] grads) -> int");
  m.def("gradient_norm_(Tensor[] grads, Tensor(a!) partials, Tensor(b!) out, int stream) -> ()");
  m.def("has_cuda() -> bool");
  m.def("source() -> int");
}

#define RMFAST_OPS(m)                                       \
  m.impl("adamw_", TORCH_BOX(&adamw));                      \
  m.impl("perturb_", TORCH_BOX(&perturb));                  \
  m.impl("norm_partials", TORCH_BOX(&norm_partials));       \
  m.impl("gradient_norm_", TORCH_BOX(&gradient_norm))

STABLE_TORCH_LIBRARY_IMPL(rmfast_C, CPU, m) { RMFAST_OPS(m); }
STABLE_TORCH_LIBRARY_IMPL(rmfast_C, CUDA, m) { RMFAST_OPS(m); }
STABLE_TORCH_LIBRARY_IMPL(rmfast_C, CompositeExplicitAutograd, m) { 
  m.impl("has_cuda", TORCH_BOX(&has_cuda));
  m.impl("source", TORCH_BOX(&source));
}
