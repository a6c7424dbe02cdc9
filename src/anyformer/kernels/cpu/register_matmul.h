// Matrix products by AVX-512, of float32 or of pairs of bfloat16, whose sums stay in registers. How sums are added up is
// decided by the shape alone, so every number of threads computes the same.
#pragma once
#include "simd.h"
#include "structs.h"
#include "threads.h"

#if defined(__AVX512F__)
constexpr int64_t ROWS = 12, COLUMNS = 2 * LANES;  // of a tile: as many as there are registers for its sums
constexpr int64_t DEPTH_BLOCK = 512;               // elements, or pairs, that are multiplied and added up at a time, and
constexpr int64_t ROW_PANELS = 16;                 // panels of rows that they are of, which stay in the second cache
constexpr int64_t COLUMN_PANELS = 8;               // while they are multiplied with so many of columns
constexpr int64_t LEFT_ELEMENTS = 1 << 22, RIGHT_ELEMENTS = 1 << 21;  // or pairs, that are packed at a time, about
constexpr int64_t PANEL_GROUP = 8, PACKED_DEPTH = 256, LINES = 32;  // of a transposed matrix that are packed at a time
constexpr int64_t ITEMS_PER_THREAD = 4;

inline int64_t divide_up(int64_t count, int64_t by) { return (count + by - 1) / by; }

// Rows of an operand that are packed at a time, WIDTH of them side by side: panels of [depth, WIDTH], zeros beyond the
// last row. An element is a number in float32 or, of depth / 2, a pair in bfloat16 of numbers that are next in a row.
template <bool BF16, int64_t WIDTH>
class PackedRows {
   public:
    const int64_t depth, size;  // elements of a row; rows at a time

    PackedRows(const MatmulOperand& from, int64_t rows, int64_t depth, int64_t elements, float* row_sums,
               char*& workspace)
        : depth(BF16 ? divide_up(depth, 2) : depth),
          size(round_up(max(int64_t(1), min(rows, elements / max(this->depth, int64_t(1)))), WIDTH)),
          from(from),
          rows(rows),
          length(depth),
          row_sums(row_sums),
          data(reinterpret_cast<float*>(workspace)) {
        workspace += size * this->depth * int64_t(sizeof(float));
    }

    const float* panel(int64_t index) const { return data + index * WIDTH * depth; }

    // The panels of the rows from `first` on.
    int64_t panels(int64_t first) const { return divide_up(min(size, rows - first), WIDTH); }

    void pack(Threads& threads, int64_t first) const {
        BF16 && from.dtype == BFLOAT16 ? pack<BFloat16>(threads, first) : pack<float>(threads, first);
    }

   private:
    static constexpr int64_t EACH = BF16 ? 2 : 1;  // numbers of an element
    static constexpr int64_t VECTORS = (WIDTH + LANES - 1) / LANES;
    const MatmulOperand& from;
    const int64_t rows, length;
    float* const row_sums;
    float* const data;

    template <class T>
    void pack(Threads& threads, int64_t first) const {
        const int64_t all = panels(first);
        if (!from.transposed)
            return threads.parallel_for(all, [&](int64_t panel) {
                for (int64_t lane = 0; lane < WIDTH; lane += LANES)
                    pack_rows<T>(first + panel * WIDTH + lane, min(LANES, WIDTH - lane),
                                 data + panel * WIDTH * depth + lane);
            });
        // A sum of a row is added up by one thread.
        const int64_t block = row_sums ? max(depth, int64_t(1)) : PACKED_DEPTH;
        const int64_t blocks = max(int64_t(1), divide_up(depth, block));
        threads.parallel_for(divide_up(all, PANEL_GROUP) * blocks, [&](int64_t item) {
            const int64_t panel = item / blocks * PANEL_GROUP, begin = item % blocks * block;
            pack_columns<T>(first, panel, min(PANEL_GROUP, all - panel), begin, min(begin + block, depth));
        });
    }

    // Elements `begin` to `end` of neighboring panels of a transposed matrix, some lines of it at a time, which stay in
    // the first cache until all panels have their part of them.
    template <class T>
    void pack_columns(int64_t first, int64_t panel, int64_t panels, int64_t begin, int64_t end) const {
        FloatVec totals[PANEL_GROUP][VECTORS] = {};
        const int64_t from_row = first + panel * WIDTH, to_row = min(from_row + panels * WIDTH, rows);
        for (int64_t i = begin; i < end; i += LINES) {
            // Hardware does not prefetch parts of lines that lie far apart.
            for (int64_t line = (i + LINES) * EACH; line < min((i + 2 * LINES) * EACH, length); line++)
                for (int64_t row = from_row; row < to_row; row += 64 / int64_t(sizeof(T)))
                    __builtin_prefetch(static_cast<const T*>(from.data) + line * from.stride + row);
            for (int64_t p = 0; p < panels; p++)
                for (int64_t v = 0; v < VECTORS; v++) {
                    const int64_t row = first + (panel + p) * WIDTH + v * LANES, width = min(LANES, WIDTH - v * LANES);
                    float* const to = data + (panel + p) * WIDTH * depth + v * LANES;
                    pack_lines<T>(row, rows_at(row, width), width, i, min(i + LINES, end), to, totals[p][v]);
                }
        }
        for (int64_t p = 0; row_sums && p < panels; p++)
            for (int64_t v = 0; v < VECTORS; v++) {
                const int64_t row = first + (panel + p) * WIDTH + v * LANES;
                store(row_sums + row, totals[p][v], rows_at(row, WIDTH - v * LANES));
            }
    }

    template <class T>
    void pack_lines(int64_t row, int64_t count, int64_t width, int64_t begin, int64_t end, float* to,
                    FloatVec& total) const {
        FloatVec sum = total;
        for (int64_t i = begin; i < end; i++) {
            const int64_t line = i * EACH;
            FloatVec element = part<T>(line * from.stride + row, count);
            sum += element;
            if constexpr (BF16) {
                const FloatVec next = line + 1 < length ? part<T>((line + 1) * from.stride + row, count) : FloatVec{};
                sum += next;
                element = to_bf16_pairs(element, next);
            }
            store(to + i * WIDTH, element, width);
        }
        total = sum;
    }

    // Up to 16 rows of a panel.
    template <class T>
    void pack_rows(int64_t row, int64_t width, float* to) const {
        const int64_t count = rows_at(row, width);
        FloatVec totals[LANES] = {};
        alignas(64) float lines[LANES * LANES] = {}, columns[LANES * LANES];
        for (int64_t i = 0; i < depth; i += LANES) {
            const int64_t elements = min(LANES, depth - i);
            for (int64_t r = 0; r < count; r++) {
                const int64_t offset = (row + r) * from.stride + i * EACH, rest = length - i * EACH;
                FloatVec element = part<T>(offset, min(LANES, rest));
                if (row_sums) totals[r] += element;
                if constexpr (BF16) {
                    const FloatVec next = rest > LANES ? part<T>(offset + LANES, min(LANES, rest - LANES)) : FloatVec{};
                    if (row_sums) totals[r] += next;
                    auto* pairs = reinterpret_cast<BFloat16*>(lines + r * LANES);
                    store(pairs, element), store(pairs + LANES, next);
                } else {
                    store(lines + r * LANES, element);
                }
            }
            transpose(lines, LANES, columns, LANES);
            for (int64_t k = 0; k < elements; k++) store(to + (i + k) * WIDTH, load(columns + k * LANES), width);
        }
        for (int64_t r = 0; row_sums && r < count; r++) row_sums[row + r] = reduce_add(totals[r]);
    }

    // How many of the next `width` rows, at most 16, there are.
    int64_t rows_at(int64_t row, int64_t width) const {
        return max(int64_t(0), min(min(LANES, width), rows - row));
    }

    template <class T>
    FloatVec part(int64_t offset, int64_t count) const {
        const T* numbers = static_cast<const T*>(from.data) + offset;
        return count == LANES ? load(numbers) : load(numbers, count);
    }
};

// A product of `MatmulArgs`, of numbers in float32 or rounded to bfloat16, with sums in float32.
template <bool BF16>
class RegisterMatmul {
   public:
    RegisterMatmul(const MatmulArgs& args, char* workspace)
        : args(args),
          left(args.left, args.rows, args.depth, LEFT_ELEMENTS, args.row_sums, workspace),
          right(args.right, args.columns, args.depth, RIGHT_ELEMENTS, nullptr, workspace),
          sums(reinterpret_cast<float*>(workspace)),
          end(workspace + (keeps_sums() ? args.num_threads * ITEM_SIZE * int64_t(sizeof(float)) : 0)) {}

    static int64_t workspace_size(const MatmulArgs& args) {
        return RegisterMatmul(args, nullptr).end - static_cast<char*>(nullptr);
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
    static constexpr int64_t ITEM_SIZE = ROW_PANELS * ROWS * COLUMN_PANELS * COLUMNS;
    const MatmulArgs& args;
    const PackedRows<BF16, ROWS> left;
    const PackedRows<BF16, COLUMNS> right;
    float* const sums;  // of an item, of each thread, if the output would round them on the way
    char* const end;

    bool keeps_sums() const { return args.dtype == BFLOAT16 && left.depth > DEPTH_BLOCK; }

    // Multiply what is packed, neighboring panels at a time, but so few that all threads have work.
    void multiply(Threads& threads, int64_t row, int64_t column) const {
        const int64_t rows = left.panels(row), columns = right.panels(column);
        const int64_t items = ITEMS_PER_THREAD * threads.size;
        const int64_t column_parts =
            min(columns, max(divide_up(columns, COLUMN_PANELS), divide_up(items, divide_up(rows, ROW_PANELS))));
        const int64_t row_parts = min(rows, max(divide_up(rows, ROW_PANELS), divide_up(items, column_parts)));
        threads.parallel_for(row_parts * column_parts, [&](int64_t item) {
            const int64_t r = item / column_parts, c = item % column_parts;
            const int64_t first = rows * r / row_parts, end = rows * (r + 1) / row_parts;
            const int64_t column_first = columns * c / column_parts, column_end = columns * (c + 1) / column_parts;
            float* own = keeps_sums() ? sums + threads.index * ITEM_SIZE : nullptr;
            for (int64_t i = 0; i == 0 || i < left.depth; i += DEPTH_BLOCK)
                for (int64_t p = column_first; p < column_end; p++)
                    for (int64_t q = first; q < end; q++) {
                        FloatVec tile[ROWS][2];
                        multiply_panels(left.panel(q) + i * ROWS, right.panel(p) + i * COLUMNS,
                                        min(DEPTH_BLOCK, left.depth - i), tile);
                        float* kept = own ? own + ((p - column_first) * ROW_PANELS + q - first) * ROWS * COLUMNS : own;
                        if (kept && add_kept(kept, i == 0, i + DEPTH_BLOCK >= left.depth, tile)) continue;
                        const auto write = args.dtype == FLOAT32 ? &RegisterMatmul::write<float>
                                                                 : &RegisterMatmul::write<BFloat16>;
                        (this->*write)(row + q * ROWS, column + p * COLUMNS, kept || i == 0, tile);
                    }
        });
    }

    static void multiply_panels(const float* left, const float* right, int64_t depth, FloatVec (&tile)[ROWS][2]) {
        FloatVec sums[ROWS][2] = {};  // in registers, where `tile` would be in memory
        for (int64_t i = 0; i < depth; i++, left += ROWS, right += COLUMNS) {
            const FloatVec low = load(right), high = load(right + LANES);
            UNROLL
            for (int r = 0; r < ROWS; r++) {
                const FloatVec one = broadcast(left[r]);
                sums[r][0] = multiply_add<BF16>(sums[r][0], one, low);
                sums[r][1] = multiply_add<BF16>(sums[r][1], one, high);
            }
        }
        memcpy(tile, sums, sizeof sums);
    }

    // Add a tile to what other terms came to; returns whether more are to come.
    static bool add_kept(float* kept, bool is_first, bool is_last, FloatVec (&tile)[ROWS][2]) {
        UNROLL
        for (int r = 0; r < ROWS; r++) {
            UNROLL
            for (int v = 0; v < 2; v++) {
                float* to = kept + (r * 2 + v) * LANES;
                if (!is_first) tile[r][v] += load(to);
                if (!is_last) store(to, tile[r][v]);
            }
        }
        return !is_last;
    }

    // Write a tile with its bias if it `is_first`, or add it to what other terms came to.
    template <class T>
    void write(int64_t row, int64_t column, bool is_first, const FloatVec (&tile)[ROWS][2]) const {
        const bool adds = args.accumulate || !is_first;
        UNROLL
        for (int r = 0; r < ROWS; r++) {
            if (row + r >= args.rows) return;
            T* to = static_cast<T*>(args.out) + (row + r) * args.columns + column;
            UNROLL
            for (int v = 0; v < 2; v++) {
                const int64_t count = min(LANES, args.columns - column - v * LANES);
                if (count <= 0) continue;
                FloatVec y = tile[r][v];
                if (is_first && args.bias) y += load(args.bias + column + v * LANES, count);
                if (adds) y += load(to + v * LANES, count);
                count < LANES ? store(to + v * LANES, y, count) : store(to + v * LANES, y);
            }
        }
    }
};
#endif
