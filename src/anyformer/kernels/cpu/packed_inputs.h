// Vectors that are to be multiplied by matrices, in each of the formats that these want.
//
// The inputs of products of integers are rounded to 8 bits, with a scale for each 32 of them, as llama.cpp's are (Q8): with
// 64 perplexity rose by 0.7% (docs/what-did-not-help.md).
#pragma once
#include "structs.h"
#include "simd.h"
#include "amx.h"

constexpr int GROUP = 32;
constexpr int QUADS = GROUP / 4;

inline int64_t padded(int64_t width) { return (width + 63) / 64 * 64; }
inline int64_t tiles_of(const Matrix& matrix) { return (matrix.out_features + LANES - 1) / LANES; }

// Which outputs a tile has, and what is added to them.
struct Part {
    int64_t first, count;
    Floats bias{};

    Part(const Matrix& matrix, int64_t tile) : first(tile * LANES), count(matrix.out_features - first) {
        count = count < LANES ? count : LANES;
        if (matrix.bias) bias = count < LANES ? load(matrix.bias + first, count) : load(matrix.bias + first);
    }
};

inline bool integers(Dtype dtype) { return dtype >= INT8; }

// Rows that are multiplied at a time: as many sums as there are registers for.
constexpr int BLOCK = 8;

// Rows from which weights are worth unpacking for wide.h, and what is multiplied at a time there.
constexpr int64_t MANY = 32, PANELS = 2;
inline bool wide(int64_t rows) { return HAS_TILES && rows >= MANY; }

// Without it, as many rows are worth unpacking 4 bits to bytes where an instruction sums four products of them.
#if defined(__AVX512VNNI__)
constexpr bool HAS_QUADS = true;
#else
constexpr bool HAS_QUADS = false;
#endif
inline bool bytewise(int64_t rows) { return HAS_QUADS && rows >= MANY && !wide(rows); }

// Vectors that are to be multiplied, in each of the formats that matrices want. What integers want of a block of rows
// lies together: of each group the bytes of all rows, [block, group, row, byte], and likewise the numbers.
struct Inputs {
    int64_t width;  // of a row in memory: padded with zeros
    float* values;
    BFloat16* halves;
    int8_t* bytes;
    float *scales, *sums;  // of each group: its scale, and scale times the sum of its bytes
    int32_t* offsets;      // of each group: -128 times that sum, for weights of 8 bits are 128 too large
    BFloat16* panels;      // a thread's own room for weights; null: there are too few rows for wide.h
    uint8_t* codes;        // the same for bytes

    static int64_t blocks(int64_t rows) { return (rows + BLOCK - 1) / BLOCK; }

    // Rows that there is room for: whole registers of wide.h may be read.
    static int64_t room(int64_t rows) { return wide(rows) ? (rows + MANY - 1) / MANY * MANY : blocks(rows) * BLOCK; }

    static int64_t size(int64_t rows, int64_t inputs) {
        return room(rows) * padded(inputs) * 8;  // 4 + 2 + 1 bytes, and three numbers for 32
    }

    // What a thread wants besides.
    static int64_t own_size(int64_t rows, int64_t inputs) {
        int64_t tile = LANES * padded(inputs);
        return wide(rows) ? PANELS * tile * int64_t(sizeof(BFloat16)) : bytewise(rows) ? tile : 0;
    }

    Inputs() = default;

    Inputs(void* memory, void* own, int64_t rows, int64_t inputs) : width(padded(inputs)) {
        int64_t all = room(rows) * width;
        panels = wide(rows) ? static_cast<BFloat16*>(own) : nullptr;
        codes = bytewise(rows) ? static_cast<uint8_t*>(own) : nullptr;
        values = static_cast<float*>(memory);
        halves = reinterpret_cast<BFloat16*>(values + all);
        bytes = reinterpret_cast<int8_t*>(halves + all);
        scales = reinterpret_cast<float*>(bytes + all);
        sums = scales + all / GROUP;
        offsets = reinterpret_cast<int32_t*>(sums + all / GROUP);
    }

    // Where a group of a row is, and its first byte, GROUP times as far.
    int64_t place(int64_t row, int64_t group) const {
        return (row / BLOCK * (width / GROUP) + group) * BLOCK + row % BLOCK;
    }

    bool as_halves(Dtype dtype) const { return (HAS_PAIRS && dtype == BFLOAT16) || (panels && integers(dtype)); }
    bool as_bytes(Dtype dtype) const { return !panels && integers(dtype); }
    bool as_values(Dtype dtype) const { return !as_halves(dtype) && !as_bytes(dtype); }

    // What matrices of bfloat16 numbers want of a row, a multiple of sixteen numbers. For wide.h, what a register holds
    // lies together: [rows / 16, width / 32, 16, 32].
    void to_halves(int64_t row, const float* from, int64_t count) {
        for (int64_t i = 0; i < count; i += LANES) {
            int64_t place = row * width + i;
            store(halves + place, load(from + i));
        }
    }

    // What matrices of integers want.
    void to_bytes(int64_t row, const float* from, int64_t groups) {
        for (int64_t group = 0; group < groups; group++) {
            Floats first = load(from + group * GROUP), second = load(from + group * GROUP + LANES);
            float most = largest_size(first, second);
            float scale = most / 127.0f, inverse = most > 0 ? 127.0f / most : 0.0f;
            // Adding 1.5 * 2^23 rounds to whole numbers; they then are the lowest bits.
            Integers one = bits_of<Integers>(first * inverse + 12582912.0f) - 0x4b400000;
            Integers two = bits_of<Integers>(second * inverse + 12582912.0f) - 0x4b400000;
            int64_t which = place(row, group);
            store(bytes + which * GROUP, one);
            store(bytes + which * GROUP + LANES, two);
            int32_t total = sum(one + two);
            scales[which] = scale, sums[which] = scale * total, offsets[which] = -128 * total;
        }
    }
};
