// The search for the scale and the minimum of each group of 32 weights (see quantization.py). A lane has a group, so that
// nothing is added up across lanes.
#include "structs.h"
#include "threads.h"
#include "simd.h"

namespace {

constexpr int GROUP = 32, LARGEST = 15, REFITS = 2;
constexpr float FRACTIONS[] = {1.0f, 0.95f, 0.9f, 0.85f, 0.8f, 0.75f};  // of the scale that spans the whole group

FloatVec inverse(FloatVec x) { return select(x == FloatVec{}, FloatVec{}, 1.0f / x); }

FloatVec round_float16(FloatVec x) {
    uint16_t halves[LANES];
    store_float16(halves, x);
    return load_float16<FloatVec>(halves);
}

struct Scaling {
    FloatVec scale, minimum;

    // What is stored of them.
    Scaling rounded() const { return {round_float16(scale), round_float16(minimum)}; }
};

// Sixteen groups; weight i of all of them is weights[i].
struct Groups {
    float weights[GROUP][LANES];
    FloatVec middle, span, mean;

    Groups(const float* from, int64_t count) {
        float padded[LANES * GROUP] = {};
        if (count < LANES) from = static_cast<float*>(memcpy(padded, from, count * GROUP * sizeof(float)));
        for (int i = 0; i < GROUP; i += LANES) transpose(from + i, GROUP, weights[i], LANES);
        FloatVec lowest = load(weights[0]), highest = lowest, sum{};
        for (auto& each : weights) {
            lowest = min(lowest, load(each));
            highest = max(highest, load(each));
        }
        middle = (lowest + highest) * 0.5f;
        span = (highest - lowest) * (1.0f / LARGEST);
        for (auto& each : weights) sum += load(each) - middle;  // of weights far from 0, their differences alone count
        mean = sum * (1.0f / GROUP);
    }

    FloatVec code(int i, const Scaling& by, FloatVec inverse_scale) const {
        const FloatVec x = (load(weights[i]) - by.minimum) * inverse_scale;
        return min(max(x, FloatVec{}), broadcast(LARGEST)) + 12582912.0f - 12582912.0f;  // rounds to integers
    }

    // The squared error of a scaling, and the one of least squares for the codes that it gives.
    FloatVec error(const Scaling& by, Scaling& fit) const {
        const FloatVec inverse_scale = inverse(by.scale);
        FloatVec error{}, sum{}, squares{}, products{};
        for (int i = 0; i < GROUP; i++) {
            const FloatVec c = code(i, by, inverse_scale), x = load(weights[i]);
            const FloatVec difference = by.minimum + by.scale * c - x;
            error += difference * difference;
            sum += c;
            squares += c * c;
            products += c * (x - middle);
        }
        const FloatVec mean_code = sum * (1.0f / GROUP), variation = squares - sum * mean_code;  // exact, of integers
        const FloatVec slope = (products - sum * mean) * inverse(variation);
        fit.scale = round_float16(select(variation > FloatVec{}, slope, by.scale));
        fit.minimum = round_float16(middle + (mean - fit.scale * mean_code));
        return error;
    }

    Scaling search() const {
        Scaling best = Scaling{span, middle - span * (0.5f * LARGEST)}.rounded();
        FloatVec least = broadcast(INFINITY);
        for (float fraction : FRACTIONS) {
            const FloatVec scale = span * fraction;
            Scaling tried = Scaling{scale, middle - scale * (0.5f * LARGEST)}.rounded(), next;
            for (int refit = 0; refit <= REFITS; refit++, tried = next) {
                const FloatVec found = error(tried, next);
                const auto better = found < least;
                least = select(better, found, least);
                best = {select(better, tried.scale, best.scale), select(better, tried.minimum, best.minimum)};
            }
        }
        return best;
    }
};

void run_groups(const QuantizeArgs& a, int64_t first, int64_t count) {
    const Groups groups(a.weights + first * GROUP, count);
    const Scaling best = groups.search();
    const FloatVec inverse_scale = inverse(best.scale);
    uint16_t scales[LANES], minima[LANES];
    int8_t bytes[GROUP / 2][LANES];
    store_float16(scales, best.scale);
    store_float16(minima, best.minimum);
    for (int i = 0; i < GROUP / 2; i++) {
        const FloatVec low = groups.code(i, best, inverse_scale), high = groups.code(i + GROUP / 2, best, inverse_scale);
        store(bytes[i], convert<IntVec>(low + high * 16.0f));
    }
    memcpy(a.scales + first, scales, count * sizeof *scales);
    memcpy(a.minima + first, minima, count * sizeof *minima);
    for (int64_t lane = 0; lane < count; lane++)
        for (int i = 0; i < GROUP / 2; i++) a.integers[(first + lane) * GROUP / 2 + i] = uint8_t(bytes[i][lane]);
}

}  // namespace

extern "C" {

EXPORTED int64_t supported() { return 1; }
EXPORTED int64_t workspace_size(const QuantizeArgs*) { return 0; }

EXPORTED void run(const QuantizeArgs* a, void*) {
    parallel(a->num_threads, [&](Threads threads) {
        threads.parallel_for((a->groups + LANES - 1) / LANES, [&](int64_t block) {
            run_groups(*a, block * LANES, min(LANES, a->groups - block * LANES));
        });
    });
}
}
