// RMS norms in training: torch passes over the numbers several times, for squares, means, roots and products.
#include "structs.h"
#include "threads.h"
#include "simd.h"

namespace {

Floats part(const float* row, int64_t i, int64_t width) {
    return width - i >= LANES ? load(row + i) : load(row + i, width - i);
}

void give(float* row, int64_t i, int64_t width, Floats y) {
    if (width - i >= LANES)
        store(row + i, y);
    else
        store(row + i, y, width - i);
}

void forward(const RmsNormArgs& s, int64_t row) {
    const float* x = s.x + row * s.width;
    Floats squares{};
    for (int64_t i = 0; i < s.width; i += LANES) {
        Floats some = part(x, i, s.width);
        squares += some * some;
    }
    float factor = 1.0f / std::sqrt(sum(squares) / s.width + float(s.eps));
    s.rstd[row] = factor;
    for (int64_t i = 0; i < s.width; i += LANES)
        give(s.out + row * s.width, i, s.width, part(x, i, s.width) * factor * part(s.weight, i, s.width));
}

// With f the factor and g the gradient times the weight: f g - x f^3 mean(g x).
void backward(const RmsNormArgs& s, int64_t row, float* grad_weight) {
    const float *x = s.x + row * s.width, *grad = s.grad_out + row * s.width;
    float factor = s.rstd[row];
    Floats common{};
    for (int64_t i = 0; i < s.width; i += LANES) {
        Floats both = part(grad, i, s.width) * part(x, i, s.width);
        common += both * part(s.weight, i, s.width);
        give(grad_weight, i, s.width, part(grad_weight, i, s.width) + both * factor);
    }
    float share = sum(common) / s.width * factor * factor * factor;
    for (int64_t i = 0; i < s.width; i += LANES) {
        Floats g = part(grad, i, s.width) * part(s.weight, i, s.width);
        give(s.grad_x + row * s.width, i, s.width, g * factor - part(x, i, s.width) * share);
    }
}

}  // namespace

extern "C" {

EXPORTED int64_t works() { return 1; }
EXPORTED int64_t bytes(const RmsNormArgs*) { return 0; }

// Forward, or backward if there is a gradient.
EXPORTED void run(const RmsNormArgs* s, void*) {
    together(s->num_threads, [&](Team team) {
        // Each thread has its share of the rows, the same in every run: so are its sums.
        int64_t each = (s->rows + team.size - 1) / team.size, end = (team.me + 1) * each;
        for (int64_t row = team.me * each; row < end && row < s->rows; row++)
            if (s->grad_out)
                backward(*s, row, s->grad_weight + team.me * s->width);
            else
                forward(*s, row);
    });
}
}
