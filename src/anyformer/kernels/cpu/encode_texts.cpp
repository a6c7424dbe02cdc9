// The layers of an encoder on whole texts, in products of 8-bit integers.
//
// A block of texts passes through all layers by itself: no thread waits for another, and what a block computes stays in
// the cache of a core. Only where there are fewer blocks than threads do they share one. Each token's vector is
// quantized by its largest element, each row of a weight as well, so a text's vectors depend on the text alone.
#include "attention_texts.h"
#include "elementwise.h"
#include "quantized_rows.h"

namespace {

#if defined(__AVX512VNNI__) && defined(__AVX512BF16__)
constexpr int64_t VNNI_ROWS = 8;  // multiplied at a time: as many as there are registers for accumulators
constexpr int64_t WIDTH_MULTIPLE = PANELS * LANES;

inline int64_t width_of(const Matrix& matrix) { return round_up(matrix.out_features, WIDTH_MULTIPLE); }

// The following write 32 outputs of a row.

template <class T>
struct Output {
    T* data;
    int64_t stride;

    ALWAYS_INLINE void operator()(int64_t row, int64_t column, FloatVec y, FloatVec next) const {
        T* to = data + row * stride + column;
        store(to, y);
        store(to + LANES, next);
    }
};

// act(y), or what is there times act(y).
template <bool GATED>
struct Activated {
    Output<BFloat16> to;
    Activation kind;

    ALWAYS_INLINE void operator()(int64_t row, int64_t column, FloatVec y, FloatVec next) const {
        y = activation_of_8_bits(kind, y), next = activation_of_8_bits(kind, next);
        if (GATED) {
            const BFloat16* other = to.data + row * to.stride + column;
            y *= load(other), next *= load(other + LANES);
        }
        to(row, column, y, next);
    }
};

// Sums of integers, scaled and with a bias.
template <class Write>
struct ScaledSums {
    const float* row_scales;
    int64_t column;
    Write write;
    FloatVec scales[PANELS], bias[PANELS] = {};

    ALWAYS_INLINE void operator()(int64_t row, IntVec sum, IntVec next) const {
        const float scale = row_scales[row];
        write(row, column, convert<FloatVec>(sum) * (scales[0] * scale) + bias[0],
              convert<FloatVec>(next) * (scales[1] * scale) + bias[1]);
    }
};

#if defined(USE_AMX)
// Compiled once: two copies may be contracted to different multiply-adds, and a text's vectors depend on its place.
template <class Write>
[[gnu::noinline]] void write_rows(Write write, const int32_t* sums, int64_t row, int64_t from, int64_t to) {
    for (int64_t r = from; r < to; r++)
        write(row + r, load_as<IntVec>(sums + r * TILES), load_as<IntVec>(sums + r * TILES + LANES));
}

// All rows times two panels. Sums are written while those below are multiplied.
template <class Write>
inline void multiply_columns(const QuantizedMatrix& left, const QuantizedMatrix& right, int64_t rows, int64_t panel,
                             const Write& write) {
    alignas(64) TileSums sums[2];
    const int64_t steps = left.depth / CHUNK;
    const TilePanels inputs = left.tiles(), weights = right.tiles();
    auto write_part = [&](int64_t row, int64_t from, int64_t to) {
        write_rows(write, sums[row / TILES % 2][0], row, from, to);
    };
    int64_t row = 0;
    for (; row < rows; row += TILES)
        multiply_panels<int8_t>(inputs, row / LANES, weights, panel, 0, left.depth, sums[row / TILES % 2][0], TILES,
                                [&](int64_t step) {
            if (row) write_part(row - TILES, step * TILES / steps, (step + 1) * TILES / steps);
        });
    write_part(row - TILES, 0, TILES);
}
#else
template <class Write>
inline void multiply_columns(const QuantizedMatrix& left, const QuantizedMatrix& right, int64_t rows, int64_t panel,
                             const Write& write) {
    for (int64_t row = 0; row < rows; row += VNNI_ROWS) {
        const int8_t* x = left.panel(row / LANES) + row % LANES * QUAD;
        IntVec sums[VNNI_ROWS][PANELS];
        UNROLL
        for (int r = 0; r < VNNI_ROWS; r++) {
            UNROLL
            for (int t = 0; t < PANELS; t++) sums[r][t] = IntVec{} + left.offsets[row + r];
        }
        for (int64_t k = 0; k < left.depth; k += QUAD) {
            const auto one = load_as<IntVec>(right.panel(panel) + k * LANES),
                       two = load_as<IntVec>(right.panel(panel + 1) + k * LANES);
            UNROLL
            for (int r = 0; r < VNNI_ROWS; r++) {
                const IntVec quad = broadcast_quad(x + k * LANES + r * QUAD);
                sums[r][0] = dot_quads(sums[r][0], one, quad);
                sums[r][1] = dot_quads(sums[r][1], two, quad);
            }
        }
        UNROLL
        for (int r = 0; r < VNNI_ROWS; r++) write(row + r, sums[r][0], sums[r][1]);
    }
}
#endif

class TextBlock {
   public:
    TextBlock(const Decoder& decoder, const Texts& texts, int64_t block, char* memory)
        : decoder(decoder),
          texts(texts),
          first(texts.blocks[block]),
          end(texts.blocks[block + 1]),
          start(texts.starts[first]),
          rows(texts.starts[end] - start),
          x(texts.hidden_states + start * decoder.d_model) {
        const int64_t padded_rows = round_up(rows, WIDTH_MULTIPLE);
        int64_t query_width = 0, key_width = 0, inner_width = 0;
        for (int64_t i = 0; i < decoder.num_layers; i++) {
            const Layer& layer = decoder.layers[i];
            query_width = max(query_width, width_of(layer.attention.query));
            key_width = max(key_width, width_of(layer.attention.key));
            inner_width = max(inner_width, width_of(layer.feed_forward.up));
        }
        output_width = round_up(decoder.d_model, WIDTH_MULTIPLE);
        Arena arena{memory};
        queries = arena.allocate<BFloat16>((padded_rows + TILE_DEPTH) * query_width);
        keys = arena.allocate<BFloat16>((padded_rows + TILE_DEPTH) * key_width);
        values = arena.allocate<BFloat16>((padded_rows + TILE_DEPTH) * key_width);
        inner = arena.allocate<BFloat16>(padded_rows * inner_width);
        output = arena.allocate<float>(padded_rows * output_width);
        operand = arena.next;
        QuantizedMatrix(padded_rows, max(max(query_width, inner_width), output_width), true, arena.next);
        memory_end = arena.next;
    }

    // Bytes of its memory, if that begins at null.
    int64_t size() const { return memory_end - static_cast<char*>(nullptr); }

    // `scratch`: of this thread, for a head of the longest text.
    void run(Threads& threads, char* scratch) const {
        prepare(threads, decoder.layers[0].attention.norms.before);
        for (int64_t i = 0; i < decoder.num_layers; i++) {
            const Layer& layer = decoder.layers[i];
            attend(threads, layer.attention, scratch);
            add(threads, layer.attention.norms, layer.feed_forward.norms.before);
            feed_forward(threads, layer.feed_forward);
            const bool is_last = i + 1 == decoder.num_layers;
            add(threads, layer.feed_forward.norms, is_last ? Norm{} : decoder.layers[i + 1].attention.norms.before);
        }
        threads.parallel_for(decoder.final_norm.kind == NO_NORM ? 0 : rows, [&](int64_t row) {
            normalize(decoder.final_norm, x + row * decoder.d_model, decoder.d_model, x + row * decoder.d_model);
        });
    }

   private:
    const Decoder& decoder;
    const Texts& texts;
    const int64_t first, end, start, rows;
    float* const x;  // the residual stream
    int64_t output_width;
    float* output;
    BFloat16 *queries, *keys, *values, *inner;
    char *operand, *memory_end;

    QuantizedMatrix left(int64_t depth) const {
        char* memory = operand;
        return QuantizedMatrix(rows, depth, true, memory);
    }

    // Quantize rows of the inputs of a product.
    template <class T>
    void quantize(Threads& threads, const T* from, int64_t width, int64_t stride) const {
        const QuantizedMatrix to = left(width);
        const MatmulOperand rows_of{from, sizeof(T) == 4 ? FLOAT32 : BFLOAT16, stride, 0};
        quantize_rows(threads, rows_of, rows, width, false, nullptr, to);
    }

    // The inputs of a layer's products, from the residual stream.
    void prepare(Threads& threads, const Norm& norm) const {
        prepare(threads, norm, [](int64_t) {});
    }

    // Add what a part of a layer has computed to the residual stream, and prepare the inputs of the next part.
    void add(Threads& threads, const Norms& norms, const Norm& next) const {
        const int64_t width = decoder.d_model;
        const float scale = float(decoder.residual_scale);
        prepare(threads, next, [&](int64_t row) {
            float *to = x + row * width, *from = output + row * output_width;
            normalize(norms.inner, from, width, from);
            for (int64_t i = 0; i < width; i += LANES) store(to + i, load(to + i) + scale * load(from + i));
            normalize(norms.outer, to, width, to);
        });
    }

    // Quantize sixteen rows of the residual stream, normalized, after `update(row)`.
    template <class Update>
    void prepare(Threads& threads, const Norm& norm, const Update& update) const {
        const int64_t width = decoder.d_model;
        const QuantizedMatrix to = left(width);
        const bool has_norm = norm.kind != NO_NORM;  // then the place of an output that was added gets its result
        const MatmulOperand from{has_norm ? output : x, FLOAT32, has_norm ? output_width : width, 0};
        const Quantizer<float> quantizer(from, rows, width, false, nullptr, to);
        threads.parallel_for(to.panels, [&](int64_t panel) {
            for (int64_t row = panel * LANES; row < min((panel + 1) * LANES, rows); row++) {
                update(row);
                normalize(norm, x + row * width, width, output + row * output_width);
            }
            quantizer.quantize_panel(panel);
        });
    }

    void attend(Threads& threads, const Attention& a, char* scratch) const {
        const int64_t query_width = width_of(a.query), key_width = width_of(a.key), heads_width = a.query.out_features;
        multiply(threads, a.query, Output<BFloat16>{queries, query_width});
        multiply(threads, a.key, Output<BFloat16>{keys, key_width});
        multiply(threads, a.value, Output<BFloat16>{values, key_width});
        threads.parallel_for((end - first) * a.kv_heads, [&](int64_t item) {
            const int64_t text = first + item / a.kv_heads, kv_head = item % a.kv_heads, group = a.heads / a.kv_heads;
            const int64_t begin = texts.starts[text] - start, length = texts.starts[text + 1] - texts.starts[text];
            const int64_t offset = begin * key_width + kv_head * a.head_dim;
            const TextAttention attention(length, a.head_dim, float(a.scale), scratch);
            attention.set_keys(keys + offset, values + offset, key_width);
            for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++) {
                const float* bias = texts.bias ? texts.bias + head * texts.bias_stride + texts.longest - 1 : nullptr;
                attention.run(queries + begin * query_width + head * a.head_dim, query_width, bias);
            }
        });
        quantize(threads, queries, heads_width, query_width);
        multiply(threads, a.output, Output<float>{output, output_width});
    }

    void feed_forward(Threads& threads, const FeedForward& f) const {
        const int64_t width = width_of(f.up);
        const Output<BFloat16> to{inner, width};
        if (f.gate.weights) {
            multiply(threads, f.up, to);
            multiply(threads, f.gate, Activated<true>{to, f.activation});
        } else {
            multiply(threads, f.up, Activated<false>{to, f.activation});
        }
        quantize(threads, inner, f.up.out_features, width);
        multiply(threads, f.down, Output<float>{output, output_width});
    }

    // The quantized inputs times a packed matrix.
    template <class Write>
    void multiply(Threads& threads, const Matrix& matrix, const Write& write) const {
        char* memory = static_cast<char*>(const_cast<void*>(matrix.weights));
        const QuantizedMatrix inputs = left(matrix.in_features),
                              weights(matrix.out_features, matrix.in_features, false, memory);
        threads.parallel_for(weights.panels / PANELS, [&](int64_t item) {
            ScaledSums<Write> sums{inputs.scales, item * WIDTH_MULTIPLE, write};
            for (int t = 0; t < PANELS; t++) {
                const int64_t part = sums.column + t * LANES, count = min(LANES, matrix.out_features - part);
                sums.scales[t] = load(weights.scales + part);
                if (matrix.bias && count > 0) sums.bias[t] = load(matrix.bias + part, count);
            }
            multiply_columns(inputs, weights, rows, item * PANELS, sums);
        });
    }
};

// Bytes of the memory of a thread that computes any of the blocks.
inline int64_t memory_size(const Decoder& decoder, const Texts& texts) {
    int64_t largest = 0;
    for (int64_t i = 0; i < texts.num_blocks; i++)
        largest = max(largest, TextBlock(decoder, texts, i, nullptr).size());
    return round_up(largest, 64);
}

inline int64_t scratch_size(const Decoder& decoder, const Texts& texts) {
    int64_t longest = 0, head_dim = 0;
    for (int64_t i = 0; i < texts.blocks[texts.num_blocks]; i++)
        longest = max(longest, texts.starts[i + 1] - texts.starts[i]);
    for (int64_t i = 0; i < decoder.num_layers; i++) head_dim = max(head_dim, decoder.layers[i].attention.head_dim);
    return round_up(TextAttention::memory_size(longest, head_dim), 64);
}
#endif

}  // namespace

extern "C" {

// Without AVX-512-VNNI and AVX-512-BF16 the others do nothing.
EXPORTED int64_t supported() { return HAS_VNNI && HAS_BF16_DOT; }

// Bytes of a packed matrix.
EXPORTED int64_t packed_size(int64_t rows, int64_t depth) {
#if defined(__AVX512VNNI__) && defined(__AVX512BF16__)
    char* memory = nullptr;
    QuantizedMatrix(rows, depth, false, memory);
    return memory - static_cast<char*>(nullptr);
#else
    return 0;
#endif
}

// Pack `right` into `out`.
EXPORTED void pack(const MatmulArgs* args) {
#if defined(__AVX512VNNI__) && defined(__AVX512BF16__)
    char* memory = static_cast<char*>(args->out);
    const QuantizedMatrix to(args->columns, args->depth, false, memory);
    parallel(args->num_threads, [&](Threads threads) {
        quantize_rows(threads, args->right, args->columns, args->depth, false, nullptr, to);
    });
#endif
}

EXPORTED int64_t workspace_size(const Decoder* decoder, const Texts* texts) {
#if defined(__AVX512VNNI__) && defined(__AVX512BF16__)
    return texts->num_threads * (memory_size(*decoder, *texts) + scratch_size(*decoder, *texts));
#else
    return 0;
#endif
}

EXPORTED void encode_texts(const Decoder* decoder, const Texts* texts) {
#if defined(__AVX512VNNI__) && defined(__AVX512BF16__)
    const int64_t size = memory_size(*decoder, *texts), scratch = scratch_size(*decoder, *texts);
    parallel(texts->num_threads, [&](Threads threads) {
        AmxTiles registers(true);
        char* const memory = static_cast<char*>(texts->workspace);
        char* const own = memory + size * threads.size + scratch * threads.index;
        if (texts->num_blocks < threads.size) {
            for (int64_t i = 0; i < texts->num_blocks; i++)
                TextBlock(*decoder, *texts, i, memory).run(threads, own);
            return;
        }
        threads.parallel_for(texts->num_blocks, [&](int64_t i) {
            Barrier barrier;
            Threads alone(barrier, 1, 0);
            TextBlock(*decoder, *texts, i, memory + size * threads.index).run(alone, own);
        });
    });
#endif
}
}
