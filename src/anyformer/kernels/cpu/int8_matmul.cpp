// Matrix products by way of 8-bit integers: each row of both operands is scaled to [-127, 127] and rounded.
//
// Quantized blocks stay in a core's cache until they are multiplied, and int32 sums in registers until they are scaled
// back: as passes of their own, quantizing and scaling cost half as much as the product
// (docs/measurements/training.md). AMX multiplies signed integers in tiles, VNNI signed by unsigned ones in rows.
#include "quantized_rows.h"

namespace {

#if defined(__AVX512VNNI__)
constexpr int64_t ROWS = 8;                   // multiplied at a time: as many as there are registers for accumulators
constexpr int64_t CACHE_BYTES = 1 << 18;      // of the left matrix, which stay in a core's cache
constexpr int64_t AMX_CACHE_BYTES = 1 << 20;  // of the right matrix; processors with AMX have a larger cache
constexpr int64_t DEPTH_BLOCK = 1 << 12;      // multiplied at a time, so that both operands are read in small parts

class Int8Matmul {
   public:
    Int8Matmul(const Int8MatmulArgs& p, char* workspace)
        : p(p),
          left(p.rows, p.depth, true, workspace),
          right(p.columns, p.depth, false, workspace),
          partial_sums(reinterpret_cast<IntVec*>(workspace)),
          end(workspace +
              (left.depth > DEPTH_BLOCK ? left.panels * right.panels * LANES * int64_t(sizeof(IntVec)) : 0)) {}

    static int64_t workspace_size(const Int8MatmulArgs& p) {
        return Int8Matmul(p, nullptr).end - static_cast<char*>(nullptr);
    }

    void run(Threads& threads) const {
        quantize_rows(threads, p.left, p.rows, p.depth, p.stochastic_rounding, p.row_sums, left);
        quantize_rows(threads, p.right, p.columns, p.depth, false, nullptr, right);
        for (int64_t begin = 0; begin < left.depth; begin += DEPTH_BLOCK) {
            const int64_t end = min(begin + DEPTH_BLOCK, left.depth), panel_pairs = right.panels / PANELS;
            if (HAS_AMX) {
                multiply_all_tiles(threads, begin, end);
                continue;
            }
            const int64_t row_block = round_up(min(CACHE_BYTES / (end - begin), p.rows), ROWS);
            threads.parallel_for((p.rows + row_block - 1) / row_block * panel_pairs, [&](int64_t item) {
                const int64_t first = item / panel_pairs * row_block, panel = item % panel_pairs * PANELS;
                for (int64_t row = first; row < min(first + row_block, p.rows); row += ROWS)
                    multiply(row, panel, begin, end);
            });
        }
    }

   private:
    const Int8MatmulArgs& p;
    const QuantizedMatrix left, right;
    IntVec* const partial_sums;  // [rows, panels]; only of matrices deeper than DEPTH_BLOCK
    char* const end;

#if defined(USE_AMX)
    // Blocks of the right matrix stay in a core's cache, and the output is written along its rows: AMX is so fast that
    // misses of the translation buffer, one a row, would take twice as long as the products.
    void multiply_all_tiles(Threads& threads, int64_t begin, int64_t end) const {
        const int64_t row_pairs = left.panels / PANELS;
        const int64_t panels = min(round_up(AMX_CACHE_BYTES / (end - begin) / LANES, PANELS), right.panels);
        threads.parallel_for((right.panels + panels - 1) / panels * row_pairs, [&](int64_t item) {
            const int64_t first = item / row_pairs * panels, row = item % row_pairs * PANELS * LANES;
            for (int64_t panel = first; panel < min(first + panels, right.panels); panel += PANELS)
                multiply_tiles(row, panel, begin, end);
            _mm_sfence();  // what is stored past the caches is seen after this only
        });
    }

    // Two panels by two.
    void multiply_tiles(int64_t row, int64_t panel, int64_t begin, int64_t end) const {
        alignas(64) int32_t product[LANES * PANELS][LANES * PANELS];
        const int64_t stride = right.panels * LANES;
        const bool is_last = end == left.depth;
        int32_t* partial = reinterpret_cast<int32_t*>(partial_sums) + row * stride + panel * LANES;
        if (is_last && begin) copy_sums(partial, stride, product);
        amx_matmul(left.panel(row / LANES) + begin * LANES, left.depth * LANES, right.panel(panel) + begin * LANES,
                   right.depth * LANES, end - begin, begin > 0, is_last ? product[0] : partial,
                   is_last ? LANES * PANELS : stride);
        if (!is_last) return;
        const int64_t rows = min(LANES * PANELS, p.rows - row), column = panel * LANES;
        if (column + PANELS * LANES <= p.columns)
            p.dtype == BFLOAT16 ? store_block<BFloat16>(row, rows, column, product)
                                : store_block<float>(row, rows, column, product);
        else
            for (int64_t r = 0; r < rows; r++)
                for (int64_t t = 0; t < PANELS; t++)
                    store_output(row + r, column + t * LANES, load_as<IntVec>(product[r] + t * LANES));
    }

    // Outputs of complete panels.
    template <class T>
    void store_block(int64_t row, int64_t rows, int64_t column, const int32_t (*sums)[LANES * PANELS]) const {
        FloatVec scales[PANELS], bias[PANELS];
        for (int t = 0; t < PANELS; t++) {
            scales[t] = load(right.scales + column + t * LANES);
            bias[t] = p.bias ? load(p.bias + column + t * LANES) : FloatVec{};
        }
        T* to = static_cast<T*>(p.out) + row * p.columns + column;
        for (int64_t r = 0; r < rows; r++, to += p.columns) {
            FloatVec y[PANELS];
            UNROLL
            for (int t = 0; t < PANELS; t++) {
                FloatVec sum = convert<FloatVec>(load_as<IntVec>(sums[r] + t * LANES));
                y[t] = sum * (scales[t] * left.scales[row + r]) + bias[t];
                if (p.accumulate) y[t] += load(to + t * LANES);
            }
            store_past_caches(to, y[0], y[1]);
        }
    }

    static void copy_sums(const int32_t* from, int64_t stride, int32_t (*to)[LANES * PANELS]) {
        for (int64_t r = 0; r < LANES * PANELS; r++) memcpy(to[r], from + r * stride, sizeof to[r]);
    }
#else
    void multiply_all_tiles(Threads&, int64_t, int64_t) const {}
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

EXPORTED int64_t workspace_size(const Int8MatmulArgs* sums) {
#if defined(__AVX512VNNI__)
    return Int8Matmul::workspace_size(*sums);
#else
    return 0;
#endif
}

EXPORTED void run(const Int8MatmulArgs* sums, void* workspace) {
#if defined(__AVX512VNNI__)
    parallel(sums->num_threads, [&](Threads threads) {
        AmxTiles registers(true);
        Int8Matmul(*sums, static_cast<char*>(workspace)).run(threads);
    });
#endif
}
}
