// The inputs of matrix products, in the dtypes that the matrices need.
//
// For integer weights inputs are quantized to 8 bits with a scale for each group of 32, like llama.cpp's Q8_0: with
// groups of 64 perplexity rose by 0.7% (docs/what-did-not-help.md).
#pragma once
#include "structs.h"
#include "simd.h"
#include "amx.h"

constexpr int GROUP = 32;
constexpr int QUADS = GROUP / 4;

inline int64_t padded(int64_t width) { return (width + 63) / 64 * 64; }
inline int64_t num_panels(const Matrix& matrix) { return (matrix.out_features + LANES - 1) / LANES; }

// The output features of a panel (16 rows of a matrix), and their bias.
struct OutputPanel {
    int64_t first, count;
    FloatVec bias{};

    OutputPanel() = default;
    OutputPanel(const Matrix& matrix, int64_t panel) : first(panel * LANES), count(matrix.out_features - first) {
        count = count < LANES ? count : LANES;
        if (matrix.bias) bias = count < LANES ? load(matrix.bias + first, count) : load(matrix.bias + first);
    }
};

inline bool is_integer(Dtype dtype) { return dtype >= INT8; }

// Input rows that are multiplied at a time: as many as there are registers for accumulators.
constexpr int ROW_BLOCK = 8;

// AMX multiplies AMX_ROWS input rows by AMX_PANELS panels of one of AMX_MATRICES matrices at a time. From AMX_ROWS rows on it is worth unpacking
// weights to bfloat16.
constexpr int64_t AMX_ROWS = 32, AMX_PANELS = 2, AMX_MATRICES = 2;
inline bool uses_amx(int64_t rows) { return HAS_AMX && rows >= AMX_ROWS; }

// Fewer rows are multiplied by AMX without the scales of 4-bit weights (code_tiles.h), but not so few as the VNNI
// registers take, which speculative decoding verifies like single ones.
inline bool uses_code_tiles(int64_t rows) { return HAS_AMX && rows > ROW_BLOCK && rows < AMX_ROWS; }
inline bool uses_tiles(int64_t rows) { return uses_amx(rows) || uses_code_tiles(rows); }

// Without AMX but with VNNI, from as many rows on it is worth unpacking 4-bit weights to 8 bits.
#if defined(__AVX512VNNI__)
constexpr bool HAS_VNNI = true;
#else
constexpr bool HAS_VNNI = false;
#endif
inline bool uses_unpacked_int8(int64_t rows) { return HAS_VNNI && rows >= AMX_ROWS && !uses_amx(rows); }

// The rows of a matrix in several dtypes. Quantized rows are interleaved by blocks of ROW_BLOCK: int8 is
// [block, group, row in block, GROUP], and scales, sums and offsets are [block, group, row in block].
struct Inputs {
    int64_t width;  // in_features, padded with zeros
    float* float32;
    BFloat16* bfloat16;
    BFloat16* tiles;  // for AMX: bfloat16 [row / 16, i / 32, 16, 32]
    int8_t* int8;
    float *scales, *sums;  // of each group: its scale, and its scale times the sum of its integers
    int32_t* offsets;  // of each group: -128 times the sum of its integers, for int8 weights are stored with 128 added
    bool has_code_tiles;   // tiles are for 4-bit weights only, in the order of code_tiles.h
    BFloat16* unpacked_bf16;  // a thread's panels for AMX; null: AMX does not multiply bfloat16
    uint8_t* unpacked_int8;   // a thread's panel of 4-bit weights unpacked to 8 bits; null: not used

    static int64_t num_blocks(int64_t rows) { return (rows + ROW_BLOCK - 1) / ROW_BLOCK; }

    // AMX reads whole tiles.
    static int64_t padded_rows(int64_t rows) {
        return round_up(rows, uses_amx(rows) ? AMX_ROWS : uses_code_tiles(rows) ? LANES : ROW_BLOCK);
    }

    static int64_t workspace_size(int64_t rows, int64_t in_features) {
        return workspace_size_of_integers(rows, in_features) + padded_rows(rows) * padded(in_features) * (4 + 2);
    }

    // Where no matrix is of floating point.
    static int64_t workspace_size_of_integers(int64_t rows, int64_t in_features) {
        int64_t all = padded_rows(rows) * padded(in_features);
        return all + 3 * 4 * all / GROUP + (uses_tiles(rows) ? 2 * all : 0);
    }

    // Of each thread.
    static int64_t thread_workspace_size(int64_t rows, int64_t in_features) {
        int64_t panel_size = LANES * padded(in_features);
        return uses_amx(rows)             ? AMX_MATRICES * AMX_PANELS * panel_size * int64_t(sizeof(BFloat16))
               : uses_unpacked_int8(rows) ? panel_size
                                          : 0;
    }

    Inputs() = default;

    Inputs(void* memory, void* thread_memory, int64_t rows, int64_t in_features) : width(padded(in_features)) {
        int64_t all = padded_rows(rows) * width;
        has_code_tiles = uses_code_tiles(rows);
        unpacked_bf16 = uses_amx(rows) ? static_cast<BFloat16*>(thread_memory) : nullptr;
        unpacked_int8 = uses_unpacked_int8(rows) ? static_cast<uint8_t*>(thread_memory) : nullptr;
        int8 = static_cast<int8_t*>(memory);
        scales = reinterpret_cast<float*>(int8 + all);
        sums = scales + all / GROUP;
        offsets = reinterpret_cast<int32_t*>(sums + all / GROUP);
        tiles = reinterpret_cast<BFloat16*>(offsets + all / GROUP);
        bfloat16 = uses_tiles(rows) ? tiles + all : tiles;
        float32 = reinterpret_cast<float*>(bfloat16 + all);
    }

    // The index of a row's group in scales, sums and offsets, and divided by GROUP in int8.
    int64_t group_index(int64_t row, int64_t group) const {
        return (row / ROW_BLOCK * (width / GROUP) + group) * ROW_BLOCK + row % ROW_BLOCK;
    }

    // The index of an element in tiles of 16 rows of 64 bytes, [row / 16, i / 32, 16, 32].
    int64_t tile_index(int64_t row, int64_t i) const {
        return (row / LANES * width + i / TILE_DEPTH * TILE_DEPTH) * LANES + row % LANES * TILE_DEPTH + i % TILE_DEPTH;
    }

    // The index of the sum of a row's group for 4-bit weights and tiles.
    int64_t sum_index(int64_t row, int64_t group) const {
        return (row / LANES * (width / GROUP) + group) * LANES + row % LANES;
    }

    bool needs_tiles(Dtype dtype) const {
        return has_code_tiles ? dtype > INT8 : unpacked_bf16 && dtype != FLOAT32;
    }
    bool needs_bf16(Dtype dtype) const { return HAS_BF16_DOT && dtype == BFLOAT16 && !needs_tiles(dtype); }
    bool needs_int8(Dtype dtype) const { return is_integer(dtype) && !needs_tiles(dtype); }
    bool needs_float32(Dtype dtype) const {
        return !needs_tiles(dtype) && !needs_bf16(dtype) && !needs_int8(dtype);
    }

    // Convert a row to bfloat16; count is a multiple of LANES.
    void to_bf16(int64_t row, const float* from, int64_t count) {
        for (int64_t i = 0; i < count; i += LANES) store(bfloat16 + row * width + i, load(from + i));
    }

    // Convert a row to tiles; count is a multiple of TILE_DEPTH. With minima the sums of groups are needed, too.
    void to_tiles([[maybe_unused]] int64_t row, [[maybe_unused]] const float* from, [[maybe_unused]] int64_t count,
                  [[maybe_unused]] bool with_minima) {
#if defined(USE_AMX)
        for (int64_t i = 0; i < count; i += TILE_DEPTH) {
            __m512 low = bit_cast<__m512>(load(from + i)), high = bit_cast<__m512>(load(from + i + LANES));
            __m512bh elements = _mm512_cvtne2ps_pbh(high, low);
            auto integers = bit_cast<__m512i>(elements);
            if (has_code_tiles) {
                // The second and third of four elements are swapped: two bytes of weights hold neighbors, and the same
                // half of both bytes is looked up at once.
                integers = _mm512_shufflehi_epi16(_mm512_shufflelo_epi16(integers, 0xd8), 0xd8);
            }
            if (has_code_tiles && with_minima) {
                const __m512bh ones = bit_cast<__m512bh>(_mm512_set1_epi16(0x3f80));
                sums[sum_index(row, i / GROUP)] =
                    reduce_add(bit_cast<FloatVec>(_mm512_dpbf16_ps(_mm512_setzero_ps(), elements, ones)));
            }
            _mm512_storeu_si512(tiles + tile_index(row, i), integers);
        }
#endif
    }

    // Quantize a row to int8.
    void quantize(int64_t row, const float* from, int64_t groups) {
        for (int64_t group = 0; group < groups; group++) {
            FloatVec first = load(from + group * GROUP), second = load(from + group * GROUP + LANES);
            float maximum = max_abs(first, second);
            float scale = maximum / 127.0f, inverse = maximum > 0 ? 127.0f / maximum : 0.0f;
            // Adding 1.5 * 2^23 rounds to integers, in the lowest bits.
            IntVec low = bit_cast<IntVec>(first * inverse + 12582912.0f) - 0x4b400000;
            IntVec high = bit_cast<IntVec>(second * inverse + 12582912.0f) - 0x4b400000;
            int64_t index = group_index(row, group);
            store(int8 + index * GROUP, low);
            store(int8 + index * GROUP + LANES, high);
            int32_t total = reduce_add(low + high);
            scales[index] = scale, sums[index] = scale * total, offsets[index] = -128 * total;
        }
    }
};
