// Logits become the gradient of their cross-entropy, where they lie.
#include "structs.h"
#include "threads.h"
#include "simd.h"

namespace {

constexpr int64_t ROWS = 4;  // that a thread takes at a time

// Sixteen numbers; beyond the end, so little that nothing comes of it.
Floats part(const BFloat16* row, int64_t i, int64_t count) {
    return count - i >= LANES ? load(row + i) : load(row + i, count - i, -INFINITY);
}

float soften(BFloat16* row, int64_t target, const CrossEntropyArgs& s, float* scratch) {
    Floats peaks = all(-INFINITY), sums{}, total{};
    for (int64_t i = 0; i < s.vocab_size; i += LANES) {
        Floats x = part(row, i, s.vocab_size);
        peaks = larger(peaks, x);
        if (s.label_smoothing > 0) total += s.vocab_size - i >= LANES ? x : load(row + i, s.vocab_size - i);
    }
    float peak = largest(peaks), answer = load(row + target, 1)[0];
    for (int64_t i = 0; i < s.vocab_size; i += LANES) {
        Floats x = part(row, i, s.vocab_size), weight = exp(x - peak);
        weight = choose(x == -INFINITY, Floats{}, weight);
        sums += weight;
        store(scratch + i, weight);
    }
    float all_of_it = sum(sums), smoothing = float(s.label_smoothing);
    float loss = peak + std::log(all_of_it) - (1 - smoothing) * answer - smoothing * sum(total) / s.vocab_size;
    float factor = float(s.grad_scale) / all_of_it, spread = float(s.grad_scale) * smoothing / s.vocab_size;
    float right = scratch[target] * factor - spread - (1 - smoothing) * float(s.grad_scale);
    for (int64_t i = 0; i < s.vocab_size; i += LANES) {
        Floats grad = load(scratch + i) * factor - spread;
        if (s.vocab_size - i >= LANES)
            store(row + i, grad);
        else
            store(row + i, grad, s.vocab_size - i);
    }
    row[target] = rounded(right);
    return loss;
}

// Numbers of a thread's memory, in whole vectors.
int64_t room(const CrossEntropyArgs& s) { return (s.vocab_size + LANES - 1) / LANES * LANES; }

}  // namespace

extern "C" {

EXPORTED int64_t works() { return 1; }
EXPORTED int64_t bytes(const CrossEntropyArgs* s) { return s->num_threads * room(*s) * sizeof(float); }

EXPORTED void run(const CrossEntropyArgs* s, void* workspace) {
    together(s->num_threads, [&](Team team) {
        float* scratch = static_cast<float*>(workspace) + team.me * room(*s);
        team.share((s->rows + ROWS - 1) / ROWS, [&](int64_t run) {
            for (int64_t row = run * ROWS; row < s->rows && row < (run + 1) * ROWS; row++)
                s->losses[row] =
                    soften(static_cast<BFloat16*>(s->logits) + row * s->vocab_size, s->targets[row], *s, scratch);
        });
    });
}
}
