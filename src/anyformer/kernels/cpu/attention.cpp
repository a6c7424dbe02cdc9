// Attention for training, forward and backward, from pairs of bfloat16 numbers (see wide.h).
//
// Scores stand transposed, with a query in each lane: then nothing is summed across lanes, and what comes out of one
// product can enter the next as it is. The backward pass makes the scores anew (Dao et al. 2022, section 3.1), from the
// logarithm of each query's sum of exponentials.
#include "structs.h"
#include "threads.h"
#include "simd.h"
#include "amx.h"

namespace {

#if defined(__AVX512BF16__)
constexpr int64_t CROWD = 4 * LANES;  // queries that are compared with a key at a time
constexpr int64_t BLOCK = 2 * CROWD;  // queries that are gathered before keys and values hear of them

// Number i of [.., head_dim] of a text's head.
BFloat16* at(const TensorView& memory, int64_t text, int64_t head, int64_t time) {
    return static_cast<BFloat16*>(memory.data) + text * memory.batch_stride + head * memory.head_stride + time * memory.time_stride;
}

// to[line] = or += rows [16, depth] lanes, `vectors` (an even number) of them.
void multiply(const BFloat16* rows, int64_t step, const float* lanes, int64_t width, int64_t depth, bool more, float* to,
              int64_t to_step, int64_t vectors) {
    for (; vectors >= 4; vectors -= 4, lanes += 4 * LANES, to += 4 * LANES)
        multiply_lanes<4>(rows, step, lanes, width, depth, more, to, to_step);
    if (vectors) multiply_lanes<2>(rows, step, lanes, width, depth, more, to, to_step);
}

// TensorView of a thread, handed out piece by piece.
struct Room {
    char* next;

    template <class T>
    T* take(int64_t count) {
        auto taken = reinterpret_cast<T*>(next);
        next += up(count * int64_t(sizeof(T)), 64);
        return taken;
    }
};

class Looker {
   public:
    Looker(const AttentionArgs& look, char* memory)
        : look(look), depth(up(look.head_dim, DEPTH)), keys(up(look.keys, DEPTH)), scale(float(look.scale)) {
        Room room{memory};
        key_rows = room.take<BFloat16>(keys * depth);
        value_rows = room.take<BFloat16>(keys * depth);
        columns = room.take<BFloat16>(keys * depth);
        pairs = room.take<float>((keys > BLOCK ? keys : BLOCK) / 2 * depth);
        query_rows = room.take<BFloat16>(BLOCK * depth);
        query_lanes = room.take<float>(BLOCK * depth / 2);
        scores = room.take<float>(keys * CROWD);
        weight_pairs = room.take<float>(keys / 2 * BLOCK);
        turned = room.take<float>(depth * CROWD);
        if (look.grad_out.data) {
            grad_rows = room.take<BFloat16>(BLOCK * depth);
            grad_lanes = room.take<float>(BLOCK * depth / 2);
            grad_pairs = room.take<float>(BLOCK / 2 * depth);
            weights = room.take<BFloat16>(keys * BLOCK);
            grad_scores = room.take<BFloat16>(keys * BLOCK);
            grad_weights = room.take<float>(LANES * CROWD);
            grad_keys = room.take<float>(keys * depth);
            grad_values = room.take<float>(keys * depth);
        }
        end = room.next;
    }

    static int64_t bytes(const AttentionArgs& look) { return Looker(look, nullptr).end - static_cast<char*>(nullptr); }

    // Answers of all queries to a head of keys and values.
    void forward(int64_t text, int64_t kv_head) {
        take_rows(look.key, text, kv_head, 0, keys, key_rows);
        take_rows(look.value, text, kv_head, 0, keys, value_rows);
        pair_rows(value_rows, keys, pairs);
        turn_pairs(pairs, keys, columns);
        each_head(kv_head, [&](int64_t head) {
            for (int64_t first = 0; first < look.queries; first += CROWD) {
                take_rows(look.query, text, head, first, lanes(first), query_rows);
                to_lanes(query_rows, lanes(first), query_lanes);
                answer(text, head, first);
            }
        });
    }

    // What queries, keys and values have to change.
    void backward(int64_t text, int64_t kv_head) {
        take_rows(look.key, text, kv_head, 0, keys, key_rows);
        take_rows(look.value, text, kv_head, 0, keys, value_rows);
        pair_rows(key_rows, keys, pairs);
        turn_pairs(pairs, keys, columns);
        memset(grad_keys, 0, keys * depth * sizeof(float));
        memset(grad_values, 0, keys * depth * sizeof(float));
        each_head(kv_head, [&](int64_t head) {
            for (int64_t first = 0; first < look.queries; first += BLOCK) blame(text, head, first);
        });
        for (int64_t t = 0; t < look.keys; t++) {
            give_row(grad_keys + t * depth, at(look.grad_key, text, kv_head, t));
            give_row(grad_values + t * depth, at(look.grad_value, text, kv_head, t));
        }
    }

   private:
    const AttentionArgs& look;
    const int64_t depth, keys;  // with what is missing to whole registers
    const float scale;
    BFloat16 *key_rows, *value_rows, *columns, *query_rows, *grad_rows, *weights, *grad_scores;
    float *pairs, *query_lanes, *scores, *weight_pairs, *turned, *grad_lanes, *grad_pairs, *grad_weights, *grad_keys,
        *grad_values;
    char* end;

    template <class Visit>
    void each_head(int64_t kv_head, const Visit& visit) const {
        int64_t group = look.heads / look.kv_heads;
        for (int64_t i = 0; i < group; i++) visit(kv_head * group + i);
    }

    // Queries that are looked at together, from this one on.
    int64_t lanes(int64_t first) const { return look.queries - first <= CROWD / 2 ? CROWD / 2 : CROWD; }

    // Some rows of a head, [count, depth]; what is missing is zeros.
    void take_rows(const TensorView& from, int64_t text, int64_t head, int64_t first, int64_t count, BFloat16* to) const {
        int64_t all = &from == &look.key || &from == &look.value ? look.keys : look.queries;
        for (int64_t row = 0; row < count; row++, to += depth) {
            bool there = first + row < all;
            int64_t width = there ? look.head_dim : 0;
            if (there) memcpy(to, at(from, text, head, first + row), width * sizeof(BFloat16));
            if (width < depth) memset(to + width, 0, (depth - width) * sizeof(BFloat16));
        }
    }

    // [count, depth] as pairs of neighboring numbers, [depth / 2, BLOCK].
    void to_lanes(const BFloat16* rows, int64_t count, float* to) const {
        auto lanes = reinterpret_cast<BFloat16*>(to);
        for (int64_t row = 0; row < count; row += LANES)
            for (int64_t i = 0; i < depth; i += DEPTH)
                transpose(rows + row * depth + i, depth, lanes + i * BLOCK + 2 * row, 2 * BLOCK);
    }

    // [count, depth] as pairs of neighboring rows, [count / 2, depth].
    void pair_rows(const BFloat16* rows, int64_t count, float* to) const {
        for (int64_t row = 0; row < count; row += 2)
            for (int64_t i = 0; i < depth; i += LANES, to += LANES) store(to, ::pair_rows(rows + row * depth + i, depth));
    }

    // Pairs of rows become columns: [depth, count].
    void turn_pairs(const float* from, int64_t count, BFloat16* to) const {
        auto rows = reinterpret_cast<const BFloat16*>(from);
        for (int64_t row = 0; row < count; row += 2 * LANES)
            for (int64_t i = 0; i < depth; i += LANES)
                transpose(rows + row * depth + 2 * i, 2 * depth, to + i * count + row, count);
    }

    void give_row(const float* from, BFloat16* to) const {
        int64_t i = 0;
        for (; i + LANES <= look.head_dim; i += LANES) store(to + i, load(from + i));
        if (i < look.head_dim) store(to + i, load(from + i), look.head_dim - i);
    }

    // turned [depth, CROWD] times a factor of each lane, to the rows that it belongs to.
    void give_turned(const TensorView& to, int64_t text, int64_t head, int64_t first, const Floats* factor) const {
        float rows[LANES * LANES];
        for (int64_t v = 0; v < lanes(first) / LANES; v++)
            for (int64_t i = 0; i < look.head_dim; i += LANES) {
                for (int64_t r = 0; r < LANES; r++) {
                    float* line = turned + (i + r) * CROWD + v * LANES;
                    store(line, load(line) * factor[v]);
                }
                transpose(reinterpret_cast<const BFloat16*>(turned + i * CROWD + v * LANES), 2 * CROWD,
                          reinterpret_cast<BFloat16*>(rows), 2 * LANES);
                int64_t width = look.head_dim - i < LANES ? look.head_dim - i : LANES;
                for (int64_t r = 0; r < LANES && first + v * LANES + r < look.queries; r++) {
                    BFloat16* row = at(to, text, head, first + v * LANES + r) + i;
                    if (width == LANES)
                        store(row, load(rows + r * LANES));
                    else
                        store(row, load(rows + r * LANES), width);
                }
            }
    }

    // Keys that some queries, the first of which is given, may see; as many as whole registers hold.
    int64_t seen(int64_t first) const {
        int64_t end = look.causal && first + CROWD < look.keys ? first + CROWD : look.keys;
        return up(end, DEPTH);
    }

    // Which of sixteen queries, the first of which is given, see a key.
    Integers sees(int64_t first, int64_t key) const {
        static const Integers COUNT = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        if (key >= look.keys) return Integers{};
        return look.causal ? Integers(COUNT + int32_t(first) >= int32_t(key)) : Integers(COUNT >= 0);
    }

    // Whether all queries, the first of which is given, see all of these sixteen keys.
    bool all_see(int64_t first, int64_t key) const {
        return key + LANES <= look.keys && (!look.causal || key + LANES <= first + 1);
    }

    // A row of a bias: of all queries, for a key.
    float* biases(const TensorView& memory, int64_t text, int64_t head, int64_t key) const {
        key = key < look.keys ? key : look.keys - 1;
        return static_cast<float*>(memory.data) + text * memory.batch_stride + head * memory.head_stride + key * memory.time_stride;
    }

    void answer(int64_t text, int64_t head, int64_t first) const {
        const int64_t vectors = lanes(first) / LANES, count = seen(first);
        Floats peaks[CROWD / LANES], sums[CROWD / LANES] = {};
        for (auto& peak : peaks) peak = all(-INFINITY);
        for (int64_t t = 0; t < count; t += LANES) {
            float* here = scores + t * CROWD;
            multiply(key_rows + t * depth, depth, query_lanes, BLOCK, depth, false, here, CROWD, vectors);
            bool whole = all_see(first, t);
            for (int64_t r = 0; r < LANES; r++, here += CROWD) {
                const float* bias = look.bias.data ? biases(look.bias, text, head, t + r) + first : nullptr;
                for (int64_t v = 0; v < vectors; v++) {
                    Floats score = load(here + v * LANES) * scale;
                    if (bias) score += load(bias + v * LANES);
                    if (!whole) score = choose(sees(first + v * LANES, t + r), score, all(-INFINITY));
                    store(here + v * LANES, score);
                    peaks[v] = larger(peaks[v], score);
                }
            }
        }
        for (int64_t t = 0; t < count; t += 2)
            for (int64_t v = 0; v < vectors; v++) {
                Floats low = weight(load(scores + t * CROWD + v * LANES), peaks[v]);
                Floats high = weight(load(scores + (t + 1) * CROWD + v * LANES), peaks[v]);
                sums[v] += low + high;
                store(weight_pairs + t / 2 * CROWD + v * LANES, paired(low, high));
            }
        for (int64_t i = 0; i < depth; i += LANES)
            multiply(columns + i * keys, keys, weight_pairs, CROWD, count, false, turned + i * CROWD, CROWD, vectors);
        Floats factor[CROWD / LANES];
        for (int64_t v = 0; v < vectors; v++) factor[v] = choose(sums[v] == 0.0f, Floats{}, 1.0f / sums[v]);
        give_turned(look.out, text, head, first, factor);
        float* levels = look.logsumexp + (text * look.heads + head) * look.queries;
        for (int64_t q = first; q < look.queries && q < first + CROWD; q++)
            levels[q] = peaks[(q - first) / LANES][(q - first) % LANES] +
                        std::log(sums[(q - first) / LANES][(q - first) % LANES]);
    }

    static Floats weight(Floats score, Floats level) {
        return choose(score == -INFINITY, Floats{}, exp(score - level));
    }

    void blame(int64_t text, int64_t head, int64_t first) const {
        const int64_t left = look.queries - first, rows = left > CROWD ? BLOCK : lanes(first);
        take_rows(look.query, text, head, first, rows, query_rows);
        take_rows(look.grad_out, text, head, first, rows, grad_rows);
        to_lanes(query_rows, rows, query_lanes);
        to_lanes(grad_rows, rows, grad_lanes);
        pair_rows(query_rows, rows, pairs);
        pair_rows(grad_rows, rows, grad_pairs);
        alignas(64) float levels[BLOCK] = {}, shares[BLOCK] = {};
        for (int64_t q = 0; q < rows && q < left; q++) {
            levels[q] = look.logsumexp[(text * look.heads + head) * look.queries + first + q];
            shares[q] = share(at(look.out, text, head, first + q), grad_rows + q * depth);
        }
        int64_t limits[] = {seen(first), seen(first + CROWD)};
        for (int64_t begin = 0; begin < rows; begin += CROWD) {
            int64_t count = rows - begin < CROWD ? rows - begin : CROWD, limit = limits[begin / CROWD];
            for (int64_t t = 0; t < limit; t += LANES)
                compare(text, head, first + begin, begin, count, t, levels + begin, shares + begin);
            for (int64_t i = 0; i < depth; i += LANES)
                multiply(columns + i * keys, keys, weight_pairs + begin, BLOCK, limit, false, turned + i * CROWD, CROWD,
                         count / LANES);
            const Floats factor[] = {all(1.0f), all(1.0f), all(1.0f), all(1.0f)};
            give_turned(look.grad_query, text, head, first + begin, factor);
        }
        for (int64_t t = 0; t < limits[rows > CROWD]; t += LANES) {
            // Keys that only the second half sees.
            int64_t begin = t < limits[0] ? 0 : CROWD;
            auto gather = [&](const BFloat16* lines, const float* from, float* to) {
                multiply(lines + t * BLOCK + begin, BLOCK, from + begin / 2 * depth, depth, rows - begin, true,
                         to + t * depth, depth, depth / LANES);
            };
            gather(weights, grad_pairs, grad_values);
            gather(grad_scores, pairs, grad_keys);
        }
    }

    // What an answer and its gradient have in common.
    float share(const BFloat16* out, const BFloat16* grad) const {
        Floats total{};
        int64_t i = 0;
        for (; i + LANES <= look.head_dim; i += LANES) total += load(out + i) * load(grad + i);
        if (i < look.head_dim) total += load(out + i, look.head_dim - i) * load(grad + i);
        return sum(total);
    }

    // Weights of sixteen keys for some queries, and the gradients of their scores.
    void compare(int64_t text, int64_t head, int64_t first, int64_t begin, int64_t count, int64_t t,
                 const float* levels, const float* shares) const {
        const int64_t vectors = count / LANES;
        multiply(key_rows + t * depth, depth, query_lanes + begin, BLOCK, depth, false, scores, CROWD, vectors);
        multiply(value_rows + t * depth, depth, grad_lanes + begin, BLOCK, depth, false, grad_weights, CROWD, vectors);
        bool whole = all_see(first, t);
        for (int64_t r = 0; r < LANES; r += 2)
            for (int64_t v = 0; v < count; v += LANES) {
                Floats both[2];
                for (int64_t k = 0; k < 2; k++) {
                    int64_t key = t + r + k;
                    Floats score = load(scores + (r + k) * CROWD + v) * scale;
                    if (look.bias.data) score += load(biases(look.bias, text, head, key) + first + v);
                    Floats share = weight(score, load(levels + v));
                    if (!whole) share = choose(sees(first + v, key), share, Floats{});
                    Floats grad = share * (load(grad_weights + (r + k) * CROWD + v) - load(shares + v));
                    if (look.grad_bias.data && key < look.keys) {
                        float* sum = biases(look.grad_bias, text, head, key) + first + v;
                        store(sum, load(sum) + grad);
                    }
                    both[k] = grad * scale;
                    store(weights + key * BLOCK + begin + v, share);
                    store(grad_scores + key * BLOCK + begin + v, both[k]);
                }
                store(weight_pairs + (t + r) / 2 * BLOCK + begin + v, paired(both[0], both[1]));
            }
    }
};
#endif

}  // namespace

extern "C" {

// Whether this processor has the instructions; else nothing happens.
EXPORTED int64_t works() { return HAS_PAIRS; }

EXPORTED int64_t bytes(const AttentionArgs* look) {
#if defined(__AVX512BF16__)
    return look->num_threads * Looker::bytes(*look);
#else
    return 0;
#endif
}

// Forward, or backward if there is a gradient.
EXPORTED void run(const AttentionArgs* look, void* workspace) {
#if defined(__AVX512BF16__)
    together(look->num_threads, [&](Team team) {
        TileRegisters registers(true);
        Looker looker(*look, static_cast<char*>(workspace) + team.me * Looker::bytes(*look));
        if (!look->grad_out.data)
            team.share(look->batch * look->kv_heads,
                       [&](int64_t item) { looker.forward(item / look->kv_heads, item % look->kv_heads); });
        else if (!look->grad_bias.data)
            team.share(look->batch * look->kv_heads,
                       [&](int64_t item) { looker.backward(item / look->kv_heads, item % look->kv_heads); });
        else  // texts share the gradient of their bias
            team.share(look->kv_heads, [&](int64_t head) {
                for (int64_t text = 0; text < look->batch; text++) looker.backward(text, head);
            });
    });
#endif
}
}
