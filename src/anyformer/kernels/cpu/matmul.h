// Products of a matrix with a few vectors, sixteen outputs (a tile) at a time.
#pragma once
#include "packed_inputs.h"
#include "int_matmul.h"
#include "threads.h"

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
        int64_t line = first + o < matrix.out_features ? first + o : matrix.out_features - 1;
        Dense<ROWS> dense;
        dense.run(weights + line * matrix.in_features, matrix.in_features, x, row);
        UNROLLED
        for (int r = 0; r < ROWS; r++) made[r][o] = dense.sum_of(r);
    }
    for (int r = 0; r < ROWS; r++) y[r] = load(made[r]);
}

template <int ROWS>
inline void tile_rows(const Matrix& matrix, int64_t tile, const Inputs& x, int64_t row, Floats* y) {
    if (matrix.dtype == INT4)
        integer_tile<INT4, ROWS>(matrix, tile, x, row, y);
    else if (matrix.dtype == INT8)
        integer_tile<INT8, ROWS>(matrix, tile, x, row, y);
    else
        for (int r = 0; r < ROWS; r += ROWS < 4 ? ROWS : 4)
            if (matrix.dtype == FLOAT32)
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
    auto weights = static_cast<const BFloat16*>(matrix.weights) + first * matrix.in_features;
    int64_t lines = matrix.out_features - first;
    for (int64_t i = 0; i < matrix.in_features; i += DEPTH) {
        if (lines >= LANES && matrix.in_features - i >= DEPTH) {
            transpose(weights + i, matrix.in_features, to + i * LANES, DEPTH);
            continue;
        }
        BFloat16 some[LANES * DEPTH] = {};
        int64_t count = matrix.in_features - i < DEPTH ? matrix.in_features - i : DEPTH;
        for (int64_t line = 0; line < lines && line < LANES; line++)
            memcpy(some + line * DEPTH, weights + line * matrix.in_features + i, count * sizeof(BFloat16));
        transpose(some, DEPTH, to + i * LANES, DEPTH);
    }
}

// Sixteen outputs of a matrix as wide.h wants them.
inline void unpack(const Matrix& matrix, int64_t tile, BFloat16* to) {
    if (matrix.dtype == BFLOAT16) return unpack_lines(matrix, tile * LANES, to);
    const int64_t groups = matrix.in_features / GROUP, first = tile * groups;
    auto pairs = [&](int64_t group, int64_t input) { return to + (group * GROUP + input) * LANES; };
    for (int64_t group = 0; group < groups; group++) {
        Floats scale = load_halves<Floats>(matrix.scales + (first + group) * LANES);
        Floats least = matrix.dtype == INT8 ? -128.0f * scale : load_halves<Floats>(matrix.minima + (first + group) * LANES);
        auto numbers = [&](Integers codes) { return convert<Floats>(codes) * scale + least; };
        if (matrix.dtype == INT8) {
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
    const int64_t depth = (matrix.in_features + DEPTH - 1) / DEPTH * DEPTH;
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
    if (x.panels && x.as_halves(matrix.dtype)) {
        for (int64_t i = 0; i < tiles; i += PANELS)
            multiply_many(matrix, tile + i, tiles - i < PANELS ? tiles - i : PANELS, x, rows, write);
        return;
    }
#endif
    for (int64_t end = tile + tiles; tile < end; tile++) {
#if defined(__AVX512VNNI__)
        if (x.codes && matrix.dtype == INT4) {
            multiply_codes(matrix, tile, x, rows, write);
            continue;
        }
#endif
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

// Tiles that a thread takes at a time: in a row, for the memory's sake, but so that all threads have enough to do. Many
// rows are much to do for a tile, and then no thread should wait for long.
inline int64_t run_length(int64_t tiles, int64_t rows, int threads) {
    if (bytewise(rows)) return 1;
    int64_t length = tiles / (threads * 8);
    length = length < PANELS ? PANELS : length > 16 ? 16 : length;
    return length / PANELS * PANELS;
}

// Each run of tiles to a thread: `work(first, how many)`.
template <class Work>
inline void share_tiles(Team& team, int64_t tiles, int64_t rows, const Work& work) {
    int64_t length = run_length(tiles, rows, team.size);
    team.share((tiles + length - 1) / length, [&](int64_t run) {
        int64_t first = run * length, left = tiles - first;
        work(first, left < length ? left : length);
    });
}
