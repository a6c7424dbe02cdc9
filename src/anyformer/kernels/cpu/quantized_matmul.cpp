// A matrix in integers times any number of vectors.
#include "matmul.h"
#include "structs.h"
#include "threads.h"

extern "C" {

// From how many rows on weights of integers and bfloat16 numbers are multiplied as wide.h does; 0: never.
EXPORTED int64_t wide_rows() { return HAS_TILES ? MANY : 0; }

// The same of those of 4 bits that are made bytes.
EXPORTED int64_t byte_rows() { return bytewise(MANY) ? MANY : 0; }

EXPORTED int64_t bytes(const Matrix* matrix, int64_t rows, int64_t threads) {
    return Inputs::size(rows, matrix->in_features) + threads * Inputs::own_size(rows, matrix->in_features);
}

// y [rows, outputs] = x [rows, inputs] W^T + bias
EXPORTED void multiply_all(const Matrix* matrix, const float* x, int64_t rows, float* y, void* workspace, int64_t threads) {
    // Waking a thread takes as long as some hundred thousand products.
    if (rows * matrix->in_features * matrix->out_features < (1 << 18)) threads = 1;
    together(threads, [&](Team team) {
        auto own = static_cast<char*>(workspace) + Inputs::size(rows, matrix->in_features);
        Inputs inputs(workspace, own + team.me * Inputs::own_size(rows, matrix->in_features), rows, matrix->in_features);
        TileRegisters registers(inputs.panels != nullptr);
        share_blocks(team, rows, [&](int64_t row) {
            const float* from = x + row * matrix->in_features;
            if (inputs.panels)
                inputs.to_halves(row, from, matrix->in_features);
            else
                inputs.to_bytes(row, from, matrix->in_features / GROUP);
        });
        share_tiles(team, tiles_of(*matrix), rows, [&](int64_t tile, int64_t tiles) {
            multiply(*matrix, tile, tiles, inputs, rows, [&](int64_t row, int64_t first, Floats sums, int64_t count) {
                float* to = y + row * matrix->out_features + first;
                if (count == LANES)
                    store(to, sums);
                else
                    store(to, sums, count);
            });
        });
    });
}
}
