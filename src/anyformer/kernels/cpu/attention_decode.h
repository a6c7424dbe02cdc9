// Attention of a single query, as when a token is decoded: the SIMD lanes are dimensions of the head.
#pragma once
#include <cmath>

#include "elementwise.h"
#include "simd.h"

// Horizontal sums of four vectors: adding halves of two vectors side by side takes fewer steps than four reductions.
inline void reduce_add_x4(const FloatVec* v, float* to) {
#if defined(__AVX512DQ__)
    auto both = [](__m512 a, __m512 b, auto low, auto high) { return _mm512_add_ps(low(a, b), high(a, b)); };
    auto pairs = [&](const FloatVec& a, const FloatVec& b) {
        return both(
            bit_cast<__m512>(a), bit_cast<__m512>(b), [](auto x, auto y) { return _mm512_unpacklo_ps(x, y); },
            [](auto x, auto y) { return _mm512_unpackhi_ps(x, y); });
    };
    __m512 first = pairs(v[0], v[1]), second = pairs(v[2], v[3]);
    __m512 all = _mm512_add_ps(_mm512_shuffle_ps(first, second, 0x44), _mm512_shuffle_ps(first, second, 0xee));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
#else
    for (int i = 0; i < 4; i++) to[i] = reduce_add(v[i]);
#endif
}

// A query and its output in registers. VECTORS is head_dim / LANES, so that loops are unrolled; 0: any head_dim.
template <int VECTORS, class T>
struct DecodeHead {
    static constexpr int MAX_VECTORS = VECTORS ? VECTORS : 32;
    int64_t head_dim, vectors;
    FloatVec query[MAX_VECTORS], out[MAX_VECTORS] = {};

    DecodeHead(const float* from, float scale, int64_t head_dim)
        : head_dim(head_dim), vectors((head_dim + LANES - 1) / LANES) {
        for_each_vector([&](int v) { query[v] = load(from + v * LANES) * scale; });
    }

    template <class Visit>
    void for_each_vector(const Visit& visit) const {
        if constexpr (VECTORS > 0) {
            UNROLL
            for (int v = 0; v < VECTORS; v++) visit(v);
        } else {
            for (int v = 0; v < vectors; v++) visit(v);
        }
    }

    FloatVec load_part(const T* from, int v) const {
        return VECTORS || head_dim - v * LANES >= LANES ? load(from + v * LANES)
                                                        : load(from + v * LANES, head_dim - v * LANES);
    }

    // The dot product with a key, before the sum over lanes.
    FloatVec dot(const T* key) const {
        FloatVec sums{};
        for_each_vector([&](int v) { sums += query[v] * load_part(key, v); });
        return sums;
    }

    void accumulate(float weight, const T* value) {
        for_each_vector([&](int v) { out[v] += weight * load_part(value, v); });
    }

    void write(float factor, float* to) const {
        for_each_vector([&](int v) {
            int64_t left = head_dim - v * LANES;
            if (VECTORS || left >= LANES)
                store(to + v * LANES, out[v] * factor);
            else
                store(to + v * LANES, out[v] * factor, left);
        });
    }
};

// output = softmax(soft_capped(scale query keys^T) + bias) values over keys [first, end). `query` is padded with zeros to whole
// vectors; `bias` is indexed by the distance from the last key, `mask` by key; `sink` is one more score, whose weight is
// left out (-inf: none); `weights` is scratch memory.
template <int VECTORS, class T>
inline void attend(const float* query, float scale, float softcap, const T* keys, const T* values, int64_t key_stride,
                   int64_t value_stride, int64_t first, int64_t end, int64_t head_dim, const float* bias,
                   const uint8_t* mask, float sink, float* weights, float* output) {
    DecodeHead<VECTORS, T> head(query, scale, head_dim);
    int64_t count = end - first, t = 0;
    for (; t + 4 <= count; t += 4) {
        FloatVec products[4];
        UNROLL
        for (int i = 0; i < 4; i++) products[i] = head.dot(keys + (first + t + i) * key_stride);
        reduce_add_x4(products, weights + t);
    }
    for (; t < count; t++) weights[t] = reduce_add(head.dot(keys + (first + t) * key_stride));
    if (softcap > 0.0f)
        for (int64_t t = 0; t < count; t += LANES) store(weights + t, soft_capped(load(weights + t), softcap));
    if (bias)
        for (int64_t t = 0; t < count; t++) weights[t] += bias[count - 1 - t];
    if (mask)
        for (int64_t t = 0; t < count; t++)
            if (!mask[first + t]) weights[t] = -INFINITY;
    int64_t padding = (LANES - count % LANES) % LANES;
    for (int64_t t = 0; t < padding; t++) weights[count + t] = -INFINITY;
    FloatVec maxima = broadcast(sink);
    for (int64_t t = 0; t < count; t += LANES) maxima = max(maxima, load(weights + t));
    float maximum = reduce_max(maxima);
    FloatVec sums{};
    for (int64_t t = 0; t < count; t += LANES) {
        FloatVec score = load(weights + t), weight = exp(score - maximum);
        weight = select(score == -INFINITY, FloatVec{}, weight);
        sums += weight;
        store(weights + t, weight);
    }
    float total = reduce_add(sums) + (sink == -INFINITY ? 0.0f : std::exp(sink - maximum));
    float inverse = total == 0 ? 0.0f : 1.0f / total;  // 0 where every key is masked
    for (int64_t t = 0; t < count; t++) head.accumulate(weights[t], values + (first + t) * value_stride);
    head.write(inverse, output);
}
