// The gradient of a linear layer's weight, grad_out^T input, with AMX.
//
// Both operands have a row for each token, so grad_out has to be transposed. Blocks of it are, in a core's cache:
// transposing the whole matrix first costs as much as the product itself (docs/measurements/training.md).
#include "structs.h"
#include "threads.h"
#include "simd.h"
#include "amx.h"

namespace {

#if defined(USE_AMX)
constexpr int64_t ROW_BLOCK = 512, INPUT_BLOCK = 768;
constexpr int64_t TILE = 2 * LANES;  // amx_matmul's output is TILE x TILE

// Output features that a thread takes at a time: many, so that rows are read in longer pieces, but few enough that all
// threads have work.
int64_t chunk_size(const WeightGradArgs& args) {
    int64_t chunk = args.out_features / (args.num_threads * 4) / TILE * TILE;
    return chunk < TILE ? TILE : chunk > 4 * TILE ? 4 * TILE : chunk;
}

// A block of rows of an operand.
struct Block {
    int64_t rows, depth;  // depth: rows padded to a multiple of TILE_DEPTH
    const BFloat16* data;
    int64_t stride, columns;

    Block(const void* matrix, int64_t stride, int64_t columns, int64_t first, int64_t end)
        : rows(min(ROW_BLOCK, end - first)),
          depth(round_up(rows, TILE_DEPTH)),
          data(static_cast<const BFloat16*>(matrix) + first * stride),
          stride(stride),
          columns(columns) {}

    // Pairs of 16 columns of two rows; zeros beyond the end.
    FloatVec pair(int64_t row, int64_t column) const {
        if (row + 1 < rows && column + LANES <= columns) return interleave_rows(data + row * stride + column, stride);
        BFloat16 padded[2 * LANES] = {};
        for (int64_t r = 0; r < 2 && row + r < rows; r++)
            for (int64_t i = 0; i < LANES && column + i < columns; i++)
                padded[r * LANES + i] = data[(row + r) * stride + column + i];
        return interleave_rows(padded, LANES);
    }

    // Pack 16 columns as a panel, [depth / 2, 16, 2].
    void pack(int64_t first, BFloat16* to) const {
        for (int64_t row = 0; row < depth; row += 2, to += 2 * LANES)
            store(reinterpret_cast<float*>(to), pair(row, first));
    }

    // Transpose 16 columns to [16, depth]; returns their sums.
    FloatVec transpose_columns(int64_t first, BFloat16* to) const {
        alignas(64) float pairs[LANES * LANES];
        FloatVec total{};
        for (int64_t row = 0; row < depth; row += 2 * LANES) {
            for (int64_t r = 0; r < LANES; r++) {
                FloatVec both = pair(row + 2 * r, first);
                total += bit_cast<FloatVec>(bit_cast<UIntVec>(both) << 16) +
                         bit_cast<FloatVec>(bit_cast<UIntVec>(both) & 0xffff0000u);
                store(pairs + r * LANES, both);
            }
            transpose(reinterpret_cast<const BFloat16*>(pairs), 2 * LANES, to + row, depth);
        }
        return total;
    }
};

class WeightGrad {
   public:
    WeightGrad(const WeightGradArgs& args, Threads& threads, void* workspace)
        : args(args), threads(threads), chunk(chunk_size(args)) {
        panels = static_cast<BFloat16*>(workspace);
        grad_columns = panels + round_up(args.rows, TILE_DEPTH) * panel_width() +
                       threads.index * min(ROW_BLOCK, round_up(args.rows, TILE_DEPTH)) * (chunk + LANES);
    }

    static int64_t workspace_size(const WeightGradArgs& args, Threads threads) {
        WeightGrad last(args, threads, nullptr);
        return reinterpret_cast<char*>(last.grad_columns) - static_cast<char*>(nullptr);
    }

    void run() {
        for (int64_t input = 0; input < args.in_features; input += INPUT_BLOCK) {
            int64_t inputs = min(INPUT_BLOCK, args.in_features - input),
                    blocks = (args.rows + ROW_BLOCK - 1) / ROW_BLOCK;
            int64_t each = round_up(inputs, TILE) / LANES;
            threads.parallel_for(blocks * each, [&](int64_t item) {
                int64_t row = item / each * ROW_BLOCK, panel = item % each;
                Block block(args.input, args.input_stride, args.in_features, row, args.rows);
                block.pack(input + panel * LANES, panels + row * panel_width() + panel * block.depth * LANES);
            });
            // A chunk of grad_weight stays in a core's cache until all row blocks are added.
            threads.parallel_for((args.out_features + chunk - 1) / chunk, [&](int64_t run) {
                for (int64_t row = 0; row < args.rows; row += ROW_BLOCK)
                    add(run * chunk, min((run + 1) * chunk, args.out_features), input, inputs, row);
            });
        }
    }

   private:
    const WeightGradArgs& args;
    Threads& threads;
    const int64_t chunk;
    BFloat16 *panels, *grad_columns;

    int64_t panel_width() const { return min(INPUT_BLOCK, round_up(args.in_features, TILE)); }

    void add(int64_t begin, int64_t end, int64_t input, int64_t inputs, int64_t row) {
        Block block(args.grad_out, args.grad_out_stride, args.out_features, row, args.rows);
        for (int64_t output = begin; output < end; output += LANES) {
            FloatVec sums = block.transpose_columns(output, grad_columns + (output - begin) * block.depth);
            if (!args.grad_bias || input > 0) continue;
            int64_t count = min(LANES, end - output);
            FloatVec before = row > 0 ? load(args.grad_bias + output, count) : FloatVec{};
            store(args.grad_bias + output, before + sums, count);
        }
        bool accumulate = args.accumulate || row > 0;
        for (int64_t i = 0; i < inputs; i += TILE)
            for (int64_t output = begin; output < end; output += TILE) {
                const BFloat16* grad_t = grad_columns + (output - begin) * block.depth;
                const BFloat16* panel = panels + row * panel_width() + i * block.depth;
                float* to = args.grad_weight + output * args.in_features + input + i;
                int64_t height = min(TILE, end - output), width = min(TILE, inputs - i);
                if (height == TILE && width == TILE) {
                    amx_matmul(grad_t, block.depth, true, panel, block.depth, accumulate, to, args.in_features);
                    continue;
                }
                alignas(64) float product[TILE * TILE];
                amx_matmul(grad_t, block.depth, height > LANES, panel, block.depth, false, product, TILE);
                for (int64_t r = 0; r < height; r++)
                    for (int64_t c = 0; c < width; c++)
                        to[r * args.in_features + c] =
                            product[r * TILE + c] + (accumulate ? to[r * args.in_features + c] : 0.0f);
            }
    }
};
#endif

}  // namespace

extern "C" {

// Without AMX `run` does nothing.
EXPORTED int64_t supported() { return HAS_AMX; }

EXPORTED int64_t workspace_size(const WeightGradArgs* args) {
#if defined(USE_AMX)
    Barrier nobody;
    return WeightGrad::workspace_size(*args, Threads(nobody, int(args->num_threads), int(args->num_threads)));
#else
    return 0;
#endif
}

EXPORTED void run(const WeightGradArgs* args, void* workspace) {
#if defined(USE_AMX)
    parallel(args->num_threads, [&](Threads threads) {
        AmxTiles registers(true);
        WeightGrad(*args, threads, workspace).run();
    });
#endif
}
}
