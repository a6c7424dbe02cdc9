// The table of pointers that describes a decoder, and the batch of texts that is to grow by a token each.
//
// Mirrored field by field in table.py: all numbers are 64 bits wide, so that no padding can differ.
#pragma once
#include <cstdint>

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
