// The experts of a mixture: which of them compute a row, and the matrices of each.
#pragma once
#include <cmath>
#include "packed_inputs.h"

// The matrix of one of `count` experts, which lie one below another.
inline Matrix expert(const Matrix& all, int64_t count, int64_t index) {
    Matrix one = all;
    if (!all.weights) return one;
    one.out_features = all.out_features / count;
    const int64_t before = index * one.out_features * all.in_features;
    const int64_t bits = all.dtype == FLOAT32 ? 32 : all.dtype == BFLOAT16 ? 16 : all.dtype == INT8 ? 8 : 4;
    one.weights = static_cast<const char*>(all.weights) + before * bits / 8;
    if (all.scales) one.scales += before / GROUP;
    if (all.minima) one.minima += before / GROUP;
    if (all.bias) one.bias += index * one.out_features;
    return one;
}

// An expert of a row, or a row of an expert.
struct Choice {
    int32_t index;
    float weight;
};

// Numbers of the workspace that a row takes: its logits, its `Choice`s, and one more `Choice`.
inline int64_t routing_size(const FeedForward& f) { return padded(f.experts) + padded(2 * f.used) + padded(2); }

// The experts with the largest logits, in that order, and the softmax of these: over all experts, or over the chosen.
inline void choose(const FeedForward& f, const float* logits, Choice* choices) {
    float largest = -INFINITY, total = 0.0f;
    for (int64_t e = 0; e < f.experts; e++) largest = logits[e] > largest ? logits[e] : largest;
    for (int64_t e = 0; e < f.experts && !f.normalized; e++) total += std::exp(logits[e] - largest);
    for (int64_t i = 0; i < f.used; i++) {
        int64_t best = -1;
        for (int64_t e = 0; e < f.experts; e++) {
            bool is_taken = false;
            for (int64_t j = 0; j < i; j++) is_taken = is_taken || choices[j].index == e;
            if (!is_taken && (best < 0 || logits[e] > logits[best])) best = e;
        }
        choices[i] = {int32_t(best), std::exp(logits[best] - largest)};
        if (f.normalized) total += choices[i].weight;
    }
    for (int64_t i = 0; i < f.used; i++) choices[i].weight /= total;
}
