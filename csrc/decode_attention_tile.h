// A step of decode attention: some queries onto a tile of keys. Included once for each kind of vectors, whose floats
// are WIDTH, and therefore without a guard.
//
// Queries that share keys are the lanes of vectors: up to WIDTH at a time, transposed to [dim, lanes]. A key's elements
// are then broadcast, scores of a key are one vector, and maximum, exponential and sum go by lanes. Each lane does the
// same operations in the same order whatever is in the others.

constexpr int TILE = 32;   // keys of a step: they and their values stay in the L1 cache for all lanes
constexpr int LINE = 16;   // floats of a line of the cache

template <int N>
struct Of {
  typedef float Floats __attribute__((vector_size(4 * N), aligned(4), may_alias));
  typedef int32_t Ints __attribute__((vector_size(4 * N), aligned(4), may_alias));
};

template <int N>
using Floats = typename Of<N>::Floats;
template <int N>
using Ints = typename Of<N>::Ints;

template <int N>
inline __attribute__((always_inline)) Floats<N>& at(float* p) { return *reinterpret_cast<Floats<N>*>(p); }

template <int N>
inline __attribute__((always_inline)) const Floats<N>& at(const float* p) {
  return *reinterpret_cast<const Floats<N>*>(p);
}

// 2^x for x <= 0, to 1e-7; exactly 1 for 0, and 0 below -126.5.
template <int N>
inline __attribute__((always_inline)) Floats<N> exp2_of(Floats<N> x) {
  x = x < -127.0f ? Floats<N>{} - 127.0f : x;
  const Floats<N> shifted = x + 12582912.0f;  // 1.5 * 2^23: the integer that is nearest is in the lowest bits
  const Floats<N> f = x - (shifted - 12582912.0f);
  Floats<N> y = f * 0.00015353361959569156f + 0.0013398873852565885f;
  y = y * f + 0.00961843691766262f;
  y = y * f + 0.055503323674201965f;
  y = y * f + 0.24022647738456726f;
  y = y * f + 0.6931471824645996f;
  y = y * f + 1.0f;
  return y * (Floats<N>)(((Ints<N>)shifted << 23) + 0x3f800000);  // a cast of vectors keeps the bits
}

// Keys and values of one head, `token` elements from one to the next.
struct Range {
  const float *keys, *values;
  int64_t token;
  int count;
};

// Asks for a line of each of some tokens, into the L2 cache: the L1 cache cannot wait for so many.
inline __attribute__((always_inline)) void fetch(const Range& range, int from, int count, int64_t line) {
  const int64_t first = from * range.token + line;
  for (int i = 0; i < count; ++i) __builtin_prefetch(range.keys + first + i * range.token, 0, 2);
  for (int i = 0; i < count; ++i) __builtin_prefetch(range.values + first + i * range.token, 0, 2);
}

// What is left of the next tile after the steps of a shorter one.
inline __attribute__((always_inline)) void fetch_rest(const Range& range, int from, int64_t dim) {
  for (int64_t line = 0; line < dim && from < range.count; line += LINE) fetch(range, from, range.count - from, line);
}

// scores [count, N] = keys q, with q [dim, N]; meanwhile `next` is fetched, line by line.
template <int N>
inline __attribute__((always_inline)) void score(
    const Range& range, const Range& next, const float* q, int64_t dim, float* scores) {
  constexpr int KEYS = 8;  // as many sums as hide a fused multiply-add's latency
  int key = 0;
  for (; key < range.count; key += KEYS) {
    const bool more = key + KEYS <= next.count;
    const float* row[KEYS];
    Floats<N> sum[KEYS] = {};
    for (int i = 0; i < KEYS; ++i) row[i] = range.keys + std::min(key + i, range.count - 1) * range.token;
    for (int64_t line = 0; line < dim; line += LINE) {
      if (more) fetch(next, key, KEYS, line);
      for (int64_t d = line; d < std::min(line + LINE, dim); ++d) {
        const Floats<N> x = at<N>(q + d * N);
        for (int i = 0; i < KEYS; ++i) sum[i] += x * row[i][d];
      }
    }
    for (int i = 0; i < KEYS; ++i) at<N>(scores + (key + i) * N) = sum[i];
  }
  fetch_rest(next, key, dim);
}

// Of a and b, sums of lanes S apart: a's where the lane's number lacks the bit S, b's where it has it.
template <int S, int... I>
inline __attribute__((always_inline)) Floats<WIDTH> halve(
    Floats<WIDTH> a, Floats<WIDTH> b, std::integer_sequence<int, I...>) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, (I & S ? WIDTH + I - S : I)...) +
         __builtin_shufflevector(a, b, (I & S ? WIDTH + I : I + S)...);
#else
  return __builtin_shuffle(a, b, Ints<WIDTH>{(I & S ? WIDTH + I - S : I)...}) +
         __builtin_shuffle(a, b, Ints<WIDTH>{(I & S ? WIDTH + I : I + S)...});
#endif
}

// In lane i the sum of all lanes of x[i].
template <int S = WIDTH / 2>
inline __attribute__((always_inline)) Floats<WIDTH> sums_of(Floats<WIDTH>* x) {
  for (int i = 0; i < S; ++i) x[i] = halve<S>(x[i], x[i + S], std::make_integer_sequence<int, WIDTH>{});
  if constexpr (S > 1) return sums_of<S / 2>(x);
  return x[0];
}

// scores [count, 4] for Q <= 4 queries q [Q, dim] where few share the keys, so that lanes are elements of a head; `dim`
// is a multiple of WIDTH.
template <int Q>
inline __attribute__((always_inline)) void score_few(
    const Range& range, const Range& next, const float* q, int64_t dim, float* scores) {
  constexpr int KEYS = WIDTH / 4;
  int key = 0;
  for (; key < range.count; key += KEYS) {
    const bool more = key + KEYS <= next.count;
    const float* row[KEYS];
    Floats<WIDTH> sum[4 * KEYS] = {};
    for (int i = 0; i < KEYS; ++i) row[i] = range.keys + std::min(key + i, range.count - 1) * range.token;
    for (int64_t d = 0; d < dim; d += WIDTH) {
      if (d % LINE == 0 && more) fetch(next, key, KEYS, d);
      for (int j = 0; j < Q; ++j) {
        const Floats<WIDTH> x = at<WIDTH>(q + j * dim + d);
        for (int i = 0; i < KEYS; ++i) sum[4 * i + j] += x * at<WIDTH>(row[i] + d);
      }
    }
    at<WIDTH>(scores + key * 4) = sums_of(sum);
  }
  fetch_rest(next, key, dim);
}

// The running maximum and sum of N lanes after `count` more scores, which become weights; `shrink` is what the sum of
// values so far must be multiplied by.
template <int N>
inline __attribute__((always_inline)) void soften(int count, float* scores, float* top, float* total, float* shrink) {
  const Floats<N> old = at<N>(top);
  Floats<N> most = old;
  for (int key = 0; key < count; ++key) {
    const Floats<N> x = at<N>(scores + key * N);
    most = x > most ? x : most;
  }
  const Floats<N> factor = exp2_of<N>(old - most);
  Floats<N> sum = at<N>(total) * factor;
  for (int key = 0; key < count; ++key) {
    const Floats<N> weight = exp2_of<N>(at<N>(scores + key * N) - most);
    at<N>(scores + key * N) = weight;
    sum += weight;
  }
  at<N>(top) = most;
  at<N>(total) = sum;
  at<N>(shrink) = factor;
}

// out [Q, dim] = out shrink + weights values, for Q lanes of N and VECTORS vectors of W columns from `column` on.
template <int N, int Q, int VECTORS, int W>
inline __attribute__((always_inline)) void add_columns(
    const Range& range, const float* weights, const float* shrink, int64_t dim, int64_t column, float* out) {
  Floats<W> sum[Q][VECTORS];
  for (int i = 0; i < Q; ++i) {
    for (int j = 0; j < VECTORS; ++j) sum[i][j] = at<W>(out + i * dim + column + j * W) * shrink[i];
  }
  const float* value = range.values + column;
  for (int key = 0; key < range.count; ++key, value += range.token) {
    for (int j = 0; j < VECTORS; ++j) {
      const Floats<W> x = at<W>(value + j * W);
      for (int i = 0; i < Q; ++i) sum[i][j] += x * weights[key * N + i];
    }
  }
  for (int i = 0; i < Q; ++i) {
    for (int j = 0; j < VECTORS; ++j) at<W>(out + i * dim + column + j * W) = sum[i][j];
  }
}

template <int N, int Q>
inline __attribute__((always_inline)) void add_values(
    const Range& range, const float* weights, const float* shrink, int64_t dim, float* out) {
  int64_t column = 0;
  for (; column + 4 * WIDTH <= dim; column += 4 * WIDTH) {
    add_columns<N, Q, 4, WIDTH>(range, weights, shrink, dim, column, out);
  }
  for (; column + 4 <= dim; column += 4) add_columns<N, Q, 1, 4>(range, weights, shrink, dim, column, out);
  for (; column < dim; ++column) add_columns<N, Q, 1, 1>(range, weights, shrink, dim, column, out);
}

// What a block of up to N queries has become so far; q [dim, N], or [queries, dim] if `few`; top and total [N], out
// [queries, dim].
struct Block {
  const float* q;
  float *top, *total, *out;
  int queries;
  bool few;
};

// A block's queries onto more keys, at most TILE. `hidden` [N]: how many of these keys each query does not see; or
// null.
template <int N>
inline __attribute__((always_inline)) void step(
    const Block& block, const Range& range, const Range& next, const int32_t* hidden, int64_t dim) {
  float scores[(TILE + 8) * N], shrink[N];
  if (N > 4 || !block.few) {
    score<N>(range, next, block.q, dim, scores);
  } else {
    switch (block.queries) {
      case 1: score_few<1>(range, next, block.q, dim, scores); break;
      case 2: score_few<2>(range, next, block.q, dim, scores); break;
      case 3: score_few<3>(range, next, block.q, dim, scores); break;
      default: score_few<4>(range, next, block.q, dim, scores);
    }
  }
  if (hidden) {
    const Ints<N> from = *reinterpret_cast<const Ints<N>*>(hidden);
    for (int32_t key = 0; key < range.count; ++key) {
      Floats<N>& x = at<N>(scores + key * N);
      x = from > key ? Floats<N>{} - std::numeric_limits<float>::infinity() : x;
    }
  }
  soften<N>(range.count, scores, block.top, block.total, shrink);
  constexpr int Q = 3;
  int i = 0;
  for (; i + Q <= block.queries; i += Q) {
    add_values<N, Q>(range, scores + i, shrink + i, dim, block.out + i * dim);
  }
  for (; i < block.queries; ++i) add_values<N, 1>(range, scores + i, shrink + i, dim, block.out + i * dim);
}

int lanes_of(int64_t queries) { return queries > 8 ? 16 : queries > 4 ? 8 : 4; }

__attribute__((noinline)) void step_of(
    const Block& block, const Range& range, const Range& next, const int32_t* hidden, int64_t dim) {
  const int lanes = lanes_of(block.queries);
  if constexpr (WIDTH >= 16) {
    if (lanes == 16) return step<16>(block, range, next, hidden, dim);
  }
  if constexpr (WIDTH >= 8) {
    if (lanes == 8) return step<8>(block, range, next, hidden, dim);
  }
  step<4>(block, range, next, hidden, dim);
}
