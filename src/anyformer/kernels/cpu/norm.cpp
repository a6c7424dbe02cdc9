// RMS norm (Zhang & Sennrich 2019) and the gradients of layer norm (Ba et al. 2016) in training, in one pass.
#include "structs.h"
#include "threads.h"
#include "simd.h"

namespace {

template <class T>
FloatVec load_part(const T* row, int64_t i, int64_t width) {
    return width - i >= LANES ? load(row + i) : load(row + i, width - i);
}

template <class T>
void store_part(T* row, int64_t i, int64_t width, FloatVec y) {
    if (width - i >= LANES)
        store(row + i, y);
    else
        store(row + i, y, width - i);
}

FloatVec weight_part(const NormArgs& s, int64_t i) {
    return s.weight ? load_part(s.weight, i, s.width) : broadcast(1.0f);
}

template <class T>
void forward(const NormArgs& s, int64_t row) {
    const T* x = static_cast<const T*>(s.x) + row * s.width;
    FloatVec squares{};
    for (int64_t i = 0; i < s.width; i += LANES) {
        FloatVec part = load_part(x, i, s.width);
        squares += part * part;
    }
    float rstd = 1.0f / std::sqrt(reduce_add(squares) / s.width + float(s.eps));
    s.rstd[row] = rstd;
    for (int64_t i = 0; i < s.width; i += LANES)
        store_part(static_cast<T*>(s.out) + row * s.width, i, s.width,
                   load_part(x, i, s.width) * rstd * load_part(s.weight, i, s.width));
}

// grad_x = rstd * (g - y * mean(g * y)), where y = x * rstd and g = grad_out * weight; of a layer norm, which has means,
// rstd * (g - mean(g) - y * mean(g * y)), where y = (x - mean) * rstd.
template <class T>
void backward(const NormArgs& s, int64_t row, float* grad_weight, float* grad_bias) {
    const T* x = static_cast<const T*>(s.x) + row * s.width;
    const T* grad = static_cast<const T*>(s.grad_out) + row * s.width;
    const float rstd = s.rstd[row], mean = s.mean ? s.mean[row] : 0.0f;
    FloatVec dot{}, total{};
    for (int64_t i = 0; i < s.width; i += LANES) {
        const FloatVec part = load_part(grad, i, s.width), weight = weight_part(s, i);
        const FloatVec product = part * (load_part(x, i, s.width) - mean);
        dot += product * weight;
        if (s.mean) total += part * weight;
        store_part(grad_weight, i, s.width, load_part(grad_weight, i, s.width) + product * rstd);
        if (grad_bias) store_part(grad_bias, i, s.width, load_part(grad_bias, i, s.width) + part);
    }
    const float x_scale = reduce_add(dot) / s.width * rstd * rstd * rstd, offset = reduce_add(total) / s.width * rstd;
    for (int64_t i = 0; i < s.width; i += LANES) {
        const FloatVec g = load_part(grad, i, s.width) * weight_part(s, i);
        store_part(static_cast<T*>(s.grad_x) + row * s.width, i, s.width,
                   g * rstd - (load_part(x, i, s.width) - mean) * x_scale - offset);
    }
}

template <class T>
void run_rows(const NormArgs& s, int64_t begin, int64_t end, float* grad_weight, float* grad_bias) {
    for (int64_t row = begin; row < end; row++)
        s.grad_out ? backward<T>(s, row, grad_weight, grad_bias) : forward<T>(s, row);
}

}  // namespace

extern "C" {

EXPORTED int64_t supported() { return 1; }
EXPORTED int64_t workspace_size(const NormArgs*) { return 0; }

EXPORTED void run(const NormArgs* s, void*) {
    parallel(s->num_threads, [&](Threads threads) {
        // A sum over rows is one of sums over parts of them, which don't depend on the threads.
        threads.parallel_for(s->parts, [&](int64_t part) {
            (s->dtype == FLOAT32 ? run_rows<float> : run_rows<BFloat16>)(
                *s, s->rows * part / s->parts, s->rows * (part + 1) / s->parts, s->grad_weight + part * s->width,
                s->grad_bias ? s->grad_bias + part * s->width : nullptr);
        });
    });
}
}
