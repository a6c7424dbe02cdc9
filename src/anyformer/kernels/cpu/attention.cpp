// Attention, forward and backward, with matrix products of bfloat16 (see amx.h).
//
// Scores are transposed, [keys, queries], with queries in the SIMD lanes: then nothing is summed across lanes, and the
// result of one product is laid out as an operand of the next. The backward pass recomputes the scores from the saved
// logsumexp of each query (Dao et al. 2022, section 3.1).
#include "structs.h"
#include "threads.h"
#include "simd.h"
#include "arena.h"
#include "amx.h"

namespace {

#if defined(__AVX512BF16__)
constexpr int64_t QUERY_BLOCK = 4 * LANES;           // queries that scores are computed for at a time
constexpr int64_t BACKWARD_BLOCK = 2 * QUERY_BLOCK;  // queries per update of the gradients of keys and values

BFloat16* at(const TensorView& tensor, int64_t batch, int64_t head, int64_t time) {
    return static_cast<BFloat16*>(tensor.data) + batch * tensor.batch_stride + head * tensor.head_stride +
           time * tensor.time_stride;
}

// to [16, 16 vectors] = or += rows [16, depth] columns; `vectors` is even.
void multiply(const BFloat16* rows, int64_t stride, const float* columns, int64_t column_stride, int64_t depth,
              bool accumulate, float* to, int64_t to_stride, int64_t vectors) {
    for (; vectors >= 4; vectors -= 4, columns += 4 * LANES, to += 4 * LANES)
        bf16_matmul<4>(rows, stride, columns, column_stride, depth, accumulate, to, to_stride);
    if (vectors) bf16_matmul<2>(rows, stride, columns, column_stride, depth, accumulate, to, to_stride);
}

class AttentionKernel {
   public:
    AttentionKernel(const AttentionArgs& args, char* workspace)
        : args(args),
          depth(round_up(args.head_dim, TILE_DEPTH)),
          keys(round_up(args.keys, TILE_DEPTH)),
          scale(float(args.scale)) {
        Arena arena{workspace};
        key_rows = arena.allocate<BFloat16>(keys * depth);
        value_rows = arena.allocate<BFloat16>(keys * depth);
        columns = arena.allocate<BFloat16>(keys * depth);
        pairs = arena.allocate<float>((keys > BACKWARD_BLOCK ? keys : BACKWARD_BLOCK) / 2 * depth);
        query_rows = arena.allocate<BFloat16>(BACKWARD_BLOCK * depth);
        query_t = arena.allocate<float>(BACKWARD_BLOCK * depth / 2);
        scores = arena.allocate<float>(keys * QUERY_BLOCK);
        weight_pairs = arena.allocate<float>(keys / 2 * BACKWARD_BLOCK);
        out_t = arena.allocate<float>(depth * QUERY_BLOCK);
        if (args.grad_out.data) {
            grad_rows = arena.allocate<BFloat16>(BACKWARD_BLOCK * depth);
            grad_t = arena.allocate<float>(BACKWARD_BLOCK * depth / 2);
            grad_pairs = arena.allocate<float>(BACKWARD_BLOCK / 2 * depth);
            weights = arena.allocate<BFloat16>(keys * BACKWARD_BLOCK);
            grad_scores = arena.allocate<BFloat16>(keys * BACKWARD_BLOCK);
            grad_weights = arena.allocate<float>(LANES * QUERY_BLOCK);
            grad_keys = arena.allocate<float>(keys * depth);
            grad_values = arena.allocate<float>(keys * depth);
        }
        end = arena.next;
    }

    static int64_t workspace_size(const AttentionArgs& args) {
        return AttentionKernel(args, nullptr).end - static_cast<char*>(nullptr);
    }

    // All queries of a key/value head.
    void forward(int64_t batch, int64_t kv_head) {
        load_rows(args.key, batch, kv_head, 0, keys, key_rows);
        load_rows(args.value, batch, kv_head, 0, keys, value_rows);
        interleave_rows(value_rows, keys, pairs);
        transpose_row_pairs(pairs, keys, columns);
        for_each_query_head(kv_head, [&](int64_t head) {
            for (int64_t first = 0; first < args.queries; first += QUERY_BLOCK) {
                load_rows(args.query, batch, head, first, block_size(first), query_rows);
                transpose_rows(query_rows, block_size(first), query_t);
                forward_block(batch, head, first);
            }
        });
    }

    void backward(int64_t batch, int64_t kv_head) {
        load_rows(args.key, batch, kv_head, 0, keys, key_rows);
        load_rows(args.value, batch, kv_head, 0, keys, value_rows);
        interleave_rows(key_rows, keys, pairs);
        transpose_row_pairs(pairs, keys, columns);
        memset(grad_keys, 0, keys * depth * sizeof(float));
        memset(grad_values, 0, keys * depth * sizeof(float));
        for_each_query_head(kv_head, [&](int64_t head) {
            for (int64_t first = 0; first < args.queries; first += BACKWARD_BLOCK) backward_block(batch, head, first);
        });
        for (int64_t t = 0; t < args.keys; t++) {
            store_row(grad_keys + t * depth, at(args.grad_key, batch, kv_head, t));
            store_row(grad_values + t * depth, at(args.grad_value, batch, kv_head, t));
        }
    }

   private:
    const AttentionArgs& args;
    const int64_t depth, keys;  // head_dim and the number of keys, padded to multiples of TILE_DEPTH
    const float scale;
    BFloat16 *key_rows, *value_rows, *columns, *query_rows, *grad_rows, *weights, *grad_scores;
    float *pairs, *query_t, *scores, *weight_pairs, *out_t, *grad_t, *grad_pairs, *grad_weights, *grad_keys,
        *grad_values;
    char* end;

    template <class Visit>
    void for_each_query_head(int64_t kv_head, const Visit& visit) const {
        int64_t group = args.heads / args.kv_heads;
        for (int64_t i = 0; i < group; i++) visit(kv_head * group + i);
    }

    // The number of queries from `first` on that are processed at a time.
    int64_t block_size(int64_t first) const {
        return args.queries - first <= QUERY_BLOCK / 2 ? QUERY_BLOCK / 2 : QUERY_BLOCK;
    }

    // Copy rows of a head to [count, depth], padded with zeros.
    void load_rows(const TensorView& from, int64_t batch, int64_t head, int64_t first, int64_t count,
                   BFloat16* to) const {
        int64_t all = &from == &args.key || &from == &args.value ? args.keys : args.queries;
        for (int64_t row = 0; row < count; row++, to += depth) {
            bool inside = first + row < all;
            int64_t width = inside ? args.head_dim : 0;
            if (inside) {
                const BFloat16* elements = at(from, batch, head, first + row);
                __builtin_prefetch(elements + from.head_stride);  // hardware does not foresee the next head's rows
                memcpy(to, elements, width * sizeof(BFloat16));
            }
            if (width < depth) memset(to + width, 0, (depth - width) * sizeof(BFloat16));
        }
    }

    // Transpose [count, depth] to [depth / 2, BACKWARD_BLOCK], with pairs along depth.
    void transpose_rows(const BFloat16* rows, int64_t count, float* to) const {
        auto columns = reinterpret_cast<BFloat16*>(to);
        for (int64_t row = 0; row < count; row += LANES)
            for (int64_t i = 0; i < depth; i += TILE_DEPTH)
                transpose(rows + row * depth + i, depth, columns + i * BACKWARD_BLOCK + 2 * row, 2 * BACKWARD_BLOCK);
    }

    // [count, depth] as [count / 2, depth], with pairs of neighboring rows.
    void interleave_rows(const BFloat16* rows, int64_t count, float* to) const {
        for (int64_t row = 0; row < count; row += 2)
            for (int64_t i = 0; i < depth; i += LANES, to += LANES)
                store(to, ::interleave_rows(rows + row * depth + i, depth));
    }

    // Transpose such pairs to [depth, count].
    void transpose_row_pairs(const float* from, int64_t count, BFloat16* to) const {
        auto rows = reinterpret_cast<const BFloat16*>(from);
        for (int64_t row = 0; row < count; row += 2 * LANES)
            for (int64_t i = 0; i < depth; i += LANES)
                transpose(rows + row * depth + 2 * i, 2 * depth, to + i * count + row, count);
    }

    void store_row(const float* from, BFloat16* to) const {
        int64_t i = 0;
        for (; i + LANES <= args.head_dim; i += LANES) store(to + i, load(from + i));
        if (i < args.head_dim) store(to + i, load(from + i), args.head_dim - i);
    }

    // Store out_t [depth, QUERY_BLOCK], each query multiplied by its factor, as rows of a head.
    void store_transposed(const TensorView& to, int64_t batch, int64_t head, int64_t first,
                          const FloatVec* factor) const {
        float rows[LANES * LANES];
        for (int64_t v = 0; v < block_size(first) / LANES; v++)
            for (int64_t i = 0; i < args.head_dim; i += LANES) {
                for (int64_t r = 0; r < LANES; r++) {
                    float* elements = out_t + (i + r) * QUERY_BLOCK + v * LANES;
                    store(elements, load(elements) * factor[v]);
                }
                transpose(reinterpret_cast<const BFloat16*>(out_t + i * QUERY_BLOCK + v * LANES), 2 * QUERY_BLOCK,
                          reinterpret_cast<BFloat16*>(rows), 2 * LANES);
                int64_t width = args.head_dim - i < LANES ? args.head_dim - i : LANES;
                for (int64_t r = 0; r < LANES && first + v * LANES + r < args.queries; r++) {
                    BFloat16* row = at(to, batch, head, first + v * LANES + r) + i;
                    if (width == LANES)
                        store(row, load(rows + r * LANES));
                    else
                        store(row, load(rows + r * LANES), width);
                }
            }
    }

    // Keys up to the last one that any query of a block may attend to, padded.
    int64_t num_visible(int64_t first) const {
        int64_t end = args.causal && first + QUERY_BLOCK < args.keys ? first + QUERY_BLOCK : args.keys;
        return round_up(end, TILE_DEPTH);
    }

    // Which of 16 queries from `first` on may attend to a key.
    IntVec visible(int64_t first, int64_t key) const {
        static const IntVec COUNT = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        if (key >= args.keys) return IntVec{};
        return args.causal ? IntVec(COUNT + int32_t(first) >= int32_t(key)) : IntVec(COUNT >= 0);
    }

    // Whether all queries from `first` on may attend to all of 16 keys.
    bool all_visible(int64_t first, int64_t key) const {
        return key + LANES <= args.keys && (!args.causal || key + LANES <= first + 1);
    }

    // A key's row of the bias, or of its gradient: [queries].
    float* bias_row(const TensorView& tensor, int64_t batch, int64_t head, int64_t key) const {
        key = key < args.keys ? key : args.keys - 1;
        return static_cast<float*>(tensor.data) + batch * tensor.batch_stride + head * tensor.head_stride +
               key * tensor.time_stride;
    }

    // Hardware foresees the next queries of a key's row, not the rows of the next keys.
    void prefetch_bias(const TensorView& tensor, int64_t batch, int64_t head, int64_t key, int64_t first,
                       int64_t count) const {
        if (!tensor.data) return;
        for (int64_t r = 0; r < LANES; r++) {
            const float* row = bias_row(tensor, batch, head, key + r) + first;
            for (int64_t i = 0; i < count; i += LANES) __builtin_prefetch(row + i);
        }
    }

    void forward_block(int64_t batch, int64_t head, int64_t first) const {
        const int64_t vectors = block_size(first) / LANES, count = num_visible(first);
        FloatVec maxima[QUERY_BLOCK / LANES], sums[QUERY_BLOCK / LANES] = {};
        for (auto& maximum : maxima) maximum = broadcast(-INFINITY);
        for (int64_t t = 0; t < count; t += LANES) {
            float* row = scores + t * QUERY_BLOCK;
            prefetch_bias(args.bias, batch, head, t, first, block_size(first));
            multiply(key_rows + t * depth, depth, query_t, BACKWARD_BLOCK, depth, false, row, QUERY_BLOCK, vectors);
            bool all_keys_visible = all_visible(first, t);
            for (int64_t r = 0; r < LANES; r++, row += QUERY_BLOCK) {
                const float* bias = args.bias.data ? bias_row(args.bias, batch, head, t + r) + first : nullptr;
                for (int64_t v = 0; v < vectors; v++) {
                    FloatVec score = load(row + v * LANES) * scale;
                    if (bias) score += load(bias + v * LANES);
                    if (!all_keys_visible)
                        score = select(visible(first + v * LANES, t + r), score, broadcast(-INFINITY));
                    store(row + v * LANES, score);
                    maxima[v] = max(maxima[v], score);
                }
            }
        }
        for (int64_t t = 0; t < count; t += 2)
            for (int64_t v = 0; v < vectors; v++) {
                FloatVec low = attention_weight(load(scores + t * QUERY_BLOCK + v * LANES), maxima[v]);
                FloatVec high = attention_weight(load(scores + (t + 1) * QUERY_BLOCK + v * LANES), maxima[v]);
                sums[v] += low + high;
                store(weight_pairs + t / 2 * QUERY_BLOCK + v * LANES, to_bf16_pairs(low, high));
            }
        for (int64_t i = 0; i < depth; i += LANES)
            multiply(columns + i * keys, keys, weight_pairs, QUERY_BLOCK, count, false, out_t + i * QUERY_BLOCK,
                     QUERY_BLOCK, vectors);
        FloatVec factor[QUERY_BLOCK / LANES];
        for (int64_t v = 0; v < vectors; v++) factor[v] = select(sums[v] == 0.0f, FloatVec{}, 1.0f / sums[v]);
        store_transposed(args.out, batch, head, first, factor);
        float* logsumexp = args.logsumexp + (batch * args.heads + head) * args.queries;
        for (int64_t q = first; q < args.queries && q < first + QUERY_BLOCK; q++)
            logsumexp[q] = maxima[(q - first) / LANES][(q - first) % LANES] +
                           std::log(sums[(q - first) / LANES][(q - first) % LANES]);
    }

    static FloatVec attention_weight(FloatVec score, FloatVec offset) {
        return select(score == -INFINITY, FloatVec{}, exp(score - offset));
    }

    void backward_block(int64_t batch, int64_t head, int64_t first) const {
        const int64_t remaining = args.queries - first,
                      rows = remaining > QUERY_BLOCK ? BACKWARD_BLOCK : block_size(first);
        load_rows(args.query, batch, head, first, rows, query_rows);
        load_rows(args.grad_out, batch, head, first, rows, grad_rows);
        transpose_rows(query_rows, rows, query_t);
        transpose_rows(grad_rows, rows, grad_t);
        interleave_rows(query_rows, rows, pairs);
        interleave_rows(grad_rows, rows, grad_pairs);
        alignas(64) float logsumexp[BACKWARD_BLOCK] = {}, delta[BACKWARD_BLOCK] = {};
        for (int64_t q = 0; q < rows && q < remaining; q++) {
            logsumexp[q] = args.logsumexp[(batch * args.heads + head) * args.queries + first + q];
            delta[q] = row_dot(at(args.out, batch, head, first + q), grad_rows + q * depth);
        }
        int64_t limits[] = {num_visible(first), num_visible(first + QUERY_BLOCK)};
        for (int64_t begin = 0; begin < rows; begin += QUERY_BLOCK) {
            int64_t count = rows - begin < QUERY_BLOCK ? rows - begin : QUERY_BLOCK,
                    limit = limits[begin / QUERY_BLOCK];
            for (int64_t t = 0; t < limit; t += LANES)
                score_gradients(batch, head, first + begin, begin, count, t, logsumexp + begin, delta + begin);
            for (int64_t i = 0; i < depth; i += LANES)
                multiply(columns + i * keys, keys, weight_pairs + begin, BACKWARD_BLOCK, limit, false,
                         out_t + i * QUERY_BLOCK, QUERY_BLOCK, count / LANES);
            const FloatVec factor[] = {broadcast(1.0f), broadcast(1.0f), broadcast(1.0f), broadcast(1.0f)};
            store_transposed(args.grad_query, batch, head, first + begin, factor);
        }
        for (int64_t t = 0; t < limits[rows > QUERY_BLOCK]; t += LANES) {
            // Beyond limits[0] only the second half of the queries may attend to the keys.
            int64_t begin = t < limits[0] ? 0 : QUERY_BLOCK;
            auto accumulate = [&](const BFloat16* rows_t, const float* from, float* to) {
                multiply(rows_t + t * BACKWARD_BLOCK + begin, BACKWARD_BLOCK, from + begin / 2 * depth, depth,
                         rows - begin, true, to + t * depth, depth, depth / LANES);
            };
            accumulate(weights, grad_pairs, grad_values);
            accumulate(grad_scores, pairs, grad_keys);
        }
    }

    // delta: the dot product of an output and its gradient (Dao et al. 2022, algorithm 4).
    float row_dot(const BFloat16* out, const BFloat16* grad) const {
        FloatVec total{};
        int64_t i = 0;
        for (; i + LANES <= args.head_dim; i += LANES) total += load(out + i) * load(grad + i);
        if (i < args.head_dim) total += load(out + i, args.head_dim - i) * load(grad + i);
        return reduce_add(total);
    }

    // Attention weights of 16 keys for a block of queries, and the gradients of their scores.
    void score_gradients(int64_t batch, int64_t head, int64_t first, int64_t begin, int64_t count, int64_t t,
                         const float* logsumexp, const float* delta) const {
        const int64_t vectors = count / LANES;
        prefetch_bias(args.bias, batch, head, t, first, count);
        prefetch_bias(args.grad_bias, batch, head, t, first, count);
        multiply(key_rows + t * depth, depth, query_t + begin, BACKWARD_BLOCK, depth, false, scores, QUERY_BLOCK,
                 vectors);
        multiply(value_rows + t * depth, depth, grad_t + begin, BACKWARD_BLOCK, depth, false, grad_weights, QUERY_BLOCK,
                 vectors);
        const bool all_keys_visible = all_visible(first, t);
        for (int64_t r = 0; r < LANES; r += 2) {
            FloatVec grads[2][QUERY_BLOCK / LANES];
            for (int64_t k = 0; k < 2; k++) {
                const int64_t key = t + r + k;
                const float *row = scores + (r + k) * QUERY_BLOCK, *grad_row = grad_weights + (r + k) * QUERY_BLOCK;
                const float* bias = args.bias.data ? bias_row(args.bias, batch, head, key) + first : nullptr;
                float* sum = args.grad_bias.data && key < args.keys
                                 ? bias_row(args.grad_bias, batch, head, key) + first
                                 : nullptr;
                BFloat16 *to = weights + key * BACKWARD_BLOCK + begin,
                         *grad_to = grad_scores + key * BACKWARD_BLOCK + begin;
                for (int64_t v = 0; v < vectors; v++) {
                    FloatVec score = load(row + v * LANES) * scale;
                    if (bias) score += load(bias + v * LANES);
                    FloatVec weight = attention_weight(score, load(logsumexp + v * LANES));
                    if (!all_keys_visible) weight = select(visible(first + v * LANES, key), weight, FloatVec{});
                    FloatVec grad = weight * (load(grad_row + v * LANES) - load(delta + v * LANES));
                    if (sum) store(sum + v * LANES, load(sum + v * LANES) + grad);
                    store(to + v * LANES, weight);
                    store(grad_to + v * LANES, grads[k][v] = grad * scale);
                }
            }
            for (int64_t v = 0; v < vectors; v++)
                store(weight_pairs + (t + r) / 2 * BACKWARD_BLOCK + begin + v * LANES,
                      to_bf16_pairs(grads[0][v], grads[1][v]));
        }
    }
};
#endif

}  // namespace

extern "C" {

// Without AVX-512-BF16 `run` does nothing.
EXPORTED int64_t supported() {
#if defined(__AVX512BF16__)
    return 1;
#else
    return 0;
#endif
}

EXPORTED int64_t workspace_size(const AttentionArgs* args) {
#if defined(__AVX512BF16__)
    return args->num_threads * AttentionKernel::workspace_size(*args);
#else
    return 0;
#endif
}

EXPORTED void run(const AttentionArgs* args, void* workspace) {
#if defined(__AVX512BF16__)
    parallel(args->num_threads, [&](Threads threads) {
        AmxTiles registers(true);
        AttentionKernel kernel(*args,
                               static_cast<char*>(workspace) + threads.index * AttentionKernel::workspace_size(*args));
        if (!args->grad_out.data)
            threads.parallel_for(args->batch * args->kv_heads,
                                 [&](int64_t item) { kernel.forward(item / args->kv_heads, item % args->kv_heads); });
        else if (!args->grad_bias.data)
            threads.parallel_for(args->batch * args->kv_heads,
                                 [&](int64_t item) { kernel.backward(item / args->kv_heads, item % args->kv_heads); });
        else  // the bias may be shared across the batch, and then its gradient is summed here
            threads.parallel_for(args->kv_heads, [&](int64_t head) {
                for (int64_t batch = 0; batch < args->batch; batch++) kernel.backward(batch, head);
            });
    });
#endif
}
}
