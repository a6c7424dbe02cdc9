// Activation functions in training, in float32 arithmetic.
#include "elementwise.h"
#include "structs.h"
#include "threads.h"
#include "simd.h"

namespace {

constexpr int64_t CHUNK = 1 << 13;  // elements that a thread takes at a time

// Call `work(load, store)` for every LANES elements; `load` and `store` access them in any of the tensors.
template <class T, class Work>
void for_each_vector(Threads& threads, int64_t count, const Work& work) {
    threads.parallel_for((count + CHUNK - 1) / CHUNK, [&](int64_t chunk) {
        int64_t i = chunk * CHUNK, end = i + CHUNK < count ? i + CHUNK : count;
        for (; i + LANES <= end; i += LANES)
            work([&](const void* from) { return load(static_cast<const T*>(from) + i); },
                 [&](void* to, FloatVec y) { store(static_cast<T*>(to) + i, y); });
        if (i < end)
            work([&](const void* from) { return load(static_cast<const T*>(from) + i, end - i); },
                 [&](void* to, FloatVec y) { store(static_cast<T*>(to) + i, y, end - i); });
    });
}

template <Activation KIND, class T>
void run(Threads& threads, const ActivationArgs& a) {
    for_each_vector<T>(threads, a.count, [&](auto from, auto into) {
        FloatVec x = from(a.x);
        if (!a.grad_out)
            return into(a.out,
                        a.multiplier ? apply_activation(KIND, x) * from(a.multiplier) : apply_activation(KIND, x));
        FloatVec grad = from(a.grad_out);
        if (a.multiplier) into(a.grad_multiplier, grad * apply_activation(KIND, x)), grad *= from(a.multiplier);
        into(a.grad_x, grad * activation_grad(KIND, x));
    });
}

template <Activation KIND>
void run(Threads& threads, const ActivationArgs& a) {
    a.dtype == FLOAT32 ? run<KIND, float>(threads, a) : run<KIND, BFloat16>(threads, a);
}

}  // namespace

extern "C" {

EXPORTED int64_t supported() { return 1; }
EXPORTED int64_t workspace_size(const ActivationArgs*) { return 0; }

EXPORTED void run(const ActivationArgs* a, void*) {
    parallel(a->num_threads, [&](Threads threads) {
        switch (a->kind) {
            case RELU: return run<RELU>(threads, *a);
            case RELU_SQUARED: return run<RELU_SQUARED>(threads, *a);
            case GELU: return run<GELU>(threads, *a);
            case GELU_TANH: return run<GELU_TANH>(threads, *a);
            case QUICK_GELU: return run<QUICK_GELU>(threads, *a);
            case SILU: return run<SILU>(threads, *a);
            case TANH: return run<TANH>(threads, *a);
        }
    });
}
}
