// Activations in training: bfloat16 numbers come in and go out, and what is between is float32.
#include "elementwise.h"
#include "structs.h"
#include "threads.h"
#include "simd.h"

namespace {

constexpr int64_t RUN = 1 << 13;  // numbers that a thread takes at a time

// Sixteen numbers at a place of every array; there is room for whole vectors in none of them.
template <class Work>
void each_vector(Team& team, int64_t count, const Work& work) {
    team.share((count + RUN - 1) / RUN, [&](int64_t run) {
        int64_t i = run * RUN, end = i + RUN < count ? i + RUN : count;
        for (; i + LANES <= end; i += LANES)
            work([&](const void* from) { return load(static_cast<const BFloat16*>(from) + i); },
                 [&](void* to, Floats y) { store(static_cast<BFloat16*>(to) + i, y); });
        if (i < end)
            work([&](const void* from) { return load(static_cast<const BFloat16*>(from) + i, end - i); },
                 [&](void* to, Floats y) { store(static_cast<BFloat16*>(to) + i, y, end - i); });
    });
}

template <Activation KIND>
void run(Team& team, const ActivationArgs& a) {
    each_vector(team, a.count, [&](auto from, auto into) {
        Floats x = from(a.x);
        if (!a.grad_out) return into(a.out, a.multiplier ? activate(KIND, x) * from(a.multiplier) : activate(KIND, x));
        Floats grad = from(a.grad_out);
        if (a.multiplier) into(a.grad_multiplier, grad * activate(KIND, x)), grad *= from(a.multiplier);
        into(a.grad_x, grad * slope(KIND, x));
    });
}

}  // namespace

extern "C" {

EXPORTED int64_t works() { return 1; }
EXPORTED int64_t bytes(const ActivationArgs*) { return 0; }

// Forward, or backward if there is a gradient.
EXPORTED void run(const ActivationArgs* a, void*) {
    together(a->num_threads, [&](Team team) {
        switch (a->kind) {
            case RELU: return run<RELU>(team, *a);
            case RELU_SQUARED: return run<RELU_SQUARED>(team, *a);
            case GELU: return run<GELU>(team, *a);
            case GELU_TANH: return run<GELU_TANH>(team, *a);
            case SILU: return run<SILU>(team, *a);
            case TANH: return run<TANH>(team, *a);
        }
    });
}
}
