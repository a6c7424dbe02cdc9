// Matrix products of float32 in registers of 512 bits, of which MKL uses a half on processors that aren't Intel's.
#include "simd.h"
#include "structs.h"
#include "threads.h"

namespace {

#if defined(__AVX512F__)
constexpr int64_t ROWS = 12, COLUMNS = 2 * LANES;  // of a tile: as many as there are registers for its sums
constexpr int64_t DEPTH_BLOCK = 512;               // terms of a sum that are added up at a time, and
constexpr int64_t ROW_PANELS = 16;                 // panels of rows that they are of, which stay in the second cache
constexpr int64_t COLUMN_PANELS = 8;               // while they are multiplied with so many of columns
constexpr int64_t LEFT_ELEMENTS = 1 << 22, RIGHT_ELEMENTS = 1 << 21;  // that are packed at a time, about
constexpr int64_t ITEMS_PER_THREAD = 4;

inline int64_t divide_up(int64_t count, int64_t by) { return (count + by - 1) / by; }

// Rows of an operand that are packed at a time, WIDTH of them side by side: panels of [depth, WIDTH], zeros beyond the
// last row.
template <int64_t WIDTH>
class PackedRows {
   public:
    const int64_t size;  // rows at a time

    PackedRows(const MatmulOperand& from, int64_t rows, int64_t depth, int64_t elements, char*& workspace)
        : size(round_up(max(int64_t(1), min(rows, elements / max(depth, int64_t(1)))), WIDTH)),
          from(from),
          rows(rows),
          depth(depth),
          data(reinterpret_cast<float*>(workspace)) {
        workspace += size * depth * int64_t(sizeof(float));
    }

    const float* panel(int64_t index) const { return data + index * WIDTH * depth; }

    // The panels of the rows from `first` on.
    int64_t panels(int64_t first) const { return divide_up(min(size, rows - first), WIDTH); }

    void pack(Threads& threads, int64_t first) const {
        threads.parallel_for(panels(first), [&](int64_t index) {
            for (int64_t lane = 0; lane < WIDTH; lane += LANES)
                pack_lanes(first + index * WIDTH + lane, min(LANES, WIDTH - lane),
                           data + index * WIDTH * depth + lane);
        });
    }

   private:
    const MatmulOperand& from;
    const int64_t rows, depth;
    float* const data;

    // Up to 16 rows of a panel.
    void pack_lanes(int64_t row, int64_t width, float* to) const {
        const int64_t count = max(int64_t(0), min(width, rows - row));
        if (from.transposed) {
            for (int64_t i = 0; i < depth; i++) store(to + i * WIDTH, part(i * from.stride + row, count), width);
            return;
        }
        alignas(64) float lines[LANES * LANES] = {}, columns[LANES * LANES];
        for (int64_t i = 0; i < depth; i += LANES) {
            const int64_t length = min(LANES, depth - i);
            for (int64_t r = 0; r < count; r++) store(lines + r * LANES, part((row + r) * from.stride + i, length));
            transpose(lines, LANES, columns, LANES);
            for (int64_t k = 0; k < length; k++) store(to + (i + k) * WIDTH, load(columns + k * LANES), width);
        }
    }

    FloatVec part(int64_t offset, int64_t count) const {
        const float* elements = static_cast<const float*>(from.data) + offset;
        return count == LANES ? load(elements) : load(elements, count);
    }
};

class Fp32Matmul {
   public:
    Fp32Matmul(const MatmulArgs& args, char* workspace)
        : args(args),
          left(args.left, args.rows, args.depth, LEFT_ELEMENTS, workspace),
          right(args.right, args.columns, args.depth, RIGHT_ELEMENTS, workspace),
          end(workspace) {}

    static int64_t workspace_size(const MatmulArgs& args) {
        return Fp32Matmul(args, nullptr).end - static_cast<char*>(nullptr);
    }

    void run(Threads& threads) const {
        for (int64_t row = 0; row < args.rows; row += left.size) {
            left.pack(threads, row);
            for (int64_t column = 0; column < args.columns; column += right.size) {
                right.pack(threads, column);
                multiply(threads, row, column);
            }
        }
    }

   private:
    const MatmulArgs& args;
    const PackedRows<ROWS> left;
    const PackedRows<COLUMNS> right;
    char* const end;

    // Multiply what is packed, neighboring panels at a time, but so few that all threads have work.
    void multiply(Threads& threads, int64_t row, int64_t column) const {
        const int64_t rows = left.panels(row), columns = right.panels(column);
        const int64_t items = ITEMS_PER_THREAD * threads.size;
        const int64_t column_parts =
            min(columns, max(divide_up(columns, COLUMN_PANELS), divide_up(items, divide_up(rows, ROW_PANELS))));
        const int64_t row_parts = min(rows, max(divide_up(rows, ROW_PANELS), divide_up(items, column_parts)));
        threads.parallel_for(row_parts * column_parts, [&](int64_t item) {
            const int64_t r = item / column_parts, c = item % column_parts;
            const int64_t end = rows * (r + 1) / row_parts, column_end = columns * (c + 1) / column_parts;
            for (int64_t i = 0; i == 0 || i < args.depth; i += DEPTH_BLOCK)
                for (int64_t p = columns * c / column_parts; p < column_end; p++)
                    for (int64_t q = rows * r / row_parts; q < end; q++) {
                        FloatVec sums[ROWS][2] = {};
                        add_products(left.panel(q) + i * ROWS, right.panel(p) + i * COLUMNS,
                                     min(DEPTH_BLOCK, args.depth - i), sums);
                        write(row + q * ROWS, column + p * COLUMNS, i == 0, sums);
                    }
        });
    }

    static void add_products(const float* left, const float* right, int64_t depth, FloatVec (&sums)[ROWS][2]) {
        for (int64_t i = 0; i < depth; i++, left += ROWS, right += COLUMNS) {
            const FloatVec low = load(right), high = load(right + LANES);
            UNROLL
            for (int r = 0; r < ROWS; r++) {
                const FloatVec one = broadcast(left[r]);
                sums[r][0] += one * low;
                sums[r][1] += one * high;
            }
        }
    }

    // Write a tile, or add it to what other terms came to.
    void write(int64_t row, int64_t column, bool is_first, const FloatVec (&sums)[ROWS][2]) const {
        const bool adds = args.accumulate || !is_first;
        UNROLL
        for (int r = 0; r < ROWS; r++) {
            if (row + r >= args.rows) return;
            float* to = static_cast<float*>(args.out) + (row + r) * args.columns + column;
            UNROLL
            for (int v = 0; v < 2; v++) {
                const int64_t count = min(LANES, args.columns - column - v * LANES);
                if (count <= 0) continue;
                FloatVec y = sums[r][v];
                if (is_first && args.bias) y += load(args.bias + column + v * LANES, count);
                if (adds) y += load(to + v * LANES, count);
                store(to + v * LANES, y, count);
            }
        }
    }
};
#endif

}  // namespace

extern "C" {

// Without AVX-512 `run` does nothing.
EXPORTED int64_t supported() { return REGISTER_BYTES == 64; }

EXPORTED int64_t workspace_size(const MatmulArgs* args) {
#if defined(__AVX512F__)
    return Fp32Matmul::workspace_size(*args);
#else
    return 0;
#endif
}

EXPORTED void run(const MatmulArgs* args, void* workspace) {
#if defined(__AVX512F__)
    parallel(args->num_threads,
             [&](Threads threads) { Fp32Matmul(*args, static_cast<char*>(workspace)).run(threads); });
#endif
}
}
