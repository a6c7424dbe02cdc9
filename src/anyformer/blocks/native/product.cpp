// A matrix in integers times any number of vectors.
#include <omp.h>

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
    Meeting meeting;
    // Waking a thread takes as long as some hundred thousand products.
    if (rows * matrix->inputs * matrix->outputs < (1 << 18)) threads = 1;
#pragma omp parallel num_threads(int(threads))
    {
        Team team(meeting, omp_get_num_threads(), omp_get_thread_num());
        Inputs inputs(workspace, rows, matrix->inputs);
        team.share((rows + BLOCK - 1) / BLOCK, [&](int64_t block) {
            for (int64_t row = block * BLOCK; row < rows && row < (block + 1) * BLOCK; row++)
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
    }
}
}
