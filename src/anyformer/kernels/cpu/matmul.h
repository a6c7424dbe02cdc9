// Matrix products y = x W^T + bias, a panel (16 output features) at a time.
#pragma once
#include "packed_inputs.h"
#include "int_matmul.h"
#include "code_tiles.h"
#include "threads.h"
#include "tile_matmul.h"

// Dot products of a row of floating-point weights with ROWS input rows, in independent chains so that no addition waits
// for the one before. Weights are read in order, as hardware prefetchers expect: several rows at once took up to twice
// as long.
template <int ROWS>
struct FloatDot {
    static constexpr int CHAINS = ROWS == 1 ? 4 : REGISTER_BYTES == 64 ? 2 : 4 / ROWS;
    FloatVec total[CHAINS][ROWS] = {};

    // Elements of a row of weights that a vector has.
    template <class T>
    static constexpr bool IS_PAIRS = HAS_BF16_DOT && sizeof(T) == 2;
    template <class T>
    static constexpr int64_t WIDTH = IS_PAIRS<T> ? 2 * LANES : LANES;

    template <class T>
    void add(const T* weight_row, int64_t i, const Inputs& x, int64_t row, int chain, int64_t count = WIDTH<T>) {
        const T* from = weight_row + i;
        if constexpr (IS_PAIRS<T>) {
            FloatVec w = count >= WIDTH<T> ? load_as<FloatVec>(from) : load_pairs(from, count);
            UNROLL
            for (int r = 0; r < ROWS; r++)
                total[chain][r] =
                    dot_pairs(total[chain][r], load_as<FloatVec>(x.bfloat16 + (row + r) * x.width + i), w);
        } else {
            FloatVec w = count >= WIDTH<T> ? load(from) : load(from, count);
            UNROLL
            for (int r = 0; r < ROWS; r++) total[chain][r] += w * load(x.float32 + (row + r) * x.width + i);
        }
    }

    template <class T>
    void run(const T* weight_row, int64_t inputs, const Inputs& x, int64_t row) {
        int64_t i = 0;
        for (; i + CHAINS * WIDTH<T> <= inputs; i += CHAINS * WIDTH<T>) {
            UNROLL
            for (int chain = 0; chain < CHAINS; chain++) add(weight_row, i + chain * WIDTH<T>, x, row, chain);
        }
        for (; i + WIDTH<T> <= inputs; i += WIDTH<T>) add(weight_row, i, x, row, 0);
        if (i < inputs) add(weight_row, i, x, row, 0, inputs - i);
    }

    float sum(int r) const {
        FloatVec all = total[0][r];
        UNROLL
        for (int chain = 1; chain < CHAINS; chain++) all += total[chain][r];
        return reduce_add(all);
    }
};

template <class T, int ROWS>
inline void float_panel(const Matrix& matrix, int64_t first, const Inputs& x, int64_t row, FloatVec* y) {
    auto weights = static_cast<const T*>(matrix.weights);
    float sums[ROWS][LANES];
    for (int o = 0; o < LANES; o++) {
        int64_t output = first + o < matrix.out_features ? first + o : matrix.out_features - 1;
        FloatDot<ROWS> dot;
        dot.run(weights + output * matrix.in_features, matrix.in_features, x, row);
        UNROLL
        for (int r = 0; r < ROWS; r++) sums[r][o] = dot.sum(r);
    }
    for (int r = 0; r < ROWS; r++) y[r] = load(sums[r]);
}

template <int ROWS>
inline void multiply_panel_rows(const Matrix& matrix, int64_t panel, const Inputs& x, int64_t row, FloatVec* y) {
    if (is_integer(matrix.dtype))
        with_constant(matrix.dtype,
                      [&](auto dtype) { int_panel<decltype(dtype)::value, ROWS>(matrix, panel, x, row, y); });
    else
        for (int r = 0; r < ROWS; r += ROWS < 4 ? ROWS : 4)
            if (matrix.dtype == FLOAT32)
                float_panel<float, (ROWS < 4 ? ROWS : 4)>(matrix, panel * LANES, x, row + r, y + r);
            else
                float_panel<BFloat16, (ROWS < 4 ? ROWS : 4)>(matrix, panel * LANES, x, row + r, y + r);
}

// A panel times up to ROW_BLOCK input rows.
inline void multiply_panel(const Matrix& matrix, int64_t panel, const Inputs& x, int64_t row, int64_t rows,
                           FloatVec* y) {
    if (rows == ROW_BLOCK) return multiply_panel_rows<ROW_BLOCK>(matrix, panel, x, row, y);
    if (rows & 4) multiply_panel_rows<4>(matrix, panel, x, row, y), row += 4, y += 4;
    if (rows & 2) multiply_panel_rows<2>(matrix, panel, x, row, y), row += 2, y += 2;
    if (rows & 1) multiply_panel_rows<1>(matrix, panel, x, row, y);
}

#if defined(USE_AMX)
// Unpack 16 rows of bfloat16 weights for AMX, padded with zeros.
inline void unpack_bf16(const Matrix& matrix, int64_t first, BFloat16* to) {
    auto weights = static_cast<const BFloat16*>(matrix.weights) + first * matrix.in_features;
    int64_t outputs = matrix.out_features - first;
    for (int64_t i = 0; i < matrix.in_features; i += TILE_DEPTH) {
        if (outputs >= LANES && matrix.in_features - i >= TILE_DEPTH) {
            transpose(weights + i, matrix.in_features, to + i * LANES, TILE_DEPTH);
            continue;
        }
        BFloat16 padded[LANES * TILE_DEPTH] = {};
        int64_t count = matrix.in_features - i < TILE_DEPTH ? matrix.in_features - i : TILE_DEPTH;
        for (int64_t output = 0; output < outputs && output < LANES; output++)
            memcpy(padded + output * TILE_DEPTH, weights + output * matrix.in_features + i, count * sizeof(BFloat16));
        transpose(padded, TILE_DEPTH, to + i * LANES, TILE_DEPTH);
    }
}

// Unpack a panel of integers to bfloat16, [in_features / 2, 16, 2], as tiles of columns.
template <Dtype DTYPE>
inline void unpack_integers(const Matrix& matrix, int64_t panel, BFloat16* to) {
    const PanelScales<DTYPE, FloatVec> scales(matrix, panel);
    const int64_t groups = matrix.in_features / GROUP, first = panel * groups;
    auto pairs = [&](int64_t group, int64_t input) { return to + (group * GROUP + input) * LANES; };
    for (int64_t group = 0; group < groups; group++) {
        FloatVec scale = scales.scale(group);
        FloatVec minimum = DTYPE == INT8 ? -128.0f * scale : scales.minimum(group, scale);
        auto dequantize = [&](IntVec codes) { return convert<FloatVec>(codes) * scale + minimum; };
        if (DTYPE == INT8) {
            auto bytes = static_cast<const uint8_t*>(matrix.weights) + (first + group) * 512;
            UNROLL
            for (int k = 0; k < QUADS; k++) {
                auto quads = load_as<UIntVec>(bytes + 64 * k);
                auto element = [&](int i) { return dequantize(bit_cast<IntVec>((quads >> (8 * i)) & 0xff)); };
                store_bf16_pairs(pairs(group, 4 * k), element(0), element(1));
                store_bf16_pairs(pairs(group, 4 * k + 2), element(2), element(3));
            }
        } else {
            auto bytes = static_cast<const uint8_t*>(matrix.weights) + (first + group) * 256;
            UNROLL
            for (int k = 0; k < QUADS / 2; k++) {
                auto quads = load_as<UIntVec>(bytes + 64 * k);
                auto element = [&](int i) { return dequantize(bit_cast<IntVec>((quads >> (4 * i)) & 0xf)); };
                store_bf16_pairs(pairs(group, 4 * k), element(0), element(2));
                store_bf16_pairs(pairs(group, 4 * k + 2), element(4), element(6));
                store_bf16_pairs(pairs(group, 16 + 4 * k), element(1), element(3));
                store_bf16_pairs(pairs(group, 18 + 4 * k), element(5), element(7));
            }
        }
    }
}

inline void unpack_to_bf16(const Matrix& matrix, int64_t panel, BFloat16* to) {
    if (matrix.dtype == BFLOAT16) return unpack_bf16(matrix, panel * LANES, to);
    with_constant(matrix.dtype,
                  [&](auto dtype) { unpack_integers<decltype(dtype)::value>(matrix, panel, to); });
}

// All rows times up to AMX_PANELS panels of each of some matrices of one shape: `write(row, first, y, count)` gets their
// outputs side by side. Those of a block of rows are written while the next one is multiplied.
template <int MATRICES, class Write>
inline void multiply_amx(const Matrix* const (&matrices)[MATRICES], int64_t panel, int64_t panels, const Inputs& x,
                         int64_t rows, const Write& write) {
    constexpr int64_t VECTORS = TILES * AMX_PANELS;
    const int64_t depth = round_up(matrices[0]->in_features, TILE_DEPTH), size = AMX_PANELS * LANES * depth;
    OutputPanel parts[MATRICES][AMX_PANELS];
    for (int m = 0; m < MATRICES; m++)
        for (int64_t i = 0; i < panels; i++) {
            unpack_to_bf16(*matrices[m], panel + i, x.unpacked_bf16 + m * size + i * depth * LANES);
            parts[m][i] = OutputPanel(*matrices[m], panel + i);
        }
    const TilePanels inputs{Inputs::padded_rows(rows) / LANES, x.width * 2, reinterpret_cast<const char*>(x.tiles)};
    alignas(64) TileSums sums[2][MATRICES];
    auto write_vectors = [&](int64_t row, int64_t begin, int64_t end) {
        for (int64_t v = begin; v < end; v++) {
            const int64_t r = v / AMX_PANELS, i = v % AMX_PANELS;
            if (row + r >= rows || i >= panels) continue;
            FloatVec y[MATRICES];
            UNROLL
            for (int m = 0; m < MATRICES; m++)
                y[m] = load_as<FloatVec>(sums[row / TILES % 2][m][r] + i * LANES) + parts[m][i].bias;
            write(row + r, parts[0][i].first, y, parts[0][i].count);
        }
    };
    const int64_t steps = depth / TILE_DEPTH, all_steps = steps * MATRICES;
    int64_t row = 0;
    for (; row < rows; row += TILES)
        for (int m = 0; m < MATRICES; m++) {
            const TilePanels weights{AMX_PANELS, depth * 2,
                                     reinterpret_cast<const char*>(x.unpacked_bf16 + m * size)};
            multiply_panels<BFloat16>(inputs, row / LANES, weights, 0, 0, depth * 2, sums[row / TILES % 2][m][0], TILES,
                                      [&](int64_t step) {
                                          step += m * steps;
                                          if (row) write_vectors(row - TILES, step * VECTORS / all_steps,
                                                                 (step + 1) * VECTORS / all_steps);
                                      });
        }
    write_vectors(row - TILES, 0, VECTORS);
}
#endif

// Multiply all rows by some panels. Calls `write(row, first, y, count)` with the outputs `first` to `first + count`.
template <class Write>
inline void multiply(const Matrix& matrix, int64_t panel, int64_t panels, const Inputs& x, int64_t rows,
                     const Write& write) {
#if defined(USE_AMX)
    if (x.unpacked_bf16 && x.needs_tiles(matrix.dtype)) {
        const Matrix* const matrices[] = {&matrix};
        for (int64_t i = 0; i < panels; i += AMX_PANELS)
            multiply_amx(matrices, panel + i, min(panels - i, AMX_PANELS), x, rows,
                         [&](int64_t row, int64_t first, const FloatVec* y, int64_t count) {
                             write(row, first, *y, count);
                         });
        return;
    }
    if (x.needs_tiles(matrix.dtype)) {
        for (int64_t i = 0; i < panels; i++) multiply_code_tiles(matrix, panel + i, x, rows, write);
        return;
    }
#endif
    for (int64_t end = panel + panels; panel < end; panel++) {
#if defined(__AVX512VNNI__)
        if (x.unpacked_int8 && matrix.dtype > INT8) {
            multiply_unpacked_int4(matrix, panel, x, rows, write);
            continue;
        }
#endif
        OutputPanel part(matrix, panel);
        for (int64_t row = 0; row < rows; row += ROW_BLOCK) {
            int64_t block_rows = rows - row < ROW_BLOCK ? rows - row : ROW_BLOCK;
            FloatVec y[ROW_BLOCK];
            multiply_panel(matrix, panel, x, row, block_rows, y);
            for (int64_t r = 0; r < block_rows; r++) write(row + r, part.first, y[r] + part.bias, part.count);
        }
    }
}

// Call `body(row)` for all rows. The rows of a block share cache lines of the inputs, so one thread prepares them.
template <class Body>
inline void parallel_row_blocks(Threads& threads, int64_t rows, const Body& body) {
    threads.parallel_for(Inputs::num_blocks(rows), [&](int64_t block) {
        for (int64_t row = block * ROW_BLOCK; row < rows && row < (block + 1) * ROW_BLOCK; row++) body(row);
    });
}

constexpr int64_t MAX_PANELS_PER_ITEM = 16;

// Panels that a thread takes at a time: neighbors, which are contiguous in memory, but few enough that all threads have
// work. With many rows a single panel takes long, and threads should not wait for the last one.
inline int64_t panels_per_item(int64_t panels, int64_t rows, int num_threads) {
    if (uses_unpacked_int8(rows) || uses_code_tiles(rows)) return 1;
    if (uses_amx(rows)) return AMX_PANELS;
    int64_t length = panels / (num_threads * 8);
    length = max(AMX_PANELS, min(length, MAX_PANELS_PER_ITEM));
    return length / AMX_PANELS * AMX_PANELS;
}

// Call `body(first, count)` for ranges of all panels.
template <class Body>
inline void parallel_panels(Threads& threads, int64_t panels, int64_t rows, const Body& body) {
    int64_t length = panels_per_item(panels, rows, threads.size);
    threads.parallel_for_neighbors((panels + length - 1) / length, [&](int64_t run) {
        int64_t first = run * length, count = panels - first;
        body(first, count < length ? count : length);
    });
}
