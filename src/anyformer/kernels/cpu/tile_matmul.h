// Matrix products of packed operands, by AMX, at the speed of the second-level cache.
//
// Blocks of the right operand stay in a core's cache, and the output is written along its rows, past the caches: AMX is
// so fast that misses of the translation buffer and reads of what is overwritten would take longer than the products.
#pragma once
#include "amx.h"
#include "threads.h"

#if defined(USE_AMX)
constexpr int64_t TILES = 2 * LANES;           // rows and columns of the four tiles of sums that are computed at a time
constexpr int64_t RIGHT_BLOCK_BYTES = 1 << 20; // of the right operand, multiplied at a time
constexpr int64_t ROW_BLOCK_BYTES = 1 << 13;   // of both operands' rows, multiplied at a time
typedef int32_t TileSums[TILES][TILES];        // or as many floats

// Panels of 16 rows, of 64 bytes each at a time: [panel, row_bytes / 64, 16, 64]; of the right operand transposed in
// units of 4 bytes, [panel, row_bytes / 64, 16, 16, 4]. Their number is even.
struct TilePanels {
    int64_t count, row_bytes;
    const char* data;

    const char* panel(int64_t index) const { return data + index * LANES * row_bytes; }
};

template <class T>
inline void multiply_add_tiles() {
    constexpr bool IS_INT8 = sizeof(T) == 1;
    if constexpr (IS_INT8) {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    } else {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
}

// out [32, 32] = or += two panels of the left operand times two of the right one, `row_bytes` of their rows from `begin`
// on. The stride is in elements. Calls `meanwhile(i)` after every 64 bytes of the rows: AMX leaves most of a core's other
// units idle.
template <class T, class Meanwhile>
inline void multiply_panels(const TilePanels& left, int64_t row_panel, const TilePanels& right, int64_t column_panel,
                            int64_t begin, int64_t row_bytes, int32_t* out, int64_t out_stride,
                            const Meanwhile& meanwhile) {
    const char *rows = left.panel(row_panel) + begin * LANES, *below = rows + left.row_bytes * LANES;
    const char *columns = right.panel(column_panel) + begin * LANES, *beside = columns + right.row_bytes * LANES;
    int32_t* out_below = out + LANES * out_stride;
    out_stride *= sizeof(int32_t);
    asm volatile("" ::: "memory");  // GCC's tile loads do not declare that they read memory
    if (begin) {
        _tile_loadd(0, out, out_stride);
        _tile_loadd(1, out + LANES, out_stride);
        _tile_loadd(2, out_below, out_stride);
        _tile_loadd(3, out_below + LANES, out_stride);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t step = 0; step < row_bytes / 64; step++) {
        const int64_t i = step * 64 * LANES;
        _tile_loadd(4, rows + i, 64);
        _tile_loadd(6, columns + i, 64);
        _tile_loadd(7, beside + i, 64);
        _tile_loadd(5, below + i, 64);
        multiply_add_tiles<T>();
        meanwhile(step);
    }
    _tile_stored(0, out, out_stride);
    _tile_stored(1, out + LANES, out_stride);
    _tile_stored(2, out_below, out_stride);
    _tile_stored(3, out_below + LANES, out_stride);
}

// All sums of left [rows, depth] times right [columns, depth]^T, of `T` int8_t or BFloat16: `store(row, column, sums)`
// is called for each 32 x 32 of them. `partial` has room for all sums if rows are longer than ROW_BLOCK_BYTES.
template <class T, class Store>
inline void multiply_tiles(Threads& threads, const TilePanels& left, const TilePanels& right, void* partial,
                           const Store& store) {
    const int64_t row_blocks = left.count / 2, columns = right.count * LANES;
    for (int64_t begin = 0; begin < left.row_bytes; begin += ROW_BLOCK_BYTES) {
        const int64_t row_bytes = min(ROW_BLOCK_BYTES, left.row_bytes - begin);
        const bool is_last = begin + row_bytes == left.row_bytes;
        const int64_t block = min(round_up(RIGHT_BLOCK_BYTES / row_bytes, TILES), columns);
        threads.parallel_for((columns + block - 1) / block * row_blocks, [&](int64_t item) {
            const int64_t first = item / row_blocks * block, row = item % row_blocks * TILES;
            for (int64_t column = first; column < min(first + block, columns); column += TILES) {
                alignas(64) TileSums sums;
                int32_t* earlier = static_cast<int32_t*>(partial) + row * columns + column;
                for (int64_t r = 0; is_last && begin && r < TILES; r++)
                    memcpy(sums[r], earlier + r * columns, sizeof sums[r]);
                multiply_panels<T>(left, row / LANES, right, column / LANES, begin, row_bytes,
                                   is_last ? sums[0] : earlier, is_last ? TILES : columns, [](int64_t) {});
                if (is_last) store(row, column, sums);
            }
            _mm_sfence();  // what is stored past the caches is seen after this only
        });
    }
}
#endif
