// Cross-entropy with label smoothing; the logits are overwritten with their gradient.
#include "structs.h"
#include "threads.h"
#include "simd.h"

namespace {

constexpr int64_t ROWS = 4;  // that a thread takes at a time

// LANES logits; -inf beyond the end, which adds nothing to the softmax.
FloatVec load_part(const BFloat16* row, int64_t i, int64_t count) {
    return count - i >= LANES ? load(row + i) : load(row + i, count - i, -INFINITY);
}

// The loss of a row. `exps` has room for the row's exponentials in float32.
float cross_entropy(BFloat16* row, int64_t target, const CrossEntropyArgs& s, float* exps) {
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
        if (s.vocab_size - i >= LANES)
            store(row + i, grad);
        else
            store(row + i, grad, s.vocab_size - i);
    }
    row[target] = to_bfloat16(target_grad);
    return loss;
}

// Elements of a thread's workspace.
int64_t padded_vocab_size(const CrossEntropyArgs& s) { return (s.vocab_size + LANES - 1) / LANES * LANES; }

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
                s->losses[row] =
                    cross_entropy(static_cast<BFloat16*>(s->logits) + row * s->vocab_size, s->targets[row], *s, exps);
        });
    });
}
}
