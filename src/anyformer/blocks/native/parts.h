// What stands between the products: norms, activations, attention of one query.
#pragma once
#include "table.h"
#include "vectors.h"

// `to` has room up to the next multiple of LANES, and gets zeros there.
inline void normalise(const Norm& norm, const float* from, int64_t width, float* to) {
    if (norm.kind == NO_NORM) {
        for (int64_t i = 0; i < width; i += LANES)
            store(to + i, width - i >= LANES ? load(from + i) : load(from + i, width - i));
        return;
    }
    auto part = [&](const float* all, int64_t i) {
        return width - i >= LANES ? load(all + i) : load(all + i, width - i);
    };
    float mean = 0;
    if (norm.kind == LAYER_NORM) {
        Floats total{};
        for (int64_t i = 0; i < width; i += LANES) total += part(from, i);
        mean = sum(total) / width;
    }
    Floats squares{};
    for (int64_t i = 0; i < width; i += LANES) {
        Floats x = width - i >= LANES ? load(from + i) - mean : Floats{};
        if (width - i < LANES)
            for (int64_t lane = 0; lane < width - i; lane++) x[lane] = from[i + lane] - mean;
        squares += x * x;
    }
    float factor = 1.0f / std::sqrt(sum(squares) / width + float(norm.eps));
    for (int64_t i = 0; i < width; i += LANES) {
        Floats x = (part(from, i) - mean) * factor * part(norm.weight, i);
        store(to + i, norm.bias ? x + part(norm.bias, i) : x);
    }
}

inline Floats activate(Activation activation, Floats x) {
    switch (activation) {
        case RELU: return larger(x, Floats{});
        case RELU_SQUARED: return larger(x, Floats{}) * larger(x, Floats{});
        case GELU: return 0.5f * x * (1.0f + erf(x * 0.70710678f));
        case GELU_TANH: return 0.5f * x * (1.0f + tanh(0.79788456f * (x + 0.044715f * x * x * x)));
        case SILU: return x / (1.0f + exp(-x));
        case TANH: return tanh(x);
    }
    return x;
}

// Pair (i, i + half) of a head turns by its angle (Su et al. 2021, equation 34, in halves).
inline void turn(float* head, int64_t head_dim, const float* cos, const float* sin) {
    for (int64_t i = 0, half = head_dim / 2; i < half; i++) {
        float first = head[i], second = head[i + half];
        head[i] = first * cos[i] - second * sin[i];
        head[i + half] = second * cos[i + half] + first * sin[i + half];
    }
}

// Widths of a head in vectors that are unrolled; 0 stands for any other.
template <int VECTORS, class T>
inline float dot(const Floats* query, const T* key, int64_t head_dim) {
    Floats total{};
    if (VECTORS) {
        for (int v = 0; v < VECTORS; v++) total += query[v] * load(key + v * LANES);
        return sum(total);
    }
    for (int64_t i = 0; i < head_dim; i += LANES)
        total += query[i / LANES] * (head_dim - i >= LANES ? load(key + i) : load(key + i, head_dim - i));
    return sum(total);
}

// mixed = softmax(scale query keys^T + bias) values over keys [first, end); `query` is padded with zeros.
template <int VECTORS, class T>
inline void attend(const float* query, float scale, const T* keys, const T* values, int64_t key_step,
                   int64_t value_step, int64_t first, int64_t end, int64_t head_dim, const float* bias,
                   const uint8_t* mask, float* weights, float* mixed) {
    constexpr int MOST = 32;
    Floats scaled[MOST], total[MOST] = {};
    int64_t vectors = VECTORS ? VECTORS : (head_dim + LANES - 1) / LANES;
    for (int64_t v = 0; v < vectors; v++) scaled[v] = load(query + v * LANES) * scale;
    int64_t count = end - first;
    for (int64_t t = 0; t < count; t++) {
        weights[t] = dot<VECTORS>(scaled, keys + (first + t) * key_step, head_dim);
    }
    if (bias)
        for (int64_t t = 0; t < count; t++) weights[t] += bias[count - 1 - t];
    if (mask)
        for (int64_t t = 0; t < count; t++)
            if (!mask[first + t]) weights[t] = -INFINITY;
    int64_t rest = (LANES - count % LANES) % LANES;
    for (int64_t t = 0; t < rest; t++) weights[count + t] = -INFINITY;
    Floats most = all(-INFINITY);
    for (int64_t t = 0; t < count; t += LANES) most = larger(most, load(weights + t));
    float peak = largest(most);
    Floats sums{};
    for (int64_t t = 0; t < count; t += LANES) {
        Floats score = load(weights + t), weight = exp(score - peak);
        weight = score == -INFINITY ? Floats{} : weight;
        sums += weight;
        store(weights + t, weight);
    }
    float inverse = 1.0f / sum(sums);
    for (int64_t t = 0; t < count; t++) {
        const T* value = values + (first + t) * value_step;
        for (int64_t v = 0; v < vectors; v++)
            total[v] += weights[t] * (VECTORS || head_dim - v * LANES >= LANES
                                          ? load(value + v * LANES)
                                          : load(value + v * LANES, head_dim - v * LANES));
    }
    for (int64_t v = 0; v < vectors; v++)
        if (head_dim - v * LANES >= LANES)
            store(mixed + v * LANES, total[v] * inverse);
        else
            store(mixed + v * LANES, total[v] * inverse, head_dim - v * LANES);
}
