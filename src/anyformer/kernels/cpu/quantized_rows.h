// Matrices quantized to 8-bit integers row by row, packed as operands of an integer matrix product.
#pragma once
#include "int_matmul.h"
#include "structs.h"
#include "tile_matmul.h"

#if defined(__AVX512VNNI__)
constexpr int64_t QUAD = 4;                   // products that an instruction sums in each lane
constexpr int64_t CHUNK = QUAD * LANES;       // depth is padded to a multiple of it
constexpr int64_t PANELS = 2;                 // multiplied at a time
constexpr int64_t PANEL_GROUP = 8;            // panels of a transposed matrix that a thread quantizes at a time
constexpr int64_t PREFETCHED_ROWS = 16;       // of it: hardware does not prefetch parts of rows that lie far apart
constexpr float MIN_SCALE = 1.17549435e-38f;  // smaller scales are subnormal: their rows are quantized to 0

// The larger of `bits` and |x|, compared by their bits as integers, so that NaN is the largest of all.
inline IntVec max_abs_bits(IntVec bits, FloatVec x) { return max(bits, bit_cast<IntVec>(abs(x))); }

// A quantized matrix, packed in panels of 16 rows: [panel, depth / 4, 16, 4]; the left operand of AMX in tiles of 16 rows:
// [panel, depth / 64, 16, 64].
struct QuantizedMatrix {
    int64_t panels, depth;  // depth: padded to whole chunks
    bool is_tiled;
    float rounding;  // added to a float32, it leaves the nearest integer in the lowest byte; without AMX plus 128 in the
                     // right operand, whose bytes are unsigned
    int8_t* data;
    float* scales;     // [panels * 16]
    int32_t* offsets;  // [panels * 16]: -128 times the sum of a row; null: the right operand, or AMX

    // Allocates from the workspace, in multiples of 64 bytes.
    QuantizedMatrix(int64_t rows, int64_t depth, bool left, char*& workspace)
        : panels(round_up(rows, LANES * PANELS) / LANES),
          depth(round_up(depth, CHUNK)),
          is_tiled(left && HAS_AMX),
          rounding(left || HAS_AMX ? 12582912.0f : 12583040.0f) {
        const int64_t count = panels * LANES;
        const bool has_offsets = left && !HAS_AMX;
        data = reinterpret_cast<int8_t*>(workspace);
        scales = reinterpret_cast<float*>(workspace + count * this->depth);
        offsets = has_offsets ? reinterpret_cast<int32_t*>(scales + count) : nullptr;
        workspace = reinterpret_cast<char*>(scales + count * (has_offsets ? 2 : 1));
    }

    int8_t* panel(int64_t index) const { return data + index * LANES * depth; }
#if defined(USE_AMX)
    TilePanels tiles() const { return {panels, depth, reinterpret_cast<const char*>(data)}; }
#endif
};

// Random numbers in [-1/2, 1/2) (Marsaglia 2003, "Xorshift RNGs", 32 bits).
class Dither {
   public:
    explicit Dither(UIntVec seed) : state(seed) {}

    FloatVec next() {
        state = state ^ state << 13;
        state = state ^ state >> 17;
        state = state ^ state << 5;
        return bit_cast<FloatVec>(state >> 9 | 0x3f800000) - 1.5f;
    }

   private:
    UIntVec state;
};

// Quantizes the rows of a matrix, each by its largest absolute value.
template <class T>
class Quantizer {
   public:
    Quantizer(const MatmulOperand& from, int64_t rows, int64_t depth, bool stochastic, float* row_sums,
              const QuantizedMatrix& to)
        : from(static_cast<const T*>(from.data)),
          stride(from.stride),
          rows(rows),
          depth(depth),
          stochastic(stochastic),
          row_sums(row_sums),
          to(to) {}

    // A panel of a row-major matrix.
    void quantize_panel(int64_t panel) const {
        alignas(64) float inverses[LANES], scales[LANES];
        for (int64_t r = 0; r < LANES; r++) {
            IntVec max_bits{};
            FloatVec total{};
            auto visit = [&](FloatVec x) {
                max_bits = max_abs_bits(max_bits, x);
                if (row_sums) total += x;
            };
            int64_t i = 0;
            if (panel * LANES + r < rows)
                for (; i + LANES <= depth; i += LANES) visit(load(row_data(panel, r) + i));
            if (i < depth) visit(row_part<false>(panel, r, i));
            if (row_sums && panel * LANES + r < rows) row_sums[panel * LANES + r] = reduce_add(total);
            scales[r] = bit_cast<float>(reduce_max(max_bits)) / 127.0f;
            inverses[r] = scales[r] < MIN_SCALE ? 0.0f : 1.0f / scales[r];
        }
        Dither dither = make_dither(panel, load(scales));
        const int64_t complete = (panel + 1) * LANES <= rows ? depth : 0;
        for (int64_t i = 0; i < to.depth; i += CHUNK)
            i + CHUNK <= complete ? quantize_chunk<true>(panel, i, inverses, dither)
                                  : quantize_chunk<false>(panel, i, inverses, dither);
        store_scales(panel, load(scales));
    }

    // PANEL_GROUP panels of a transposed matrix.
    void quantize_transposed_panels(int64_t first) const {
        if ((first + PANEL_GROUP) * LANES <= rows)
            quantize_columns<true>(first);
        else
            quantize_columns<false>(first);
    }

   private:
    const T* const from;
    const int64_t stride, rows, depth;
    const bool stochastic;
    float* const row_sums;
    const QuantizedMatrix& to;

    const T* row_data(int64_t panel, int64_t row) const { return from + (panel * LANES + row) * stride; }

    template <bool COMPLETE>
    FloatVec row_part(int64_t panel, int64_t row, int64_t i) const {
        if (COMPLETE) return load(row_data(panel, row) + i);
        if (panel * LANES + row >= rows || i >= depth) return FloatVec{};
        return depth - i >= LANES ? load(row_data(panel, row) + i) : load(row_data(panel, row) + i, depth - i);
    }

    template <bool COMPLETE>
    FloatVec column_part(int64_t k, int64_t panel) const {
        const T* elements = from + k * stride + panel * LANES;
        if (COMPLETE) return load(elements);
        const int64_t left = rows - panel * LANES;
        if (left <= 0 || k >= depth) return FloatVec{};
        return left >= LANES ? load(elements) : load(elements, left);
    }

    template <bool COMPLETE>
    void quantize_chunk(int64_t panel, int64_t i, const float* inverses, Dither& dither) const {
        alignas(64) int8_t bytes[LANES * CHUNK];
        for (int64_t r = 0; r < LANES; r++) {
            UNROLL
            for (int64_t k = 0; k < CHUNK; k += LANES)
                store(bytes + r * CHUNK + k, round(row_part<COMPLETE>(panel, r, i + k) * inverses[r], dither));
        }
        int8_t* chunk = to.panel(panel) + i * LANES;
        to.is_tiled ? void(memcpy(chunk, bytes, sizeof bytes)) : transpose_chunk(bytes, chunk);
    }

    // Between [16, 64] and [16, 16, 4].
    static void transpose_chunk(const int8_t* from, int8_t* out) {
        transpose(reinterpret_cast<const float*>(from), LANES, reinterpret_cast<float*>(out), LANES);
    }

    template <bool COMPLETE>
    void quantize_columns(int64_t first) const {
        const int64_t count = COMPLETE ? PANEL_GROUP : min(PANEL_GROUP, to.panels - first);
        IntVec max_bits[PANEL_GROUP] = {};
        FloatVec totals[PANEL_GROUP] = {};
        for (int64_t k = 0; k < depth; k++) {
            const T* later = from + min(k + PREFETCHED_ROWS, depth - 1) * stride + first * LANES;
            for (int64_t s = 0; s < PANEL_GROUP * LANES; s += 64 / sizeof(T)) __builtin_prefetch(later + s);
            UNROLL
            for (int64_t s = 0; s < PANEL_GROUP; s++) {
                const FloatVec x = column_part<COMPLETE>(k, first + s);
                max_bits[s] = max_abs_bits(max_bits[s], x);
                if (row_sums) totals[s] += x;
            }
        }
        for (int64_t s = 0; row_sums && s < PANEL_GROUP; s++) {
            const int64_t row = (first + s) * LANES;
            if (row < rows) store(row_sums + row, totals[s], min(LANES, rows - row));
        }
        FloatVec scales[PANEL_GROUP], inverses[PANEL_GROUP];
        for (int64_t s = 0; s < PANEL_GROUP; s++) {
            scales[s] = bit_cast<FloatVec>(max_bits[s]) / 127.0f;
            inverses[s] = select(scales[s] < MIN_SCALE, FloatVec{}, 1.0f / scales[s]);
        }
        Dither dither = make_dither(first, scales[0]);
        const int64_t complete = COMPLETE ? depth / QUAD * QUAD : 0;
        auto quantize_quads = [&](auto is_complete, int64_t k, int8_t* out, int64_t stride) {
            UNROLL
            for (int64_t s = 0; s < PANEL_GROUP; s++) {
                UIntVec quad{};
                UNROLL
                for (int64_t q = 0; q < QUAD; q++) {
                    UIntVec byte =
                        bit_cast<UIntVec>(round(column_part<is_complete>(k + q, first + s) * inverses[s], dither));
                    quad |= (q == QUAD - 1 ? byte : byte & 0xff) << (8 * q);
                }
                if (s < count) memcpy(out + s * stride, &quad, sizeof quad);
            }
        };
        alignas(64) int8_t chunks[PANEL_GROUP * LANES * CHUNK];
        for (int64_t k = 0; k < to.depth; k += CHUNK) {
            int8_t* out = to.is_tiled ? chunks : to.panel(first) + k * LANES;
            const int64_t stride = LANES * (to.is_tiled ? CHUNK : to.depth);
            for (int64_t i = 0; i < CHUNK; i += QUAD, out += QUAD * LANES)
                k + i < complete ? quantize_quads(std::true_type{}, k + i, out, stride)
                                 : quantize_quads(std::false_type{}, k + i, out, stride);
            for (int64_t s = 0; to.is_tiled && s < count; s++)
                transpose_chunk(chunks + s * LANES * CHUNK, to.panel(first + s) + k * LANES);
        }
        for (int64_t s = 0; s < count; s++) store_scales(first + s, scales[s]);
    }

    IntVec round(FloatVec x, Dither& dither) const {
        asm("" : "+v"(x));  // multiplied and added in one step in one place only, equal rows would be rounded differently
        if (stochastic) x = min(broadcast(127.0f), x + dither.next());
        return bit_cast<IntVec>(x + to.rounding);
    }

    // Seeded by the scales, so that an element is not rounded the same way in every batch.
    static Dither make_dither(int64_t panel, FloatVec scales) {
        UIntVec seed = bit_cast<UIntVec>(scales) + uint32_t(panel + 1) * 0x9e3779b9u;
        for (int lane = 0; lane < LANES; lane++) seed[lane] = (seed[lane] + lane) * 0x85ebca6bu | 1;
        return Dither(seed);
    }

    void store_scales(int64_t panel, FloatVec scales) const {
        store(to.scales + panel * LANES, scales);
        if (!to.offsets) return;
        IntVec sums{};
        for (int64_t k = 0; k < to.depth; k += QUAD)
            sums = dot_quads(sums, IntVec{} + 0x01010101, load_as<IntVec>(to.panel(panel) + k * LANES));
        sums *= -128;
        memcpy(to.offsets + panel * LANES, &sums, sizeof sums);
    }
};

inline void quantize_rows(Threads& threads, const MatmulOperand& from, int64_t rows, int64_t depth, bool stochastic,
                   float* row_sums, const QuantizedMatrix& to) {
    auto run = [&](auto quantizer) {
        if (from.transposed)
            threads.parallel_for((to.panels + PANEL_GROUP - 1) / PANEL_GROUP,
                                 [&](int64_t item) { quantizer.quantize_transposed_panels(item * PANEL_GROUP); });
        else
            threads.parallel_for(to.panels, [&](int64_t panel) { quantizer.quantize_panel(panel); });
    };
    if (from.dtype == BFLOAT16)
        run(Quantizer<BFloat16>(from, rows, depth, stochastic, row_sums, to));
    else
        run(Quantizer<float>(from, rows, depth, stochastic, row_sums, to));
}
#endif
