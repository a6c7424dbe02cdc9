// Matrix products of packed integer weights.
#include "matmul.h"
#include "structs.h"
#include "threads.h"

extern "C" {

// The number of rows from which weights are unpacked to bfloat16 and multiplied by AMX; 0: never.
EXPORTED int64_t amx_min_rows() { return HAS_AMX ? AMX_ROWS : 0; }

// The number of rows from which 4-bit codes are multiplied by AMX; 0: never.
EXPORTED int64_t code_tiles_min_rows() { return HAS_AMX ? ROW_BLOCK + 1 : 0; }

// The number of rows from which 4-bit weights are unpacked to 8 bits; 0: never.
EXPORTED int64_t int8_min_rows() { return uses_unpacked_int8(AMX_ROWS) ? AMX_ROWS : 0; }

EXPORTED int64_t workspace_size(const Matrix* matrix, int64_t rows, int64_t num_threads) {
    return Inputs::workspace_size_of_integers(rows, matrix->in_features) +
           num_threads * Inputs::thread_workspace_size(rows, matrix->in_features);
}

// y [rows, out_features] = x [rows, in_features] W^T + bias
EXPORTED void quantized_matmul(const Matrix* matrix, const float* x, int64_t rows, float* y, void* workspace,
                               int64_t num_threads) {
    // Waking threads takes as long as some hundred thousand multiplications.
    if (rows * matrix->in_features * matrix->out_features < (1 << 18)) num_threads = 1;
    parallel(num_threads, [&](Threads threads) {
        auto thread_memory =
            static_cast<char*>(workspace) + Inputs::workspace_size_of_integers(rows, matrix->in_features);
        Inputs inputs(workspace,
                      thread_memory + threads.index * Inputs::thread_workspace_size(rows, matrix->in_features), rows,
                      matrix->in_features);
        AmxTiles registers(uses_tiles(rows));
        parallel_row_blocks(threads, rows, [&](int64_t row) {
            const float* from = x + row * matrix->in_features;
            if (inputs.needs_tiles(matrix->dtype))
                inputs.to_tiles(row, from, matrix->in_features, matrix->dtype == INT4);
            else
                inputs.quantize(row, from, matrix->in_features / GROUP);
        });
        parallel_panels(threads, num_panels(*matrix), rows, [&](int64_t panel, int64_t panels) {
            multiply(*matrix, panel, panels, inputs, rows,
                     [&](int64_t row, int64_t first, FloatVec sums, int64_t count) {
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
