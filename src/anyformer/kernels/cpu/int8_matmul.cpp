// Matrix products by way of 8-bit integers: each row of both operands is scaled to [-127, 127] and rounded.
//
// Quantized blocks stay in a core's cache until they are multiplied, and int32 sums in registers until they are scaled
// back: as passes of their own, quantizing and scaling cost half as much as the product
// (docs/measurements/training.md). AMX multiplies signed integers in tiles, VNNI signed by unsigned ones in rows.
#include "quantized_rows.h"

namespace {

#if defined(__AVX512VNNI__)
constexpr int64_t ROWS = 8;               // multiplied at a time: as many as there are registers for accumulators
constexpr int64_t CACHE_BYTES = 1 << 18;  // of the left matrix, which stay in a core's cache
constexpr int64_t DEPTH_BLOCK = 1 << 12;  // multiplied at a time, so that both operands are read in small parts

class Int8Matmul {
   public:
    Int8Matmul(const MatmulArgs& p, char* workspace)
        : p(p),
          left(p.rows, p.depth, true, workspace),
          right(p.columns, p.depth, false, workspace),
          partial_sums(reinterpret_cast<IntVec*>(workspace)),
          end(workspace +
              (left.depth > DEPTH_BLOCK ? left.panels * right.panels * LANES * int64_t(sizeof(IntVec)) : 0)) {}

    static int64_t workspace_size(const MatmulArgs& p) {
        return Int8Matmul(p, nullptr).end - static_cast<char*>(nullptr);
    }

    void run(Threads& threads) const {
        quantize_rows(threads, p.left, p.rows, p.depth, p.stochastic_rounding, p.row_sums, left);
        quantize_rows(threads, p.right, p.columns, p.depth, false, nullptr, right);
        if (HAS_AMX) return multiply_tiles(threads);
        for (int64_t begin = 0; begin < left.depth; begin += DEPTH_BLOCK) {
            const int64_t end = min(begin + DEPTH_BLOCK, left.depth), panel_pairs = right.panels / PANELS;
            const int64_t row_block = round_up(min(CACHE_BYTES / (end - begin), p.rows), ROWS);
            threads.parallel_for((p.rows + row_block - 1) / row_block * panel_pairs, [&](int64_t item) {
                const int64_t first = item / panel_pairs * row_block, panel = item % panel_pairs * PANELS;
                for (int64_t row = first; row < min(first + row_block, p.rows); row += ROWS)
                    multiply(row, panel, begin, end);
            });
        }
    }

   private:
    const MatmulArgs& p;
    const QuantizedMatrix left, right;
    IntVec* const partial_sums;  // [rows, panels]; only of matrices deeper than DEPTH_BLOCK
    char* const end;

#if defined(USE_AMX)
    void multiply_tiles(Threads& threads) const {
        ::multiply_tiles<int8_t>(threads, left.tiles(), right.tiles(), partial_sums,
                                 [&](int64_t row, int64_t column, const TileSums& sums) {
            const int64_t rows = min(TILES, p.rows - row);
            if (column + TILES <= p.columns)
                return p.dtype == BFLOAT16 ? store_tiles<BFloat16>(row, rows, column, sums)
                                           : store_tiles<float>(row, rows, column, sums);
            for (int64_t r = 0; r < rows; r++)
                for (int64_t c = 0; c < TILES; c += LANES)
                    store_output(row + r, column + c, load_as<IntVec>(sums[r] + c));
        });
    }

    template <class T>
    void store_tiles(int64_t row, int64_t rows, int64_t column, const TileSums& sums) const {
        const FloatVec scales[] = {load(right.scales + column), load(right.scales + column + LANES)};
        const FloatVec bias[] = {p.bias ? load(p.bias + column) : FloatVec{},
                                 p.bias ? load(p.bias + column + LANES) : FloatVec{}};
        T* to = static_cast<T*>(p.out) + row * p.columns + column;
        for (int64_t r = 0; r < rows; r++, to += p.columns) {
            FloatVec y[2];
            UNROLL
            for (int t = 0; t < 2; t++) {
                FloatVec sum = convert<FloatVec>(load_as<IntVec>(sums[r] + t * LANES));
                y[t] = sum * (scales[t] * left.scales[row + r]) + bias[t];
                if (p.accumulate) y[t] += load(to + t * LANES);
            }
            store_past_caches(to, y[0], y[1]);
        }
    }
#else
    void multiply_tiles(Threads&) const {}
#endif

    void multiply(int64_t row, int64_t panel, int64_t begin, int64_t end) const {
        const int8_t* x = left.panel(row / LANES) + row % LANES * QUAD;
        const int8_t *first_panel = right.panel(panel), *second_panel = right.panel(panel + 1);
        IntVec* partial = partial_sums + row * right.panels + panel;
        IntVec sums[ROWS][PANELS];
        UNROLL
        for (int r = 0; r < ROWS; r++) {
            UNROLL
            for (int t = 0; t < PANELS; t++)
                sums[r][t] = begin ? partial[r * right.panels + t] : IntVec{} + left.offsets[row + r];
        }
        for (int64_t k = begin; k < end; k += QUAD) {
            const auto first = load_as<IntVec>(first_panel + k * LANES),
                       second = load_as<IntVec>(second_panel + k * LANES);
            UNROLL
            for (int r = 0; r < ROWS; r++) {
                const IntVec x_quad = broadcast_quad(x + k * LANES + r * QUAD);
                sums[r][0] = dot_quads(sums[r][0], first, x_quad);
                sums[r][1] = dot_quads(sums[r][1], second, x_quad);
            }
        }
        UNROLL
        for (int r = 0; r < ROWS; r++) {
            UNROLL
            for (int t = 0; t < PANELS; t++)
                if (end < left.depth)
                    partial[r * right.panels + t] = sums[r][t];
                else if (row + r < p.rows)
                    store_output(row + r, (panel + t) * LANES, sums[r][t]);
        }
    }

    void store_output(int64_t row, int64_t output, IntVec sum) const {
        const int64_t count = min(LANES, p.columns - output);
        if (count <= 0) return;
        FloatVec y = convert<FloatVec>(sum) * (load(right.scales + output) * left.scales[row]);
        if (p.bias) y += count < LANES ? load(p.bias + output, count) : load(p.bias + output);
        auto write = [&](auto* to) {
            to += row * p.columns + output;
            if (p.accumulate) y += count < LANES ? load(to, count) : load(to);
            count < LANES ? store(to, y, count) : store(to, y);
        };
        if (p.dtype == BFLOAT16)
            write(static_cast<BFloat16*>(p.out));
        else
            write(static_cast<float*>(p.out));
    }
};
#endif

}  // namespace

extern "C" {

// Without AVX-512-VNNI `run` does nothing.
EXPORTED int64_t supported() { return HAS_VNNI; }

EXPORTED int64_t workspace_size(const MatmulArgs* sums) {
#if defined(__AVX512VNNI__)
    return Int8Matmul::workspace_size(*sums);
#else
    return 0;
#endif
}

EXPORTED void run(const MatmulArgs* sums, void* workspace) {
#if defined(__AVX512VNNI__)
    parallel(sums->num_threads, [&](Threads threads) {
        AmxTiles registers(true);
        Int8Matmul(*sums, static_cast<char*>(workspace)).run(threads);
    });
#endif
}
}
