// Attention of all tokens of a text to all of them, by products of bfloat16 (see amx.h).
//
// Queries are the rows of scores and weights, so that keys alone have to be transposed, and all scores of sixteen queries
// are there before the softmax: texts are short.
#pragma once
#include "amx.h"
#include "arena.h"

#if defined(__AVX512BF16__)
// The sum or the largest number of each of 16 vectors.
template <class Combine>
inline FloatVec reduce_rows(const FloatVec (&rows)[LANES], const Combine& combine) {
    alignas(64) float columns[LANES * LANES];
    transpose(reinterpret_cast<const float*>(rows), LANES, columns, LANES);
    FloatVec total = load(columns);
    UNROLL
    for (int i = 1; i < LANES; i++) total = combine(total, load(columns + i * LANES));
    return total;
}

class TextAttention {
   public:
    // Of so many tokens; `head_dim` is a multiple of TILE_DEPTH.
    TextAttention(int64_t length, int64_t head_dim, float scale, char* memory)
        : length(length),
          keys(round_up(length, HAS_AMX ? TILE_DEPTH : int64_t(LANES))),
          head_dim(head_dim),
          scale(scale) {
        Arena arena{memory};
        keys_t = arena.allocate<BFloat16>(keys * head_dim);
        value_pairs = arena.allocate<float>(keys / 2 * head_dim);
        scores = arena.allocate<float>(LANES * keys);
        weights = arena.allocate<BFloat16>(LANES * keys);
        outputs = arena.allocate<float>(LANES * head_dim);
        memory_end = arena.next;
    }

    static int64_t memory_size(int64_t length, int64_t head_dim) {
        return TextAttention(length, head_dim, 0, nullptr).memory_end - static_cast<char*>(nullptr);
    }

    // Take keys and values [length, head_dim]. Up to 31 rows more are read, and not used.
    void set_keys(const BFloat16* key, const BFloat16* value, int64_t stride) const {
        for (int64_t t = 0; t < keys; t += LANES)
            for (int64_t i = 0; i < head_dim; i += TILE_DEPTH)
                transpose(key + t * stride + i, stride, keys_t + i * keys + 2 * t, 2 * keys);
        for (int64_t t = 0; t < keys; t += 2)
            for (int64_t i = 0; i < head_dim; i += LANES) {
                const BFloat16* from = value + t * stride + i;
                FloatVec pairs{};
                if (t + 1 < length)
                    pairs = interleave_rows(from, stride);
                else if (t < length)
                    pairs = bit_cast<FloatVec>(bit_cast<UIntVec>(load(from)) >> 16);
                store(value_pairs + t / 2 * head_dim + i, pairs);
            }
    }

    // Overwrite queries [length, head_dim] with their outputs. bias[key - query] is added to a score; null: nothing is.
    void run(BFloat16* queries, int64_t stride, const float* bias) const {
        for (int64_t first = 0; first < length; first += LANES) {
            BFloat16* rows = queries + first * stride;
            const int64_t count = min(LANES, length - first);
            multiply(rows, count, stride, reinterpret_cast<const float*>(keys_t), keys, head_dim, scores);
            const FloatVec inverse = 1.0f / softmax(count, bias ? bias - first : nullptr);
            multiply(weights, count, keys, value_pairs, head_dim, keys, outputs);
            for (int64_t r = 0; r < count; r++)
                for (int64_t i = 0; i < head_dim; i += LANES)
                    store(rows + r * stride + i, load(outputs + r * head_dim + i) * inverse[r]);
        }
    }

   private:
    const int64_t length, keys, head_dim;  // keys: padded
    const float scale;
    BFloat16 *keys_t, *weights;
    float *value_pairs, *scores, *outputs;
    char* memory_end;

    // to [count, width] = rows [count, depth] columns [depth / 2, width, 2], of up to 16 rows.
    static void multiply(const BFloat16* rows, int64_t count, int64_t stride, const float* columns, int64_t width,
                         int64_t depth, float* to) {
        auto part = [&](auto vectors, int64_t i) {
            bf16_matmul<decltype(vectors)::value>(rows, stride, columns + i, width, depth, false, to + i, width, count);
        };
        int64_t i = 0;
        for (; i + 4 * LANES <= width; i += 4 * LANES) part(std::integral_constant<int, 4>{}, i);
        switch ((width - i) / LANES) {
            case 3: return part(std::integral_constant<int, 3>{}, i);
            case 2: return part(std::integral_constant<int, 2>{}, i);
            case 1: return part(std::integral_constant<int, 1>{}, i);
        }
    }

    // weights = exp(scale scores + bias - their maximum) of up to sixteen queries. Returns the sum of each one's weights.
    FloatVec softmax(int64_t count, const float* bias) const {
        static const IntVec LANE = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        FloatVec rows[LANES] = {};
        for (int64_t r = 0; r < count; r++) {
            float* row = scores + r * keys;
            for (int64_t t = 0; bias && t < keys; t += LANES)
                store(row + t, load(row + t) * scale + load(bias - r + t));
            for (int64_t t = length / LANES * LANES; t < keys; t += LANES)
                store(row + t, select(IntVec(LANE + int32_t(t) < int32_t(length)), load(row + t), broadcast(-INFINITY)));
            rows[r] = load(row);
            for (int64_t t = LANES; t < keys; t += LANES) rows[r] = max(rows[r], load(row + t));
        }
        const float factor = bias ? 1.0f : scale;
        const FloatVec maxima = factor * reduce_rows(rows, [](FloatVec a, FloatVec b) { return max(a, b); });
        for (int64_t r = 0; r < count; r++) {
            const FloatVec maximum = broadcast(maxima[r]);
            rows[r] = FloatVec{};
            for (int64_t t = 0; t < keys; t += LANES) {
                const FloatVec weight = exp_of_8_bits(load(scores + r * keys + t) * factor - maximum);
                rows[r] += weight;
                store(weights + r * keys + t, weight);
            }
        }
        return reduce_rows(rows, [](FloatVec a, FloatVec b) { return a + b; });
    }
};
#endif
