// Attention of many queries that share their keys, as when a prompt is prefilled.
//
// The SIMD lanes are queries, so that nothing is summed across lanes; elements of keys and values are broadcast. Keys
// are processed in blocks with an online softmax, the running maximum and sum of each query (Milakov & Gimelshein 2018;
// Dao et al. 2022, algorithm 1).
#pragma once
#include <type_traits>

#include "elementwise.h"
#include "simd.h"
#include "amx.h"

constexpr int64_t KEY_BLOCK = 64;
constexpr int64_t QUERY_BLOCK = 3 * LANES;

// Rows of a matrix product whose accumulators fit the registers.
template <int VECTORS>
constexpr int ROWS = REGISTER_BYTES == 64 ? 8
                     : VECTORS == 1       ? 4
                                          : 2;

// The instructions for the matrix products: float32, bfloat16 pairs (AVX-512-BF16), or AMX.
enum Backend { FLOAT32_FMA, BF16_DOT, AMX };

// One query of one head.
struct Query {
    float* vector = nullptr;      // [head_dim]; overwritten with the output
    const float* bias = nullptr;  // indexed by the distance from the last visible key; null: none
    int64_t first = 0, end = 0;   // the visible keys
};

// to [ROWS, 16 VECTORS] = factor * to + rows [ROWS, depth] columns [depth, 16 VECTORS]; a null factor is 0. With BF16
// the elements of rows and columns are bfloat16 pairs.
template <bool BF16, int VECTORS>
inline void matmul_rows(const float* rows, int64_t row_stride, int64_t depth_stride, int64_t depth,
                        const float* columns, const FloatVec* factor, float* to) {
    constexpr int ROWS = ::ROWS<VECTORS>;
    FloatVec total[ROWS][VECTORS];
    UNROLL
    for (int r = 0; r < ROWS; r++) {
        UNROLL
        for (int v = 0; v < VECTORS; v++)
            total[r][v] = factor ? load(to + (r * VECTORS + v) * LANES) * factor[v] : FloatVec{};
    }
    for (int64_t i = 0; i < depth; i++) {
        FloatVec each[VECTORS];
        UNROLL
        for (int v = 0; v < VECTORS; v++) each[v] = load(columns + (i * VECTORS + v) * LANES);
        UNROLL
        for (int r = 0; r < ROWS; r++) {
            float one = rows[r * row_stride + i * depth_stride];
            UNROLL
            for (int v = 0; v < VECTORS; v++) total[r][v] = multiply_add<BF16>(total[r][v], one, each[v]);
        }
    }
    UNROLL
    for (int r = 0; r < ROWS; r++) {
        UNROLL
        for (int v = 0; v < VECTORS; v++) store(to + (r * VECTORS + v) * LANES, total[r][v]);
    }
}

template <Backend BACKEND, int VECTORS>
class PrefillAttention {
    static constexpr bool BF16 = BACKEND != FLOAT32_FMA;
    static constexpr int64_t WIDTH = VECTORS * LANES, PACK = BF16 ? 2 : 1;
    static constexpr int ROWS = ::ROWS<VECTORS>;
    static constexpr int64_t KEY_MULTIPLE = BACKEND == AMX ? 32 : ROWS;  // blocks are padded to it
    typedef std::conditional_t<BF16, BFloat16, float> Element;

   public:
    PrefillAttention(float* memory, const Query* queries, int64_t num_queries, int64_t head_dim, float scale,
                     float softcap)
        : queries(queries),
          num_queries(num_queries),
          head_dim(head_dim),
          padded_dim(padded(head_dim)),
          softcap(softcap) {
        query_t = memory;
        out_t = query_t + QUERY_BLOCK * padded_dim;
        keys = out_t + QUERY_BLOCK * padded_dim;
        values = keys + KEY_BLOCK * padded_dim;
        scores = values + KEY_BLOCK * padded_dim;
        memset(out_t, 0, padded_dim * WIDTH * sizeof(float));
        auto scaled = reinterpret_cast<Element*>(keys);  // not in use yet
        for (int64_t lane = 0; lane < WIDTH; lane++) {
            Query query = lane < num_queries ? queries[lane] : Query{};
            first[lane] = int32_t(query.first), end[lane] = int32_t(query.end);
            for (int64_t i = 0; i < padded_dim; i += LANES)
                store(scaled + lane % LANES * padded_dim + i, load_part(query.vector, i) * scale);
            if ((lane + 1) % LANES) continue;
            for (int64_t i = 0; i < padded_dim / PACK; i += LANES)
                transpose(keys + i, padded_dim / PACK, query_t + i * WIDTH + lane + 1 - LANES, WIDTH);
        }
        for (int v = 0; v < VECTORS; v++) maxima[v] = broadcast(-1e30f), sums[v] = FloatVec{};
    }

    // Scratch memory, in floats.
    static int64_t size(int64_t head_dim) {
        return 2 * (QUERY_BLOCK + KEY_BLOCK) * padded(head_dim) + KEY_BLOCK * QUERY_BLOCK;
    }

    // Overwrite every query with its output.
    template <class T>
    void run(const T* key, const T* value, int64_t key_stride, int64_t value_stride, const uint8_t* mask) {
        int64_t from = INT64_MAX, to = 0;
        for (int64_t lane = 0; lane < num_queries; lane++) {
            if (queries[lane].first >= queries[lane].end) continue;
            from = queries[lane].first < from ? queries[lane].first : from;
            to = queries[lane].end > to ? queries[lane].end : to;
        }
        for (int64_t begin = from; begin < to; begin += KEY_BLOCK) {
            int64_t num_keys = to - begin < KEY_BLOCK ? to - begin : KEY_BLOCK;
            process_block(key + begin * key_stride, value + begin * value_stride, key_stride, value_stride, begin,
                          num_keys, mask);
        }
        for (int64_t lane = 0; lane < num_queries; lane += LANES) {
            FloatVec total = sums[lane / LANES], inverse = select(total > 0.0f, 1.0f / total, FloatVec{});
            for (int64_t i = 0; i < head_dim; i += LANES) {
                float rows[LANES * LANES];
                transpose(out_t + i * WIDTH + lane, WIDTH, rows, LANES);
                for (int64_t l = 0; l < LANES && lane + l < num_queries; l++) {
                    FloatVec out = load(rows + l * LANES) * inverse[l];
                    float* to = queries[lane + l].vector + i;
                    if (head_dim - i >= LANES)
                        store(to, out);
                    else
                        store(to, out, head_dim - i);
                }
            }
        }
    }

   private:
    static int64_t padded(int64_t head_dim) {
        constexpr int64_t MULTIPLE = BACKEND == AMX ? 32 : LANES;
        return (head_dim + MULTIPLE - 1) / MULTIPLE * MULTIPLE;
    }

    const Query* queries;
    const int64_t num_queries, head_dim, padded_dim;
    const float softcap;
    float *query_t, *out_t, *keys, *values, *scores;
    alignas(64) int32_t first[WIDTH], end[WIDTH];
    FloatVec maxima[VECTORS], sums[VECTORS];

    template <class T>
    void process_block(const T* key, const T* value, int64_t key_stride, int64_t value_stride, int64_t begin,
                       int64_t num_keys, const uint8_t* mask) {
        int64_t padded_keys = (num_keys + KEY_MULTIPLE - 1) / KEY_MULTIPLE * KEY_MULTIPLE;
        auto row = [&](const T* from, int64_t stride, int64_t t) { return t < num_keys ? from + t * stride : nullptr; };
        for (int64_t t = 0; t < padded_keys; t++) {
            const T* one = row(key, key_stride, t);
            Element* to = reinterpret_cast<Element*>(keys) + t * padded_dim;
            for (int64_t i = 0; i < padded_dim; i += LANES) store(to + i, load_part(one, i));
        }
        for (int64_t t = 0; t < padded_keys; t += PACK) {
            const T *one = row(value, value_stride, t), *two = row(value, value_stride, t + 1);
            float* to = values + t / PACK * padded_dim;
            for (int64_t i = 0; i < padded_dim; i += LANES)
                store(to + i, BF16 ? to_bf16_pairs(load_part(one, i), load_part(two, i)) : load_part(one, i));
        }
        compute_scores(padded_keys);
        for (int64_t i = 0; softcap > 0.0f && i < padded_keys * WIDTH; i += LANES)
            store(scores + i, soft_capped(load(scores + i), softcap));
        apply_mask(begin, num_keys, padded_keys, mask);
        FloatVec factor[VECTORS];
        softmax(padded_keys, factor);
        accumulate(padded_keys, factor);
    }

    // scores [padded_keys, WIDTH] = keys queries^T
    void compute_scores(int64_t padded_keys) {
        if constexpr (BACKEND == AMX) {
            auto rows = reinterpret_cast<const BFloat16*>(keys);
            for (int64_t t = 0; t < padded_keys; t += LANES)
                bf16_matmul<VECTORS>(rows + t * padded_dim, padded_dim, query_t, WIDTH, padded_dim, false,
                                     scores + t * WIDTH, WIDTH);
        } else {
            for (int64_t t = 0; t < padded_keys; t += ROWS)
                matmul_rows<BF16, VECTORS>(keys + t * padded_dim / PACK, padded_dim / PACK, 1, padded_dim / PACK,
                                           query_t, nullptr, scores + t * WIDTH);
        }
    }

    // out_t = factor * out_t + values^T weights
    void accumulate(int64_t padded_keys, const FloatVec* factor) {
        if constexpr (BACKEND == AMX) {
            // Transpose to [head_dim, keys].
            auto pairs = reinterpret_cast<const BFloat16*>(values);
            auto rows = reinterpret_cast<BFloat16*>(values + KEY_BLOCK / 2 * padded_dim);
            for (int64_t t = 0; t < padded_keys; t += 2 * LANES)
                for (int64_t i = 0; i < padded_dim; i += LANES)
                    transpose(pairs + t * padded_dim + 2 * i, 2 * padded_dim, rows + i * KEY_BLOCK + t, KEY_BLOCK);
            for (int64_t i = 0; i < padded_dim; i++)
                for (int v = 0; v < VECTORS; v++) {
                    float* total = out_t + i * WIDTH + v * LANES;
                    store(total, load(total) * factor[v]);
                }
            for (int64_t i = 0; i < padded_dim; i += LANES)
                bf16_matmul<VECTORS>(rows + i * KEY_BLOCK, KEY_BLOCK, scores, WIDTH, padded_keys, true,
                                     out_t + i * WIDTH, WIDTH);
        } else {
            for (int64_t i = 0; i < padded_dim; i += ROWS)
                matmul_rows<BF16, VECTORS>(values + i, 1, padded_dim, padded_keys / PACK, scores, factor,
                                           out_t + i * WIDTH);
        }
    }

    // LANES elements of a key, value or query; zeros beyond its end, or if it is null.
    template <class T>
    FloatVec load_part(const T* from, int64_t i) const {
        if (!from || i >= head_dim) return FloatVec{};
        return head_dim - i >= LANES ? load(from + i) : load(from + i, head_dim - i);
    }

    // Add the bias, and set the scores of masked keys to -inf.
    void apply_mask(int64_t begin, int64_t num_keys, int64_t padded_keys, const uint8_t* mask) {
        bool all_visible = num_keys == padded_keys && num_queries == WIDTH && !mask;
        for (int64_t lane = 0; lane < num_queries; lane++) {
            const Query& query = queries[lane];
            all_visible = all_visible && query.first <= begin && query.end >= begin + padded_keys;
            if (!query.bias) continue;
            for (int64_t t = query.first > begin ? query.first - begin : 0; t < num_keys && begin + t < query.end; t++)
                scores[t * WIDTH + lane] += query.bias[query.end - 1 - begin - t];
        }
        if (all_visible) return;
        for (int64_t t = 0; t < padded_keys; t++)
            for (int v = 0; v < VECTORS; v++) {
                auto from = load_as<IntVec>(first + v * LANES), to = load_as<IntVec>(end + v * LANES);
                IntVec position = IntVec{} + int32_t(begin + t);
                IntVec visible = (position >= from) & (position < to);
                if (t >= num_keys || (mask && !mask[begin + t])) visible = IntVec{};
                float* score = scores + t * WIDTH + v * LANES;
                store(score, select(visible, load(score), broadcast(-INFINITY)));
            }
    }

    // Replace scores by exp(score - running maximum); `factor` rescales earlier sums to the new maximum.
    void softmax(int64_t padded_keys, FloatVec* factor) {
        for (int v = 0; v < VECTORS; v++) {
            FloatVec maximum = maxima[v];
            for (int64_t t = 0; t < padded_keys; t++) maximum = max(maximum, load(scores + t * WIDTH + v * LANES));
            factor[v] = exp(maxima[v] - maximum);
            maxima[v] = maximum;
            sums[v] *= factor[v];
            for (int64_t t = 0; t < padded_keys; t += PACK) {
                FloatVec weights[PACK];
                UNROLL
                for (int e = 0; e < PACK; e++) {
                    weights[e] = exp(load(scores + (t + e) * WIDTH + v * LANES) - maximum);
                    sums[v] += weights[e];
                }
                store(scores + t / PACK * WIDTH + v * LANES,
                      BF16 ? to_bf16_pairs(weights[0], weights[PACK - 1]) : weights[0]);
            }
        }
    }
};
