// A token's draw on the CPU: sweeps over blocks of 256 scores in fp32, everything across blocks in fp64.
#include "draw.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "clones.h"

#define RMFAST_INLINE inline __attribute__((always_inline))

namespace rmfast {
namespace {

constexpr int64_t BLOCK = 256;
constexpr float INFINITE = std::numeric_limits<float>::infinity();
constexpr float NOT_A_NUMBER = std::numeric_limits<float>::quiet_NaN();

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

// Equal steps down from the largest score; `COUNT` is beyond the last of them.
struct Buckets {
  static constexpr int COUNT = 2048;
  float top, scale, least;
};

// Falls as x grows, roundings or not.
RMFAST_INLINE int32_t bucket_of(float x, const Buckets& of) {
  const float step = (of.top - x) * of.scale;
  return static_cast<int32_t>(x < of.least || !(step < Buckets::COUNT) ? Buckets::COUNT : step);
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
constexpr int GROUP = 16;
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

// The place of the smallest exponential time / weight, which is that of the largest log weight + Gumbel noise: the
// noise is -log(time). Times are -log of the uniforms of kernels/draw_tokens/noise.py.
template <class Weight>
int64_t race(const DrawRow& row, uint32_t level, int64_t first, int64_t count, const Weight& weight) {
  uint32_t a[BLOCK], b[BLOCK];
  double best = std::numeric_limits<double>::infinity();
  int64_t place = 0;
  for (int64_t start = 0; start < count; start += BLOCK) {
    const int64_t size = std::min(BLOCK, count - start);
    philox(a, b, row.key, row.position, level, static_cast<uint32_t>(first + start), size);
    for (int64_t i = 0; i < size; ++i) {
      const double w = weight(start + i);
      if (!(w > 0)) continue;
      const uint64_t k = static_cast<uint64_t>(a[i] >> 6) << 26 | b[i] >> 6;
      const double time = -std::log((static_cast<double>(k) + 0.5) * 0x1p-52) / w;
      if (time < best) {
        best = time;
        place = start + i;
      }
    }
  }
  return place;
}

const float* block(const Blocks& x, int64_t b) {
  return b < x.whole_count ? x.whole + b * BLOCK : x.tail.data();
}

// `one(scores, number of blocks, the first of them)` for the whole blocks and for the tail.
template <class One>
void each_part(const Blocks& x, const One& one) {
  one(x.whole, x.whole_count, 0);
  one(x.tail.data(), x.count - x.whole_count, x.whole_count);
}

void cut(Blocks& out, const float* x, int64_t size) {
  out.whole = x;
  out.whole_count = size / BLOCK;
  out.count = std::max<int64_t>((size + BLOCK - 1) / BLOCK, 1);
  out.tail.assign(BLOCK, -INFINITE);
  std::copy(x + out.whole_count * BLOCK, x + size, out.tail.begin());
}

void sum_up(const Blocks& x, float least, Sums& out) {
  out.top.resize(x.count);
  out.sum.resize(x.count);
  each_part(x, [&](const float* scores, int64_t count, int64_t b) {
    sweep(scores, count, least, out.top.data() + b, out.sum.data() + b);
  });
}

float top_of(const Sums& sums) { return *std::max_element(sums.top.begin(), sums.top.end()); }

// The masses of the blocks, in units of exp(top); their total.
double masses_of(const Sums& sums, float top, std::vector<double>& out) {
  out.resize(sums.top.size());
  double total = 0;
  for (size_t b = 0; b < out.size(); ++b) {
    out[b] = sums.sum[b] * std::exp(static_cast<double>(sums.top[b]) - top);
    total += out[b];
  }
  return total;
}

// int32 that compare as floats do, -0 as 0; and back.
int32_t ordered(float x) {
  x += 0.0f;
  int32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits < 0 ? bits ^ 0x7fffffff : bits;
}

float unordered(int32_t x) {
  const int32_t bits = x < 0 ? x ^ 0x7fffffff : x;
  float out;
  memcpy(&out, &bits, sizeof out);
  return out;
}

// The least float above `low` for which a condition holds that holds from there on; the one after `top` where none does.
template <class Condition>
float bisect(float low, float top, const Condition& condition) {
  int64_t from = ordered(low), to = int64_t{ordered(top)} + 1;
  while (from < to) {
    const int64_t middle = (from + to) >> 1;
    if (condition(unordered(static_cast<int32_t>(middle)))) {
      to = middle;
    } else {
      from = middle + 1;
    }
  }
  return unordered(static_cast<int32_t>(to));
}

// The k-th largest score. It is at least the k-th largest of the blocks' largest.
float top_k_threshold(const Blocks& x, const Sums& sums, int64_t k) {
  float low = -INFINITE;
  if (k <= x.count) {
    std::vector<float> tops = sums.top;
    std::nth_element(tops.begin(), tops.begin() + (k - 1), tops.end(), std::greater<float>());
    low = tops[k - 1];
  }
  return bisect(low, top_of(sums), [&](float threshold) {
    int64_t above = 0;
    each_part(x, [&](const float* scores, int64_t count, int64_t b) {
      above += count_above(scores, count, sums.top.data() + b, threshold);
    });
    return above < k;
  });
}

// Scores in [low, high), the largest first.
std::vector<float> between(const Blocks& x, const Sums& sums, float low, float high) {
  std::vector<float> found;
  int32_t any[BLOCK / GROUP];
  for (int64_t b = 0; b < x.count; ++b) {
    if (sums.top[b] < low) continue;
    const float* scores = block(x, b);
    groups_between(any, scores, low, high);
    for (int g = 0; g < BLOCK / GROUP; ++g) {
      for (int i = g * GROUP; any[g] && i < (g + 1) * GROUP; ++i) {
        if (scores[i] >= low && scores[i] < high) found.push_back(scores[i]);
      }
    }
  }
  std::sort(found.begin(), found.end(), std::greater<>());
  return found;
}

// The least score with less than top_p of the total mass (of scores from `least` on) above it.
//
// Scores with less than (1 - top_p) total / n of mass have less than 1 - top_p of the total together, so the threshold
// is above them: that bounds the buckets. The one in which top_p is reached has the threshold, and is sorted.
float top_p_threshold(const Blocks& x, const Sums& sums, float least, double total, double top_p) {
  const float top = top_of(sums);
  const double depth = std::log(static_cast<double>(x.count * BLOCK) / ((1.0 - top_p) * total));
  const Buckets buckets{top, static_cast<float>(Buckets::COUNT / std::max(1.001 * depth, 1e-6)), least};
  int32_t bucket[BLOCK];
  double mass[BLOCK], masses[Buckets::COUNT + BLOCK] = {};
  for (int64_t b = 0; b < x.count; ++b) {
    if (bucket_of(sums.top[b], buckets) == Buckets::COUNT) continue;
    block_buckets(bucket, mass, block(x, b), buckets);
    for (int i = 0; i < BLOCK; ++i) masses[bucket[i]] += mass[i];
  }
  const double limit = top_p * total;
  double above = 0;
  int found = 0;
  while (found < Buckets::COUNT && above + masses[found] < limit) above += masses[found++];
  if (found == Buckets::COUNT) return least;  // by roundings, for a top_p next to 1

  auto reaches = [&](int which) {
    return bisect(-INFINITE, top, [&](float score) { return bucket_of(score, buckets) <= which; });
  };
  const std::vector<float> candidates = between(x, sums, reaches(found), reaches(found - 1));
  std::vector<float> weights(candidates.size());
  exps(weights.data(), candidates.data(), candidates.size(), top, -INFINITE);
  float threshold = top;
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (candidates[i] < threshold && !(above < limit)) break;
    threshold = candidates[i];
    above += weights[i];
  }
  return threshold;
}

float threshold_of(const Blocks& x, const DrawOptions& options, Sums& sums, double total, std::vector<double>& masses) {
  const float top = top_of(sums);
  float least = -INFINITE;
  if (options.top_k > 0) least = top_k_threshold(x, sums, options.top_k);
  if (options.top_p < 1) {
    if (least > -INFINITE) {
      sum_up(x, least, sums);
      total = masses_of(sums, top, masses);
    }
    least = std::max(least, top_p_threshold(x, sums, least, total, options.top_p));
  }
  return std::max(least, static_cast<float>(top + options.log_min_p));
}

}  // namespace

DrawnToken draw_row_cpu(const DrawRow& row, const DrawOptions& options, DrawBuffers& buffers) {
  const DrawnToken none{0, NOT_A_NUMBER, NOT_A_NUMBER};
  cut(buffers.raw, row.logits, row.size);
  sum_up(buffers.raw, -INFINITE, buffers.raw_sums);
  const float raw_top = top_of(buffers.raw_sums);
  const double raw_total = masses_of(buffers.raw_sums, raw_top, buffers.masses);
  if (!std::isfinite(raw_total)) return none;

  const bool tempers = options.temperature != 0 && options.temperature != 1;
  const bool same = !tempers && !row.seen;
  double total = raw_total;
  if (!same) {
    buffers.adjusted.resize(row.size);
    float* out = buffers.adjusted.data();
    if (row.seen) penalise(out, row.logits, row.seen, row.size, options.penalty);
    if (tempers) divide(out, row.seen ? out : row.logits, row.size, options.temperature);
    cut(buffers.scores, out, row.size);
    sum_up(buffers.scores, -INFINITE, buffers.sums);
    total = masses_of(buffers.sums, top_of(buffers.sums), buffers.masses);
    if (!std::isfinite(total)) return none;
  }
  const Blocks& scores = same ? buffers.raw : buffers.scores;
  Sums& sums = same ? buffers.raw_sums : buffers.sums;
  const float top = top_of(sums);

  int64_t b, i;
  if (options.temperature == 0) {
    b = std::find(sums.top.begin(), sums.top.end(), top) - sums.top.begin();
    i = std::find(block(scores, b), block(scores, b) + BLOCK, top) - block(scores, b);
  } else {
    const float least = threshold_of(scores, options, sums, total, buffers.masses);
    if (least > -INFINITE) {
      sum_up(scores, least, sums);
      total = masses_of(sums, top, buffers.masses);
    }
    b = race(row, 0, row.first / BLOCK, scores.count, [&](int64_t j) { return buffers.masses[j]; });
    const float* x = block(scores, b);
    float weights[BLOCK];
    exps(weights, x, BLOCK, sums.top[b], least);
    i = race(row, 1, row.first + b * BLOCK, BLOCK, [&](int64_t j) { return weights[j]; });
  }
  const double log_prob = block(buffers.raw, b)[i] - (raw_top + std::log(raw_total));
  const double behaviour = options.temperature == 0 ? 0.0 : block(scores, b)[i] - (top + std::log(total));
  return {row.first + b * BLOCK + i, static_cast<float>(log_prob), static_cast<float>(behaviour)};
}

}  // namespace rmfast
