// Matrix products by Intel's AMX (tile registers of 16 rows of 64 bytes): of bfloat16, accumulated in float32, also by
// AVX-512; of signed 8-bit integers, accumulated in 32 bits.
#pragma once
#include "structs.h"
#include "simd.h"

constexpr int64_t TILE_DEPTH = 32;  // the inner dimension of one AMX instruction: 16 bfloat16 pairs

#if defined(EMULATED_AMX) && defined(__AVX512BF16__)
#define USE_AMX
#include "amx_emulated.h"
constexpr bool HAS_AMX = true;

struct AmxTiles {
    explicit AmxTiles(bool) {}
};
#elif defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__AVX512BF16__) && defined(__linux__)
#define USE_AMX
#include <sys/syscall.h>
#include <unistd.h>

// Linux wants a process to ask before its first use of tile data: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
inline const bool HAS_AMX = syscall(SYS_arch_prctl, 0x1023, 18) == 0;

// The shapes of the eight tile registers (Intel's manual, LDTILECFG).
struct TileConfig {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};  // of a row
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
alignas(64) inline constexpr TileConfig TILE_CONFIG;

// Configures this thread's tile registers, and restores their previous configuration at the end: llama.cpp, which may
// run in the same process, configures them only once. (GCC's intrinsics declare only the first eight bytes as
// operands.)
class AmxTiles {
   public:
    explicit AmxTiles(bool enabled) : enabled(enabled && HAS_AMX) {
        if (!this->enabled) return;
        asm volatile("sttilecfg %0" : "=m"(previous));
        asm volatile("ldtilecfg %0" : : "m"(TILE_CONFIG));
    }
    ~AmxTiles() {
        if (!enabled) return;
        if (previous.palette)
            asm volatile("ldtilecfg %0" : : "m"(previous));
        else
            _tile_release();
    }
    AmxTiles(const AmxTiles&) = delete;

   private:
    const bool enabled;
    TileConfig previous;
};
#endif

#if defined(USE_AMX)

// out [16, 16 VECTORS] = or += rows [16, depth] columns [depth / 2, 16 VECTORS, 2]. The stride of rows is in bfloat16
// elements, those of columns and out in 32-bit ones. Of the rows of `out` only the first `count` are needed.
template <int VECTORS>
inline void bf16_matmul(const BFloat16* rows, int64_t stride, const float* columns, int64_t column_stride,
                        int64_t depth, bool accumulate, float* out, int64_t out_stride, int64_t = LANES) {
    static_assert(VECTORS >= 1 && VECTORS <= 4, "tile registers 0 to 3");
    const int64_t column_bytes = column_stride * sizeof(float), out_bytes = out_stride * sizeof(float);
    stride *= sizeof(BFloat16);
    asm volatile("" ::: "memory");
    if (accumulate) {
        _tile_loadd(0, out, out_bytes);
        if constexpr (VECTORS > 1) _tile_loadd(1, out + LANES, out_bytes);
        if constexpr (VECTORS > 2) _tile_loadd(2, out + 2 * LANES, out_bytes);
        if constexpr (VECTORS > 3) _tile_loadd(3, out + 3 * LANES, out_bytes);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t i = 0; i < depth; i += TILE_DEPTH, columns += LANES * column_stride) {
        _tile_loadd(4, rows + i, stride);
        _tile_loadd(5, columns, column_bytes);
        _tile_dpbf16ps(0, 4, 5);
        if constexpr (VECTORS > 1) {
            _tile_loadd(6, columns + LANES, column_bytes);
            _tile_dpbf16ps(1, 4, 6);
        }
        if constexpr (VECTORS > 2) {
            _tile_loadd(7, columns + 2 * LANES, column_bytes);
            _tile_dpbf16ps(2, 4, 7);
        }
        if constexpr (VECTORS > 3) {
            _tile_loadd(5, columns + 3 * LANES, column_bytes);
            _tile_dpbf16ps(3, 4, 5);
        }
    }
    _tile_stored(0, out, out_bytes);
    if constexpr (VECTORS > 1) _tile_stored(1, out + LANES, out_bytes);
    if constexpr (VECTORS > 2) _tile_stored(2, out + 2 * LANES, out_bytes);
    if constexpr (VECTORS > 3) _tile_stored(3, out + 3 * LANES, out_bytes);
}
#else
constexpr bool HAS_AMX = false;

struct AmxTiles {
    explicit AmxTiles(bool) {}
};

// The same with dot products of pairs, for as many rows at a time as there are registers for accumulators.
template <int VECTORS>
inline void bf16_matmul(const BFloat16* rows, int64_t stride, const float* columns, int64_t column_stride,
                        int64_t depth, bool accumulate, float* out, int64_t out_stride, int64_t count = LANES) {
    constexpr int ROWS = VECTORS == 1 ? 16 : VECTORS == 2 ? 8 : 4;
    for (int64_t first = 0; first < count; first += ROWS, rows += ROWS * stride, out += ROWS * out_stride) {
        FloatVec sums[ROWS][VECTORS] = {};
        UNROLL
        for (int r = 0; r < ROWS; r++) {
            UNROLL
            for (int v = 0; v < VECTORS; v++)
                if (accumulate) sums[r][v] = load(out + r * out_stride + v * LANES);
        }
        const float* column_bytes = columns;
        for (int64_t i = 0; i < depth; i += 2, column_bytes += column_stride) {
            FloatVec each[VECTORS];
            UNROLL
            for (int v = 0; v < VECTORS; v++) each[v] = load(column_bytes + v * LANES);
            UNROLL
            for (int r = 0; r < ROWS; r++) {
                const float pair = load_as<float>(rows + r * stride + i);
                UNROLL
                for (int v = 0; v < VECTORS; v++) sums[r][v] = multiply_add<true>(sums[r][v], pair, each[v]);
            }
        }
        UNROLL
        for (int r = 0; r < ROWS; r++) {
            UNROLL
            for (int v = 0; v < VECTORS; v++) store(out + r * out_stride + v * LANES, sums[r][v]);
        }
    }
}
#endif

// Store 16 bfloat16 pairs (first, second).
inline void store_bf16_pairs(BFloat16* out, FloatVec first, FloatVec second) {
    FloatVec pairs = to_bf16_pairs(first, second);
    memcpy(out, &pairs, sizeof pairs);
}

// Pairs of 16 columns of two neighboring rows.
inline FloatVec interleave_rows(const BFloat16* from, int64_t stride) {
    return bit_cast<FloatVec>(bit_cast<UIntVec>(load(from)) >> 16 | bit_cast<UIntVec>(load(from + stride)));
}

// Transpose a 16 x 16 block of bfloat16 pairs; strides in bfloat16 elements.
inline void transpose(const BFloat16* from, int64_t stride, BFloat16* out, int64_t out_stride) {
    transpose(reinterpret_cast<const float*>(from), stride / 2, reinterpret_cast<float*>(out), out_stride / 2);
}
