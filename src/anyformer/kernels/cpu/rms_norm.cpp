// RMS norm in training (Zhang & Sennrich 2019), with the normalization and its product with the weight in one pass.
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

template <class T>
void forward(const RmsNormArgs& s, int64_t row) {
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

// grad_x = rstd * g - x * rstd^3 * mean(g * x), where g = grad_out * weight.
template <class T>
void backward(const RmsNormArgs& s, int64_t row, float* grad_weight) {
    const T* x = static_cast<const T*>(s.x) + row * s.width;
    const T* grad = static_cast<const T*>(s.grad_out) + row * s.width;
    float rstd = s.rstd[row];
    FloatVec dot{};
    for (int64_t i = 0; i < s.width; i += LANES) {
        FloatVec product = load_part(grad, i, s.width) * load_part(x, i, s.width);
        dot += product * load_part(s.weight, i, s.width);
        store_part(grad_weight, i, s.width, load_part(grad_weight, i, s.width) + product * rstd);
    }
    float x_scale = reduce_add(dot) / s.width * rstd * rstd * rstd;
    for (int64_t i = 0; i < s.width; i += LANES) {
        FloatVec g = load_part(grad, i, s.width) * load_part(s.weight, i, s.width);
        store_part(static_cast<T*>(s.grad_x) + row * s.width, i, s.width, g * rstd - load_part(x, i, s.width) * x_scale);
    }
}

template <class T>
void run_rows(const RmsNormArgs& s, int64_t begin, int64_t end, float* grad_weight) {
    for (int64_t row = begin; row < end; row++) s.grad_out ? backward<T>(s, row, grad_weight) : forward<T>(s, row);
}

}  // namespace

extern "C" {

EXPORTED int64_t supported() { return 1; }
EXPORTED int64_t workspace_size(const RmsNormArgs*) { return 0; }

EXPORTED void run(const RmsNormArgs* s, void*) {
    parallel(s->num_threads, [&](Threads threads) {
        // Rows are assigned to threads statically, so that grad_weight is summed in the same order in every run.
        const int64_t each = (s->rows + threads.size - 1) / threads.size, begin = threads.index * each;
        float* grad_weight = s->grad_weight + threads.index * s->width;
        (s->dtype == FLOAT32 ? run_rows<float> : run_rows<BFloat16>)(*s, begin, min(begin + each, s->rows), grad_weight);
    });
}
}
