// Attention, forward and backward, in float32, with dropout.
//
// Scores are transposed, [keys, queries], with queries in the SIMD lanes: then nothing is summed across lanes, and the
// result of one product is laid out as an operand of the next. The backward pass recomputes the scores from the saved
// logsumexp of each query (Dao et al. 2022, section 3.1), and draws the same weights again.
#include "structs.h"
#include "threads.h"
#include "simd.h"
#include "arena.h"
#include "random.h"

namespace {

constexpr int64_t QUERY_BLOCK = 4 * LANES;    // queries that are processed at a time
constexpr int64_t ROWS = 8, MAX_VECTORS = 2;  // of a product: as many as there are registers for accumulators
constexpr int64_t PREFETCHED_KEYS = 8;        // of a bias: hardware foresees the next queries of a key, not its next keys

// An operand of a product, of which single numbers are read.
struct Factor {
    const float* data;
    int64_t row_stride, depth_stride;
};

template <int VECTORS>
void multiply_tile(const Factor& left, const float* right, int64_t right_stride, int64_t depth, bool accumulate,
                   float* to, int64_t to_stride) {
    FloatVec sums[ROWS][VECTORS] = {};
    for (int64_t i = 0; i < depth; i++) {
        FloatVec each[VECTORS];
        UNROLL
        for (int v = 0; v < VECTORS; v++) each[v] = load(right + i * right_stride + v * LANES);
        UNROLL
        for (int r = 0; r < ROWS; r++) {
            const float one = left.data[r * left.row_stride + i * left.depth_stride];
            UNROLL
            for (int v = 0; v < VECTORS; v++) sums[r][v] += one * each[v];
        }
    }
    UNROLL
    for (int r = 0; r < ROWS; r++) {
        UNROLL
        for (int v = 0; v < VECTORS; v++) {
            float* elements = to + r * to_stride + v * LANES;
            store(elements, accumulate ? load(elements) + sums[r][v] : sums[r][v]);
        }
    }
}

// to [rows, 16 vectors] = or += left [rows, depth] right [depth, 16 vectors]; `rows` is a multiple of ROWS.
void multiply(const Factor& left, const float* right, int64_t right_stride, int64_t rows, int64_t depth,
              int64_t vectors, bool accumulate, float* to, int64_t to_stride) {
    for (int64_t v = 0; v < vectors; v += MAX_VECTORS)
        for (int64_t row = 0; row < rows; row += ROWS) {
            const Factor part{left.data + row * left.row_stride, left.row_stride, left.depth_stride};
            float* out = to + row * to_stride + v * LANES;
            if (vectors - v >= MAX_VECTORS)
                multiply_tile<MAX_VECTORS>(part, right + v * LANES, right_stride, depth, accumulate, out, to_stride);
            else
                multiply_tile<1>(part, right + v * LANES, right_stride, depth, accumulate, out, to_stride);
        }
}

template <class T>
T* at(const TensorView& tensor, int64_t batch, int64_t head, int64_t time) {
    return static_cast<T*>(tensor.data) + batch * tensor.batch_stride + head * tensor.head_stride +
           time * tensor.time_stride;
}

template <class T>
class AttentionKernel {
   public:
    AttentionKernel(const AttentionArgs& args, char* workspace)
        : args(args),
          depth(round_up(args.head_dim, LANES)),
          keys(round_up(args.keys, ROWS)),
          scale(float(args.scale)),
          kept_scale(args.seed ? float(args.kept_scale) : 1.0f),
          indices(lane_indices()),
          threshold(uint32_t(args.threshold) + UIntVec{}) {
        Arena arena{workspace};
        key_rows = arena.allocate<float>(keys * depth);
        value_rows = arena.allocate<float>(keys * depth);
        query_rows = arena.allocate<float>(QUERY_BLOCK * depth);
        query_t = arena.allocate<float>(depth * QUERY_BLOCK);
        scores = arena.allocate<float>(keys * QUERY_BLOCK);
        out_t = arena.allocate<float>(depth * QUERY_BLOCK);
        if (args.grad_out.data) {
            grad_rows = arena.allocate<float>(QUERY_BLOCK * depth);
            grad_t = arena.allocate<float>(depth * QUERY_BLOCK);
            weights = arena.allocate<float>(keys * QUERY_BLOCK);
            grad_weights = arena.allocate<float>(keys * QUERY_BLOCK);
            grad_keys = arena.allocate<float>(keys * depth);
            grad_values = arena.allocate<float>(keys * depth);
        }
        end = arena.next;
    }

    static int64_t workspace_size(const AttentionArgs& args) {
        return AttentionKernel(args, nullptr).end - static_cast<char*>(nullptr);
    }

    // All queries of a key/value head.
    void run(int64_t batch, int64_t kv_head) {
        const bool backward = args.grad_out.data;
        load_rows(args.key, batch, kv_head, 0, args.keys, keys, 1.0f, key_rows);
        load_rows(args.value, batch, kv_head, 0, args.keys, keys, 1.0f, value_rows);
        if (backward) {
            memset(grad_keys, 0, keys * depth * sizeof(float));
            memset(grad_values, 0, keys * depth * sizeof(float));
        }
        const int64_t group = args.heads / args.kv_heads;
        for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++)
            for (int64_t first = 0; first < args.queries; first += QUERY_BLOCK) {
                const Block block(args, batch, head, first);
                load_rows(args.query, batch, head, first, block.count, block.vectors * LANES, scale, query_rows);
                transpose_rows(query_rows, block.vectors, query_t);
                backward ? backward_block(block) : forward_block(block);
            }
        for (int64_t t = 0; backward && t < args.keys; t++) {
            store_row(grad_keys + t * depth, at<T>(args.grad_key, batch, kv_head, t));
            store_row(grad_values + t * depth, at<T>(args.grad_value, batch, kv_head, t));
        }
    }

   private:
    const AttentionArgs& args;
    const int64_t depth, keys;  // head_dim and the number of keys, padded
    const float scale, kept_scale;
    const UIntVec indices, threshold;
    float *key_rows, *value_rows, *query_rows, *query_t, *scores, *out_t, *grad_rows, *grad_t, *weights, *grad_weights,
        *grad_keys, *grad_values;
    char* end;

    // Queries that are processed together.
    struct Block {
        int64_t batch, head, first, count, vectors;
        int64_t visible;  // keys up to the last one that any of them may attend to
        Counted counted;  // the weight of the first query and key

        Block(const AttentionArgs& args, int64_t batch, int64_t head, int64_t first)
            : batch(batch),
              head(head),
              first(first),
              count(min(QUERY_BLOCK, args.queries - first)),
              vectors((count + LANES - 1) / LANES),
              visible(args.causal ? min(first + count, args.keys) : args.keys) {
            if (args.seed) counted = Counted(args.counters[batch] + (head << 32) + (first << 16), args.seed);
        }
    };

    // Copy rows of a head, times a factor, to [padded, depth], padded with zeros.
    void load_rows(const TensorView& from, int64_t batch, int64_t head, int64_t first, int64_t count, int64_t padded,
                   float factor, float* to) const {
        for (int64_t row = 0; row < count; row++, to += depth) {
            const T* elements = at<T>(from, batch, head, first + row);
            __builtin_prefetch(elements + from.head_stride);  // hardware does not foresee the next head's rows
            int64_t i = 0;
            for (; i + LANES <= args.head_dim; i += LANES) store(to + i, load(elements + i) * factor);
            if (i < args.head_dim) store(to + i, load(elements + i, args.head_dim - i) * factor);
        }
        memset(to, 0, (padded - count) * depth * sizeof(float));
    }

    void store_row(const float* from, T* to) const {
        int64_t i = 0;
        for (; i + LANES <= args.head_dim; i += LANES) store(to + i, load(from + i));
        if (i < args.head_dim) store(to + i, load(from + i), args.head_dim - i);
    }

    // Transpose [16 vectors, depth] to [depth, QUERY_BLOCK].
    void transpose_rows(const float* rows, int64_t vectors, float* to) const {
        for (int64_t v = 0; v < vectors; v++)
            for (int64_t i = 0; i < depth; i += LANES)
                transpose(rows + v * LANES * depth + i, depth, to + i * QUERY_BLOCK + v * LANES, QUERY_BLOCK);
    }

    // Store out_t [depth, QUERY_BLOCK], each query multiplied by its factor, as rows of a head.
    void store_transposed(const TensorView& to, const Block& block, const FloatVec* factors) const {
        alignas(64) float rows[LANES * LANES];
        for (int64_t v = 0; v < block.vectors; v++)
            for (int64_t i = 0; i < args.head_dim; i += LANES) {
                for (int64_t r = 0; r < LANES; r++) {
                    float* elements = out_t + (i + r) * QUERY_BLOCK + v * LANES;
                    store(elements, load(elements) * factors[v]);
                }
                transpose(out_t + i * QUERY_BLOCK + v * LANES, QUERY_BLOCK, rows, LANES);
                const int64_t width = min(LANES, args.head_dim - i);
                for (int64_t r = 0; r < min(LANES, block.count - v * LANES); r++) {
                    T* row = at<T>(to, block.batch, block.head, block.first + v * LANES + r) + i;
                    width == LANES ? store(row, load(rows + r * LANES)) : store(row, load(rows + r * LANES), width);
                }
            }
    }

    // A key's row of the bias, or of its gradient: [queries].
    static float* bias_row(const TensorView& tensor, const Block& block, int64_t key) {
        return at<float>(tensor, block.batch, block.head, key) + block.first;
    }

    // Whether 16 weights of a key are kept.
    auto is_kept(const Block& block, int64_t key, int64_t v) const {
        return block.counted.bits((indices + uint32_t(v * LANES) << 16) + uint32_t(key)) >= threshold;
    }

    // Scores of all visible keys; calls `visit(key, v, score)` for each 16 of them.
    template <class Visit>
    void for_each_score(const Block& block, const Visit& visit) const {
        multiply({key_rows, depth, 1}, query_t, QUERY_BLOCK, round_up(block.visible, ROWS), args.head_dim,
                 block.vectors, false, scores, QUERY_BLOCK);
        for (int64_t t = 0; t < block.visible; t++) {
            const float* bias = args.bias.data ? bias_row(args.bias, block, t) : nullptr;
            for (int64_t v = 0; v < block.vectors; v++) {
                FloatVec score = load(scores + t * QUERY_BLOCK + v * LANES);
                if (bias) {
                    score += load(bias + v * LANES);
                    __builtin_prefetch(bias + v * LANES + PREFETCHED_KEYS * args.bias.time_stride);
                }
                const int64_t first = block.first + v * LANES;
                if (args.causal && t > first)
                    score = select(bit_cast<IntVec>(indices) >= int32_t(t - first), score, broadcast(-INFINITY));
                visit(t, v, score);
            }
        }
    }

    static FloatVec attention_weight(FloatVec score, FloatVec offset) {
        return select(score == -INFINITY, FloatVec{}, exp(score - offset));
    }

    // Keys up to the last one that the bias leaves to a query of the block: those behind it are padding.
    int64_t num_seen(const Block& block) const {
        int64_t seen = block.visible;
        for (; args.bias.data && seen; seen--) {
            const float* row = bias_row(args.bias, block, seen - 1);
            FloatVec largest = broadcast(-INFINITY);
            for (int64_t q = 0; q < block.count; q += LANES) {
                const auto is_query = bit_cast<IntVec>(indices) < int32_t(block.count - q);
                largest = max(largest, select(is_query, load(row + q), broadcast(-INFINITY)));
            }
            if (reduce_max(largest) > -INFINITY) break;
        }
        return seen;
    }

    // Queries up to the last one of a block whose output has a gradient: those behind it are padding.
    int64_t num_used(const Block& block) const {
        int64_t used = block.count;
        for (; used; used--) {
            FloatVec largest{};
            for (int64_t i = 0; i < depth; i += LANES)
                largest = max(largest, abs(load(grad_rows + (used - 1) * depth + i)));
            if (!(reduce_max(largest) == 0.0f)) break;  // NaN, too, is a gradient
        }
        return used;
    }

    void forward_block(Block block) const {
        block.visible = num_seen(block);
        FloatVec maxima[QUERY_BLOCK / LANES], sums[QUERY_BLOCK / LANES] = {}, factors[QUERY_BLOCK / LANES];
        for (auto& maximum : maxima) maximum = broadcast(-INFINITY);
        for_each_score(block, [&](int64_t t, int64_t v, FloatVec score) {
            store(scores + t * QUERY_BLOCK + v * LANES, score);
            maxima[v] = max(maxima[v], score);
        });
        for (int64_t t = 0; t < block.visible; t++)
            for (int64_t v = 0; v < block.vectors; v++) {
                float* elements = scores + t * QUERY_BLOCK + v * LANES;
                FloatVec weight = attention_weight(load(elements), maxima[v]);
                sums[v] += weight;
                if (args.seed) weight = select(is_kept(block, t, v), weight, FloatVec{});
                store(elements, weight);
            }
        multiply({value_rows, 1, depth}, scores, QUERY_BLOCK, depth, block.visible, block.vectors, false, out_t,
                 QUERY_BLOCK);
        for (int64_t v = 0; v < block.vectors; v++)
            factors[v] = select(sums[v] == 0.0f, FloatVec{}, kept_scale / sums[v]);
        store_transposed(args.out, block, factors);
        float* logsumexp = args.logsumexp + (block.batch * args.heads + block.head) * args.queries + block.first;
        for (int64_t q = 0; q < block.count; q++)
            logsumexp[q] = maxima[q / LANES][q % LANES] + std::log(sums[q / LANES][q % LANES]);
    }

    void backward_block(Block block) const {
        load_rows(args.grad_out, block.batch, block.head, block.first, block.count, block.vectors * LANES, 1.0f,
                  grad_rows);
        const int64_t used = num_used(block);
        for (int64_t q = used; q < block.count; q++)
            memset(at<T>(args.grad_query, block.batch, block.head, block.first + q), 0, args.head_dim * sizeof(T));
        block.count = used;
        block.vectors = (used + LANES - 1) / LANES;
        block.visible = num_seen(block);
        transpose_rows(grad_rows, block.vectors, grad_t);
        alignas(64) float logsumexp[QUERY_BLOCK] = {};
        memcpy(logsumexp, args.logsumexp + (block.batch * args.heads + block.head) * args.queries + block.first,
               block.count * sizeof(float));
        const int64_t rows = round_up(block.visible, ROWS);
        multiply({value_rows, depth, 1}, grad_t, QUERY_BLOCK, rows, args.head_dim, block.vectors, false, grad_weights,
                 QUERY_BLOCK);
        // Not the dot product of the output and its gradient: of a single key the gradient is to be 0, not almost 0,
        // which Adam would make a whole step of.
        FloatVec sums[QUERY_BLOCK / LANES] = {}, means[QUERY_BLOCK / LANES] = {}, rests[QUERY_BLOCK / LANES] = {};
        for_each_score(block, [&](int64_t t, int64_t v, FloatVec score) {
            const int64_t index = t * QUERY_BLOCK + v * LANES;
            const FloatVec weight = attention_weight(score, load(logsumexp + v * LANES));
            FloatVec kept = weight, grad = load(grad_weights + index);
            if (args.seed) {
                const auto keeps = is_kept(block, t, v);
                kept = select(keeps, weight * kept_scale, FloatVec{});
                grad = select(keeps, grad * kept_scale, FloatVec{});
            }
            sums[v] += weight;
            means[v] += weight * grad;
            store(scores + index, weight);
            store(weights + index, kept);
            store(grad_weights + index, grad);
        });
        // All weights of a query share the rounding of its logsumexp, and all their gradients that of the mean: neither
        // would cancel in sums over keys, as what each has of its own does.
        FloatVec factors[QUERY_BLOCK / LANES];
        for (int64_t v = 0; v < block.vectors; v++) {
            factors[v] = select(sums[v] == 0.0f, FloatVec{}, 1.0f / sums[v]);
            means[v] *= factors[v];
        }
        for (int64_t t = 0; t < block.visible; t++)
            for (int64_t v = 0; v < block.vectors; v++) {
                const int64_t index = t * QUERY_BLOCK + v * LANES;
                rests[v] += load(scores + index) * (load(grad_weights + index) - means[v]);
            }
        for (int64_t v = 0; v < block.vectors; v++) means[v] += rests[v] * factors[v];
        for (int64_t t = 0; t < block.visible; t++)
            for (int64_t v = 0; v < block.vectors; v++) {
                const int64_t index = t * QUERY_BLOCK + v * LANES;
                const FloatVec weight = load(scores + index) * factors[v];
                const FloatVec grad = weight * (load(grad_weights + index) - means[v]);
                if (args.grad_bias.data) {
                    float* sum = bias_row(args.grad_bias, block, t) + v * LANES;
                    store(sum, load(sum) + grad);
                    __builtin_prefetch(sum + PREFETCHED_KEYS * args.grad_bias.time_stride);
                }
                store(scores + index, grad);
            }
        for (int64_t t = block.visible; t < rows; t++) {
            memset(weights + t * QUERY_BLOCK, 0, QUERY_BLOCK * sizeof(float));
            memset(scores + t * QUERY_BLOCK, 0, QUERY_BLOCK * sizeof(float));
        }
        for (int64_t q = 0; q < block.count; q++) {
            float* row = grad_rows + q * depth;
            for (int64_t i = 0; i < depth; i += LANES) store(row + i, load(row + i) * factors[q / LANES][q % LANES]);
        }
        const int64_t vectors = depth / LANES;
        multiply({weights, QUERY_BLOCK, 1}, grad_rows, depth, rows, block.count, vectors, true, grad_values, depth);
        multiply({scores, QUERY_BLOCK, 1}, query_rows, depth, rows, block.count, vectors, true, grad_keys, depth);
        multiply({key_rows, 1, depth}, scores, QUERY_BLOCK, depth, block.visible, block.vectors, false, out_t,
                 QUERY_BLOCK);
        for (auto& factor : factors) factor = broadcast(scale);
        store_transposed(args.grad_query, block, factors);
    }
};

template <class T>
void run(const AttentionArgs& args, Threads& threads, char* workspace) {
    AttentionKernel<T> kernel(args, workspace + threads.index * AttentionKernel<T>::workspace_size(args));
    if (!args.grad_bias.data)
        threads.parallel_for(args.batch * args.kv_heads,
                             [&](int64_t item) { kernel.run(item / args.kv_heads, item % args.kv_heads); });
    else  // the bias may be shared across the batch, and then its gradient is summed here
        threads.parallel_for(args.kv_heads, [&](int64_t head) {
            for (int64_t batch = 0; batch < args.batch; batch++) kernel.run(batch, head);
        });
}

}  // namespace

extern "C" {

// With smaller registers torch's kernels are as fast, or faster (docs/measurements/training.md).
EXPORTED int64_t supported() { return REGISTER_BYTES == 64; }

EXPORTED int64_t workspace_size(const AttentionArgs* args) {
    return args->num_threads * AttentionKernel<float>::workspace_size(*args);
}

EXPORTED void run(const AttentionArgs* args, void* workspace) {
    parallel(args->num_threads, [&](Threads threads) {
        auto memory = static_cast<char*>(workspace);
        args->dtype == FLOAT32 ? run<float>(*args, threads, memory) : run<BFloat16>(*args, threads, memory);
    });
}
}
