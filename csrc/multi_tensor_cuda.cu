// Multi-tensor ops on a GPU: pointers travel as kernel arguments, so nothing is copied to the device and no call waits.
#include "multi_tensor.h"

#include <algorithm>

namespace rmfast {
namespace {

constexpr int THREADS = 256;
constexpr int SLOTS = 48;  // of a launch: its arguments must fit into 4 KB
constexpr int WIDTH = 4;   // elements that a thread moves at once where addresses allow

struct Table {
  Slot slot[SLOTS];
  int64_t first[SLOTS + 1];  // number of each tensor's first chunk, counted in this launch
  int32_t count;
};
static_assert(sizeof(Table) <= 3968, "kernel arguments");

struct Work {
  int32_t slot;
  int64_t begin, end;
};

__device__ __forceinline__ Work work(const Table& table) {
  const int64_t chunk = blockIdx.x;
  int32_t low = 0, high = table.count;
  while (high - low > 1) {
    const int32_t middle = (low + high) / 2;
    (table.first[middle] <= chunk ? low : high) = middle;
  }
  const int64_t begin = (chunk - table.first[low]) * CHUNK;
  const int64_t end = begin + CHUNK;
  return {low, begin, end < table.slot[low].size ? end : table.slot[low].size};
}

// Chunks begin at multiples of WIDTH, so a tensor's own address decides.
__device__ __forceinline__ bool aligned(const void* pointer, Type type) {
  return reinterpret_cast<uintptr_t>(pointer) % (WIDTH * (type == F32 ? 4 : 2)) == 0;
}

__device__ __forceinline__ void read4(float (&out)[WIDTH], const void* from, Type type, int64_t at) {
  if (type == F32) {
    const float4 x = *reinterpret_cast<const float4*>(static_cast<const float*>(from) + at);
    out[0] = x.x, out[1] = x.y, out[2] = x.z, out[3] = x.w;
  } else {
    const ushort4 x = *reinterpret_cast<const ushort4*>(static_cast<const uint16_t*>(from) + at);
    out[0] = widen(x.x), out[1] = widen(x.y), out[2] = widen(x.z), out[3] = widen(x.w);
  }
}

__device__ __forceinline__ void write4(void* to, Type type, int64_t at, const float (&in)[WIDTH]) {
  if (type == F32) {
    *reinterpret_cast<float4*>(static_cast<float*>(to) + at) = make_float4(in[0], in[1], in[2], in[3]);
  } else {
    *reinterpret_cast<ushort4*>(static_cast<uint16_t*>(to) + at) =
        make_ushort4(narrow(in[0]), narrow(in[1]), narrow(in[2]), narrow(in[3]));
  }
}

__device__ __forceinline__ float read1(const void* from, Type type, int64_t at) {
  return type == F32 ? static_cast<const float*>(from)[at] : widen(static_cast<const uint16_t*>(from)[at]);
}

__device__ __forceinline__ void write1(void* to, Type type, int64_t at, float x) {
  if (type == F32) {
    static_cast<float*>(to)[at] = x;
  } else {
    static_cast<uint16_t*>(to)[at] = narrow(x);
  }
}

__global__ void __launch_bounds__(THREADS) adamw_kernel(const __grid_constant__ Table table, AdamWOptions options) {
  if (options.skip && *options.skip) return;
  const Work w = work(table);
  const Slot& slot = table.slot[w.slot];
  const AdamWScalars scalars = adamw_scalars(options, slot.weight_decay);
  int64_t body = w.begin;  // up to here four elements at once
  if (aligned(slot.weight, F32) && aligned(slot.exp_avg, F32) && aligned(slot.exp_avg_sq, F32) &&
      aligned(slot.grad, slot.grad_type)) {
    body += (w.end - w.begin) / WIDTH * WIDTH;
  }
  for (int64_t at = w.begin + threadIdx.x * WIDTH; at < body; at += THREADS * WIDTH) {
    float weight[WIDTH], exp_avg[WIDTH], exp_avg_sq[WIDTH], grad[WIDTH];
    read4(grad, slot.grad, slot.grad_type, at);
    read4(weight, slot.weight, F32, at);
    read4(exp_avg, slot.exp_avg, F32, at);
    read4(exp_avg_sq, slot.exp_avg_sq, F32, at);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) adamw_element(weight[i], exp_avg[i], exp_avg_sq[i], grad[i], scalars);
    write4(slot.weight, F32, at, weight);
    write4(slot.exp_avg, F32, at, exp_avg);
    write4(slot.exp_avg_sq, F32, at, exp_avg_sq);
  }
  for (int64_t at = body + threadIdx.x; at < w.end; at += THREADS) {
    float weight = slot.weight[at], exp_avg = slot.exp_avg[at], exp_avg_sq = slot.exp_avg_sq[at];
    adamw_element(weight, exp_avg, exp_avg_sq, read1(slot.grad, slot.grad_type, at), scalars);
    slot.weight[at] = weight, slot.exp_avg[at] = exp_avg, slot.exp_avg_sq[at] = exp_avg_sq;
  }
}

__global__ void __launch_bounds__(THREADS) perturb_kernel(const __grid_constant__ Table table, const float* eta) {
  const Work w = work(table);
  const Slot& slot = table.slot[w.slot];
  const float step = slot.grad ? *eta : 0.0f;
  int64_t body = w.begin;
  if (aligned(slot.weight, F32) && aligned(slot.grad, slot.grad_type) && aligned(slot.target, slot.target_type)) {
    body += (w.end - w.begin) / WIDTH * WIDTH;
  }
  for (int64_t at = w.begin + threadIdx.x * WIDTH; at < body; at += THREADS * WIDTH) {
    float master[WIDTH], grad[WIDTH];
    read4(master, slot.weight, F32, at);
    if (slot.grad) {
      read4(grad, slot.grad, slot.grad_type, at);
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) master[i] = master[i] + step * grad[i];
    }
    write4(slot.target, slot.target_type, at, master);
  }
  for (int64_t at = body + threadIdx.x; at < w.end; at += THREADS) {
    float master = slot.weight[at];
    if (slot.grad) master = master + step * read1(slot.grad, slot.grad_type, at);
    write1(slot.target, slot.target_type, at, master);
  }
}

// Sum over a block, in an order that depends on nothing; thread 0 has it.
__device__ __forceinline__ double block_sum(double x) {
  __shared__ double sums[THREADS];
  sums[threadIdx.x] = x;
  __syncthreads();
#pragma unroll
  for (int half = THREADS / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }
  return sums[0];
}

__global__ void __launch_bounds__(THREADS) square_sum_kernel(const __grid_constant__ Table table, double* partials) {
  const Work w = work(table);
  const Slot& slot = table.slot[w.slot];
  int64_t body = w.begin;
  if (aligned(slot.grad, slot.grad_type)) body += (w.end - w.begin) / WIDTH * WIDTH;
  double sum = 0;
  for (int64_t at = w.begin + threadIdx.x * WIDTH; at < body; at += THREADS * WIDTH) {
    float grad[WIDTH];
    read4(grad, slot.grad, slot.grad_type, at);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) sum += static_cast<double>(grad[i]) * static_cast<double>(grad[i]);
  }
  for (int64_t at = body + threadIdx.x; at < w.end; at += THREADS) {
    const double grad = read1(slot.grad, slot.grad_type, at);
    sum += grad * grad;
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(THREADS) norm_kernel(const double* partials, int64_t count, float* out) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += THREADS) sum += partials[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *out = static_cast<float>(sqrt(sum));
}

const char* result() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// `start(table, blocks, first)` for as few launches as hold all tensors; `first` counts chunks over all of them.
template <class Start>
const char* launches(const Slot* slots, int64_t count, const Start& start) {
  constexpr int64_t MOST = 1ll << 30;  // blocks of a launch: grids end at 2^31 - 1
  int64_t done = 0;
  for (int64_t i = 0; i < count;) {
    Table table;
    table.count = 0;
    int64_t blocks = 0;
    for (; i < count && table.count < SLOTS; ++i) {
      const int64_t more = chunks(slots[i].size);
      if (more == 0) continue;
      if (more > MOST) return "a tensor of more than 2^44 elements";
      if (blocks + more > MOST) break;
      table.slot[table.count] = slots[i];
      table.first[table.count++] = blocks;
      blocks += more;
    }
    table.first[table.count] = blocks;
    if (blocks == 0) continue;
    start(table, static_cast<unsigned>(blocks), done);
    if (const char* error = result()) return error;
    done += blocks;
  }
  return nullptr;
}

}  // namespace

const char* adamw_cuda(const Slot* slots, int64_t count, const AdamWOptions& options, void* stream) {
  return launches(slots, count, [&](const Table& table, unsigned blocks, int64_t) {
    adamw_kernel<<<blocks, THREADS, 0, static_cast<cudaStream_t>(stream)>>>(table, options);
  });
}

const char* perturb_cuda(const Slot* slots, int64_t count, const float* eta, void* stream) {
  return launches(slots, count, [&](const Table& table, unsigned blocks, int64_t) {
    perturb_kernel<<<blocks, THREADS, 0, static_cast<cudaStream_t>(stream)>>>(table, eta);
  });
}

const char* norm_cuda(const Slot* slots, int64_t count, double* partials, float* out, void* stream) {
  int64_t total = 0;
  for (int64_t i = 0; i < count; ++i) total += chunks(slots[i].size);
  const char* error = launches(slots, count, [&](const Table& table, unsigned blocks, int64_t first) {
    square_sum_kernel<<<blocks, THREADS, 0, static_cast<cudaStream_t>(stream)>>>(table, partials + first);
  });
  if (error) return error;
  norm_kernel<<<1, THREADS, 0, static_cast<cudaStream_t>(stream)>>>(partials, total, out);
  return result();
}

}  // namespace rmfast
