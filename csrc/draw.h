// The draw of a token on the CPU: the arithmetic of kernels/draw_tokens, whose README.md has the derivation.
#pragma once

#include <cstdint>
#include <vector>

namespace rmfast {

struct DrawOptions {
  float temperature;  // 0: greedy
  float penalty;      // of ids in `seen`
  int64_t top_k;      // 0: all
  double top_p;       // 1: all
  double log_min_p;   // -inf: all
};

struct DrawRow {
  const float* logits;
  const uint8_t* seen;  // or null
  int64_t size;         // ids, from `first` on
  int64_t first;
  uint64_t key, position;
};

// Token 0 and nan where the logits give no distribution.
struct DrawnToken {
  int64_t token;
  float log_prob, behaviour;
};

// Scores in blocks of 256 ids; the last block, where it is not whole, is a copy filled up with -inf.
struct Blocks {
  const float* whole = nullptr;
  int64_t whole_count = 0, count = 0;
  std::vector<float> tail;
};

// Of the blocks of a row: the largest score, and the sum of exp(score - that).
struct Sums {
  std::vector<float> top, sum;
};

// What a thread keeps between rows.
struct DrawBuffers {
  Blocks raw, scores;
  Sums raw_sums, sums;
  std::vector<float> adjusted;
  std::vector<double> masses;
};

DrawnToken draw_row_cpu(const DrawRow& row, const DrawOptions& options, DrawBuffers& buffers);

}  // namespace rmfast
