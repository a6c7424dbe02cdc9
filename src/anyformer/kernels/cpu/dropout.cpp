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
    const UIntVec lanes = lane_indices();
    const UIntVec threshold = uint32_t(a.threshold) + UIntVec{};
    const int64_t chunk = a.width < CHUNK ? CHUNK / a.width * a.width : CHUNK;
    threads.parallel_for((a.count + chunk - 1) / chunk, [&](int64_t number) {
        const int64_t last = min((number + 1) * chunk, a.count);
        for (int64_t begin = number * chunk; begin < last;) {
            const int64_t row = begin / a.width, first = row * a.width, end = min(first + a.width, last);
            const Counted counted(a.counters[row], a.seed);
            for (int64_t i = begin; i < end; i += LANES) {
                const int64_t count = min(LANES, end - i);
                const auto kept = counted.bits(lanes + uint32_t(i - first)) >= threshold;
                const FloatVec x = count == LANES ? load(from + i) : load(from + i, count);
                const FloatVec y = select(kept, x * scale, FloatVec{});
                count == LANES ? store(to + i, y) : store(to + i, y, count);
            }
            begin = end;
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
