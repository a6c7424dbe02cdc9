// Products of a matrix with a few vectors, sixteen outputs (a tile) at a time.
//
// Integers lie as tiling.py says. The inputs of their products are rounded to 8 bits, with a scale for each 32 of them,
// as llama.cpp's are (Q8): with 64 perplexity rose by 0.7% (docs/log.md).
#pragma once
#include "table.h"
#include "team.h"
#include "vectors.h"
#include "wide.h"

constexpr int GROUP = 32;
constexpr int QUADS = GROUP / 4;

inline int64_t padded(int64_t width) { return (width + 63) / 64 * 64; }
inline int64_t tiles_of(const Matrix& matrix) { return (matrix.outputs + LANES - 1) / LANES; }

// Which outputs a tile has, and what is added to them.
struct Part {
    int64_t first, count;
    Floats bias{};

    Part(const Matrix& matrix, int64_t tile) : first(tile * LANES), count(matrix.outputs - first) {
        count = count < LANES ? count : LANES;
        if (matrix.bias) bias = count < LANES ? load(matrix.bias + first, count) : load(matrix.bias + first);
    }
};

inline bool integers(Format format) { return format >= INT8; }

// Rows that are multiplied at a time: as many sums as there are registers for.
constexpr int BLOCK = 8;

// Rows from which weights are worth unpacking for wide.h, and what is multiplied at a time there.
constexpr int64_t MANY = 32, PANELS = 2;
inline bool wide(int64_t rows) { return HAS_TILES && rows >= MANY; }

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

    static int64_t blocks(int64_t rows) { return (rows + BLOCK - 1) / BLOCK; }

    // Rows that there is room for: whole registers of wide.h may be read.
    static int64_t room(int64_t rows) { return wide(rows) ? (rows + MANY - 1) / MANY * MANY : blocks(rows) * BLOCK; }

    static int64_t size(int64_t rows, int64_t inputs) {
        return room(rows) * padded(inputs) * 8;  // 4 + 2 + 1 bytes, and three numbers for 32
    }

    // What a thread wants besides.
    static int64_t own_size(int64_t rows, int64_t inputs) {
        return wide(rows) ? PANELS * LANES * padded(inputs) * int64_t(sizeof(BFloat16)) : 0;
    }

    Inputs() = default;

    Inputs(void* memory, void* own, int64_t rows, int64_t inputs) : width(padded(inputs)) {
        int64_t all = room(rows) * width;
        panels = wide(rows) ? static_cast<BFloat16*>(own) : nullptr;
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

    bool as_halves(Format format) const { return (HAS_PAIRS && format == BFLOAT16) || (panels && integers(format)); }
    bool as_bytes(Format format) const { return !panels && integers(format); }
    bool as_values(Format format) const { return !as_halves(format) && !as_bytes(format); }

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

// Integers are multiplied for a lot of outputs at a time: as many as a register holds.
constexpr int LOT = REGISTER / 4;
typedef Vector<int32_t, LOT> Lot;
typedef Vector<float, LOT> FloatLot;

// Four bytes of an input, for all lanes.
inline Lot four(const int8_t* inputs) { return Lot{} + read<int32_t>(inputs); }

#if defined(__AVX2__) && !defined(__AVX512VNNI__) && (!defined(__AVX512F__) || defined(__AVX512BW__))
#if defined(__AVX512BW__)
typedef __m512i Register;
#define BY_REGISTER(NAME) _mm512_##NAME
#else
typedef __m256i Register;
#define BY_REGISTER(NAME) _mm256_##NAME
#endif
inline Lot multiply_bytes(Lot a, Lot b) { return (Lot)BY_REGISTER(maddubs_epi16)((Register)a, (Register)b); }
inline Lot multiply_shorts(Lot a, Lot b) { return (Lot)BY_REGISTER(madd_epi16)((Register)a, (Register)b); }
inline Lot add_shorts(Lot a, Lot b) { return (Lot)BY_REGISTER(add_epi16)((Register)a, (Register)b); }
inline Lot even_bytes(Lot a) { return (Lot)BY_REGISTER(srai_epi16)(BY_REGISTER(slli_epi16)((Register)a, 8), 8); }
inline Lot odd_bytes(Lot a) { return (Lot)BY_REGISTER(srai_epi16)((Register)a, 8); }
#undef BY_REGISTER

// Sums over a group: of a lot of outputs, for some rows of a block. The products of 4 and 8 bits can be summed in 16 bits,
// for a whole group (16 * 15 * 127 < 2^15); those of 8 and 8 can't.
template <Format FORMAT, int ROWS>
inline void sum_group(const uint8_t* weights, const int8_t* inputs, const int32_t* offsets, FloatLot* to) {
    constexpr bool WHOLE = FORMAT == INT8;
    Lot sums[ROWS] = {};
    for (int k = 0; k < (WHOLE ? QUADS : QUADS / 2); k++) {
        Lot quads = read<Lot>(weights + 64 * k);
        UNROLLED
        for (int part = 0; part < 2; part++) {
            Lot some = (part ? quads >> (WHOLE ? 8 : 4) : quads) & (WHOLE ? 0x00ff00ff : 0x0f0f0f0f);
            UNROLLED
            for (int r = 0; r < ROWS; r++) {
                Lot x = four(inputs + r * GROUP + 4 * (WHOLE ? k : k + part * QUADS / 2));
                if (WHOLE)
                    sums[r] += multiply_shorts(some, part ? odd_bytes(x) : even_bytes(x));
                else
                    sums[r] = add_shorts(sums[r], multiply_bytes(some, x));
                asm("" : "+v"(sums[r]));  // GCC would add products to each other first, and has no registers for them
            }
        }
    }
    UNROLLED
    for (int r = 0; r < ROWS; r++)
        to[r] = convert<FloatLot>(WHOLE ? sums[r] + offsets[r] : multiply_shorts(sums[r], Lot{} + 0x00010001));
}
#else
// total + the products of four unsigned and four signed bytes in each lane.
inline Lot add_quads(Lot total, Lot weights, Lot inputs) {
#if defined(__AVX512VNNI__)
    return (Lot)_mm512_dpbusd_epi32((__m512i)total, (__m512i)weights, (__m512i)inputs);
#else
    UNROLLED
    for (int bit = 0; bit < 32; bit += 8) total += ((weights >> bit) & 0xff) * (inputs << (24 - bit) >> 24);
    return total;
#endif
}

// Sums over a group: of a lot of outputs, for some rows of a block. Rows come one after the other, so that no sum waits
// for the one before; a few have several sums each.
template <Format FORMAT, int ROWS>
inline void sum_group(const uint8_t* weights, const int8_t* inputs, const int32_t* offsets, FloatLot* to) {
    constexpr int EACH = ROWS >= 8 ? 1 : ROWS >= 4 ? 2 : 4;
    Lot sums[EACH][ROWS] = {};
    if (FORMAT == INT8) {
        UNROLLED
        for (int r = 0; r < ROWS; r++) sums[0][r] += offsets[r];
    }
    UNROLLED
    for (int k = 0; k < QUADS; k++) {
        Lot quads = read<Lot>(weights + 64 * (FORMAT == INT8 ? k : k % 4));
        if (FORMAT == INT4) quads = (k < 4 ? quads : quads >> 4) & 0x0f0f0f0f;
        UNROLLED
        for (int r = 0; r < ROWS; r++)
            sums[k % EACH][r] = add_quads(sums[k % EACH][r], quads, four(inputs + r * GROUP + 4 * k));
    }
    UNROLLED
    for (int r = 0; r < ROWS; r++) {
        UNROLLED
        for (int e = 1; e < EACH; e++) sums[0][r] += sums[e][r];
        to[r] = convert<FloatLot>(sums[0][r]);
    }
}
#endif

// A lot of outputs of a tile, from this lane on.
template <Format FORMAT, int ROWS>
inline void multiply_lot(const Matrix& matrix, int64_t tile, int lane, const Inputs& x, int64_t row, Floats* y) {
    constexpr int64_t SIZE = FORMAT == INT8 ? 512 : 256;
    const int64_t groups = matrix.inputs / GROUP;
    auto weights = static_cast<const uint8_t*>(matrix.weights) + tile * groups * SIZE + lane * 4;
    const uint16_t* scales = matrix.scales + tile * groups * LANES + lane;
    const uint16_t* minima = FORMAT == INT8 ? nullptr : matrix.minima + tile * groups * LANES + lane;
    FloatLot total[ROWS] = {};
    for (int64_t group = 0; group < groups; group++) {
        int64_t place = x.place(row, group);
        FloatLot sums[ROWS], scale = load_halves<FloatLot>(scales + group * LANES);
        FloatLot minimum = FORMAT == INT8 ? FloatLot{} : load_halves<FloatLot>(minima + group * LANES);
        sum_group<FORMAT, ROWS>(weights + group * SIZE, x.bytes + place * GROUP, x.offsets + place, sums);
        UNROLLED
        for (int r = 0; r < ROWS; r++) {
            total[r] += sums[r] * (scale * x.scales[place + r]);
            if (FORMAT == INT4) total[r] += minimum * x.sums[place + r];
        }
    }
    UNROLLED
    for (int r = 0; r < ROWS; r++) store(reinterpret_cast<float*>(y + r) + lane, total[r]);
}

template <Format FORMAT, int ROWS>
inline void integer_tile(const Matrix& matrix, int64_t tile, const Inputs& x, int64_t row, Floats* y) {
    for (int lane = 0; lane < LANES; lane += LOT) multiply_lot<FORMAT, ROWS>(matrix, tile, lane, x, row, y);
}

// A line of floating weights times some rows, in pieces so that no sum waits for the one before. Processors fetch ahead
// what is read in order: lines side by side took up to twice as long.
template <int ROWS>
struct Dense {
    static constexpr int PIECES = ROWS == 1 ? 4 : REGISTER == 64 ? 2 : 4 / ROWS;
    Floats total[PIECES][ROWS] = {};

    void add(const float* line, int64_t i, const Inputs& x, int64_t row, int piece, int64_t left = LANES) {
        Floats w = left >= LANES ? load(line + i) : load(line + i, left);
        UNROLLED
        for (int r = 0; r < ROWS; r++) total[piece][r] += w * load(x.values + (row + r) * x.width + i);
    }

#if defined(__AVX512BF16__)
    static constexpr int64_t WIDTH = 2 * LANES;

    void add(const BFloat16* line, int64_t i, const Inputs& x, int64_t row, int piece, int64_t left = WIDTH) {
        __m512i w = _mm512_maskz_loadu_epi16(left >= WIDTH ? ~0u : (1u << left) - 1, line + i);
        UNROLLED
        for (int r = 0; r < ROWS; r++) {
            __m512i values = _mm512_loadu_si512(x.halves + (row + r) * x.width + i);
            total[piece][r] =
                bits_of<Floats>(_mm512_dpbf16_ps(bits_of<__m512>(total[piece][r]), (__m512bh)values, (__m512bh)w));
        }
    }
#else
    static constexpr int64_t WIDTH = LANES;

    void add(const BFloat16* line, int64_t i, const Inputs& x, int64_t row, int piece, int64_t left = WIDTH) {
        Floats w = left >= LANES ? load(line + i) : load(line + i, left);
        UNROLLED
        for (int r = 0; r < ROWS; r++) total[piece][r] += w * load(x.values + (row + r) * x.width + i);
    }
#endif

    template <class T>
    void run(const T* line, int64_t inputs, const Inputs& x, int64_t row) {
        constexpr int64_t STEP = sizeof(T) == 4 ? LANES : WIDTH;
        int64_t i = 0;
        for (; i + PIECES * STEP <= inputs; i += PIECES * STEP) {
            UNROLLED
            for (int piece = 0; piece < PIECES; piece++) add(line, i + piece * STEP, x, row, piece);
        }
        for (; i + STEP <= inputs; i += STEP) add(line, i, x, row, 0);
        if (i < inputs) add(line, i, x, row, 0, inputs - i);
    }

    float sum_of(int r) const {
        Floats all = total[0][r];
        UNROLLED
        for (int piece = 1; piece < PIECES; piece++) all += total[piece][r];
        return sum(all);
    }
};

template <class T, int ROWS>
inline void dense_tile(const Matrix& matrix, int64_t first, const Inputs& x, int64_t row, Floats* y) {
    auto weights = static_cast<const T*>(matrix.weights);
    float made[ROWS][LANES];
    for (int o = 0; o < LANES; o++) {
        int64_t line = first + o < matrix.outputs ? first + o : matrix.outputs - 1;
        Dense<ROWS> dense;
        dense.run(weights + line * matrix.inputs, matrix.inputs, x, row);
        UNROLLED
        for (int r = 0; r < ROWS; r++) made[r][o] = dense.sum_of(r);
    }
    for (int r = 0; r < ROWS; r++) y[r] = load(made[r]);
}

template <int ROWS>
inline void tile_rows(const Matrix& matrix, int64_t tile, const Inputs& x, int64_t row, Floats* y) {
    if (matrix.format == INT4)
        integer_tile<INT4, ROWS>(matrix, tile, x, row, y);
    else if (matrix.format == INT8)
        integer_tile<INT8, ROWS>(matrix, tile, x, row, y);
    else
        for (int r = 0; r < ROWS; r += ROWS < 4 ? ROWS : 4)
            if (matrix.format == FLOAT32)
                dense_tile<float, (ROWS < 4 ? ROWS : 4)>(matrix, tile * LANES, x, row + r, y + r);
            else
                dense_tile<BFloat16, (ROWS < 4 ? ROWS : 4)>(matrix, tile * LANES, x, row + r, y + r);
}

// Sixteen outputs of up to BLOCK rows.
inline void tile_of(const Matrix& matrix, int64_t tile, const Inputs& x, int64_t row, int64_t rows, Floats* y) {
    if (rows == BLOCK) return tile_rows<BLOCK>(matrix, tile, x, row, y);
    if (rows & 4) tile_rows<4>(matrix, tile, x, row, y), row += 4, y += 4;
    if (rows & 2) tile_rows<2>(matrix, tile, x, row, y), row += 2, y += 2;
    if (rows & 1) tile_rows<1>(matrix, tile, x, row, y);
}

#if defined(WITH_TILES)
// Sixteen lines of bfloat16 numbers; what is missing is zeros.
inline void unpack_lines(const Matrix& matrix, int64_t first, BFloat16* to) {
    auto weights = static_cast<const BFloat16*>(matrix.weights) + first * matrix.inputs;
    int64_t lines = matrix.outputs - first;
    for (int64_t i = 0; i < matrix.inputs; i += DEPTH) {
        if (lines >= LANES && matrix.inputs - i >= DEPTH) {
            transpose(weights + i, matrix.inputs, to + i * LANES, DEPTH);
            continue;
        }
        BFloat16 some[LANES * DEPTH] = {};
        int64_t count = matrix.inputs - i < DEPTH ? matrix.inputs - i : DEPTH;
        for (int64_t line = 0; line < lines && line < LANES; line++)
            memcpy(some + line * DEPTH, weights + line * matrix.inputs + i, count * sizeof(BFloat16));
        transpose(some, DEPTH, to + i * LANES, DEPTH);
    }
}

// Sixteen outputs of a matrix as wide.h wants them.
inline void unpack(const Matrix& matrix, int64_t tile, BFloat16* to) {
    if (matrix.format == BFLOAT16) return unpack_lines(matrix, tile * LANES, to);
    const int64_t groups = matrix.inputs / GROUP, first = tile * groups;
    auto pairs = [&](int64_t group, int64_t input) { return to + (group * GROUP + input) * LANES; };
    for (int64_t group = 0; group < groups; group++) {
        Floats scale = load_halves<Floats>(matrix.scales + (first + group) * LANES);
        Floats least = matrix.format == INT8 ? -128.0f * scale : load_halves<Floats>(matrix.minima + (first + group) * LANES);
        auto numbers = [&](Integers codes) { return convert<Floats>(codes) * scale + least; };
        if (matrix.format == INT8) {
            auto bytes = static_cast<const uint8_t*>(matrix.weights) + (first + group) * 512;
            UNROLLED
            for (int k = 0; k < QUADS; k++) {
                auto quads = read<Words>(bytes + 64 * k);
                auto part = [&](int i) { return numbers(bits_of<Integers>((quads >> (8 * i)) & 0xff)); };
                store_pairs(pairs(group, 4 * k), part(0), part(1));
                store_pairs(pairs(group, 4 * k + 2), part(2), part(3));
            }
        } else {
            auto bytes = static_cast<const uint8_t*>(matrix.weights) + (first + group) * 256;
            UNROLLED
            for (int k = 0; k < QUADS / 2; k++) {
                auto quads = read<Words>(bytes + 64 * k);
                auto part = [&](int i) { return numbers(bits_of<Integers>((quads >> (4 * i)) & 0xf)); };
                store_pairs(pairs(group, 4 * k), part(0), part(2));
                store_pairs(pairs(group, 4 * k + 2), part(4), part(6));
                store_pairs(pairs(group, 16 + 4 * k), part(1), part(3));
                store_pairs(pairs(group, 18 + 4 * k), part(5), part(7));
            }
        }
    }
}

// Many rows times up to PANELS tiles of a matrix.
template <class Write>
inline void multiply_many(const Matrix& matrix, int64_t tile, int64_t tiles, const Inputs& x, int64_t rows,
                          const Write& write) {
    const int64_t depth = (matrix.inputs + DEPTH - 1) / DEPTH * DEPTH;
    for (int64_t i = 0; i < tiles; i++) unpack(matrix, tile + i, x.panels + i * depth * LANES);
    alignas(64) float made[MANY * PANELS * LANES];
    for (int64_t row = 0; row < rows; row += MANY) {
        int64_t some = rows - row < MANY ? rows - row : MANY;
        multiply_panels(x.halves + row * x.width, x.width, some > LANES, x.panels, depth, false, made, PANELS * LANES);
        for (int64_t i = 0; i < tiles; i++) {
            Part part(matrix, tile + i);
            for (int64_t r = 0; r < some; r++)
                write(row + r, part.first, load(made + (r * PANELS + i) * LANES) + part.bias, part.count);
        }
    }
}
#endif

// Multiply rows by some tiles of a matrix: `write(row, first output, sixteen sums, how many of them count)`, for all.
template <class Write>
inline void multiply(const Matrix& matrix, int64_t tile, int64_t tiles, const Inputs& x, int64_t rows,
                     const Write& write) {
#if defined(WITH_TILES)
    if (x.panels && x.as_halves(matrix.format)) {
        for (int64_t i = 0; i < tiles; i += PANELS)
            multiply_many(matrix, tile + i, tiles - i < PANELS ? tiles - i : PANELS, x, rows, write);
        return;
    }
#endif
    for (int64_t end = tile + tiles; tile < end; tile++) {
        Part part(matrix, tile);
        for (int64_t row = 0; row < rows; row += BLOCK) {
            int64_t some = rows - row < BLOCK ? rows - row : BLOCK;
            Floats y[BLOCK];
            tile_of(matrix, tile, x, row, some, y);
            for (int64_t r = 0; r < some; r++) write(row + r, part.first, y[r] + part.bias, part.count);
        }
    }
}

// Rows of a block lie in the same lines of a cache, so one thread prepares them all.
template <class Work>
inline void share_blocks(Team& team, int64_t rows, const Work& work) {
    team.share(Inputs::blocks(rows), [&](int64_t block) {
        for (int64_t row = block * BLOCK; row < rows && row < (block + 1) * BLOCK; row++) work(row);
    });
}

// Tiles that a thread takes at a time: in a row, for the memory's sake, but so that all threads have enough to do.
inline int64_t run_length(int64_t tiles, int threads) {
    int64_t length = tiles / (threads * 8);
    length = length < PANELS ? PANELS : length > 16 ? 16 : length;
    return length / PANELS * PANELS;
}

// Each run of tiles to a thread: `work(first, how many)`.
template <class Work>
inline void share_tiles(Team& team, int64_t tiles, const Work& work) {
    int64_t length = run_length(tiles, team.size);
    team.share((tiles + length - 1) / length, [&](int64_t run) {
        int64_t first = run * length, left = tiles - first;
        work(first, left < length ? left : length);
    });
}
