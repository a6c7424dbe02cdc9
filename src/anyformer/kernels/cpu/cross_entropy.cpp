// Cross-entropy with label smoothing; the logits are overwritten with their gradient, or some of it is sampled.
#include "random.h"
#include "structs.h"
#include "threads.h"
#include "simd.h"

namespace {

constexpr int64_t ROWS = 4;  // that a thread takes at a time

// Elements of a thread's workspace.
int64_t padded_vocab_size(const CrossEntropyArgs& s) { return round_up(s.vocab_size, LANES); }

// LANES logits; -inf beyond the end, which adds nothing to the softmax.
FloatVec load_part(const BFloat16* row, int64_t i, int64_t count) {
    return count - i >= LANES ? load(row + i) : load(row + i, count - i, -INFINITY);
}

// An unbiased estimate of a row's gradient: numbers of a step or more, and some of the others, which become a step.
//
// Each lane sums up the others as parts of a step, from a random beginning. Where the sum reaches 1, a step is written
// and 1 subtracted. So the probability of a step is the part that a number is of it (systematic sampling: Madow 1949).
void sample(int64_t row, const float* grads, const CrossEntropyArgs& s, uint32_t seed) {
    const SparseRows& to = s.sampled;
    const int64_t blocks = (s.vocab_size + to.block - 1) / to.block;
    float* values = to.values + row * to.capacity;
    int32_t *columns = to.columns + row * to.capacity, *starts = to.starts + row * (blocks + 1);
    const float step = float(s.grad_scale / s.samples), inverse = float(s.samples / s.grad_scale);
    const uint32_t seeds[] = {seed, uint32_t(row)};
    FloatVec sums = convert<FloatVec>(bit_cast<IntVec>(random(lane_indices(), seeds) >> 8)) * 0x1p-24f;
    int32_t count = 0;
    for (int64_t block = 0; block < blocks; block++) {
        starts[block] = count;
        for (int64_t i = block * to.block; i < min((block + 1) * to.block, s.vocab_size); i += LANES) {
            const FloatVec grad = load(grads + i), steps = abs(grad) * inverse;
            const IntVec is_small = steps < 1.0f;
            sums += select(is_small, steps, FloatVec{});
            const IntVec is_reached = sums >= 1.0f, is_written = is_small + 1 - is_reached;  // true is -1
            if (reduce_max(is_written) == 0) continue;
            sums -= select(is_reached, broadcast(1.0f), FloatVec{});
            int32_t written[LANES];
            memcpy(written, &is_written, sizeof written);
            for (int64_t lane = 0; lane < LANES; lane++) {
                if (!written[lane] || count == to.capacity) continue;
                const float value = grads[i + lane];
                columns[count] = int32_t(i + lane);
                values[count++] = std::abs(value) < step ? std::copysign(step, value) : value;
            }
        }
    }
    starts[blocks] = count;
}

// The loss of a row. `exps` has room for the row's exponentials in float32.
float cross_entropy(int64_t index, const CrossEntropyArgs& s, float* exps) {
    BFloat16* row = static_cast<BFloat16*>(s.logits) + index * s.vocab_size;
    const int64_t target = s.targets[index];
    FloatVec maxima = broadcast(-INFINITY), sums{}, logit_sums{};
    for (int64_t i = 0; i < s.vocab_size; i += LANES) {
        FloatVec x = load_part(row, i, s.vocab_size);
        maxima = max(maxima, x);
        if (s.label_smoothing > 0) logit_sums += s.vocab_size - i >= LANES ? x : load(row + i, s.vocab_size - i);
    }
    float maximum = reduce_max(maxima), target_logit = load(row + target, 1)[0];
    for (int64_t i = 0; i < s.vocab_size; i += LANES) {
        FloatVec x = load_part(row, i, s.vocab_size), weight = exp(x - maximum);
        weight = select(x == -INFINITY, FloatVec{}, weight);
        sums += weight;
        store(exps + i, weight);
    }
    float sum = reduce_add(sums), smoothing = float(s.label_smoothing);
    float loss =
        maximum + std::log(sum) - (1 - smoothing) * target_logit - smoothing * reduce_add(logit_sums) / s.vocab_size;
    float factor = float(s.grad_scale) / sum, uniform = float(s.grad_scale) * smoothing / s.vocab_size;
    float target_grad = exps[target] * factor - uniform - (1 - smoothing) * float(s.grad_scale);
    for (int64_t i = 0; i < s.vocab_size; i += LANES) {
        FloatVec grad = load(exps + i) * factor - uniform;
        if (s.sampled.values)
            store(exps + i, grad);
        else if (s.vocab_size - i >= LANES)
            store(row + i, grad);
        else
            store(row + i, grad, s.vocab_size - i);
    }
    if (!s.sampled.values) {
        row[target] = to_bfloat16(target_grad);
        return loss;
    }
    exps[target] = target_grad;
    for (int64_t i = s.vocab_size; i < padded_vocab_size(s); i++) exps[i] = 0;
    sample(index, exps, s, bit_cast<uint32_t>(sum));
    return loss;
}

}  // namespace

extern "C" {

EXPORTED int64_t supported() { return 1; }
EXPORTED int64_t workspace_size(const CrossEntropyArgs* s) {
    return s->num_threads * padded_vocab_size(*s) * sizeof(float);
}

EXPORTED void run(const CrossEntropyArgs* s, void* workspace) {
    parallel(s->num_threads, [&](Threads threads) {
        float* exps = static_cast<float*>(workspace) + threads.index * padded_vocab_size(*s);
        threads.parallel_for((s->rows + ROWS - 1) / ROWS, [&](int64_t chunk) {
            for (int64_t row = chunk * ROWS; row < s->rows && row < (chunk + 1) * ROWS; row++)
                s->losses[row] = cross_entropy(row, *s, exps);
        });
    });
}
}
