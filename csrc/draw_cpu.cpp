// A token's draw on the CPU: blocks of 256 scores in fp32, everything across blocks in fp64.
#include "draw.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "draw_loops.h"

namespace rmfast {
namespace {

using namespace draw;

constexpr float NOT_A_NUMBER = std::numeric_limits<float>::quiet_NaN();

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
