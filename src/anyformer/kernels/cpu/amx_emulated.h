// What Intel's AMX does, on processors that have AVX-512 alone: slow, for tests (ANYFORMER_NATIVE=emulated).
#pragma once
#include "simd.h"

class EmulatedTiles {
   public:
    void load(int tile, const void* from, int64_t step) {
        for (int r = 0; r < LANES; r++) memcpy(tiles[tile][r], static_cast<const char*>(from) + r * step, 64);
    }
    void store(int tile, void* to, int64_t step) const {
        for (int r = 0; r < LANES; r++) memcpy(static_cast<char*>(to) + r * step, tiles[tile][r], 64);
    }
    void zero(int tile) { memset(tiles[tile], 0, sizeof tiles[tile]); }
    void add_products(int to, int rows, int columns) {
        for (int r = 0; r < LANES; r++) {
            Floats total = load(tiles[to][r]);
            for (int i = 0; i < LANES; i++)
                total = ::add_products<true>(total, tiles[rows][r][i], load(tiles[columns][i]));
            ::store(tiles[to][r], total);
        }
    }

   private:
    static Floats load(const float* row) { return ::load(row); }
    float tiles[8][LANES][LANES];
};

inline thread_local EmulatedTiles emulated_tiles;

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadd(tile, from, step) emulated_tiles.load(tile, from, step)
#define _tile_stored(tile, to, step) emulated_tiles.store(tile, to, step)
#define _tile_zero(tile) emulated_tiles.zero(tile)
#define _tile_dpbf16ps(to, rows, columns) emulated_tiles.add_products(to, rows, columns)
