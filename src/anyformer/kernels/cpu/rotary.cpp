// Rotary positions in training (Su et al. 2021, equation 34, in halves), in one pass.
#include "structs.h"
#include "threads.h"
#include "simd.h"

namespace {

constexpr int64_t CHUNK = 1 << 13;  // elements that a thread takes at a time

// out = x cos + (-second half, first half of x) sin; transposed: of x sin, (second half, -first half).
template <class X, class Y>
void rotate(const X* x, Y* out, const float* cos, const float* sin, int64_t half, bool transposed) {
    const float* const sins[] = {sin + (transposed ? half : 0), sin + (transposed ? 0 : half)};
    const float sign = transposed ? 1.0f : -1.0f;
    for (int64_t i = 0; i < half; i += LANES) {
        const int64_t left = half - i;
        auto part = [&](auto from) { return left >= LANES ? load(from + i) : load(from + i, left); };
        const FloatVec first = part(x), second = part(x + half);
        const FloatVec y[] = {first * part(cos) + second * part(sins[0]) * sign,
                              second * part(cos + half) - first * part(sins[1]) * sign};
        for (int64_t h = 0; h < 2; h++)
            left >= LANES ? store(out + h * half + i, y[h]) : store(out + h * half + i, y[h], left);
    }
}

template <class X, class Y>
void run_as(Threads& threads, const RotaryArgs& a) {
    const int64_t each = max(int64_t(1), CHUNK / (a.heads * a.head_dim)), tokens = a.batch * a.time;
    threads.parallel_for((tokens + each - 1) / each, [&](int64_t chunk) {
        for (int64_t token = chunk * each; token < min((chunk + 1) * each, tokens); token++) {
            const int64_t row = token / a.time, t = token % a.time, angle = row * a.batch_stride + t * a.head_dim;
            auto at = [&](const TensorView& view, int64_t head) {
                return row * view.batch_stride + head * view.head_stride + t * view.time_stride;
            };
            for (int64_t head = 0; head < a.heads; head++)
                rotate(static_cast<const X*>(a.x.data) + at(a.x, head), static_cast<Y*>(a.out.data) + at(a.out, head),
                       a.cos + angle, a.sin + angle, a.head_dim / 2, a.transposed);
        }
    });
}

}  // namespace

extern "C" {

EXPORTED int64_t supported() { return 1; }
EXPORTED int64_t workspace_size(const RotaryArgs*) { return 0; }

EXPORTED void run(const RotaryArgs* a, void*) {
    parallel(a->num_threads, [&](Threads threads) {
        if (a->x_dtype == FLOAT32)
            a->out_dtype == FLOAT32 ? run_as<float, float>(threads, *a) : run_as<float, BFloat16>(threads, *a);
        else
            a->out_dtype == FLOAT32 ? run_as<BFloat16, float>(threads, *a) : run_as<BFloat16, BFloat16>(threads, *a);
    });
}
}
