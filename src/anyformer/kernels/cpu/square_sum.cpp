// The sum of the squares of many tensors, such as all gradients of a model.
#include "simd.h"
#include "structs.h"
#include "threads.h"

namespace {

constexpr int64_t CHUNK = 1 << 14;  // numbers whose squares are added up at a time, by one thread

double square_sum(const float* x, int64_t count) {
    FloatVec sums[4] = {};
    int64_t i = 0;
    for (; i + 4 * LANES <= count; i += 4 * LANES) {
        UNROLL
        for (int v = 0; v < 4; v++) {
            const FloatVec part = load(x + i + v * LANES);
            sums[v] += part * part;
        }
    }
    for (; i < count; i += LANES) {
        const FloatVec part = count - i >= LANES ? load(x + i) : load(x + i, count - i);
        sums[0] += part * part;
    }
    return reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

}  // namespace

extern "C" {

EXPORTED int64_t supported() { return 1; }

EXPORTED int64_t workspace_size(const SquareSumArgs* s) {
    int64_t chunks = 0;
    for (int64_t t = 0; t < s->tensors; t++) chunks += (s->counts[t] + CHUNK - 1) / CHUNK;
    return chunks * int64_t(sizeof(double));
}

EXPORTED void run(const SquareSumArgs* s, void* workspace) {
    auto* const sums = static_cast<double*>(workspace);
    const int64_t chunks = workspace_size(s) / int64_t(sizeof(double));
    parallel(s->num_threads, [&](Threads threads) {
        threads.parallel_for_neighbors(chunks, [&](int64_t chunk) {
            int64_t index = chunk, t = 0;
            for (int64_t own; index >= (own = (s->counts[t] + CHUNK - 1) / CHUNK); t++) index -= own;
            const auto* x = reinterpret_cast<const float*>(s->addresses[t]) + index * CHUNK;
            sums[chunk] = square_sum(x, min(CHUNK, s->counts[t] - index * CHUNK));
        });
    });
    *s->total = 0;  // in one order, whichever thread computed what
    for (int64_t chunk = 0; chunk < chunks; chunk++) *s->total += sums[chunk];
}
}
