// The walk over the tiles of a run of rows. Included after decode_attention_tile.h, once for each kind of vectors.
//
// All key heads take their turn at a tile before the next one, so that memory is read from end to end. Tiles begin
// where ranges begin: a row's result does not depend on which rows are beside it.

// A run's state for one key head; queries are in the order of rows, then of heads.
struct Head {
  float *q, *out;      // [queries, dim], q scaled
  float *top, *total;  // [queries]
  float* blocks;       // q in blocks of [dim, lanes]
  float* block;        // of one row
};

// Some keys of all heads.
struct Tile {
  Range range;  // of head 0
  int64_t row;  // whose tokens they are; -1: the prompt's
  int64_t key;  // the first one's place in the prompt
};

int64_t length(const int32_t* begin, const int32_t* end, int64_t row) { return std::max(end[row] - begin[row], 0); }

void attend(
    const DecodeAttention& op, int64_t first, int64_t last, int64_t first_head, int64_t last_head,
    std::vector<float>& scratch) {
  const int64_t group = op.heads / op.kv_heads, dim = op.dim, queries = (last - first) * group;
  const int64_t padded = (queries + WIDTH - 1) / WIDTH * WIDTH;
  const int64_t room = padded * (3 * dim + 2) + WIDTH * dim;
  scratch.assign(room * (last_head - first_head), 0.0f);
  const int32_t *begin = op.layout, *end = begin + op.rows, *own_begin = end + op.rows, *own_end = own_begin + op.rows;
  const int64_t prompt = length(begin, end, first);

  const bool few = group <= 4 && dim % WIDTH == 0;
  auto head_of = [&](int64_t head) {
    float* q = scratch.data() + (head - first_head) * room;
    float *out = q + padded * dim, *top = out + padded * dim, *blocks = top + 2 * padded;
    return Head{q, out, top, top + padded, blocks, blocks + padded * dim};
  };
  auto transpose = [&](const float* q, int64_t count, float* to) {
    const int lanes = lanes_of(count);
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t d = 0; d < dim; ++d) to[d * lanes + i] = q[i * dim + d];
    }
    return to;
  };
  auto unseen = [&](int64_t row) {
    return op.window ? std::max<int64_t>(prompt + length(own_begin, own_end, row) - op.window, 0) : 0;
  };

  std::vector<Tile> tiles;
  auto add = [&](const float* keys, int64_t plane, int64_t token, int64_t row, int64_t from, int64_t to) {
    for (int64_t key = from; key < to; key += TILE) {
      const int count = static_cast<int>(std::min<int64_t>(TILE, to - key));
      tiles.push_back({{keys + key * token, keys + plane + key * token, token, count}, row, key});
    }
  };
  int64_t least = prompt;
  for (int64_t row = first; row < last; ++row) least = std::min(least, unseen(row));
  add(op.prompt + begin[first] * op.prompt_token, op.prompt_plane, op.prompt_token, -1, least / TILE * TILE, prompt);
  for (int64_t row = first; row < last; ++row) {
    const int64_t from = std::max<int64_t>(unseen(row) - prompt, 0);
    const float* keys = op.own_pool + own_begin[row] * op.own_token;
    add(keys, op.own_plane, op.own_token, row, from, length(own_begin, own_end, row));
  }

  for (int64_t head = first_head; head < last_head; ++head) {
    const Head state = head_of(head);
    std::fill(state.top, state.total, std::numeric_limits<float>::lowest());
    for (int64_t i = 0; i < queries; ++i) {
      const float* q = op.q + (first + i / group) * op.q_row + (head * group + i % group) * op.q_head;
      for (int64_t d = 0; d < dim; ++d) state.q[i * dim + d] = q[d] * op.scale;
    }
    for (int64_t i = 0; i < queries; i += WIDTH) {
      transpose(state.q + i * dim, std::min<int64_t>(queries - i, WIDTH), state.blocks + i * dim);
    }
    for (int64_t row = first; row < last && op.k; ++row) {
      if (own_end[row] <= own_begin[row]) continue;
      float* to = op.own_pool + (own_end[row] - 1) * op.own_token + head * dim;
      std::copy_n(op.k + row * op.k_row + head * op.k_head, dim, to);
      std::copy_n(op.v + row * op.v_row + head * op.v_head, dim, to + op.own_plane);
    }
  }

  const size_t count = tiles.size();
  if (last < op.rows) {  // only fetched: the next run's prompt
    const int64_t some = std::min<int64_t>(TILE, length(begin, end, last));
    add(op.prompt + begin[last] * op.prompt_token, op.prompt_plane, op.prompt_token, -1, 0, some);
  }
  for (size_t i = 0; i < count; ++i) {
    const Tile &tile = tiles[i], &next = tiles[std::min(i + 1, tiles.size() - 1)];
    const int64_t from = tile.row < 0 ? 0 : (tile.row - first) * group, to = tile.row < 0 ? queries : from + group;
    for (int64_t head = first_head; head < last_head; ++head) {
      const Head state = head_of(head);
      auto of_head = [&](Range range) {
        range.keys += head * dim, range.values += head * dim;
        return range;
      };
      for (int64_t at = from; at < to; at += WIDTH) {
        const int some = static_cast<int>(std::min<int64_t>(to - at, WIDTH));
        float top[WIDTH] = {}, total[WIDTH] = {};
        int32_t hidden[WIDTH] = {};
        for (int j = 0; j < some && tile.row < 0 && op.window; ++j) {
          const int64_t skip = unseen(first + (at + j) / group) - tile.key;
          hidden[j] = static_cast<int32_t>(std::clamp<int64_t>(skip, 0, TILE));
        }
        const float* q = (tile.row < 0 ? state.blocks : state.q) + at * dim;
        if (tile.row >= 0 && !few) q = transpose(q, some, state.block);
        std::copy_n(state.top + at, some, top);
        std::copy_n(state.total + at, some, total);
        const Block block{q, top, total, state.out + at * dim, some, few && tile.row >= 0};
        step_of(block, of_head(tile.range), of_head(next.range), op.window ? hidden : nullptr, dim);
        std::copy_n(top, some, state.top + at);
        std::copy_n(total, some, state.total + at);
      }
    }
  }

  for (int64_t head = first_head; head < last_head; ++head) {
    const Head state = head_of(head);
    for (int64_t i = 0; i < queries; ++i) {
      float* to = op.out + ((first + i / group) * op.heads + head * group + i % group) * dim;
      const float share = state.total[i] != 0.0f ? 1.0f / state.total[i] : 0.0f;
      for (int64_t d = 0; d < dim; ++d) to[d] = state.out[i * dim + d] * share;
    }
  }
}
