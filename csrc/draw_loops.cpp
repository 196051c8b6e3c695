// The draw's loops. No sum depends on how wide the machine's vectors are, and all have the same fmaf.
#include "draw_loops.h"

#include <cmath>
#include <cstring>

#include "clones.h"

namespace rmfast::draw {
namespace {

// e^x for x <= 0 to 1e-7 of it; 0 below fp32's normal numbers; nan for nan. 2^n e^r with |r| <= log(2) / 2.
RMFAST_INLINE float exp_of(float x) {
  constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const float shifted = fmaf(x, 1.44269504f, ROUND);
  const float n = shifted - ROUND;
  const float r = fmaf(n, 1.90465430e-9f, fmaf(n, -0.693147182f, x));
  float q = fmaf(r, 0.0013814536f, 0.0083687454f);
  q = fmaf(r, q, 0.041668393f);
  q = fmaf(r, q, 0.16666521f);
  q = fmaf(r, q, 0.49999994f);
  const float e = 1.0f + fmaf(r * r, q, r);
  uint32_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000;
  float scale;
  memcpy(&scale, &bits, sizeof scale);
  return x < -87.0f ? 0.0f : e * scale;
}

template <int SIZE>
RMFAST_INLINE float largest(float* x) {
  for (int i = 0; i < SIZE / 2; ++i) x[i] = x[i] > x[i + SIZE / 2] ? x[i] : x[i + SIZE / 2];
  if constexpr (SIZE > 2) return largest<SIZE / 2>(x);
  return x[0];
}

template <int SIZE>
RMFAST_INLINE float total(float* x) {
  for (int i = 0; i < SIZE / 2; ++i) x[i] += x[i + SIZE / 2];
  if constexpr (SIZE > 2) return total<SIZE / 2>(x);
  return x[0];
}

}  // namespace

// Of whole blocks: the largest score, and the sum of exp(score - that) over scores from `least` on.
RMFAST_CLONES void sweep(const float* x, int64_t count, float least, float* top, float* sum) {
  for (int64_t b = 0; b < count; ++b, x += BLOCK) {
    float buffer[BLOCK];
    for (int i = 0; i < BLOCK / 2; ++i) buffer[i] = x[i] > x[i + BLOCK / 2] ? x[i] : x[i + BLOCK / 2];
    top[b] = largest<BLOCK / 2>(buffer);
    if (top[b] < least) {
      sum[b] = 0;
      continue;
    }
    const float shift = top[b] == -INFINITE ? 0.0f : top[b];
    for (int i = 0; i < BLOCK; ++i) buffer[i] = x[i] < least ? 0.0f : exp_of(x[i] - shift);
    sum[b] = total<BLOCK>(buffer);
  }
}

// exp(score - shift) of scores from `least` on, 0 of others.
RMFAST_CLONES void exps(float* __restrict out, const float* __restrict x, int64_t size, float shift, float least) {
  for (int64_t i = 0; i < size; ++i) out[i] = x[i] < least ? 0.0f : exp_of(x[i] - shift);
}

RMFAST_CLONES void divide(float* __restrict out, const float* __restrict x, int64_t size, float by) {
  for (int64_t i = 0; i < size; ++i) out[i] = x[i] / by;
}

RMFAST_CLONES void penalise(
    float* __restrict out, const float* __restrict x, const uint8_t* __restrict seen, int64_t size, float penalty) {
  for (int64_t i = 0; i < size; ++i) {
    const float other = x[i] < 0 ? x[i] * penalty : x[i] / penalty;
    out[i] = seen[i] ? other : x[i];
  }
}

RMFAST_CLONES int64_t count_above(const float* x, int64_t count, const float* top, float threshold) {
  int64_t above = 0;
  for (int64_t b = 0; b < count; ++b, x += BLOCK) {
    if (!(top[b] > threshold)) continue;
    int32_t here = 0;
    for (int i = 0; i < BLOCK; ++i) here += x[i] > threshold;
    above += here;
  }
  return above;
}

// Of a block: exp(score - top), and the bucket; those beyond the last get one of `BLOCK` places each, for adding to the
// same place would wait for the addition before.
RMFAST_CLONES void block_buckets(
    int32_t* __restrict bucket, double* __restrict mass, const float* __restrict x, const Buckets& buckets) {
  const Buckets of = buckets;
  for (int i = 0; i < BLOCK; ++i) {
    const int32_t place = bucket_of(x[i], of);
    bucket[i] = place + (place == Buckets::COUNT ? i : 0);
  }
  for (int i = 0; i < BLOCK; ++i) mass[i] = exp_of(x[i] - of.top);
}

// Which groups of 16 scores of a block have one in [low, high).
RMFAST_CLONES void groups_between(int32_t* __restrict any, const float* __restrict x, float low, float high) {
  for (int g = 0; g < BLOCK / GROUP; ++g, x += GROUP) {
    int32_t found = 0;
    for (int i = 0; i < GROUP; ++i) found |= (x[i] >= low) & (x[i] < high);
    any[g] = found;
  }
}

// Philox4x32-10 for indices from `first` on: its first two words.
RMFAST_CLONES void philox(
    uint32_t* __restrict a, uint32_t* __restrict b, uint64_t key, uint64_t position, uint32_t level, uint32_t first,
    int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    uint32_t c0 = first + static_cast<uint32_t>(i), c1 = static_cast<uint32_t>(position), c2 = level;
    uint32_t c3 = static_cast<uint32_t>(position >> 32);
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      const uint64_t p = static_cast<uint64_t>(0xD2511F53u) * c0, q = static_cast<uint64_t>(0xCD9E8D57u) * c2;
      c0 = static_cast<uint32_t>(q >> 32) ^ c1 ^ k0;
      c1 = static_cast<uint32_t>(q);
      c2 = static_cast<uint32_t>(p >> 32) ^ c3 ^ k1;
      c3 = static_cast<uint32_t>(p);
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    a[i] = c0;
    b[i] = c1;
  }
}

}  // namespace rmfast::draw
