// New tokens of every text, through the whole decoder in one call.
#include <initializer_list>
#include <type_traits>

#include "attention_prefill.h"
#include "matmul.h"
#include "elementwise.h"
#include "structs.h"
#include "threads.h"

namespace {

template <class Visit>
void each_matrix(const Decoder& decoder, const Visit& visit) {
    for (int64_t i = 0; i < decoder.num_layers; i++) {
        const Layer& layer = decoder.layers[i];
        for (auto attention : {&layer.attention, &layer.cross_attention})
            for (auto matrix : {&attention->query, &attention->key, &attention->value, &attention->output})
                if (matrix->weights) visit(*matrix);
        for (auto matrix : {&layer.feed_forward.up, &layer.feed_forward.gate, &layer.feed_forward.down})
            if (matrix->weights) visit(*matrix);
    }
    visit(decoder.head);
}

struct Widths {
    int64_t in = 0, out = 0;  // the widest vectors that enter and leave a product; the head's do not count
    int64_t head = 0;         // the widest head
    bool integers = false;

    explicit Widths(const Decoder& decoder) {
        each_matrix(decoder, [&](const Matrix& matrix) {
            in = padded(matrix.in_features) > in ? padded(matrix.in_features) : in;
            if (&matrix != &decoder.head && padded(matrix.out_features) > out) out = padded(matrix.out_features);
            integers = integers || ::integers(matrix.dtype);
        });
        if (padded(decoder.d_model) > in) in = padded(decoder.d_model);
        for (int64_t i = 0; i < decoder.num_layers; i++)
            for (auto attention : {&decoder.layers[i].attention, &decoder.layers[i].cross_attention})
                head = attention->head_dim > head ? attention->head_dim : head;
    }
};

// Where things are kept in the workspace.
struct Space {
    int64_t inputs_size, own_size, rows_size, look_size;
    bool alone, integers;

    Space(const Decoder& decoder, int64_t rows, int64_t longest) : alone(rows == 1) {
        Widths widths(decoder);
        integers = widths.integers;
        inputs_size = Inputs::size(rows, widths.in);
        own_size = Inputs::own_size(rows, widths.in);
        rows_size = rows * widths.out;
        int64_t scores_size = padded(longest) + LANES, crowd_size = alone ? 0 : Crowd<TILED, 1>::size(widths.head);
        look_size = padded(scores_size > crowd_size ? scores_size : crowd_size);
    }
    // One set of inputs for all, one for each thread when there is one row; queries, keys, values; what a thread needs
    // to unpack weights, and to look at keys.
    int64_t bytes(int64_t threads) const {
        return inputs_size * (alone ? threads : 1) + threads * own_size + (3 * rows_size + threads * look_size) * 4 + 4096;
    }
};

class Stepper {
   public:
    Stepper(const Decoder& decoder, const Batch& batch, int64_t longest, Team team)
        : decoder(decoder), batch(batch), team(team), rows(batch.rows), fresh(batch.new_tokens) {
        Space space(decoder, rows, longest);
        auto memory = static_cast<char*>(batch.workspace);
        // A thread prepares the inputs of a single row itself, which takes less time than waiting for another.
        alone = space.alone, integers = space.integers;
        inputs_memory = memory + space.inputs_size * (alone ? team.me : 0);
        memory += space.inputs_size * (alone ? team.size : 1);
        own_memory = memory + space.own_size * team.me;
        auto numbers = reinterpret_cast<float*>(memory + space.own_size * team.size);
        queries = numbers;
        keys = queries + space.rows_size;
        values = keys + space.rows_size;
        looking = values + space.rows_size + team.me * space.look_size;
    }

    void run() {
        TileRegisters registers(wide(rows));
        for (int64_t i = 0; i < decoder.num_layers; i++) {
            layer(decoder.layers[i], batch.caches[i], i + 1 == decoder.num_layers);
        }
        if (rows) finish();
    }

   private:
    const Decoder& decoder;
    const Batch& batch;
    Team team;
    int64_t rows, fresh;
    bool alone, integers;
    void *inputs_memory, *own_memory;
    float *queries, *keys, *values, *looking;

    float* residual(int64_t row) const { return batch.hidden_states + row * decoder.d_model; }
    int64_t text(int64_t row) const { return row / fresh; }

    // Inputs for some products, made row by row: `fill(row, values)` returns where they are, there or elsewhere.
    template <class Fill>
    Inputs prepared(int64_t count, int64_t width, std::initializer_list<const Matrix*> matrices, const Fill& fill) {
        Inputs inputs(inputs_memory, own_memory, count, width);
        bool values = false, halves = false, bytes = false;
        for (auto matrix : matrices) {
            if (!matrix->weights) continue;
            values = values || inputs.as_values(matrix->dtype);
            halves = halves || inputs.as_halves(matrix->dtype);
            bytes = bytes || inputs.as_bytes(matrix->dtype);
        }
        auto one = [&](int64_t row) {
            float* to = inputs.values + row * inputs.width;
            const float* from = fill(row, to);
            if (from != to && (values || width != inputs.width))
                from = static_cast<float*>(memcpy(to, from, width * sizeof(float)));
            if (from == to)
                for (int64_t i = width; i < inputs.width; i++) to[i] = 0;
            if (halves) inputs.to_halves(row, from, inputs.width);
            if (bytes) inputs.to_bytes(row, from, inputs.width / GROUP);
        };
        if (alone)
            one(0);
        else
            share_blocks(team, count, one);
        return inputs;
    }

    // The residual stream, normed where norms come first.
    Inputs read(const Norm& norm, std::initializer_list<const Matrix*> matrices) {
        static const Norm none{};
        const Norm& first = decoder.pre_norm ? norm : none;
        return prepared(rows, decoder.d_model, matrices,
                        [&](int64_t row, float* to) { return normalize(first, residual(row), decoder.d_model, to); });
    }

    // x = x + W inputs, normed where norms come last.
    void add(const Matrix& matrix, const Inputs& inputs, const Norm& norm) {
        share_tiles(team, tiles_of(matrix), rows, [&](int64_t tile, int64_t tiles) {
            multiply(matrix, tile, tiles, inputs, rows, [&](int64_t row, int64_t first, Floats y, int64_t count) {
                float* to = residual(row) + first;
                if (count == LANES)
                    store(to, load(to) + y);
                else
                    store(to, load(to, count) + y, count);
            });
        });
        if (decoder.pre_norm) return;
        team.share(rows, [&](int64_t row) { normalize_in_place(norm, residual(row)); });
    }

    void normalize_in_place(const Norm& norm, float* x) {
        if (norm.kind == NO_NORM) return;
        constexpr int64_t MOST = 1 << 14;
        float made[MOST + LANES];
        normalize(norm, x, decoder.d_model, made);
        memcpy(x, made, decoder.d_model * sizeof(float));
    }

    void layer(const Layer& layer, const LayerCache& memory, bool last) {
        remember(layer.attention, memory);
        // Behind the last keys and values only what is scored counts.
        if (last) narrow(padded(layer.attention.query.out_features));
        if (!rows) return;
        look(layer.attention, memory.keys, memory.values, false);
        if (layer.cross_attention.query.weights) cross_attention(layer.cross_attention, memory);
        feed_forward(layer.feed_forward);
    }

    // Go on with the scored rows alone, which come first from here on.
    void narrow(int64_t query_width) {
        int64_t count = batch.num_logit_rows, texts = rows / fresh;
        if (count == rows) return;
        if (team.me == 0)
            for (int64_t i = 0; i < count; i++) {
                int64_t row = batch.logit_rows[i];
                if (row == i) continue;
                memcpy(residual(i), residual(row), decoder.d_model * sizeof(float));
                memcpy(queries + i * query_width, queries + row * query_width, query_width * sizeof(float));
                batch.positions[i] = batch.positions[row];
            }
        team.wait();
        rows = count, fresh = count / texts;
    }

    // Queries, and the keys and values of the new tokens for this layer's memory.
    void remember(const Attention& a, const LayerCache& memory) {
        Inputs x = read(a.norm, {&a.query, &a.key, &a.value});
        int64_t query_width = padded(a.query.out_features), key_width = padded(a.key.out_features);
        struct {
            const Matrix& matrix;
            float* to;
            int64_t width;
        } parts[] = {{a.query, queries, query_width}, {a.key, keys, key_width}, {a.value, values, key_width}};
        share_tiles(team, tiles_of(a.query) + 2 * tiles_of(a.key), rows, [&](int64_t tile, int64_t tiles) {
            for (auto& part : parts) {
                int64_t here = tiles_of(part.matrix) - tile, some = here < tiles ? here : tiles;
                if (some > 0)
                    multiply(part.matrix, tile, some, x, rows, [&](int64_t row, int64_t first, Floats y, int64_t) {
                        store(part.to + row * part.width + first, y);
                    });
                tiles -= some > 0 ? some : 0, tile = here < 0 ? -here : 0;
            }
        });
        team.share(rows, [&](int64_t row) {
            if (batch.cache_dtype == BFLOAT16)
                keep<BFloat16>(a, memory, row, query_width, key_width);
            else
                keep<float>(a, memory, row, query_width, key_width);
        });
    }

    // Norm and turn the new queries and keys, and write keys and values where later tokens find them.
    template <class T>
    void keep(const Attention& a, const LayerCache& memory, int64_t row, int64_t query_width, int64_t key_width) {
        int64_t place = batch.positions[row];
        if (place < 0) return;
        auto turned = [&](const Norm& norm, float* head) {
            norm_head(norm, head, a.head_dim);
            if (batch.cos) turn(head, a.head_dim, batch.cos + place * a.head_dim, batch.sin + place * a.head_dim);
        };
        for (int64_t head = 0; head < a.heads; head++)
            turned(a.query_norm, queries + row * query_width + head * a.head_dim);
        for (int64_t head = 0; head < a.kv_heads; head++) {
            float* key = keys + row * key_width + head * a.head_dim;
            turned(a.key_norm, key);
            auto at = [&](const TensorView& m) {
                return static_cast<T*>(m.data) + text(row) * m.batch_stride + head * m.head_stride + place * m.time_stride;
            };
            const float* value = values + row * key_width + head * a.head_dim;
            T *key_to = at(memory.keys), *value_to = at(memory.values);
            for (int64_t i = 0; i < a.head_dim; i++) store(key_to + i, key[i]), store(value_to + i, value[i]);
        }
    }

    void norm_head(const Norm& norm, float* head, int64_t head_dim) const {
        if (norm.kind == NO_NORM) return;
        float made[512];
        normalize(norm, head, head_dim, made);
        memcpy(head, made, head_dim * sizeof(float));
    }

    void cross_attention(const Attention& a, const LayerCache& memory) {
        Inputs x = read(a.norm, {&a.query});
        int64_t width = padded(a.query.out_features);
        share_tiles(team, tiles_of(a.query), rows, [&](int64_t tile, int64_t tiles) {
            multiply(a.query, tile, tiles, x, rows, [&](int64_t row, int64_t first, Floats y, int64_t) {
                store(queries + row * width + first, y);
            });
        });
        if (a.query_norm.kind != NO_NORM)
            team.share(rows, [&](int64_t row) {
                for (int64_t head = 0; head < a.heads; head++)
                    norm_head(a.query_norm, queries + row * width + head * a.head_dim, a.head_dim);
            });
        look(a, memory.encoder_keys, memory.encoder_values, true);
    }

    // Attention of every row, and its output.
    void look(const Attention& a, const TensorView& key_memory, const TensorView& value_memory, bool source) {
        int64_t width = padded(a.query.out_features), group = a.heads / a.kv_heads;
        auto from = [&](auto number) {
            typedef decltype(number) T;
            if (fresh > 1 && fresh * group >= LANES / 2)
                look_together<T>(a, key_memory, value_memory, source);
            else
                look_alone<T>(a, key_memory, value_memory, source);
        };
        if (batch.cache_dtype == BFLOAT16)
            from(BFloat16{});
        else
            from(0.0f);
        Inputs x = prepared(rows, a.output.in_features, {&a.output},
                            [&](int64_t row, float*) { return queries + row * width; });
        add(a.output, x, a.norm);
    }

    // What a head of a row asks for.
    Query asked(const Attention& a, bool source, int64_t row, int64_t head) const {
        Query query;
        query.vector = queries + row * padded(a.query.out_features) + head * a.head_dim;
        query.end = source ? batch.source_length : batch.positions[row] + 1;
        if (!source && a.window && query.end > a.window) query.first = query.end - a.window;
        if (!source && batch.bias) query.bias = batch.bias + head * batch.num_distances;
        return query;
    }

    template <class T>
    struct Seen {
        const T *keys, *values;
        const uint8_t* mask;
    };

    // What there is to see for a key/value head of a text.
    template <class T>
    Seen<T> seen(const TensorView& keys, const TensorView& values, bool source, int64_t text, int64_t head) const {
        int64_t place = source && batch.source_index ? batch.source_index[text] : text;
        auto at = [&](const TensorView& m) { return static_cast<const T*>(m.data) + place * m.batch_stride + head * m.head_stride; };
        return {at(keys), at(values), source && batch.source_mask ? batch.source_mask + text * batch.source_length : nullptr};
    }

    template <class T>
    void look_alone(const Attention& a, const TensorView& keys, const TensorView& values, bool source) {
        int64_t group = a.heads / a.kv_heads;
        // Heads that share keys go together where there is enough to do for all threads.
        int64_t parts = rows * a.kv_heads >= 2 * team.size ? 1 : group;
        team.share(rows * a.kv_heads * parts, [&](int64_t item) {
            int64_t part = item % parts, kv_head = item / parts % a.kv_heads, row = item / parts / a.kv_heads;
            auto there = seen<T>(keys, values, source, text(row), kv_head);
            for (int64_t i = part * group / parts; i < (part + 1) * group / parts; i++) {
                Query query = asked(a, source, row, kv_head * group + i);
                float vector[512] = {};
                memcpy(vector, query.vector, a.head_dim * sizeof(float));
                auto with = [&](auto vectors) {
                    attend<decltype(vectors)::value, T>(vector, float(a.scale), there.keys, there.values, keys.time_stride,
                                                        values.time_stride, query.first, query.end, a.head_dim, query.bias,
                                                        there.mask, looking, query.vector);
                };
                if (a.head_dim == 64)
                    with(std::integral_constant<int, 4>{});
                else if (a.head_dim == 128)
                    with(std::integral_constant<int, 8>{});
                else
                    with(std::integral_constant<int, 0>{});
            }
        });
    }

    template <class T>
    void look_together(const Attention& a, const TensorView& keys, const TensorView& values, bool source) {
        int64_t group = a.heads / a.kv_heads, all = fresh * group, crowds = (all + CROWD - 1) / CROWD;
        int64_t texts = rows / fresh;
        team.share(crowds * texts * a.kv_heads, [&](int64_t item) {
            int64_t kv_head = item % a.kv_heads, text = item / a.kv_heads % texts;
            // The last tokens first: they see most, and what takes longest must not come last.
            int64_t begin = (crowds - 1 - item / a.kv_heads / texts) * CROWD;
            int64_t count = all - begin < CROWD ? all - begin : CROWD;
            Query asking[CROWD];
            for (int64_t i = 0; i < count; i++) {
                int64_t row = text * fresh + (begin + i) / group;
                asking[i] = asked(a, source, row, kv_head * group + (begin + i) % group);
            }
            auto there = seen<T>(keys, values, source, text, kv_head);
            auto with = [&](auto way, auto vectors) {
                Crowd<decltype(way)::value, decltype(vectors)::value>(looking, asking, count, a.head_dim, float(a.scale))
                    .look(there.keys, there.values, keys.time_stride, values.time_stride, there.mask);
            };
            auto by = [&](auto way) {
                if (count > LANES)
                    with(way, std::integral_constant<int, 3>{});
                else
                    with(way, std::integral_constant<int, 1>{});
            };
            // Next to the rounding of keys, or of the inputs of integers, that of queries and weights is small. But a few
            // tokens get what one alone gets, so that guessing ahead changes nothing.
            if (!HAS_PAIRS || fresh < KEYS || (sizeof(T) == 4 && !integers)) return by(std::integral_constant<Way, SINGLE>{});
#if defined(WITH_TILES)
            if (wide(rows)) return by(std::integral_constant<Way, TILED>{});
#endif
            by(std::integral_constant<Way, PAIRED>{});
        });
    }

    void feed_forward(const FeedForward& f) {
        Inputs x = read(f.norm, {&f.up, &f.gate});
        int64_t width = padded(f.up.out_features);
        float* inner = queries;
        share_tiles(team, tiles_of(f.up), rows, [&](int64_t tile, int64_t tiles) {
            multiply(f.up, tile, tiles, x, rows, [&](int64_t row, int64_t first, Floats y, int64_t) {
                store(inner + row * width + first, f.gate.weights ? y : activate(f.activation, y));
            });
            if (f.gate.weights)
                multiply(f.gate, tile, tiles, x, rows, [&](int64_t row, int64_t first, Floats y, int64_t) {
                    float* to = inner + row * width + first;
                    store(to, load(to) * activate(f.activation, y));
                });
        });
        Inputs h = prepared(rows, f.down.in_features, {&f.down}, [&](int64_t row, float*) { return inner + row * width; });
        add(f.down, h, f.norm);
    }

    void finish() {
        int64_t d_model = decoder.d_model;
        auto last = [&](int64_t row, float* to) {
            const float* from = normalize(decoder.final_norm, residual(row), d_model, to);
            if (decoder.head_scale == 1.0) return from;
            for (int64_t i = 0; i < d_model; i++) to[i] = from[i] * float(decoder.head_scale);
            return static_cast<const float*>(to);
        };
        Inputs x = prepared(rows, d_model, {&decoder.head}, last);
        share_tiles(team, tiles_of(decoder.head), rows, [&](int64_t tile, int64_t tiles) {
            multiply(decoder.head, tile, tiles, x, rows, [&](int64_t row, int64_t first, Floats y, int64_t outputs) {
                float* to = batch.logits + row * decoder.head.out_features + first;
                if (outputs == LANES)
                    store(to, y);
                else
                    store(to, y, outputs);
            });
        });
    }
};

}  // namespace

extern "C" {

// Whether matrices of bfloat16 numbers are multiplied at once.
EXPORTED int64_t tiles() { return HAS_TILES; }

EXPORTED int64_t bytes(const Decoder* decoder, int64_t rows, int64_t longest, int64_t threads) {
    return Space(*decoder, rows, longest).bytes(threads);
}

// `longest`: as many keys as any query can see.
EXPORTED void step(const Decoder* decoder, const Batch* batch, int64_t longest) {
    together(batch->num_threads, [&](const Team& team) { Stepper(*decoder, *batch, longest, team).run(); });
}
}
