// A matrix in integers times any number of vectors.
#include "matrix.h"
#include "table.h"
#include "team.h"

extern "C" {

__attribute__((visibility("default"))) int64_t product_bytes(const Matrix* matrix, int64_t rows) {
    return Inputs::size(rows, matrix->inputs);
}

// y [rows, outputs] = x [rows, inputs] W^T + bias
__attribute__((visibility("default"))) void product(const Matrix* matrix, const float* x, int64_t rows, float* y,
                                                    void* workspace, int64_t threads) {
    // Waking a thread takes as long as some hundred thousand products.
    if (rows * matrix->inputs * matrix->outputs < (1 << 18)) threads = 1;
    together(threads, [&](Team team) {
        Inputs inputs(workspace, rows, matrix->inputs);
        share_blocks(team, rows, [&](int64_t row) {
            inputs.to_bytes(row, x + row * matrix->inputs, matrix->inputs / GROUP);
        });
        share_tiles(team, tiles_of(*matrix), [&](int64_t tile) {
            multiply(*matrix, tile, inputs, rows, [&](int64_t row, int64_t first, Floats sums, int64_t count) {
                float* to = y + row * matrix->outputs + first;
                if (count == LANES)
                    store(to, sums);
                else
                    store(to, sums, count);
            });
        });
    });
}
}
