// The loops of decode attention, included once for each kind of vectors, whose floats are WIDTH. No include guard.
//
// Queries that share keys are the lanes of vectors: up to 16 at a time, transposed to [dim, lanes]. A key's elements
// are then broadcast, scores of a key are one vector, and maximum, exponential and sum go by lanes. Each lane does the
// same operations in the same order whatever is in the others, and tiles of keys begin where the ranges begin: a row's
// result does not depend on which rows are beside it.

constexpr int TILE = 48;   // keys of a step: they and their values stay in the L1 cache for all lanes
constexpr int LANES = 16;  // at most, of a block

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
};

// scores [count, N] = keys q, with q [dim, N].
template <int N>
inline __attribute__((always_inline)) void score(
    const Range& range, int count, const float* q, int64_t dim, float* scores) {
  constexpr int KEYS = WIDTH < N ? 6 : 8;  // as many accumulators as there are registers
  for (int key = 0; key < count; key += KEYS) {
    const float* row[KEYS];
    Floats<N> sum[KEYS] = {};
    for (int i = 0; i < KEYS; ++i) row[i] = range.keys + std::min(key + i, count - 1) * range.token;
    for (int64_t d = 0; d < dim; ++d) {
      const Floats<N> x = at<N>(q + d * N);
      for (int i = 0; i < KEYS; ++i) sum[i] += x * row[i][d];
    }
    for (int i = 0; i < KEYS; ++i) at<N>(scores + (key + i) * N) = sum[i];
  }
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
    const Range& range, int count, const float* weights, const float* shrink, int64_t dim, int64_t column, float* out) {
  Floats<W> sum[Q][VECTORS];
  for (int i = 0; i < Q; ++i) {
    for (int j = 0; j < VECTORS; ++j) sum[i][j] = at<W>(out + i * dim + column + j * W) * shrink[i];
  }
  const float* value = range.values + column;
  for (int key = 0; key < count; ++key, value += range.token) {
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
    const Range& range, int count, const float* weights, const float* shrink, int64_t dim, float* out) {
  int64_t column = 0;
  for (; column + 4 * WIDTH <= dim; column += 4 * WIDTH) {
    add_columns<N, Q, 4, WIDTH>(range, count, weights, shrink, dim, column, out);
  }
  for (; column + 4 <= dim; column += 4) add_columns<N, Q, 1, 4>(range, count, weights, shrink, dim, column, out);
  for (; column < dim; ++column) add_columns<N, Q, 1, 1>(range, count, weights, shrink, dim, column, out);
}

// What a block of up to N queries has become so far; q [dim, N], top and total [N], out [queries, dim].
struct Block {
  const float* q;
  float *top, *total, *out;
  int queries;
};

// A block's queries onto `count` <= TILE more keys. `hidden` [N]: how many of these keys each query does not see; or
// null.
template <int N>
inline __attribute__((always_inline)) void step(
    const Block& block, const Range& range, int count, const int32_t* hidden, int64_t dim) {
  float scores[(TILE + 8) * N], shrink[N];
  score<N>(range, count, block.q, dim, scores);
  if (hidden) {
    const Ints<N> from = *reinterpret_cast<const Ints<N>*>(hidden);
    for (int32_t key = 0; key < count; ++key) {
      Floats<N>& x = at<N>(scores + key * N);
      x = from > key ? Floats<N>{} - std::numeric_limits<float>::infinity() : x;
    }
  }
  soften<N>(count, scores, block.top, block.total, shrink);
  int i = 0;
  constexpr int Q = 3;
  for (; i + Q <= block.queries; i += Q) {
    add_values<N, Q>(range, count, scores + i, shrink + i, dim, block.out + i * dim);
  }
  for (; i < block.queries; ++i) add_values<N, 1>(range, count, scores + i, shrink + i, dim, block.out + i * dim);
}

__attribute__((noinline)) void step_of(
    int lanes, const Block& block, const Range& range, int count, const int32_t* hidden, int64_t dim) {
  switch (lanes) {
    case 4: return step<4>(block, range, count, hidden, dim);
    case 8: return step<8>(block, range, count, hidden, dim);
    default: return step<16>(block, range, count, hidden, dim);
  }
}

int lanes_of(int64_t queries) { return queries > 8 ? 16 : queries > 4 ? 8 : 4; }

void attend(const DecodeAttention& op, int64_t first, int64_t last, int64_t kv_head, std::vector<float>& scratch) {
  const int64_t group = op.heads / op.kv_heads, dim = op.dim, queries = (last - first) * group;
  const int64_t padded = (queries + LANES - 1) / LANES * LANES;
  scratch.assign(padded * (2 * dim + 3) + LANES * (dim + 2), 0.0f);
  float* q = scratch.data();  // blocks of [dim, lanes]
  float* out = q + padded * dim;
  float *top = out + padded * dim, *total = top + padded;
  int32_t* hidden = reinterpret_cast<int32_t*>(total + padded);
  float* few = total + 2 * padded;  // q, top and total of a row's block
  std::fill(top, top + padded, std::numeric_limits<float>::lowest());
  const int32_t *begin = op.layout, *end = begin + op.rows, *own = end + op.rows, *own_end = own + op.rows;
  const int64_t prompt = std::max(end[first] - begin[first], 0);

  auto query = [&](int64_t i) {
    return op.q + (first + i / group) * op.q_row + (kv_head * group + i % group) * op.q_head;
  };
  auto transpose = [&](int64_t from, int64_t count, int lanes, float* to) {
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t d = 0; d < dim; ++d) to[d * lanes + i] = query(from + i)[d] * op.scale;
    }
  };
  auto unseen = [&](int64_t row) {
    const int64_t length = prompt + std::max(own_end[row] - own[row], 0);
    return op.window ? std::max<int64_t>(length - op.window, 0) : 0;
  };

  int64_t least = prompt;
  for (int64_t i = 0; i < queries; ++i) {
    hidden[i] = static_cast<int32_t>(unseen(first + i / group));
    least = std::min<int64_t>(least, hidden[i]);
  }
  for (int64_t i = 0; i < queries; i += LANES) {
    const int64_t count = std::min<int64_t>(queries - i, LANES);
    transpose(i, count, lanes_of(count), q + i * dim);
  }
  const float* keys = op.prompt + begin[first] * op.prompt_token + kv_head * dim;
  for (int64_t key = least / TILE * TILE; key < prompt; key += TILE) {
    const Range range{keys + key * op.prompt_token, keys + op.prompt_plane + key * op.prompt_token, op.prompt_token};
    const int count = static_cast<int>(std::min<int64_t>(TILE, prompt - key));
    for (int64_t i = 0; i < queries; i += LANES) {
      const int few_queries = static_cast<int>(std::min<int64_t>(queries - i, LANES));
      int32_t from[LANES];
      for (int j = 0; j < LANES; ++j) {
        from[j] = static_cast<int32_t>(std::clamp<int64_t>(hidden[i + j] - key, 0, TILE));
      }
      const Block block{q + i * dim, top + i, total + i, out + i * dim, few_queries};
      step_of(lanes_of(few_queries), block, range, count, op.window ? from : nullptr, dim);
    }
  }

  for (int64_t row = first; row < last; ++row) {
    const int64_t count = own_end[row] - own[row];
    if (count <= 0) continue;
    float* place = op.own + kv_head * dim;
    if (op.k) {
      float* to = place + (own_end[row] - 1) * op.own_token;
      std::copy_n(op.k + row * op.k_row + kv_head * op.k_head, dim, to);
      std::copy_n(op.v + row * op.v_row + kv_head * op.v_head, dim, to + op.own_plane);
    }
    const int64_t from = std::max<int64_t>(unseen(row) - prompt, 0);
    for (int64_t at = (row - first) * group, stop = at + group; at < stop; at += LANES) {
      const int some = static_cast<int>(std::min<int64_t>(stop - at, LANES)), lanes = lanes_of(some);
      float *few_top = few + LANES * dim, *few_total = few_top + LANES;
      transpose(at, some, lanes, few);
      std::copy_n(top + at, some, few_top);
      std::copy_n(total + at, some, few_total);
      const Block block{few, few_top, few_total, out + at * dim, some};
      for (int64_t key = from; key < count; key += TILE) {
        const float* token = place + (own[row] + key) * op.own_token;
        const Range range{token, token + op.own_plane, op.own_token};
        step_of(lanes, block, range, static_cast<int>(std::min<int64_t>(TILE, count - key)), nullptr, dim);
      }
      std::copy_n(few_total, some, total + at);
    }
  }

  for (int64_t i = 0; i < queries; ++i) {
    float* to = op.out + ((first + i / group) * op.heads + kv_head * group + i % group) * dim;
    const float share = total[i] != 0.0f ? 1.0f / total[i] : 0.0f;
    for (int64_t d = 0; d < dim; ++d) to[d] = out[i * dim + d] * share;
  }
}
