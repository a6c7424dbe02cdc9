// Dropout. Which numbers are kept is computed again in the backward pass (see random.h).
#include "structs.h"
#include "threads.h"
#include "simd.h"
#include "random.h"

namespace {

constexpr int64_t CHUNK = 1 << 13;  // elements that a thread takes at a time

template <class T>
void run(Threads& threads, const DropoutArgs& a) {
    const T* from = static_cast<const T*>(a.x);
    T* to = static_cast<T*>(a.out);
    const float scale = float(a.scale);
    const UIntVec first = lane_indices();
    const UIntVec threshold = uint32_t(a.threshold) + UIntVec{};
    threads.parallel_for((a.count + CHUNK - 1) / CHUNK, [&](int64_t chunk) {
        const int64_t end = min((chunk + 1) * CHUNK, a.count);
        for (int64_t i = chunk * CHUNK; i < end; i += LANES) {
            const int64_t count = min(LANES, end - i);
            const auto kept = random(first + uint32_t(i), a.seed) >= threshold;
            const FloatVec x = count == LANES ? load(from + i) : load(from + i, count);
            const FloatVec y = select(kept, x * scale, FloatVec{});
            count == LANES ? store(to + i, y) : store(to + i, y, count);
        }
    });
}

}  // namespace

extern "C" {

EXPORTED int64_t supported() { return 1; }
EXPORTED int64_t workspace_size(const DropoutArgs*) { return 0; }

EXPORTED void run(const DropoutArgs* a, void*) {
    parallel(a->num_threads, [&](Threads threads) {
        a->dtype == FLOAT32 ? run<float>(threads, *a) : run<BFloat16>(threads, *a);
    });
}
}
