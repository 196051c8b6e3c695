// Multi-tensor ops: what the CPU and the CUDA code share. No header of torch, so that nvcc reads little.
// The maths of an element is written once, with explicit fma where torch's CPU kernels have it, and compiled without
// contraction: what is rounded, and when, is the same on every device.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define RMFAST_INLINE __host__ __device__ __forceinline__
#else
#define RMFAST_INLINE inline __attribute__((always_inline))
#endif

namespace rmfast {

enum Type : int32_t { F32, BF16 };

// Elements that a thread block, or a task of the CPU, takes; also the unit of the norm's partial sums.
constexpr int64_t CHUNK = 16384;

inline int64_t chunks(int64_t size) { return (size + CHUNK - 1) / CHUNK; }

// A tensor's pointers; each op uses some of them.
struct Slot {
  float* weight;     // AdamW's weight; the master of perturb and restore (read only there)
  float* exp_avg;
  float* exp_avg_sq;
  const void* grad;  // null in restore
  void* target;      // of perturb and restore
  int64_t size;
  double weight_decay;
  Type grad_type, target_type;
};

// Scalars that live on the device, so that nobody waits for them.
struct AdamWOptions {
  const double* scalars;  // lr, -lr / (1 - beta1^step), sqrt(1 - beta2^step)
  const float* grad_scale;  // or null
  const uint8_t* skip;      // or null
  double beta1, beta2, eps;
};

// The same in the precision of the maths, for one tensor.
struct AdamWScalars {
  float scale, decay, weight1, beta2, weight2, root, eps, step;
};

RMFAST_INLINE AdamWScalars adamw_scalars(const AdamWOptions& o, double weight_decay) {
  return {o.grad_scale ? *o.grad_scale : 1.0f,
          static_cast<float>(1.0 - o.scalars[0] * weight_decay),
          static_cast<float>(1.0 - o.beta1),
          static_cast<float>(o.beta2),
          static_cast<float>(1.0 - o.beta2),
          static_cast<float>(o.scalars[2]),
          static_cast<float>(o.eps),
          static_cast<float>(o.scalars[1])};
}

RMFAST_INLINE void adamw_element(float& weight, float& exp_avg, float& exp_avg_sq, float grad, const AdamWScalars& s) {
  grad = grad / s.scale;
  const float ahead = grad - exp_avg;
  // torch.lerp's two branches
  exp_avg = s.weight1 < 0.5f ? fmaf(s.weight1, ahead, exp_avg) : fmaf(s.weight1 - 1.0f, ahead, grad);
  exp_avg_sq = fmaf(s.weight2 * grad, grad, exp_avg_sq * s.beta2);
  const float root = sqrtf(exp_avg_sq) / s.root + s.eps;
  weight = weight * s.decay + s.step * exp_avg / root;
}

RMFAST_INLINE float widen(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float out;
  memcpy(&out, &bits, sizeof out);
  return out;
}

// To the nearest bf16, ties to even.
RMFAST_INLINE uint16_t narrow(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>(x != x ? 0x7fc0 : rounded);
}

// On the CPU an op does the elements [begin, end) of one tensor; its caller spreads them over threads.
void adamw_cpu(const Slot& slot, const AdamWOptions& options, int64_t begin, int64_t end);
void perturb_cpu(const Slot& slot, const float* eta, int64_t begin, int64_t end);
double square_sum_cpu(const Slot& slot, int64_t begin, int64_t end);

// On a GPU it does all tensors, on the current device. Each gives null or what went wrong.
const char* adamw_cuda(const Slot* slots, int64_t count, const AdamWOptions& options, void* stream);
const char* perturb_cuda(const Slot* slots, int64_t count, const float* eta, void* stream);
// partials: a number for every chunk of every tensor, in order
const char* norm_cuda(const Slot* slots, int64_t count, double* partials, float* out, void* stream);

}  // namespace rmfast
