// The gradient of a matrix: the sum of the outer products of what came out of it and what went in (see wide.h).
//
// Both have a row for each token, so one of them has to be transposed. Blocks of it are, in a core's cache: what a
// product of transposed matrices would do for whole rows costs as much as the product itself (docs/measurements/training.md).
#include "structs.h"
#include "threads.h"
#include "simd.h"
#include "amx.h"

namespace {

#if defined(WITH_TILES)
constexpr int64_t ROWS = 512, INPUTS = 768, WIDE = 2 * LANES;  // of a block; and what multiply_panels makes at a time

// Outputs that a thread takes at a time: far rows are then read in longer pieces, but all threads have enough to do.
int64_t run_length(const WeightGradArgs& outer) {
    int64_t length = outer.out_features / (outer.num_threads * 4) / WIDE * WIDE;
    return length < WIDE ? WIDE : length > 4 * WIDE ? 4 * WIDE : length;
}

// Some rows of a matrix.
struct Block {
    int64_t rows, depth;  // depth: with what is missing to whole registers
    const BFloat16* from;
    int64_t step, columns;

    Block(const void* all, int64_t step, int64_t columns, int64_t first, int64_t end)
        : rows(least(ROWS, end - first)),
          depth(up(rows, DEPTH)),
          from(static_cast<const BFloat16*>(all) + first * step),
          step(step),
          columns(columns) {}

    // Sixteen columns of two rows; what is missing is zeros.
    Floats pair(int64_t row, int64_t column) const {
        if (row + 1 < rows && column + LANES <= columns) return pair_rows(from + row * step + column, step);
        BFloat16 some[2 * LANES] = {};
        for (int64_t r = 0; r < 2 && row + r < rows; r++)
            for (int64_t i = 0; i < LANES && column + i < columns; i++)
                some[r * LANES + i] = from[(row + r) * step + column + i];
        return pair_rows(some, LANES);
    }

    // Sixteen columns as a panel, [depth / 2, 16, 2].
    void pack(int64_t first, BFloat16* to) const {
        for (int64_t row = 0; row < depth; row += 2, to += 2 * LANES) store(reinterpret_cast<float*>(to), pair(row, first));
    }

    // Sixteen columns as rows, [16, depth]; returns their sums.
    Floats turn(int64_t first, BFloat16* to) const {
        alignas(64) float pairs[LANES * LANES];
        Floats total{};
        for (int64_t row = 0; row < depth; row += 2 * LANES) {
            for (int64_t r = 0; r < LANES; r++) {
                Floats both = pair(row + 2 * r, first);
                total += bits_of<Floats>(bits_of<Words>(both) << 16) + bits_of<Floats>(bits_of<Words>(both) & 0xffff0000u);
                store(pairs + r * LANES, both);
            }
            transpose(reinterpret_cast<const BFloat16*>(pairs), 2 * LANES, to + row, depth);
        }
        return total;
    }
};

class Adder {
   public:
    Adder(const WeightGradArgs& outer, Team& team, void* workspace) : outer(outer), team(team), length(run_length(outer)) {
        panels = static_cast<BFloat16*>(workspace);
        turned = panels + up(outer.rows, DEPTH) * width() + team.me * least(ROWS, up(outer.rows, DEPTH)) * (length + LANES);
    }

    static int64_t bytes(const WeightGradArgs& outer, Team team) {
        Adder last(outer, team, nullptr);
        return reinterpret_cast<char*>(last.turned) - static_cast<char*>(nullptr);
    }

    void run() {
        for (int64_t input = 0; input < outer.in_features; input += INPUTS) {
            int64_t inputs = least(INPUTS, outer.in_features - input), blocks = (outer.rows + ROWS - 1) / ROWS;
            int64_t each = up(inputs, WIDE) / LANES;
            team.share(blocks * each, [&](int64_t item) {
                int64_t row = item / each * ROWS, panel = item % each;
                Block block(outer.input, outer.input_stride, outer.in_features, row, outer.rows);
                block.pack(input + panel * LANES, panels + row * width() + panel * block.depth * LANES);
            });
            // The results of a run stay in a core's cache until all rows are added.
            team.share((outer.out_features + length - 1) / length, [&](int64_t run) {
                for (int64_t row = 0; row < outer.rows; row += ROWS)
                    add(run * length, least((run + 1) * length, outer.out_features), input, inputs, row);
            });
        }
    }

   private:
    const WeightGradArgs& outer;
    Team& team;
    const int64_t length;
    BFloat16 *panels, *turned;

    int64_t width() const { return least(INPUTS, up(outer.in_features, WIDE)); }

    void add(int64_t begin, int64_t end, int64_t input, int64_t inputs, int64_t row) {
        Block block(outer.grad_out, outer.grad_out_stride, outer.out_features, row, outer.rows);
        for (int64_t output = begin; output < end; output += LANES) {
            Floats sums = block.turn(output, turned + (output - begin) * block.depth);
            if (!outer.grad_bias || input > 0) continue;
            int64_t count = least(LANES, end - output);
            Floats before = row > 0 ? load(outer.grad_bias + output, count) : Floats{};
            store(outer.grad_bias + output, before + sums, count);
        }
        bool more = outer.accumulate || row > 0;
        for (int64_t i = 0; i < inputs; i += WIDE)
            for (int64_t output = begin; output < end; output += WIDE) {
                const BFloat16* lines = turned + (output - begin) * block.depth;
                const BFloat16* here = panels + row * width() + i * block.depth;
                float* to = outer.grad_weight + output * outer.in_features + input + i;
                int64_t high = least(WIDE, end - output), wide = least(WIDE, inputs - i);
                if (high == WIDE && wide == WIDE) {
                    multiply_panels(lines, block.depth, true, here, block.depth, more, to, outer.in_features);
                    continue;
                }
                alignas(64) float made[WIDE * WIDE];
                multiply_panels(lines, block.depth, high > LANES, here, block.depth, false, made, WIDE);
                for (int64_t r = 0; r < high; r++)
                    for (int64_t c = 0; c < wide; c++)
                        to[r * outer.in_features + c] = made[r * WIDE + c] + (more ? to[r * outer.in_features + c] : 0.0f);
            }
    }
};
#endif

}  // namespace

extern "C" {

// Whether this processor has the instructions; else nothing happens.
EXPORTED int64_t works() { return HAS_TILES; }

EXPORTED int64_t bytes(const WeightGradArgs* outer) {
#if defined(WITH_TILES)
    Meeting nobody;
    return Adder::bytes(*outer, Team(nobody, int(outer->num_threads), int(outer->num_threads)));
#else
    return 0;
#endif
}

EXPORTED void run(const WeightGradArgs* outer, void* workspace) {
#if defined(WITH_TILES)
    together(outer->num_threads, [&](Team team) {
        TileRegisters registers(true);
        Adder(*outer, team, workspace).run();
    });
#endif
}
}
