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

// The instructions for the matrix products: float32, bfloat16 pairs, or AMX.
enum Backend { FLOAT32_FMA, BF16_DOT, AMX };

// One query of one head.
struct Query {
    float* vector = nullptr;      // [head_dim]; overwritten with the output
    const float* bias = nullptr;  // indexed by the distance from the last visible key; null: none
    int64_t first = 0, end = 0;   // the visible keys
    float sink = -INFINITY;       // one more score, whose weight is left out
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

// Queries that share blocks of keys, each of which is packed once for all of them.
constexpr int64_t MAX_PANELS = 4;
constexpr int64_t MAX_QUERIES = MAX_PANELS * QUERY_BLOCK;

template <Backend BACKEND, int VECTORS>
class PrefillAttention {
    static constexpr bool BF16 = BACKEND != FLOAT32_FMA;
    static constexpr int64_t WIDTH = VECTORS * LANES, PACK = BF16 ? 2 : 1;
    static constexpr int ROWS = ::ROWS<VECTORS>;
    static constexpr float LEAST = -1e30f;                       // maximum of no scores
    static constexpr int64_t KEY_MULTIPLE = BACKEND == AMX ? 32 : ROWS;  // blocks are padded to it
    typedef std::conditional_t<BF16, BFloat16, float> Element;

    // A query in each lane.
    struct Panel {
        const Query* queries;
        int64_t num_queries, from = INT64_MAX, to = 0;  // from, to: the keys that any of them sees
        float *query_t, *out_t;
        alignas(64) int32_t first[WIDTH], end[WIDTH];
        FloatVec maxima[VECTORS], sums[VECTORS];
    };

   public:
    PrefillAttention(float* memory, const Query* queries, int64_t num_queries, int64_t head_dim, float scale,
                     float softcap)
        : head_dim(head_dim),
          padded_dim(padded(head_dim)),
          num_panels((num_queries + WIDTH - 1) / WIDTH),
          softcap(softcap) {
        keys = memory;
        values = keys + KEY_BLOCK * padded_dim;
        scores = values + KEY_BLOCK * padded_dim;
        float* next = scores + KEY_BLOCK * QUERY_BLOCK;
        for (int64_t p = 0; p < num_panels; p++, next += 2 * WIDTH * padded_dim) {
            Panel& panel = panels[p];
            panel.queries = queries + p * WIDTH, panel.num_queries = min(WIDTH, num_queries - p * WIDTH);
            panel.query_t = next, panel.out_t = next + WIDTH * padded_dim;
            load_queries(panel, scale);
        }
    }

    // Scratch memory, in floats.
    static int64_t size(int64_t head_dim) {
        return 2 * (MAX_QUERIES + KEY_BLOCK) * padded(head_dim) + KEY_BLOCK * QUERY_BLOCK;
    }

    // Overwrite every query with its output.
    template <class T>
    void run(const T* key, const T* value, int64_t key_stride, int64_t value_stride, const uint8_t* mask) {
        int64_t from = INT64_MAX, to = 0;
        for (int64_t p = 0; p < num_panels; p++) from = min(from, panels[p].from), to = max(to, panels[p].to);
        for (int64_t begin = from; begin < to; begin += KEY_BLOCK) {
            const int64_t num_keys = min(to - begin, KEY_BLOCK), padded_keys = round_up(num_keys, KEY_MULTIPLE);
            pack(key + begin * key_stride, value + begin * value_stride, key_stride, value_stride, num_keys,
                 padded_keys);
            for (int64_t p = 0; p < num_panels; p++)
                if (panels[p].from < begin + num_keys && begin < panels[p].to)
                    process_block(panels[p], begin, num_keys, padded_keys, mask);
        }
        for (int64_t p = 0; p < num_panels; p++) write_outputs(panels[p]);
    }

   private:
    static int64_t padded(int64_t head_dim) { return round_up(head_dim, BACKEND == AMX ? 32 : LANES); }

    const int64_t head_dim, padded_dim, num_panels;
    const float softcap;
    float *keys, *values, *scores;
    Panel panels[MAX_PANELS];

    void load_queries(Panel& panel, float scale) {
        memset(panel.out_t, 0, padded_dim * WIDTH * sizeof(float));
        float maxima[WIDTH], sums[WIDTH];
        auto scaled = reinterpret_cast<Element*>(keys);  // not in use yet
        for (int64_t lane = 0; lane < WIDTH; lane++) {
            Query query = lane < panel.num_queries ? panel.queries[lane] : Query{};
            panel.first[lane] = int32_t(query.first), panel.end[lane] = int32_t(query.end);
            if (query.first < query.end)
                panel.from = min(panel.from, query.first), panel.to = max(panel.to, query.end);
            maxima[lane] = max(LEAST, query.sink), sums[lane] = query.sink > LEAST ? 1.0f : 0.0f;
            for (int64_t i = 0; i < padded_dim; i += LANES)
                store(scaled + lane % LANES * padded_dim + i, load_part(query.vector, i) * scale);
            if ((lane + 1) % LANES) continue;
            for (int64_t i = 0; i < padded_dim / PACK; i += LANES)
                transpose(keys + i, padded_dim / PACK, panel.query_t + i * WIDTH + lane + 1 - LANES, WIDTH);
        }
        for (int v = 0; v < VECTORS; v++)
            panel.maxima[v] = load(maxima + v * LANES), panel.sums[v] = load(sums + v * LANES);
    }

    void write_outputs(const Panel& panel) {
        for (int64_t lane = 0; lane < panel.num_queries; lane += LANES) {
            FloatVec total = panel.sums[lane / LANES], inverse = select(total > 0.0f, 1.0f / total, FloatVec{});
            for (int64_t i = 0; i < head_dim; i += LANES) {
                float rows[LANES * LANES];
                transpose(panel.out_t + i * WIDTH + lane, WIDTH, rows, LANES);
                for (int64_t l = 0; l < LANES && lane + l < panel.num_queries; l++) {
                    FloatVec out = load(rows + l * LANES) * inverse[l];
                    float* to = panel.queries[lane + l].vector + i;
                    if (head_dim - i >= LANES)
                        store(to, out);
                    else
                        store(to, out, head_dim - i);
                }
            }
        }
    }

    // Keys as rows; values as rows, or as pairs of rows, which AMX needs transposed: [head_dim, keys].
    template <class T>
    void pack(const T* key, const T* value, int64_t key_stride, int64_t value_stride, int64_t num_keys,
              int64_t padded_keys) {
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
        if constexpr (BACKEND == AMX) {
            auto pairs = reinterpret_cast<const BFloat16*>(values);
            for (int64_t t = 0; t < padded_keys; t += 2 * LANES)
                for (int64_t i = 0; i < padded_dim; i += LANES)
                    transpose(pairs + t * padded_dim + 2 * i, 2 * padded_dim, values_t() + i * KEY_BLOCK + t, KEY_BLOCK);
        }
    }

    BFloat16* values_t() const { return reinterpret_cast<BFloat16*>(values + KEY_BLOCK / 2 * padded_dim); }

    void process_block(Panel& panel, int64_t begin, int64_t num_keys, int64_t padded_keys, const uint8_t* mask) {
        compute_scores(panel, padded_keys);
        for (int64_t i = 0; softcap > 0.0f && i < padded_keys * WIDTH; i += LANES)
            store(scores + i, soft_capped(load(scores + i), softcap));
        apply_mask(panel, begin, num_keys, padded_keys, mask);
        FloatVec factor[VECTORS];
        softmax(panel, padded_keys, factor);
        accumulate(panel, padded_keys, factor);
    }

    // scores [padded_keys, WIDTH] = keys queries^T
    void compute_scores(const Panel& panel, int64_t padded_keys) {
        if constexpr (BACKEND == AMX) {
            auto rows = reinterpret_cast<const BFloat16*>(keys);
            for (int64_t t = 0; t < padded_keys; t += LANES)
                bf16_matmul<VECTORS>(rows + t * padded_dim, padded_dim, panel.query_t, WIDTH, padded_dim, false,
                                     scores + t * WIDTH, WIDTH);
        } else {
            for (int64_t t = 0; t < padded_keys; t += ROWS)
                matmul_rows<BF16, VECTORS>(keys + t * padded_dim / PACK, padded_dim / PACK, 1, padded_dim / PACK,
                                           panel.query_t, nullptr, scores + t * WIDTH);
        }
    }

    // out_t = factor * out_t + values^T weights
    void accumulate(const Panel& panel, int64_t padded_keys, const FloatVec* factor) {
        if constexpr (BACKEND == AMX) {
            for (int v = 0; v < VECTORS; v++) {
                if (reduce_add(abs(factor[v] - 1.0f)) == 0) continue;  // no maximum has changed
                for (int64_t i = 0; i < padded_dim; i++) {
                    float* total = panel.out_t + i * WIDTH + v * LANES;
                    store(total, load(total) * factor[v]);
                }
            }
            for (int64_t i = 0; i < padded_dim; i += LANES)
                bf16_matmul<VECTORS>(values_t() + i * KEY_BLOCK, KEY_BLOCK, scores, WIDTH, padded_keys, true,
                                     panel.out_t + i * WIDTH, WIDTH);
        } else {
            for (int64_t i = 0; i < padded_dim; i += ROWS)
                matmul_rows<BF16, VECTORS>(values + i, 1, padded_dim, padded_keys / PACK, scores, factor,
                                           panel.out_t + i * WIDTH);
        }
    }

    // LANES elements of a key, value or query; zeros beyond its end, or if it is null.
    template <class T>
    FloatVec load_part(const T* from, int64_t i) const {
        if (!from || i >= head_dim) return FloatVec{};
        return head_dim - i >= LANES ? load(from + i) : load(from + i, head_dim - i);
    }

    // Add the bias, and set the scores of masked keys to -inf.
    void apply_mask(const Panel& panel, int64_t begin, int64_t num_keys, int64_t padded_keys, const uint8_t* mask) {
        bool all_visible = num_keys == padded_keys && panel.num_queries == WIDTH && !mask;
        for (int64_t lane = 0; lane < panel.num_queries; lane++) {
            const Query& query = panel.queries[lane];
            all_visible = all_visible && query.first <= begin && query.end >= begin + padded_keys;
            if (!query.bias) continue;
            for (int64_t t = query.first > begin ? query.first - begin : 0; t < num_keys && begin + t < query.end; t++)
                scores[t * WIDTH + lane] += query.bias[query.end - 1 - begin - t];
        }
        if (all_visible) return;
        for (int64_t t = 0; t < padded_keys; t++)
            for (int v = 0; v < VECTORS; v++) {
                auto from = load_as<IntVec>(panel.first + v * LANES), to = load_as<IntVec>(panel.end + v * LANES);
                IntVec position = IntVec{} + int32_t(begin + t);
                IntVec visible = (position >= from) & (position < to);
                if (t >= num_keys || (mask && !mask[begin + t])) visible = IntVec{};
                float* score = scores + t * WIDTH + v * LANES;
                store(score, select(visible, load(score), broadcast(-INFINITY)));
            }
    }

    // Replace scores by exp(score - running maximum); `factor` rescales earlier sums to the new maximum.
    void softmax(Panel& panel, int64_t padded_keys, FloatVec* factor) {
        FloatVec maxima[VECTORS];
        for (int v = 0; v < VECTORS; v++) maxima[v] = panel.maxima[v];
        for (int64_t t = 0; t < padded_keys; t++) {
            UNROLL
            for (int v = 0; v < VECTORS; v++) maxima[v] = max(maxima[v], load(scores + t * WIDTH + v * LANES));
        }
        for (int v = 0; v < VECTORS; v++) {
            FloatVec maximum = maxima[v], sums{};
            factor[v] = exp(panel.maxima[v] - maximum);
            panel.maxima[v] = maximum;
            for (int64_t t = 0; t < padded_keys; t += PACK) {
                FloatVec weights[PACK];
                UNROLL
                for (int e = 0; e < PACK; e++) {
                    const FloatVec x = load(scores + (t + e) * WIDTH + v * LANES) - maximum;
                    weights[e] = BF16 ? exp_of_8_bits(x) : exp(x);
                    sums += weights[e];
                }
                store(scores + t / PACK * WIDTH + v * LANES,
                      BF16 ? to_bf16_pairs(weights[0], weights[PACK - 1]) : weights[0]);
            }
            panel.sums[v] = panel.sums[v] * factor[v] + sums;
        }
    }
};
