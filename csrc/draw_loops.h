// The draw's loops over scores, which compilers turn into vector code; comments are with the functions.
#pragma once

#include <cstdint>
#include <limits>

#define RMFAST_INLINE inline __attribute__((always_inline))

namespace rmfast::draw {

constexpr int64_t BLOCK = 256;
constexpr int GROUP = 16;
constexpr float INFINITE = std::numeric_limits<float>::infinity();

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

void sweep(const float* x, int64_t count, float least, float* top, float* sum);
void exps(float* out, const float* x, int64_t size, float shift, float least);
void divide(float* out, const float* x, int64_t size, float by);
void penalise(float* out, const float* x, const uint8_t* seen, int64_t size, float penalty);
int64_t count_above(const float* x, int64_t count, const float* top, float threshold);
void block_buckets(int32_t* bucket, double* mass, const float* x, const Buckets& buckets);
void groups_between(int32_t* any, const float* x, float low, float high);
void philox(uint32_t* a, uint32_t* b, uint64_t key, uint64_t position, uint32_t level, uint32_t first, int64_t count);

}  // namespace rmfast::draw
