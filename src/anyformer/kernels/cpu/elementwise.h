// What stands between the products: norms, activations, attention of one query.
#pragma once
#include "structs.h"
#include "simd.h"

// `to` has room up to the next multiple of LANES, and gets zeros there. Returns it, or `from` where there is no norm.
inline const float* normalize(const Norm& norm, const float* from, int64_t width, float* to) {
    if (norm.kind == NO_NORM) return from;
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
        Floats x = (width - i >= LANES ? load(from + i) : load(from + i, width - i, mean)) - mean;
        squares += x * x;
    }
    float factor = 1.0f / std::sqrt(sum(squares) / width + float(norm.eps));
    for (int64_t i = 0; i < width; i += LANES) {
        Floats x = (part(from, i) - mean) * factor * part(norm.weight, i);
        store(to + i, norm.bias ? x + part(norm.bias, i) : x);
    }
    return to;
}

inline Floats sigmoid(Floats x) { return reciprocal(1.0f + exp(-x)); }

inline Floats activate(Activation activation, Floats x) {
    switch (activation) {
        case RELU: return larger(Floats{}, x);  // in this order a NaN stays one
        case RELU_SQUARED: return larger(Floats{}, x) * larger(Floats{}, x);
        case GELU: return 0.5f * x * (1.0f + erf(x * 0.70710678f));
        case GELU_TANH: return x * sigmoid(1.59576912f * (x + 0.044715f * x * x * x));  // (1 + tanh y) / 2 = sigmoid 2y
        case SILU: return x * sigmoid(x);
        case TANH: return tanh(x);
    }
    return x;
}

// Its derivative.
inline Floats slope(Activation activation, Floats x) {
    switch (activation) {
        case RELU: return choose(x <= 0.0f, Floats{}, all(1.0f));
        case RELU_SQUARED: return 2.0f * larger(Floats{}, x);
        case GELU: return 0.5f * (1.0f + erf(x * 0.70710678f)) + x * 0.39894228f * exp(-0.5f * x * x);
        case GELU_TANH: {
            Floats square = x * x, share = sigmoid(1.59576912f * (x + 0.044715f * x * square));
            return share + x * share * (1.0f - share) * 1.59576912f * (1.0f + 0.134145f * square);
        }
        case SILU: {
            Floats share = sigmoid(x);
            return share * (1.0f + x * (1.0f - share));
        }
        case TANH: return 1.0f - tanh(x) * tanh(x);
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

// Sums of four vectors at once: adding halves of two vectors side by side takes fewer steps than four sums.
inline void sums_of_four(const Floats* v, float* to) {
#if defined(__AVX512DQ__)
    auto both = [](__m512 a, __m512 b, auto low, auto high) { return _mm512_add_ps(low(a, b), high(a, b)); };
    auto pairs = [&](const Floats& a, const Floats& b) {
        return both(bits_of<__m512>(a), bits_of<__m512>(b), [](auto x, auto y) { return _mm512_unpacklo_ps(x, y); },
                    [](auto x, auto y) { return _mm512_unpackhi_ps(x, y); });
    };
    __m512 first = pairs(v[0], v[1]), second = pairs(v[2], v[3]);
    __m512 all = _mm512_add_ps(_mm512_shuffle_ps(first, second, 0x44), _mm512_shuffle_ps(first, second, 0xee));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
#else
    for (int i = 0; i < 4; i++) to[i] = sum(v[i]);
#endif
}

// One head of one query. VECTORS is the head's width in vectors, so that its loops are written out; 0: any width.
template <int VECTORS, class T>
struct Head {
    static constexpr int MOST = VECTORS ? VECTORS : 32;
    int64_t width, vectors;
    Floats query[MOST], total[MOST] = {};

    Head(const float* from, float scale, int64_t width) : width(width), vectors((width + LANES - 1) / LANES) {
        each([&](int v) { query[v] = load(from + v * LANES) * scale; });
    }

    template <class Visit>
    void each(const Visit& visit) const {
        if constexpr (VECTORS > 0) {
            UNROLLED
            for (int v = 0; v < VECTORS; v++) visit(v);
        } else {
            for (int v = 0; v < vectors; v++) visit(v);
        }
    }

    Floats part(const T* from, int v) const {
        return VECTORS || width - v * LANES >= LANES ? load(from + v * LANES) : load(from + v * LANES, width - v * LANES);
    }

    Floats products(const T* key) const {
        Floats sums{};
        each([&](int v) { sums += query[v] * part(key, v); });
        return sums;
    }

    void add(float weight, const T* value) {
        each([&](int v) { total[v] += weight * part(value, v); });
    }

    void write(float factor, float* to) const {
        each([&](int v) {
            int64_t left = width - v * LANES;
            if (VECTORS || left >= LANES)
                store(to + v * LANES, total[v] * factor);
            else
                store(to + v * LANES, total[v] * factor, left);
        });
    }
};

// mixed = softmax(scale query keys^T + bias) values over keys [first, end); `query` is padded with zeros.
template <int VECTORS, class T>
inline void attend(const float* query, float scale, const T* keys, const T* values, int64_t key_step,
                   int64_t value_step, int64_t first, int64_t end, int64_t head_dim, const float* bias,
                   const uint8_t* mask, float* weights, float* mixed) {
    Head<VECTORS, T> head(query, scale, head_dim);
    int64_t count = end - first, t = 0;
    for (; t + 4 <= count; t += 4) {
        Floats products[4];
        UNROLLED
        for (int i = 0; i < 4; i++) products[i] = head.products(keys + (first + t + i) * key_step);
        sums_of_four(products, weights + t);
    }
    for (; t < count; t++) weights[t] = sum(head.products(keys + (first + t) * key_step));
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
        weight = choose(score == -INFINITY, Floats{}, weight);
        sums += weight;
        store(weights + t, weight);
    }
    float total = sum(sums), inverse = total == 0 ? 0.0f : 1.0f / total;  // padding sees nothing
    for (int64_t t = 0; t < count; t++) head.add(weights[t], values + (first + t) * value_step);
    head.write(inverse, mixed);
}
