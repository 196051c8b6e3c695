// Multi-tensor ops on the CPU: plain loops that compilers turn into vector code, with copies for AVX2 and AVX-512.
#include "multi_tensor.h"

#include <algorithm>

#include "clones.h"

namespace rmfast {
namespace {

constexpr int64_t BLOCK = 1024;  // elements that wait in a buffer between bf16 and fp32

RMFAST_CLONES void adamw_block(
    float* __restrict weight, float* __restrict exp_avg, float* __restrict exp_avg_sq, const float* __restrict grad,
    int64_t size, const AdamWScalars& scalars) {
  const AdamWScalars s = scalars;
  for (int64_t i = 0; i < size; ++i) adamw_element(weight[i], exp_avg[i], exp_avg_sq[i], grad[i], s);
}

RMFAST_CLONES void ahead_block(float* __restrict out, const float* master, const float* grad, float eta, int64_t size) {
  for (int64_t i = 0; i < size; ++i) out[i] = master[i] + eta * grad[i];
}

RMFAST_CLONES void widen_block(float* __restrict out, const uint16_t* __restrict in, int64_t size) {
  for (int64_t i = 0; i < size; ++i) out[i] = widen(in[i]);
}

RMFAST_CLONES void narrow_block(uint16_t* __restrict out, const float* __restrict in, int64_t size) {
  for (int64_t i = 0; i < size; ++i) out[i] = narrow(in[i]);
}

const float* read(const void* from, Type type, int64_t at, int64_t size, float* buffer) {
  if (type == F32) return static_cast<const float*>(from) + at;
  widen_block(buffer, static_cast<const uint16_t*>(from) + at, size);
  return buffer;
}

void write(void* to, Type type, int64_t at, int64_t size, const float* from) {
  if (type == F32) {
    memcpy(static_cast<float*>(to) + at, from, size * sizeof(float));
  } else {
    narrow_block(static_cast<uint16_t*>(to) + at, from, size);
  }
}

}  // namespace

void adamw_cpu(const Slot& slot, const AdamWOptions& options, int64_t begin, int64_t end) {
  if (options.skip && *options.skip) return;
  const AdamWScalars scalars = adamw_scalars(options, slot.weight_decay);
  float buffer[BLOCK];
  for (int64_t at = begin; at < end; at += BLOCK) {
    const int64_t size = std::min(BLOCK, end - at);
    const float* grad = read(slot.grad, slot.grad_type, at, size, buffer);
    adamw_block(slot.weight + at, slot.exp_avg + at, slot.exp_avg_sq + at, grad, size, scalars);
  }
}

void perturb_cpu(const Slot& slot, const float* eta, int64_t begin, int64_t end) {
  float buffer[BLOCK], moved[BLOCK];
  for (int64_t at = begin; at < end; at += BLOCK) {
    const int64_t size = std::min(BLOCK, end - at);
    const float* from = slot.weight + at;
    if (slot.grad) {
      ahead_block(moved, from, read(slot.grad, slot.grad_type, at, size, buffer), *eta, size);
      from = moved;
    }
    write(slot.target, slot.target_type, at, size, from);
  }
}

double square_sum_cpu(const Slot& slot, int64_t begin, int64_t end) {
  float buffer[BLOCK];
  constexpr int LANES = 8;  // fixed, so that the sum does not depend on the machine's vectors
  double sums[LANES] = {};
  for (int64_t at = begin; at < end; at += BLOCK) {
    const int64_t size = std::min(BLOCK, end - at);
    const float* grad = read(slot.grad, slot.grad_type, at, size, buffer);
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) {
      for (int lane = 0; lane < LANES; ++lane) {
        sums[lane] += static_cast<double>(grad[i + lane]) * static_cast<double>(grad[i + lane]);
      }
    }
    for (; i < size; ++i) sums[0] += static_cast<double>(grad[i]) * static_cast<double>(grad[i]);
  }
  double sum = 0;
  for (double part : sums) sum += part;
  return sum;
}

}  // namespace rmfast
