// Products of many rows in registers of 16 x 16 numbers (Intel's AMX), where the processor has them.
//
// Rows and weights meet as pairs of bfloat16 numbers, summed in float32. Weights of any format are unpacked to such pairs
// for two tiles of sixteen outputs, in a thread's own memory, and then multiplied by all rows.
#pragma once
#include "structs.h"
#include "simd.h"

constexpr int64_t DEPTH = 32;  // inputs that one instruction multiplies: sixteen pairs

#if defined(EMULATED_TILES) && defined(__AVX512BF16__)
#define WITH_TILES
#include "amx_emulated.h"
constexpr bool HAS_TILES = true;

struct TileRegisters {
    explicit TileRegisters(bool) {}
};
#elif defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#define WITH_TILES
#include <sys/syscall.h>
#include <unistd.h>

// The system hands these registers out only to programs that ask (Linux, arch_prctl: ARCH_REQ_XCOMP_PERM, XTILEDATA).
inline const bool HAS_TILES = syscall(SYS_arch_prctl, 0x1023, 18) == 0;

// What each of the eight registers holds (Intel's manual, "LDTILECFG").
struct Shape {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};  // of a row
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
alignas(64) inline constexpr Shape SHAPE;

// The registers are there for as long as this lives, in this thread. Then they are what they were: llama.cpp, which may
// live in the same process, looks at them but once. (Of the compilers' own functions for it, GCC's tell it of the first
// eight bytes alone.)
class TileRegisters {
   public:
    explicit TileRegisters(bool wanted) : wanted(wanted && HAS_TILES) {
        if (!this->wanted) return;
        asm volatile("sttilecfg %0" : "=m"(before));
        asm volatile("ldtilecfg %0" : : "m"(SHAPE));
    }
    ~TileRegisters() {
        if (!wanted) return;
        if (before.palette)
            asm volatile("ldtilecfg %0" : : "m"(before));
        else
            _tile_release();
    }
    TileRegisters(const TileRegisters&) = delete;

   private:
    const bool wanted;
    Shape before;
};
#endif

#if defined(WITH_TILES)

// to [32, 32] = rows [16 or 32, depth] panels^T, or to + that; rows are `step` numbers apart, and a panel holds sixteen
// outputs: [depth / 2, 16, 2].
inline void multiply_panels(const BFloat16* rows, int64_t step, bool second, const BFloat16* panels, int64_t depth,
                            bool more, float* to, int64_t to_step) {
    const BFloat16 *below = rows + LANES * step, *right = panels + depth * LANES;
    float* to_below = to + LANES * to_step;
    step *= sizeof(BFloat16), to_step *= sizeof(float);
    asm volatile("" ::: "memory");  // GCC does not know that loading a tile reads memory
    if (more) {
        _tile_loadd(0, to, to_step);
        _tile_loadd(1, to + LANES, to_step);
        _tile_loadd(2, to_below, to_step);
        _tile_loadd(3, to_below + LANES, to_step);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t i = 0; i < depth; i += DEPTH) {
        _tile_loadd(4, rows + i, step);
        _tile_loadd(6, panels + i * LANES, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, right + i * LANES, 64);
        _tile_dpbf16ps(1, 4, 7);
        if (!second) continue;
        _tile_loadd(5, below + i, step);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, to, to_step);
    _tile_stored(1, to + LANES, to_step);
    _tile_stored(2, to_below, to_step);
    _tile_stored(3, to_below + LANES, to_step);
}

// to [16, 16 VECTORS] = rows [16, depth] lanes [depth / 2, .., 2], or to + that. Rows are `step` numbers apart, those of
// lanes and of `to` `width` and `to_step` numbers of 32 bits.
template <int VECTORS>
inline void multiply_lanes(const BFloat16* rows, int64_t step, const float* lanes, int64_t width, int64_t depth,
                           bool more, float* to, int64_t to_step) {
    static_assert(VECTORS >= 1 && VECTORS <= 4, "registers 0 to 3");
    const int64_t line = width * sizeof(float), to_line = to_step * sizeof(float);
    step *= sizeof(BFloat16);
    asm volatile("" ::: "memory");
    if (more) {
        _tile_loadd(0, to, to_line);
        if constexpr (VECTORS > 1) _tile_loadd(1, to + LANES, to_line);
        if constexpr (VECTORS > 2) _tile_loadd(2, to + 2 * LANES, to_line);
        if constexpr (VECTORS > 3) _tile_loadd(3, to + 3 * LANES, to_line);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t i = 0; i < depth; i += DEPTH, lanes += LANES * width) {
        _tile_loadd(4, rows + i, step);
        _tile_loadd(5, lanes, line);
        _tile_dpbf16ps(0, 4, 5);
        if constexpr (VECTORS > 1) {
            _tile_loadd(6, lanes + LANES, line);
            _tile_dpbf16ps(1, 4, 6);
        }
        if constexpr (VECTORS > 2) {
            _tile_loadd(7, lanes + 2 * LANES, line);
            _tile_dpbf16ps(2, 4, 7);
        }
        if constexpr (VECTORS > 3) {
            _tile_loadd(5, lanes + 3 * LANES, line);
            _tile_dpbf16ps(3, 4, 5);
        }
    }
    _tile_stored(0, to, to_line);
    if constexpr (VECTORS > 1) _tile_stored(1, to + LANES, to_line);
    if constexpr (VECTORS > 2) _tile_stored(2, to + 2 * LANES, to_line);
    if constexpr (VECTORS > 3) _tile_stored(3, to + 3 * LANES, to_line);
}
#else
constexpr bool HAS_TILES = false;  // the work is done elsewhere

struct TileRegisters {
    explicit TileRegisters(bool) {}
};

#if defined(__AVX512BF16__)
// The same in registers of sixteen numbers: as many sums at a time as there is room for.
template <int VECTORS>
inline void multiply_lanes(const BFloat16* rows, int64_t step, const float* lanes, int64_t width, int64_t depth,
                           bool more, float* to, int64_t to_step) {
    constexpr int ROWS = VECTORS == 1 ? 16 : VECTORS == 2 ? 8 : 4;
    for (int first = 0; first < LANES; first += ROWS, rows += ROWS * step, to += ROWS * to_step) {
        Floats sums[ROWS][VECTORS] = {};
        UNROLLED
        for (int r = 0; r < ROWS; r++) {
            UNROLLED
            for (int v = 0; v < VECTORS; v++)
                if (more) sums[r][v] = load(to + r * to_step + v * LANES);
        }
        const float* line = lanes;
        for (int64_t i = 0; i < depth; i += 2, line += width) {
            Floats each[VECTORS];
            UNROLLED
            for (int v = 0; v < VECTORS; v++) each[v] = load(line + v * LANES);
            UNROLLED
            for (int r = 0; r < ROWS; r++) {
                const float pair = read<float>(rows + r * step + i);
                UNROLLED
                for (int v = 0; v < VECTORS; v++) sums[r][v] = add_products<true>(sums[r][v], pair, each[v]);
            }
        }
        UNROLLED
        for (int r = 0; r < ROWS; r++) {
            UNROLLED
            for (int v = 0; v < VECTORS; v++) store(to + r * to_step + v * LANES, sums[r][v]);
        }
    }
}
#else
// Templates name it before it is known that none of them will call it.
template <int VECTORS>
void multiply_lanes(const BFloat16*, int64_t, const float*, int64_t, int64_t, bool, float*, int64_t);
#endif
#endif

// Sixteen pairs of numbers, each rounded.
inline void store_pairs(BFloat16* to, Floats first, Floats second) {
    Floats pairs = paired(first, second);
    memcpy(to, &pairs, sizeof pairs);
}

// Sixteen numbers each of two neighboring rows, pair by pair.
inline Floats pair_rows(const BFloat16* from, int64_t step) {
    return bits_of<Floats>(bits_of<Words>(load(from)) >> 16 | bits_of<Words>(load(from + step)));
}

// Rows of sixteen pairs become columns.
inline void transpose(const BFloat16* from, int64_t step, BFloat16* to, int64_t to_step) {
    transpose(reinterpret_cast<const float*>(from), step / 2, reinterpret_cast<float*>(to), to_step / 2);
}
