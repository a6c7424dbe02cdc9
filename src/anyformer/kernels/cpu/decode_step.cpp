// A decoding step: the new tokens of every sequence pass through the whole decoder in one call.
#include <cmath>
#include <initializer_list>
#include <type_traits>

#include "attention_prefill.h"
#include "matmul.h"
#include "elementwise.h"
#include "attention_decode.h"
#include "experts.h"
#include "low_rank.h"
#include "structs.h"
#include "threads.h"

namespace {

template <class Visit>
void for_each_matrix(const Decoder& decoder, const Visit& visit) {
    for (int64_t i = 0; i < decoder.num_layers; i++) {
        const Layer& layer = decoder.layers[i];
        for (auto attention : {&layer.attention, &layer.cross_attention})
            for (auto matrix : {&attention->query, &attention->key, &attention->value, &attention->output})
                if (matrix->weights) visit(*matrix);
        const FeedForward& f = layer.feed_forward;
        for (auto matrix : {&f.up, &f.gate, &f.down})
            if (matrix->weights) visit(f.router.weights ? expert(*matrix, f.experts, 0) : *matrix);
        if (f.router.weights) visit(f.router);
    }
    visit(decoder.head);
}

struct Widths {
    int64_t in = 0, out = 0;  // the largest in_features and out_features; those of the LM head do not count for out
    int64_t head = 0;         // the largest head_dim
    bool has_integers = false;

    explicit Widths(const Decoder& decoder) {
        for_each_matrix(decoder, [&](const Matrix& matrix) {
            in = padded(matrix.in_features) > in ? padded(matrix.in_features) : in;
            if (&matrix != &decoder.head && padded(matrix.out_features) > out) out = padded(matrix.out_features);
            has_integers = has_integers || is_integer(matrix.dtype);
        });
        if (padded(decoder.d_model) > in) in = padded(decoder.d_model);
        for (int64_t i = 0; i < decoder.num_layers; i++) {
            const FeedForward& f = decoder.layers[i].feed_forward;
            if (f.router.weights) out = max(out, max(routing_size(f), f.used * padded(f.up.out_features / f.experts)));
            for (auto attention : {&decoder.layers[i].attention, &decoder.layers[i].cross_attention})
                head = attention->head_dim > head ? attention->head_dim : head;
        }
    }
};

// The largest of a row's logits.
struct Largest {
    float value = -INFINITY;
    int64_t index = 0;  // of equal ones the first; -1: a logit is NaN

    void add(FloatVec logits, int64_t first, int64_t count) {
        const IntVec is_less = logits < broadcast(value);  // than NaN none is
        if (reduce_max(bit_cast<IntVec>(is_less)) < 0) return;
        float each[LANES];
        store(each, logits);
        for (int64_t i = 0; i < count; i++) add({each[i], each[i] == each[i] ? first + i : -1});
    }

    void add(const Largest& other) {
        const bool is_larger = other.value > value || (other.value == value && other.index < index);
        if (index >= 0 && (is_larger || other.index < 0)) *this = other;
    }
};

// The layout of the workspace.
struct Workspace {
    int64_t inner_size, inputs_size, thread_size, terms_size, rows_size, attention_size, largest_size;
    bool single_row, has_integers;

    Workspace(const Decoder& decoder, int64_t rows, int64_t max_rank, int64_t max_keys) : single_row(rows == 1) {
        Widths widths(decoder);
        has_integers = widths.has_integers;
        inner_size = LowRankTerms::inner_size(rows, max_rank);
        inputs_size = inner_size + Inputs::workspace_size(rows, widths.in);
        thread_size = Inputs::thread_workspace_size(rows, widths.in);
        rows_size = rows * widths.out;
        int64_t scores_size = padded(max_keys) + LANES,
                prefill_size = single_row ? 0 : PrefillAttention<AMX, 1>::size(widths.head);
        attention_size = padded(scores_size > prefill_size ? scores_size : prefill_size);
        terms_size = LowRankTerms::thread_size(rows, max_rank);
        largest_size = round_up(rows, 4) * int64_t(sizeof(Largest));
    }
    // A x of adapters and the inputs of matrix products (of each thread, if there is a single row); each thread's memory
    // for unpacked weights, for adapters, and for the largest logits; queries, keys and values; each thread's memory for
    // attention.
    int64_t workspace_size(int64_t num_threads) const {
        return inputs_size * (single_row ? num_threads : 1) + num_threads * (thread_size + terms_size + largest_size) +
               (3 * rows_size + num_threads * attention_size) * 4 + 4096;
    }
};

class DecodeStep {
   public:
    DecodeStep(const Decoder& decoder, const Batch& batch, int64_t max_keys, Threads threads)
        : decoder(decoder), batch(batch), threads(threads), rows(batch.rows), new_tokens(batch.new_tokens) {
        Workspace workspace(decoder, rows, batch.max_rank, max_keys);
        auto memory = static_cast<char*>(batch.workspace);
        // With a single row every thread prepares the inputs itself, which takes less time than a barrier.
        single_row = workspace.single_row, has_integers = workspace.has_integers;
        char* inner = memory + workspace.inputs_size * (single_row ? threads.index : 0);
        inputs_memory = inner + workspace.inner_size;
        memory += workspace.inputs_size * (single_row ? threads.size : 1);
        thread_memory = memory + workspace.thread_size * threads.index;
        memory += workspace.thread_size * threads.size;
        terms = LowRankTerms(batch, inner, memory + workspace.terms_size * threads.index);
        memory += workspace.terms_size * threads.size;
        all_largest = reinterpret_cast<Largest*>(memory);
        largest = all_largest + threads.index * round_up(rows, 4);
        memory += workspace.largest_size * threads.size;
        auto floats = reinterpret_cast<float*>(memory);
        queries = floats;
        keys = queries + workspace.rows_size;
        values = keys + workspace.rows_size;
        scratch = values + workspace.rows_size + threads.index * workspace.attention_size;
    }

    void run() {
        AmxTiles registers(uses_tiles(rows));
        if (batch.tokens) threads.parallel_for(rows, [&](int64_t row) { embed(batch.tokens[row], residual(row)); });
        for (int64_t i = 0; i < decoder.num_layers; i++) {
            layer(decoder.layers[i], batch.caches[i], i + 1 == decoder.num_layers);
        }
        if (rows) compute_logits();
    }

   private:
    const Decoder& decoder;
    const Batch& batch;
    Threads threads;
    int64_t rows, new_tokens;
    bool single_row, has_integers;
    void *inputs_memory, *thread_memory;
    LowRankTerms terms;
    Largest *all_largest, *largest;  // of the logits that each thread computes, [threads, rows]; this thread's
    float *queries, *keys, *values, *scratch;

    float* residual(int64_t row) const { return batch.hidden_states + row * decoder.d_model; }
    int64_t sequence(int64_t row) const { return row / new_tokens; }

    // A row of the embedding, scaled.
    void embed(int64_t token, float* to) const {
        const Matrix& table = decoder.embedding;
        const int64_t width = table.in_features;
        if (table.dtype == FLOAT32) memcpy(to, static_cast<const float*>(table.weights) + token * width, width * 4);
        for (int64_t i = 0; table.dtype == BFLOAT16 && i < width; i++)
            to[i] = to_float32(static_cast<const BFloat16*>(table.weights)[token * width + i]);
        for (int64_t group = 0; table.dtype == INT8 && group < width / GROUP; group++) {
            const int64_t index = token / LANES * (width / GROUP) + group, lane = token % LANES;
            auto quads = static_cast<const uint8_t*>(table.weights) + index * GROUP * LANES + lane * 4;
            float scales[LANES];
            store(scales, load_float16<FloatVec>(table.scales + index * LANES));
            for (int64_t i = 0; i < GROUP; i++)
                to[group * GROUP + i] = rounded(float(quads[i / 4 * LANES * 4 + i % 4] - 128) * scales[lane]);
        }
        if (decoder.embedding_scale == 1.0) return;
        for (int64_t i = 0; i < width; i++) to[i] = rounded(to[i] * float(decoder.embedding_scale));
    }

    // A number of an embedding, in the model's dtype.
    float rounded(float x) const { return decoder.dtype == BFLOAT16 ? to_float32(to_bfloat16(x)) : x; }

    // The inputs of products with some matrices. `fill(row, to)` returns a pointer to a row, which it may have written
    // to `to`.
    template <class Fill>
    Inputs prepare_inputs(int64_t count, int64_t width, std::initializer_list<const Matrix*> matrices,
                          const Fill& fill) {
        Inputs inputs(inputs_memory, thread_memory, count, width);
        bool float32 = false, bf16 = false, int8 = false, tiles = false, minima = false;
        for (auto matrix : matrices) {
            if (!matrix->weights) continue;
            float32 = float32 || inputs.needs_float32(matrix->dtype);
            bf16 = bf16 || inputs.needs_bf16(matrix->dtype) || (terms.act_on(*matrix) && terms.has_pairs(*matrix));
            tiles = tiles || inputs.needs_tiles(matrix->dtype);
            minima = minima || matrix->dtype == INT4;
            int8 = int8 || inputs.needs_int8(matrix->dtype);
        }
        terms.share(matrices);
        auto prepare = [&](int64_t row) {
            terms.prefetch_a(row);
            float* to = inputs.float32 + row * inputs.width;
            const float* from = fill(row, to);
            if (from != to && (float32 || width != inputs.width))
                from = static_cast<float*>(memcpy(to, from, width * sizeof(float)));
            if (from == to)
                for (int64_t i = width; i < inputs.width; i++) to[i] = 0;
            if (bf16) inputs.to_bf16(row, from, inputs.width);
            if (tiles) inputs.to_tiles(row, from, inputs.width, minima);
            if (int8) inputs.quantize(row, from, inputs.width / GROUP);
            if ((row + 1) % ROW_BLOCK == 0 || row + 1 == count) terms.multiply_a(inputs, row / ROW_BLOCK);
        };
        if (!single_row) parallel_row_blocks(threads, count, prepare);
        for (int64_t row = 0; single_row && row < count; row++) prepare(row);
        return inputs;
    }

    // y = W x + s B (A x)
    template <class Write>
    void multiply(const Matrix& matrix, int64_t panel, int64_t panels, const Inputs& x, int64_t rows,
                  const Write& write) const {
        if (!terms.act_on(matrix)) return ::multiply(matrix, panel, panels, x, rows, write);
        for (int64_t end = panel + panels; panel < end; panel += AMX_PANELS) {
            const int64_t count = min(end - panel, AMX_PANELS);
            const float* added = terms.multiply_b(matrix, panel, count);
            ::multiply(matrix, panel, count, x, rows, [&](int64_t row, int64_t first, FloatVec y, int64_t width) {
                write(row, first, y + load(added + ((first / LANES - panel) * rows + row) * LANES), width);
            });
        }
    }

    // The residual stream, normalized.
    Inputs normed_inputs(const Norm& norm, std::initializer_list<const Matrix*> matrices) {
        return prepare_inputs(rows, decoder.d_model, matrices, [&](int64_t row, float* to) {
            return normalize(norm, residual(row), decoder.d_model, to);
        });
    }

    // Add a matrix product, normalized by the inner norm, to the residual stream, which the outer one then normalizes.
    void add(const Matrix& matrix, const Inputs& inputs, const Norms& norms) {
        parallel_panels(threads, num_panels(matrix), rows, [&](int64_t panel, int64_t panels) {
            multiply(matrix, panel, panels, inputs, rows, [&](int64_t row, int64_t first, FloatVec y, int64_t count) {
                add_vector(norms, row, first, y, count);
            });
        });
        finish(norms, norms.inner.kind != NO_NORM);
    }

    // What is added to the residual stream of a row, where it is normalized or summed first.
    float* product(int64_t row) const { return keys + row * padded(decoder.d_model); }  // keys are in the cache already

    void add_vector(const Norms& norms, int64_t row, int64_t first, FloatVec y, int64_t count) const {
        if (norms.inner.kind != NO_NORM) return store(product(row) + first, y);
        y = broadcast(float(decoder.residual_scale)) * y;
        float* to = residual(row) + first;
        if (count == LANES)
            store(to, load(to) + y);
        else
            store(to, load(to, count) + y, count);
    }

    void finish(const Norms& norms, bool has_products) {
        const int64_t d_model = decoder.d_model;
        if (!has_products && norms.outer.kind == NO_NORM) return;
        threads.parallel_for(rows, [&](int64_t row) {
            float* x = residual(row);
            if (has_products) normalize_in_place(norms.inner, product(row), d_model);
            for (int64_t i = 0; has_products && i < d_model; i++)
                x[i] += float(decoder.residual_scale) * product(row)[i];
            normalize_in_place(norms.outer, x, d_model);
        });
    }

    static void normalize_in_place(const Norm& norm, float* x, int64_t width) {
        if (norm.kind == NO_NORM) return;
        constexpr int64_t MAX_WIDTH = 1 << 14;
        float normed[MAX_WIDTH + LANES];
        normalize(norm, x, width, normed);
        memcpy(x, normed, width * sizeof(float));
    }

    void layer(const Layer& layer, const LayerCache& cache, bool last) {
        project_qkv(layer.attention, cache);
        // After the keys and values of the last layer only rows with logits matter.
        if (last) select_logit_rows(padded(layer.attention.query.out_features));
        if (!rows) return;
        if (decoder.is_parallel) feed_forward(layer.feed_forward, keys);  // in the cache already
        run_attention(layer.attention, cache.keys, cache.values, false);
        if (layer.cross_attention.query.weights) cross_attention(layer.cross_attention, cache);
        if (!decoder.is_parallel) feed_forward(layer.feed_forward, queries);
    }

    // Move the rows that logits are wanted of to the front, and drop the others.
    void select_logit_rows(int64_t query_width) {
        int64_t count = batch.num_logit_rows, sequences = rows / new_tokens;
        if (count == rows) return;
        if (threads.index == 0)
            for (int64_t i = 0; i < count; i++) {
                int64_t row = batch.logit_rows[i];
                if (row == i) continue;
                memcpy(residual(i), residual(row), decoder.d_model * sizeof(float));
                memcpy(queries + i * query_width, queries + row * query_width, query_width * sizeof(float));
                batch.positions[i] = batch.positions[row];
                if (batch.max_rank) batch.adapters[i] = batch.adapters[row];
            }
        threads.barrier();
        rows = count, new_tokens = count / sequences;
        terms.group(rows);
    }

    // Compute the queries, keys and values of the new tokens, and write the latter to the cache.
    void project_qkv(const Attention& a, const LayerCache& cache) {
        Inputs x = normed_inputs(a.norms.before, {&a.query, &a.key, &a.value});
        int64_t query_width = padded(a.query.out_features), key_width = padded(a.key.out_features);
        struct {
            const Matrix& matrix;
            float* to;
            int64_t width;
        } outputs[] = {{a.query, queries, query_width}, {a.key, keys, key_width}, {a.value, values, key_width}};
        parallel_panels(threads, num_panels(a.query) + 2 * num_panels(a.key), rows, [&](int64_t panel, int64_t panels) {
            for (auto& output : outputs) {
                int64_t left = num_panels(output.matrix) - panel, count = left < panels ? left : panels;
                if (count > 0)
                    multiply(output.matrix, panel, count, x, rows,
                             [&](int64_t row, int64_t first, FloatVec y, int64_t) {
                                 store(output.to + row * output.width + first, y);
                             });
                panels -= count > 0 ? count : 0, panel = left < 0 ? -left : 0;
            }
        });
        threads.parallel_for(rows, [&](int64_t row) {
            if (batch.cache_dtype == BFLOAT16)
                write_cache<BFloat16>(a, cache, row, query_width, key_width);
            else
                write_cache<float>(a, cache, row, query_width, key_width);
        });
    }

    // Apply QK norm and rotary embeddings, and write keys and values to the cache.
    template <class T>
    void write_cache(const Attention& a, const LayerCache& cache, int64_t row, int64_t query_width, int64_t key_width) {
        int64_t position = batch.positions[row];
        if (position < 0) return;
        const Rotation& rotation = batch.rotations[a.rotation];
        const int64_t offset = position * a.head_dim;
        auto norm_and_rotate = [&](const Norm& norm, float* vectors, int64_t heads) {
            normalize_heads(a, norm, vectors, heads);
            for (int64_t head = 0; rotation.cos && head < heads; head++)
                apply_rotary(vectors + head * a.head_dim, a.head_dim, rotation.cos + offset, rotation.sin + offset);
        };
        norm_and_rotate(a.query_norm, queries + row * query_width, a.heads);
        norm_and_rotate(a.key_norm, keys + row * key_width, a.kv_heads);
        for (int64_t head = 0; head < a.kv_heads; head++) {
            const float* key = keys + row * key_width + head * a.head_dim;
            auto at = [&](const TensorView& m) {
                return static_cast<T*>(m.data) + sequence(row) * m.batch_stride + head * m.head_stride +
                       position * m.time_stride;
            };
            const float* value = values + row * key_width + head * a.head_dim;
            T *key_to = at(cache.keys), *value_to = at(cache.values);
            int64_t i = 0;
            for (; i + LANES <= a.head_dim; i += LANES) store(key_to + i, load(key + i)), store(value_to + i, load(value + i));
            for (; i < a.head_dim; i++) store(key_to + i, key[i]), store(value_to + i, value[i]);
        }
    }

    static void normalize_heads(const Attention& a, const Norm& norm, float* vectors, int64_t heads) {
        const int64_t parts = a.has_wide_norm ? 1 : heads, width = heads * a.head_dim / parts;
        for (int64_t part = 0; part < parts; part++) normalize_in_place(norm, vectors + part * width, width);
    }

    void cross_attention(const Attention& a, const LayerCache& cache) {
        Inputs x = normed_inputs(a.norms.before, {&a.query});
        int64_t width = padded(a.query.out_features);
        parallel_panels(threads, num_panels(a.query), rows, [&](int64_t panel, int64_t panels) {
            multiply(a.query, panel, panels, x, rows,
                     [&](int64_t row, int64_t first, FloatVec y, int64_t) { store(queries + row * width + first, y); });
        });
        if (a.query_norm.kind != NO_NORM)
            threads.parallel_for(
                rows, [&](int64_t row) { normalize_heads(a, a.query_norm, queries + row * width, a.heads); });
        run_attention(a, cache.encoder_keys, cache.encoder_values, true);
    }

    // Attention of every row, its output projection and the residual.
    void run_attention(const Attention& a, const TensorView& cached_keys, const TensorView& cached_values,
                       bool source) {
        int64_t width = padded(a.query.out_features), group = a.heads / a.kv_heads;
        auto attend_to = [&](auto element) {
            typedef decltype(element) T;
            if (new_tokens > 1 && new_tokens * group >= LANES / 2)
                prefill<T>(a, cached_keys, cached_values, source);
            else
                decode<T>(a, cached_keys, cached_values, source);
        };
        if (batch.cache_dtype == BFLOAT16)
            attend_to(BFloat16{});
        else
            attend_to(0.0f);
        Inputs x = prepare_inputs(rows, a.output.in_features, {&a.output},
                                  [&](int64_t row, float*) { return queries + row * width; });
        add(a.output, x, a.norms);
    }

    // The query of a head.
    Query make_query(const Attention& a, bool source, int64_t row, int64_t head) const {
        Query query;
        query.vector = queries + row * padded(a.query.out_features) + head * a.head_dim;
        query.end = source ? batch.source_length : batch.positions[row] + 1;
        if (!source && a.window && query.end > a.window) query.first = query.end - a.window;
        if (!source && batch.bias) query.bias = batch.bias + head * batch.num_distances;
        if (a.sinks) query.sink = a.sinks[head];
        return query;
    }

    template <class T>
    struct KeyValueHead {
        const T *keys, *values;
        const uint8_t* mask;
    };

    // The cached keys and values of a head.
    template <class T>
    KeyValueHead<T> key_value_head(const TensorView& keys, const TensorView& values, bool source, int64_t sequence,
                                   int64_t head) const {
        int64_t index = source && batch.source_index ? batch.source_index[sequence] : sequence;
        auto at = [&](const TensorView& m) {
            return static_cast<const T*>(m.data) + index * m.batch_stride + head * m.head_stride;
        };
        return {at(keys), at(values),
                source && batch.source_mask ? batch.source_mask + sequence * batch.source_length : nullptr};
    }

    static constexpr int64_t PREFETCHED_VALUES = 32;

    template <class T>
    void decode(const Attention& a, const TensorView& keys, const TensorView& values, bool source) {
        int64_t group = a.heads / a.kv_heads;
        // Heads that share keys are one work item if there are enough items for all threads.
        int64_t splits = rows * a.kv_heads >= 2 * threads.size ? 1 : group;
        threads.parallel_for(rows * a.kv_heads * splits, [&](int64_t item) {
            int64_t split = item % splits, kv_head = item / splits % a.kv_heads, row = item / splits / a.kv_heads;
            auto kv = key_value_head<T>(keys, values, source, sequence(row), kv_head);
            // The first values: nothing else would ask for them before the attention weights are there.
            const Query first = make_query(a, source, row, kv_head * group);
            for (int64_t t = first.first; !single_row && t < min(first.end, first.first + PREFETCHED_VALUES); t++)
                for (int64_t i = 0; i < a.head_dim; i += 64 / sizeof(T))
                    __builtin_prefetch(kv.values + t * values.time_stride + i);
            for (int64_t i = split * group / splits; i < (split + 1) * group / splits; i++) {
                Query query = make_query(a, source, row, kv_head * group + i);
                auto with = [&](auto vectors) {
                    constexpr int VECTORS = decltype(vectors)::value;
                    float padded[VECTORS ? 1 : 512] = {};
                    if (!VECTORS) memcpy(padded, query.vector, a.head_dim * sizeof(float));
                    attend<VECTORS, T>(VECTORS ? query.vector : padded, float(a.scale), float(a.softcap), kv.keys,
                                       kv.values, keys.time_stride, values.time_stride, query.first, query.end,
                                       a.head_dim, query.bias, kv.mask, query.sink, scratch, query.vector);
                };
                if (a.head_dim == 64)
                    with(std::integral_constant<int, 4>{});
                else if (a.head_dim == 128)
                    with(std::integral_constant<int, 8>{});
                else if (a.head_dim == 256)
                    with(std::integral_constant<int, 16>{});
                else
                    with(std::integral_constant<int, 0>{});
            }
        });
    }

    template <class T>
    void prefill(const Attention& a, const TensorView& keys, const TensorView& values, bool source) {
        int64_t group = a.heads / a.kv_heads, all = new_tokens * group, heads = rows / new_tokens * a.kv_heads;
        // Many queries share packed keys, unless threads would have nothing to do.
        int64_t panels = all * heads / (QUERY_BLOCK * 4 * threads.size);
        int64_t length = QUERY_BLOCK * max(int64_t(1), min(panels, MAX_PANELS)), blocks = (all + length - 1) / length;
        threads.parallel_for(blocks * heads, [&](int64_t item) {
            int64_t kv_head = item % a.kv_heads, sequence = item % heads / a.kv_heads;
            // The last tokens first: they have most keys, and the longest items should not be the last.
            int64_t begin = (blocks - 1 - item / heads) * length;
            int64_t count = min(all - begin, length);
            Query block[MAX_QUERIES];
            for (int64_t i = 0; i < count; i++) {
                int64_t row = sequence * new_tokens + (begin + i) / group;
                block[i] = make_query(a, source, row, kv_head * group + (begin + i) % group);
            }
            auto kv = key_value_head<T>(keys, values, source, sequence, kv_head);
            auto run = [&](auto backend, auto vectors) {
                PrefillAttention<decltype(backend)::value, decltype(vectors)::value>(scratch, block, count, a.head_dim,
                                                                                     float(a.scale), float(a.softcap))
                    .run(kv.keys, kv.values, keys.time_stride, values.time_stride, kv.mask);
            };
            auto with_backend = [&](auto backend) {
                if (count > LANES)
                    run(backend, std::integral_constant<int, 3>{});
                else
                    run(backend, std::integral_constant<int, 1>{});
            };
            // Where keys, or the inputs of integer weights, are rounded already, rounding queries and attention weights
            // to bfloat16 adds little. Few tokens are computed like a single one, so that speculative decoding changes
            // nothing.
            if (!HAS_BF16_DOT || new_tokens < KEY_BLOCK || (sizeof(T) == 4 && !has_integers))
                return with_backend(std::integral_constant<Backend, FLOAT32_FMA>{});
#if defined(USE_AMX)
            if (uses_amx(rows)) return with_backend(std::integral_constant<Backend, AMX>{});
#endif
            with_backend(std::integral_constant<Backend, BF16_DOT>{});
        });
    }

    // `inner` is memory for its hidden layer.
    void feed_forward(const FeedForward& f, float* inner) {
        if (f.router.weights) return f.used > ROW_BLOCK || !single_row ? experts_of_rows(f) : experts_of_row(f);
        Inputs x = normed_inputs(f.norms.before, {&f.up, &f.gate});
#if defined(USE_AMX)
        if (!batch.max_rank && f.gate.weights && x.unpacked_bf16 && x.needs_tiles(f.up.dtype) && x.needs_tiles(f.gate.dtype) &&
            x.needs_tiles(f.down.dtype) && f.down.in_features % TILE_DEPTH == 0)
            return add(f.down, multiply_gated(f, x, inner), f.norms);
#endif
        int64_t width = padded(f.up.out_features);
        parallel_panels(threads, num_panels(f.up), rows, [&](int64_t panel, int64_t panels) {
            multiply(f.up, panel, panels, x, rows, [&](int64_t row, int64_t first, FloatVec y, int64_t) {
                store(inner + row * width + first, f.gate.weights ? y : apply_activation(f.activation, y));
            });
            if (f.gate.weights)
                multiply(f.gate, panel, panels, x, rows, [&](int64_t row, int64_t first, FloatVec y, int64_t) {
                    float* to = inner + row * width + first;
                    store(to, apply_gate(f, y, load(to)));
                });
        });
        Inputs h = prepare_inputs(rows, f.down.in_features, {&f.down},
                                  [&](int64_t row, float*) { return inner + row * width; });
        add(f.down, h, f.norms);
    }

#if defined(USE_AMX)
    // The inputs of the last product of a gated feed-forward: they become tiles as soon as they are computed.
    Inputs multiply_gated(const FeedForward& f, const Inputs& x, float* memory) {
        Inputs inner = x;
        inner.width = padded(f.down.in_features);
        inner.tiles = reinterpret_cast<BFloat16*>(memory);
        const Matrix* const matrices[] = {&f.up, &f.gate};
        parallel_panels(threads, num_panels(f.up), rows, [&](int64_t panel, int64_t panels) {
            for (int64_t i = 0; i < panels; i += AMX_PANELS)
                multiply_amx(matrices, panel + i, min(panels - i, AMX_PANELS), x, rows,
                             [&](int64_t row, int64_t first, const FloatVec* y, int64_t) {
                                 store(inner.tiles + inner.tile_index(row, first),
                                       apply_gate(f, y[1], y[0]));
                             });
        });
        return inner;
    }
#endif

    float* routing(const FeedForward& f, int64_t row) const { return values + row * (routing_size(f) - padded(2)); }
    Choice* choices(const FeedForward& f, int64_t row) const {
        return reinterpret_cast<Choice*>(routing(f, row) + padded(f.experts));
    }

    // The logits of all experts for each row.
    void route(const FeedForward& f, const Inputs& x) {
        parallel_panels(threads, num_panels(f.router), rows, [&](int64_t panel, int64_t panels) {
            multiply(f.router, panel, panels, x, rows, [&](int64_t row, int64_t first, FloatVec y, int64_t) {
                store(routing(f, row) + first, y);
            });
        });
    }

    // The experts of a single row, side by side.
    void experts_of_row(const FeedForward& f) {
        Inputs x = normed_inputs(f.norms.before, {&f.router, &f.up, &f.gate});
        route(f, x);
        Choice chosen[ROW_BLOCK];
        choose(f, routing(f, 0), chosen);
        Matrix up[ROW_BLOCK], gate[ROW_BLOCK], down[ROW_BLOCK];
        for (int64_t i = 0; i < f.used; i++) {
            up[i] = expert(f.up, f.experts, chosen[i].index), gate[i] = expert(f.gate, f.experts, chosen[i].index);
            down[i] = expert(f.down, f.experts, chosen[i].index);
        }
        const int64_t panels_of_one = num_panels(up[0]), width = padded(up[0].out_features);
        parallel_panels(threads, f.used * panels_of_one, 1, [&](int64_t first, int64_t count) {
            // One matrix after the other: hardware prefetchers follow long streams of weights.
            for (int64_t item = first, panels; item < first + count; item += panels) {
                const int64_t i = item / panels_of_one, panel = item % panels_of_one;
                panels = min(panels_of_one - panel, first + count - item);
                float* to = queries + i * width;
                ::multiply(up[i], panel, panels, x, 1, [&](int64_t, int64_t o, FloatVec y, int64_t) {
                    store(to + o, f.gate.weights ? y : apply_activation(f.activation, y));
                });
                if (f.gate.weights)
                    ::multiply(gate[i], panel, panels, x, 1, [&](int64_t, int64_t o, FloatVec y, int64_t) {
                        store(to + o, apply_gate(f, y, load(to + o)));
                    });
            }
        });
        Inputs inner = prepare_inputs(f.used, f.down.in_features, {&f.down},
                                      [&](int64_t i, float*) { return queries + i * width; });
        parallel_panels(threads, num_panels(down[0]), 1, [&](int64_t first, int64_t count) {
            FloatVec sums[MAX_PANELS_PER_ITEM] = {};
            for (int64_t i = 0; i < f.used; i++)
                for (int64_t panel = 0; panel < count; panel++) {
                    FloatVec y;
                    multiply_panel(down[i], first + panel, inner, i, 1, &y);
                    sums[panel] += chosen[i].weight * (y + OutputPanel(down[i], first + panel).bias);
                }
            for (int64_t panel = 0; panel < count; panel++) {
                const OutputPanel part(down[0], first + panel);
                add_vector(f.norms, 0, part.first, sums[panel], part.count);
            }
        });
        finish(f.norms, f.norms.inner.kind != NO_NORM);
    }

    // The experts of several rows, one after another.
    void experts_of_rows(const FeedForward& f) {
        route(f, normed_inputs(f.norms.before, {&f.router}));
        threads.parallel_for(rows, [&](int64_t row) {
            choose(f, routing(f, row), choices(f, row));
            memset(product(row), 0, decoder.d_model * sizeof(float));
        });
        for (int64_t e = 0; e < f.experts; e++) compute_expert(f, e);
        finish(f.norms, true);
    }

    // Add an expert's output to the products of the rows that chose it.
    void compute_expert(const FeedForward& f, int64_t e) {
        auto members = reinterpret_cast<Choice*>(routing(f, rows));
        int64_t count = 0;
        for (int64_t row = 0; row < rows; row++)
            for (int64_t i = 0; i < f.used; i++)
                if (choices(f, row)[i].index == e) members[count++] = {int32_t(row), choices(f, row)[i].weight};
        if (!count) return;
        const Matrix up = expert(f.up, f.experts, e), gate = expert(f.gate, f.experts, e);
        const Matrix down = expert(f.down, f.experts, e);
        Inputs x = prepare_inputs(count, decoder.d_model, {&up, &gate}, [&](int64_t i, float* to) {
            return normalize(f.norms.before, residual(members[i].index), decoder.d_model, to);
        });
        const int64_t width = padded(up.out_features);
        parallel_panels(threads, num_panels(up), count, [&](int64_t panel, int64_t panels) {
            multiply(up, panel, panels, x, count, [&](int64_t i, int64_t first, FloatVec y, int64_t) {
                store(queries + i * width + first, f.gate.weights ? y : apply_activation(f.activation, y));
            });
            if (f.gate.weights)
                multiply(gate, panel, panels, x, count, [&](int64_t i, int64_t first, FloatVec y, int64_t) {
                    float* to = queries + i * width + first;
                    store(to, apply_gate(f, y, load(to)));
                });
        });
        Inputs inner = prepare_inputs(count, f.down.in_features, {&down},
                                      [&](int64_t i, float*) { return queries + i * width; });
        parallel_panels(threads, num_panels(down), count, [&](int64_t panel, int64_t panels) {
            multiply(down, panel, panels, inner, count, [&](int64_t i, int64_t first, FloatVec y, int64_t) {
                float* to = product(members[i].index) + first;
                store(to, load(to) + members[i].weight * y);
            });
        });
    }

    void compute_logits() {
        int64_t d_model = decoder.d_model;
        auto last = [&](int64_t row, float* to) {
            const float* from = normalize(decoder.final_norm, residual(row), d_model, to);
            if (decoder.head_scale == 1.0) return from;
            for (int64_t i = 0; i < d_model; i++) to[i] = from[i] * float(decoder.head_scale);
            return static_cast<const float*>(to);
        };
        Inputs x = prepare_inputs(rows, d_model, {&decoder.head}, last);
        for (int64_t row = 0; row < rows; row++) largest[row] = {};
        parallel_panels(threads, num_panels(decoder.head), rows, [&](int64_t panel, int64_t panels) {
            multiply(decoder.head, panel, panels, x, rows, [&](int64_t row, int64_t first, FloatVec y, int64_t count) {
                float* to = batch.logits + row * decoder.head.out_features + first;
                y = soft_capped(y, float(decoder.softcap));
                if (count == LANES)
                    store(to, y);
                else
                    store(to, y, count);
                largest[row].add(y, first, count);
            });
        });
        if (threads.index > 0) return;
        for (int64_t row = 0; row < rows; row++) {
            for (int thread = 1; thread < threads.size; thread++)
                largest[row].add(all_largest[thread * round_up(batch.rows, 4) + row]);
            batch.likeliest[row] = largest[row].index;
        }
    }
};

}  // namespace

extern "C" {

EXPORTED int64_t has_amx() { return HAS_AMX; }

EXPORTED int64_t workspace_size(const Decoder* decoder, int64_t rows, int64_t max_rank, int64_t max_keys,
                                int64_t num_threads) {
    return Workspace(*decoder, rows, max_rank, max_keys).workspace_size(num_threads);
}

// max_keys: the most keys that any query attends to.
// Returns whether all tokens are in the vocabulary; otherwise nothing is computed.
EXPORTED int64_t decode_step(const Decoder* decoder, const Batch* batch, int64_t max_keys) {
    for (int64_t row = 0; batch->tokens && row < batch->rows; row++)
        if (batch->tokens[row] < 0 || batch->tokens[row] >= decoder->embedding.out_features) return 0;
    parallel(batch->num_threads,
             [&](const Threads& threads) { DecodeStep(*decoder, *batch, max_keys, threads).run(); });
    return 1;
}
}
