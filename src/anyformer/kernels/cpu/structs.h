// The table of pointers that describes a decoder, and the batch of texts that is to grow by a token each.
//
// Mirrored field by field in table.py: all numbers are 64 bits wide, so that no padding can differ.
#pragma once
#include <cstdint>

#define EXPORTED __attribute__((visibility("default")))  // Python calls it

enum Format : int64_t { FLOAT32, BFLOAT16, INT8, INT4 };
enum NormKind : int64_t { NO_NORM, LAYER_NORM, RMS_NORM };
enum Activation : int64_t { RELU, RELU_SQUARED, GELU, GELU_TANH, SILU, TANH };

// y = W x + bias. Floating weights are [outputs, inputs]; integers lie in tiles, see tiling.py.
struct Matrix {
    const void* weights;             // null: there is no such matrix
    const uint16_t *scales, *minima;  // of integers, in half precision; null: there are none
    const float* bias;    // null: none
    int64_t outputs, inputs;
    Format format;
};

struct Norm {
    NormKind kind;
    const float *weight, *bias;
    double eps;
};

struct Attention {
    Norm norm, query_norm, key_norm;
    Matrix query, key, value, output;  // cross-attention has no use for key and value: the cache has them
    int64_t heads, kv_heads, head_dim;
    int64_t window;  // tokens that are seen, the newest included; 0: all
    double scale;
};

struct FeedForward {
    Norm norm;
    Matrix up, gate, down;
    Activation activation;
};

struct Layer {
    Attention attention, cross;  // cross.query.weights is null in a decoder that has no source
    FeedForward feed_forward;
};

struct Decoder {
    const Layer* layers;
    int64_t depth, d_model, pre_norm;
    Norm final_norm;
    double head_scale;
    Matrix head;
};

// Keys or values [batch, kv_heads, time, head_dim] with these distances between elements; a head lies in one piece.
struct Memory {
    void* data;
    int64_t row, head, time;
};

struct LayerMemory {
    Memory keys, values, source_keys, source_values;
};

// A row for each new token, those of a text one after the other: row i is one of text i / fresh.
struct Batch {
    int64_t rows, fresh;      // fresh: new tokens of each text
    float* vectors;           // [rows, d_model]: embeddings; overwritten
    int64_t* places;          // [rows]: where the new token is written, behind all that it sees; -1: it is padding;
                              // overwritten
    const float *cos, *sin;   // [positions, head_dim]; null: nothing turns
    const float* bias;        // [heads, distances], added to the scores; null: none
    int64_t distances;
    const LayerMemory* layers;
    Format memory_format;     // FLOAT32 or BFLOAT16
    int64_t source;           // source tokens
    const int64_t* sources;   // [texts]: which source is a text's; null: text i has source i
    const uint8_t* source_mask;  // [texts, source]: 0 hides; null: all are seen
    const int64_t* scored;    // [scored_rows]: rows whose scores are wanted, as many of each text, in order
    int64_t scored_rows;
    float* scores;            // [scored_rows, vocab]
    void* workspace;
    int64_t threads;
};

// Attention of a batch in training; all numbers are bfloat16, but for `levels`.
struct TrainedAttention {
    Memory query, key, value, out;                         // [texts, heads or kv_heads, queries or keys, head_dim]
    Memory grad_out, grad_query, grad_key, grad_value;     // no data: a forward pass
    Memory bias, grad_bias;  // float32, [texts, heads, keys, queries and what is missing to BLOCK]; no data: none. What is
                             // the same for all texts has a gradient that is summed over them.
    float* levels;  // [texts, heads, queries]: the logarithm of the sum of a query's exponentials
    int64_t texts, heads, kv_heads, queries, keys, head_dim;
    int64_t causal;  // key t is seen from query t on
    double scale;
    int64_t threads;
};

// The sum of the outer products of the rows of two matrices of bfloat16 numbers, [outputs, inputs] in float32.
struct Outer {
    const void *left, *right;          // [rows, outputs] and [rows, inputs]
    int64_t left_step, right_step;     // numbers from row to row
    float* to;
    int64_t rows, outputs, inputs;
    float* sums;                       // [outputs]: of what is left; null: not wanted
    int64_t add;                       // 1: to what is there
    int64_t threads;
};

// out = act(x), or act(x) factor; all are bfloat16.
struct Activate {
    Activation kind;
    int64_t count;
    const void *x, *factor;                     // null: there is no factor
    void* out;
    const void* grad_out;                       // null: a forward pass
    void *grad_x, *grad_factor;
    int64_t threads;
};

// Logits [rows, vocab] in bfloat16, which become factor times the gradient of their cross-entropy.
struct CrossEntropy {
    void* logits;
    const int64_t* targets;
    float* losses;  // [rows]
    int64_t rows, vocab;
    double smoothing, factor;
    int64_t threads;
};

// out = x / sqrt(mean(x^2) + eps) weight, of rows of float32 numbers.
struct RmsNorm {
    const float *x, *weight;
    float* out;
    float* factors;                  // [rows]: what each was multiplied by
    const float* grad_out;           // null: a forward pass
    float *grad_x, *grad_weight;     // the second one [threads, width], to be summed
    int64_t rows, width;
    double eps;
    int64_t threads;
};

// A matrix whose rows are to be rounded.
struct Rounded {
    const void* data;
    Format format;     // FLOAT32 or BFLOAT16
    int64_t step;      // numbers from row to row; if it stands, from column to column
    int64_t standing;  // 1: rows lie side by side
};

// to [rows, outputs] = left [rows, depth] right [outputs, depth]^T + bias
struct RoundedProduct {
    Rounded left, right;
    int64_t rows, outputs, depth;
    const float* bias;  // null: none
    float* sums;        // of left's rows, as they are before they are rounded; null: not wanted
    void* to;
    Format format;      // of the result
    int64_t add;        // 1: to what is there
    int64_t dither;     // 1: left is rounded up or down by chance, so that small numbers are not lost
    int64_t threads;
};
