// AMX instructions computed with AVX-512: slow, for tests (ANYFORMER_NATIVE=emulated).
#pragma once
#include "simd.h"

class EmulatedAmx {
   public:
    void load(int tile, const void* from, int64_t stride) {
        for (int r = 0; r < LANES; r++) memcpy(tiles[tile][r], static_cast<const char*>(from) + r * stride, 64);
    }
    void store(int tile, void* to, int64_t stride) const {
        for (int r = 0; r < LANES; r++) memcpy(static_cast<char*>(to) + r * stride, tiles[tile][r], 64);
    }
    void zero(int tile) { memset(tiles[tile], 0, sizeof tiles[tile]); }
    void dot_product(int to, int rows, int columns) {
        for (int r = 0; r < LANES; r++) {
            FloatVec total = load(tiles[to][r]);
            for (int i = 0; i < LANES; i++)
                total = ::multiply_add<true>(total, tiles[rows][r][i], load(tiles[columns][i]));
            ::store(tiles[to][r], total);
        }
    }
    void integer_dot_product(int to, int rows, int columns) {
        for (int r = 0; r < LANES; r++)
            for (int c = 0; c < LANES; c++) {
                auto total = bit_cast<int32_t>(tiles[to][r][c]);
                for (int i = 0; i < LANES; i++) {
                    auto x = bit_cast<Quad>(tiles[rows][r][i]), y = bit_cast<Quad>(tiles[columns][i][c]);
                    for (int q = 0; q < 4; q++) total += x.bytes[q] * y.bytes[q];
                }
                tiles[to][r][c] = bit_cast<float>(total);
            }
    }

   private:
    struct Quad {
        int8_t bytes[4];
    };
    static FloatVec load(const float* row) { return ::load(row); }
    float tiles[8][LANES][LANES];
};

inline thread_local EmulatedAmx emulated_amx;

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_dpbssd
#define _tile_loadd(tile, from, stride) emulated_amx.load(tile, from, stride)
#define _tile_stored(tile, to, stride) emulated_amx.store(tile, to, stride)
#define _tile_zero(tile) emulated_amx.zero(tile)
#define _tile_dpbf16ps(to, rows, columns) emulated_amx.dot_product(to, rows, columns)
#define _tile_dpbssd(to, rows, columns) emulated_amx.integer_dot_product(to, rows, columns)
