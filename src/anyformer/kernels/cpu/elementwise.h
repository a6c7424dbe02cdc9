// Norms, activation functions and rotary embeddings.
#pragma once
#include "structs.h"
#include "simd.h"

// Normalize a vector into `to`, which has room for whole SIMD vectors and is padded with zeros. Returns `to`, or `from`
// where there is no norm.
inline const float* normalize(const Norm& norm, const float* from, int64_t width, float* to) {
    if (norm.kind == NO_NORM) return from;
    auto part = [&](const float* all, int64_t i) {
        return width - i >= LANES ? load(all + i) : load(all + i, width - i);
    };
    float mean = 0;
    if (norm.kind == LAYER_NORM) {
        FloatVec total{};
        for (int64_t i = 0; i < width; i += LANES) total += part(from, i);
        mean = reduce_add(total) / width;
    }
    FloatVec squares{};
    for (int64_t i = 0; i < width; i += LANES) {
        FloatVec x = (width - i >= LANES ? load(from + i) : load(from + i, width - i, mean)) - mean;
        squares += x * x;
    }
    float rstd = 1.0f / std::sqrt(reduce_add(squares) / width + float(norm.eps));
    for (int64_t i = 0; i < width; i += LANES) {
        FloatVec x = (part(from, i) - mean) * rstd * part(norm.weight, i);
        store(to + i, norm.bias ? x + part(norm.bias, i) : x);
    }
    return to;
}

// softcap tanh(x / softcap), which stays within softcap; 0: x (Gemma 2, section 2).
inline FloatVec soft_capped(FloatVec x, float softcap) { return softcap > 0.0f ? softcap * tanh(x / softcap) : x; }

inline FloatVec sigmoid(FloatVec x) { return reciprocal(1.0f + exp(-x)); }

inline FloatVec apply_activation(Activation activation, FloatVec x) {
    switch (activation) {
        case RELU: return max(FloatVec{}, x);  // in this order NaN propagates
        case RELU_SQUARED: return max(FloatVec{}, x) * max(FloatVec{}, x);
        case GELU: return 0.5f * x * (1.0f + erf(x * 0.70710678f, exp(-0.5f * x * x)));
        case GELU_TANH: return x * sigmoid(1.59576912f * (x + 0.044715f * x * x * x));  // (1 + tanh y) / 2 = sigmoid 2y
        case QUICK_GELU: return x * sigmoid(1.702f * x);
        case SILU: return x * sigmoid(x);
        case TANH: return tanh(x);
    }
    return x;
}

// The product of a gated feed-forward.
inline FloatVec apply_gate(const FeedForward& f, FloatVec gate, FloatVec up) {
    if (f.limit == 0.0 && f.up_offset == 0.0) return up * apply_activation(f.activation, gate);
    if (f.limit > 0.0) {
        const FloatVec limit = broadcast(float(f.limit));  // the first argument, so that NaN propagates
        gate = min(limit, gate), up = max(-limit, min(limit, up));
    }
    return (up + float(f.up_offset)) * apply_activation(f.activation, gate);
}

// The same within 2e-4, and 3e-5 of large numbers, where it is rounded to 8 bits: a quarter of GELU's instructions. The
// polynomial, of least error on [-4, 4], is (Phi(x) - 1/2) / x.
inline FloatVec activation_of_8_bits(Activation activation, FloatVec x) {
    if (activation != GELU) return apply_activation(activation, x);
    const FloatVec near = min(broadcast(4.0f), max(broadcast(-4.0f), x)), square = near * near;  // NaN propagates
    FloatVec p = broadcast(2.278082072e-08f);
    p = p * square - 1.598568048e-06f;
    p = p * square + 4.795477840e-05f;
    p = p * square - 8.140075989e-04f;
    p = p * square + 8.772346004e-03f;
    p = p * square - 6.457300613e-02f;
    p = p * square + 3.978832625e-01f;
    return x * (p * near + 0.5f);
}

// The derivative of an activation function.
inline FloatVec activation_grad(Activation activation, FloatVec x) {
    switch (activation) {
        case RELU: return select(x <= 0.0f, FloatVec{}, broadcast(1.0f));
        case RELU_SQUARED: return 2.0f * max(FloatVec{}, x);
        case GELU: {
            FloatVec density = exp(-0.5f * x * x);
            return 0.5f * (1.0f + erf(x * 0.70710678f, density)) + x * 0.39894228f * density;
        }
        case GELU_TANH: {
            FloatVec square = x * x, s = sigmoid(1.59576912f * (x + 0.044715f * x * square));
            return s + x * s * (1.0f - s) * 1.59576912f * (1.0f + 0.134145f * square);
        }
        case QUICK_GELU: {
            FloatVec s = sigmoid(1.702f * x);
            return s * (1.0f + 1.702f * x * (1.0f - s));
        }
        case SILU: {
            FloatVec s = sigmoid(x);
            return s * (1.0f + x * (1.0f - s));
        }
        case TANH: return 1.0f - tanh(x) * tanh(x);
    }
    return x;
}

// Rotate the pairs (i, i + head_dim / 2) of a head by their angles (Su et al. 2021, equation 34, with halves).
inline void apply_rotary(float* head, int64_t head_dim, const float* cos, const float* sin) {
    const int64_t half = head_dim / 2;
    int64_t i = 0;
    for (; i + LANES <= half; i += LANES) {
        FloatVec first = load(head + i), second = load(head + i + half);
        store(head + i, first * load(cos + i) - second * load(sin + i));
        store(head + i + half, second * load(cos + i + half) + first * load(sin + i + half));
    }
    for (; i < half; i++) {
        float first = head[i], second = head[i + half];
        head[i] = first * cos[i] - second * sin[i];
        head[i + half] = second * cos[i + half] + first * sin[i + half];
    }
}
