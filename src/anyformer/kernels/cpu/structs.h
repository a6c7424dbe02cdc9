// Arguments of the exported functions, and the decoder as a table of pointers.
//
// Mirrored field by field in structs.py. Every field is 64 bits wide, so that both sides agree without padding.
#pragma once
#include <cstdint>

// Called from Python.
#if defined(_WIN32)
#define EXPORTED __declspec(dllexport)
#else
#define EXPORTED __attribute__((visibility("default")))
#endif

enum Dtype : int64_t { FLOAT32, BFLOAT16, INT8, INT4, INT4_CENTERED };
enum NormKind : int64_t { NO_NORM, LAYER_NORM, RMS_NORM };
enum Activation : int64_t { RELU, RELU_SQUARED, GELU, GELU_TANH, QUICK_GELU, SILU, TANH };

// y = x W^T + bias. Floating-point weights are [out_features, in_features]; integers are packed, see packed_weight.py.
struct Matrix {
    const void* weights;              // null: no such matrix
    const uint16_t *scales, *minima;  // float16, of integer weights; minima null: none (INT8), or -8 times the scales
                                      // (INT4_CENTERED)
    const float* bias;                // null: none
    int64_t out_features, in_features;
    Dtype dtype;
    int64_t adapted;  // the index of its low-rank terms among those of an adapter; 0: it has none
};

// What an adapter adds to y = W x: B (A x). Both factors are in panels of 16 rows, padded with zeros: float32 [depth, 16]
// where W is float32, elsewhere bfloat16 [depth / 2, 16, 2].
struct LowRank {
    const float *a, *b;  // A is [rank, in_features]; B, times the adapter's scale, [out_features, rank]
    int64_t rank;        // 0: no such term
};

struct Norm {
    NormKind kind;
    const float *weight, *bias;
    double eps;
};

// The norms around a branch f: x = outer(x + inner(f(before(x)))).
struct Norms {
    Norm before, inner, outer;
};

// Rotary positions.
struct Rotation {
    const float *cos, *sin;  // [positions, head_dim]; null: none
};

struct Attention {
    Norms norms;
    Norm query_norm, key_norm;
    int64_t has_wide_norm;  // 1: query_norm and key_norm are over all heads together, not over each
    Matrix query, key, value, output;  // cross-attention has no key and value: the cache holds the encoder's
    int64_t heads, kv_heads, head_dim;
    int64_t window;    // sliding window in tokens, the newest included; 0: none
    int64_t rotation;  // the index of its rotary positions in Batch.rotations
    double scale, softcap;  // scores are softcap tanh(score / softcap); 0: none
    const float* sinks;     // [heads]: one more score, whose weight is left out; null: none
};

struct FeedForward {
    Norms norms;
    Matrix up, gate, down;  // those of experts lie one below another
    Matrix router;          // null weights: one network for all tokens
    int64_t experts, used;  // `used` of so many experts compute a token
    int64_t normalized;     // 1: the weights of those sum to 1
    Activation activation;
    double limit, up_offset;  // gated: act(min(gate, limit)) (clamp(up, -limit, limit) + up_offset); limit 0: none
};

struct Layer {
    Attention attention, cross_attention;  // cross_attention.query.weights is null in a decoder-only model
    FeedForward feed_forward;
};

struct Decoder {
    const Layer* layers;
    int64_t num_layers, d_model;
    int64_t is_parallel;    // 1: attention and feed-forward both read what comes into a layer
    double residual_scale;  // of what they add
    Matrix embedding;  // of tokens, [vocab_size, d_model], not in 4 bits; null weights: the caller embeds them
    double embedding_scale;
    Dtype dtype;  // embeddings are rounded to it
    Norm final_norm;
    double head_scale, softcap;  // logits are softcap tanh(logit / softcap); 0: none
    Matrix head;
};

// A tensor [batch, heads, time, head_dim] whose last dimension is contiguous; strides in elements.
struct TensorView {
    void* data;
    int64_t batch_stride, head_stride, time_stride;
};

// The KV cache of a layer.
struct LayerCache {
    TensorView keys, values, encoder_keys, encoder_values;
};

// The new tokens of a batch of sequences, one row each: row i belongs to sequence i / new_tokens.
struct Batch {
    int64_t rows, new_tokens;  // new_tokens: of each sequence
    const int64_t* tokens;     // [rows]; null: they are embedded already
    float* hidden_states;      // [rows, d_model]: the embeddings; overwritten
    int64_t* positions;        // [rows]: also the cache slot to write; -1: padding; overwritten
    const Rotation* rotations; // by Attention.rotation
    const float* bias;         // [heads, num_distances], added to the attention scores; null: none
    int64_t num_distances;
    const LowRank** adapters;  // [rows]: the terms of each one's adapter, by Matrix.adapted; null: none; overwritten
    int64_t max_rank;          // of all terms; 0: no adapter acts, and `adapters` is not read
    const LayerCache* caches;  // [num_layers]
    Dtype cache_dtype;         // FLOAT32 or BFLOAT16
    int64_t source_length;
    const int64_t* source_index;  // [sequences]: each sequence's row in the encoder's keys; null: its own index
    const uint8_t* source_mask;   // [sequences, source_length]: 0 masks; null: none
    const int64_t* logit_rows;    // [num_logit_rows]: rows to compute logits for, as many of each sequence, ascending;
                                  // not read if these are all rows
    int64_t num_logit_rows;
    float* logits;       // [num_logit_rows, vocab_size]
    int64_t* likeliest;  // [num_logit_rows]: the first token with the largest logit; -1: one is NaN
    void* workspace;
    int64_t num_threads;
};

// Texts one behind the other, that pass through the layers of a Decoder by themselves.
struct Texts {
    const int64_t* starts;  // [texts + 1]: the row of each one's first token; the number of rows
    const int64_t* blocks;  // [num_blocks + 1]: the first of the texts that are computed together; the number of texts
    int64_t num_blocks;
    float* hidden_states;  // [rows, d_model]: the embeddings; overwritten
    const float* bias;     // [heads, bias_stride], added to the score at key - query + longest - 1; null: none
    int64_t bias_stride, longest;  // tokens of the longest text; 31 numbers behind the last distance are read as well
    void* workspace;
    int64_t num_threads;
};

// Attention in training, forward or (with grad_out) backward. Tensors have one dtype unless noted.
struct AttentionArgs {
    TensorView query, key, value, out;                      // [batch, heads or kv_heads, queries or keys, head_dim]
    TensorView grad_out, grad_query, grad_key, grad_value;  // grad_out.data is null in the forward pass
    TensorView bias, grad_bias;  // float32 [batch, heads, keys, queries rounded up to whole blocks]; null data: none.
                                 // With a batch stride of 0 the gradient is summed over the batch.
    float* logsumexp;            // [batch, heads, queries]
    int64_t batch, heads, kv_heads, queries, keys, head_dim;
    int64_t causal;  // query i attends to keys up to i
    double scale;
    Dtype dtype;              // FLOAT32 or BFLOAT16
    const uint32_t* seed;     // two numbers; null: no dropout
    const int64_t* counters;  // [batch] of each row's first query in the first head
    int64_t threshold;        // a weight is kept where a random number of 32 bits is at least that
    double kept_scale;        // of the weights that are kept
    int64_t num_threads;
};

// out = act(x), or act(x) * multiplier.
struct ActivationArgs {
    Activation kind;
    Dtype dtype;  // of all: FLOAT32 or BFLOAT16
    int64_t count;
    const void *x, *multiplier;  // multiplier null: none
    void* out;
    const void* grad_out;  // null: forward pass
    void *grad_x, *grad_multiplier;
    int64_t num_threads;
};

// out = x * scale where a random number of 32 bits is at least `threshold`, otherwise 0.
struct DropoutArgs {
    const void* x;
    void* out;
    Dtype dtype;  // FLOAT32 or BFLOAT16
    int64_t count, width, threshold;
    double scale;
    const uint32_t* seed;     // two numbers
    const int64_t* counters;  // of each vector of `width` elements
    int64_t num_threads;
};

// A sparse matrix: in each row the numbers that are not 0, by blocks of columns.
struct SparseRows {
    float* values;     // [rows, capacity]; null: no matrix
    int32_t* columns;  // [rows, capacity]
    int32_t* starts;   // [rows, blocks + 1]: where each block begins among the row's numbers, and where the last ends
    int64_t capacity, block;  // the most numbers of a row; columns of a block
};

// Cross-entropy of bfloat16 logits [rows, vocab_size], which are overwritten with grad_scale times their gradient.
struct CrossEntropyArgs {
    void* logits;
    const int64_t* targets;
    float* losses;  // [rows]
    int64_t rows, vocab_size;
    double label_smoothing, grad_scale;
    SparseRows sampled;  // the gradient is written to it instead, numbers below grad_scale / samples at random
    int64_t samples;
    int64_t num_threads;
};

// grad_input = grad weight, grad_weight = grad^T input and the sums of grad's columns, for a sparse gradient of logits.
struct SparseMatmulArgs {
    SparseRows grad;     // [rows, vocab_size]
    const void* input;   // [rows, width], bfloat16
    const void* weight;  // [vocab_size, width]
    Dtype weight_dtype;
    void* grad_input;  // [rows, width]; null: not wanted
    Dtype grad_input_dtype;
    float *grad_weight, *grad_bias;  // [vocab_size, width], [vocab_size]; null: not wanted
    int64_t rows, vocab_size, width;
    int64_t accumulate;  // 1: add to grad_weight and grad_bias
    int64_t num_threads;
};

// out = x * rstd * weight with rstd = 1 / sqrt(mean(x^2) + eps), in float32 arithmetic.
struct NormArgs {
    const void* x;
    const float* weight;  // null: 1
    void* out;
    Dtype dtype;           // of x, out and their gradients: FLOAT32 or BFLOAT16
    const float* mean;     // [rows] of a layer norm, whose gradients alone are computed; null: RMS norm
    float* rstd;           // [rows]
    const void* grad_out;  // null: forward pass
    void* grad_x;
    float *grad_weight, *grad_bias;  // [parts, width], to be summed; grad_bias null: not wanted
    int64_t rows, width, parts;      // rows are computed in so many parts
    double eps;
    int64_t num_threads;
};

// total = the sum of all numbers' squares
struct SquareSumArgs {
    const int64_t* addresses;  // of tensors of float32
    const int64_t* counts;     // of their numbers
    int64_t tensors;
    double* total;
    int64_t num_threads;
};

// Pair (i, i + head_dim / 2) of each vector of x turned by its angle, or by the transpose of that.
struct RotaryArgs {
    TensorView x, out;  // [batch, heads, time, head_dim]
    Dtype x_dtype, out_dtype;
    const float *cos, *sin;  // [time, head_dim]
    int64_t batch_stride;    // of cos and sin; 0: the same in every sequence
    int64_t batch, heads, time, head_dim, transposed;
    int64_t num_threads;
};

// weight = scale * integer + minimum for each group of 32 weights, in integers of 4 bits.
struct QuantizeArgs {
    const float* weights;       // [groups, 32]
    uint8_t* integers;          // [groups, 16]: byte j has weight j in its low bits, and weight j + 16 in its high ones
    uint16_t *scales, *minima;  // [groups], float16
    int64_t groups;
    int64_t num_threads;
};

// A floating-point matrix [rows, depth] that is quantized row by row.
struct MatmulOperand {
    const void* data;
    Dtype dtype;         // FLOAT32 or BFLOAT16
    int64_t stride;      // elements from row to row; if transposed, from column to column
    int64_t transposed;  // 1: columns are contiguous
};

// out [rows, columns] = left [rows, depth] right [columns, depth]^T + bias
struct MatmulArgs {
    MatmulOperand left, right;
    int64_t rows, columns, depth;
    const float* bias;  // [columns]; null: none
    float* row_sums;    // [rows]: sums of the rows of left before quantization; null: not wanted
    void* out;
    Dtype dtype;                  // of out
    int64_t accumulate;           // 1: add to out
    int64_t stochastic_rounding;  // 1: of left
    int64_t num_threads;
};
