// Matrix products of packed 4-bit weights and 9 to 31 input rows, by AMX.
//
// A look-up turns the codes into bfloat16, in which they and their products are exact. A group of 32 fills one tile
// instruction; the scales are applied to its sums. So few rows would not pay for weights that are scaled.
#pragma once
#include "int_matmul.h"

#if defined(USE_AMX)
// The values of codes, for `_mm512_permutexvar_epi16`, which reads five bits: the fifth does not matter.
template <Dtype DTYPE>
inline __m512i code_values() {
    const FloatVec codes{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const auto values = bit_cast<__m512>(codes - (DTYPE == INT4_CENTERED ? 8.0f : 0.0f));
    return bit_cast<__m512i>(_mm512_cvtne2ps_pbh(values, values));
}

// Unpack a group of a panel to a tile of columns [pair, output, 2].
inline void unpack_codes(const uint8_t* weights, __m512i table, BFloat16* to) {
    constexpr int64_t PAIRS = 2 * LANES;
    UNROLL
    for (int k = 0; k < QUADS / 2; k++) {
        const __m512i codes = _mm512_loadu_si512(weights + 64 * k);
        auto look_up = [&](int64_t pair, __m512i codes) {
            _mm512_store_si512(to + pair * PAIRS, _mm512_permutexvar_epi16(codes, table));
        };
        look_up(2 * k, codes);
        look_up(2 * k + QUADS, _mm512_srli_epi16(codes, 4));
        look_up(2 * k + 1, _mm512_srli_epi16(codes, 8));
        look_up(2 * k + 1 + QUADS, _mm512_srli_epi16(codes, 12));
    }
}

// y [16 BLOCKS] = 16 BLOCKS rows times a panel.
template <Dtype DTYPE, int BLOCKS>
inline void multiply_codes(const Matrix& matrix, int64_t panel, const Inputs& x, FloatVec* y) {
    constexpr int64_t GROUP_BYTES = 256, AHEAD = 4096, TILE = GROUP * LANES;
    constexpr int64_t GROUPS = 6;  // at a time: tiles wait until what was stored before is in the cache
    const __m512i table = code_values<DTYPE>();
    const int64_t groups = matrix.in_features / GROUP;
    auto weights = static_cast<const uint8_t*>(matrix.weights) + panel * groups * GROUP_BYTES;
    const PanelScales<DTYPE, FloatVec> scales(matrix, panel);
    alignas(64) BFloat16 columns[GROUPS][TILE];
    alignas(64) float sums[BLOCKS][GROUPS][LANES][LANES];
    FloatVec total[BLOCKS][LANES] = {};
    for (int64_t first = 0; first < groups; first += GROUPS) {
        const int64_t count = min(GROUPS, groups - first);
        for (int64_t g = 0; g < count; g++) {
            const uint8_t* from = weights + (first + g) * GROUP_BYTES;
            UNROLL
            for (int64_t i = 0; i < GROUP_BYTES; i += 64) __builtin_prefetch(from + AHEAD + i);
            scales.prefetch(first + g + AHEAD / GROUP_BYTES);
            unpack_codes(from, table, columns[g]);
        }
        asm volatile("" ::: "memory");  // GCC's tile loads do not declare that they read memory
        for (int b = 0; b < BLOCKS; b++) {
            const BFloat16* rows = x.tiles + (b * x.width + first * GROUP) * LANES;
            // Two sums by turns: a product takes longer than the next one waits.
            for (int64_t g = 0; g < count; g += 2, rows += 2 * TILE) {
                const bool has_second = g + 1 < count;
                _tile_zero(0);
                _tile_loadd(4, rows, 64);
                _tile_loadd(6, columns[g], 64);
                _tile_dpbf16ps(0, 4, 6);
                if (has_second) {
                    _tile_zero(1);
                    _tile_loadd(5, rows + TILE, 64);
                    _tile_loadd(7, columns[g + 1], 64);
                    _tile_dpbf16ps(1, 5, 7);
                }
                _tile_stored(0, sums[b][g], 64);
                if (has_second) _tile_stored(1, sums[b][g + 1], 64);
            }
        }
        asm volatile("" ::: "memory");
        for (int b = 0; b < BLOCKS; b++) {
            FloatVec parts[LANES];
            memcpy(parts, total[b], sizeof parts);
            for (int64_t g = 0; g < count; g++) {
                const FloatVec scale = scales.scale(first + g), minimum = scales.minimum(first + g, scale);
                const float* input_sums = x.sums + x.sum_index(b * LANES, first + g);
                UNROLL
                for (int r = 0; r < LANES; r++) {
                    parts[r] += load(sums[b][g][r]) * scale;
                    if (DTYPE == INT4) parts[r] += minimum * input_sums[r];
                }
            }
            memcpy(total[b], parts, sizeof parts);
        }
    }
    memcpy(y, total, sizeof total);
}

// All rows times a panel.
template <class Write>
inline void multiply_code_tiles(const Matrix& matrix, int64_t panel, const Inputs& x, int64_t rows,
                                const Write& write) {
    FloatVec y[2 * LANES];
    with_constant(matrix.dtype, [&](auto dtype) {
        constexpr Dtype DTYPE = decltype(dtype)::value;
        if constexpr (DTYPE != INT8)
            rows > LANES ? multiply_codes<DTYPE, 2>(matrix, panel, x, y) : multiply_codes<DTYPE, 1>(matrix, panel, x, y);
    });
    OutputPanel part(matrix, panel);
    for (int64_t row = 0; row < rows; row++) write(row, part.first, y[row] + part.bias, part.count);
}
#endif
