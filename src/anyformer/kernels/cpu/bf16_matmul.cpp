// Matrix products of bfloat16, by AMX or AVX-512, whose operands are rounded to it while they are packed.
#include "register_matmul.h"
#include "structs.h"
#include "tile_matmul.h"

namespace {

#if defined(USE_AMX)
constexpr int64_t PANEL_GROUP = 8;       // panels of a transposed matrix that a thread packs at a time
constexpr int64_t PREFETCHED_ROWS = 16;  // of it: hardware does not prefetch parts of rows that lie far apart

// An operand in panels, rows padded with zeros to multiples of TILE_DEPTH.
struct PackedMatrix {
    int64_t panels, depth;
    BFloat16* data;

    PackedMatrix(int64_t rows, int64_t depth, char*& workspace)
        : panels(round_up(rows, TILES) / LANES),
          depth(round_up(depth ? depth : 1, TILE_DEPTH)),
          data(reinterpret_cast<BFloat16*>(workspace)) {
        workspace = reinterpret_cast<char*>(data + panels * LANES * this->depth);
    }

    BFloat16* panel(int64_t index) const { return data + index * LANES * depth; }
    TilePanels tiles() const { return {panels, depth * 2, reinterpret_cast<const char*>(data)}; }
};

template <class T>
class Packer {
   public:
    Packer(const MatmulOperand& from, int64_t rows, int64_t depth, bool is_left, float* row_sums,
           const PackedMatrix& to)
        : from(static_cast<const T*>(from.data)),
          stride(from.stride),
          rows(rows),
          depth(depth),
          is_left(is_left),
          row_sums(row_sums),
          to(to) {}

    // A panel of a row-major matrix.
    void pack_rows(int64_t panel) const {
        FloatVec totals[LANES] = {};
        alignas(64) BFloat16 tile[LANES * TILE_DEPTH];
        for (int64_t i = 0; i < to.depth; i += TILE_DEPTH) {
            BFloat16* out = to.panel(panel) + i * LANES;
            for (int64_t r = 0; r < LANES; r++) {
                const FloatVec low = row_part(panel * LANES + r, i), high = row_part(panel * LANES + r, i + LANES);
                if (row_sums) totals[r] += low + high;
                BFloat16* row = (is_left ? out : tile) + r * TILE_DEPTH;
                store(row, low);
                store(row + LANES, high);
            }
            if (!is_left) transpose(tile, TILE_DEPTH, out, TILE_DEPTH);
        }
        for (int64_t r = 0; row_sums && r < min(LANES, rows - panel * LANES); r++)
            row_sums[panel * LANES + r] = reduce_add(totals[r]);
    }

    // PANEL_GROUP panels of a transposed matrix.
    void pack_columns(int64_t first) const {
        const int64_t count = min(PANEL_GROUP, to.panels - first);
        FloatVec totals[PANEL_GROUP] = {};
        alignas(64) BFloat16 tiles[PANEL_GROUP][LANES * TILE_DEPTH];
        for (int64_t i = 0; i < to.depth; i += TILE_DEPTH) {
            for (int64_t k = 0; k < TILE_DEPTH; k += 2) {
                for (int64_t line = i + k + PREFETCHED_ROWS; line < min(i + k + PREFETCHED_ROWS + 2, depth); line++)
                    for (int64_t s = 0; s < count * LANES; s += 64 / sizeof(T))
                        __builtin_prefetch(from + line * stride + first * LANES + s);
                for (int64_t s = 0; s < count; s++) {
                    const int64_t row = (first + s) * LANES;
                    const FloatVec low = column_part(i + k, row), high = column_part(i + k + 1, row);
                    if (row_sums) totals[s] += low + high;
                    BFloat16* out = is_left ? tiles[s] : to.panel(first + s) + i * LANES;
                    store_bf16_pairs(out + k * LANES, low, high);
                }
            }
            for (int64_t s = 0; is_left && s < count; s++)
                transpose(tiles[s], TILE_DEPTH, to.panel(first + s) + i * LANES, TILE_DEPTH);
        }
        for (int64_t s = 0; row_sums && s < count; s++) {
            const int64_t row = (first + s) * LANES;
            if (row < rows) store(row_sums + row, totals[s], min(LANES, rows - row));
        }
    }

   private:
    const T* const from;
    const int64_t stride, rows, depth;
    const bool is_left;
    float* const row_sums;
    const PackedMatrix& to;

    // 16 elements of a line, whose length is given; zeros beyond its end.
    FloatVec part(int64_t line, int64_t lines, int64_t i, int64_t length) const {
        if (line >= lines || i >= length) return FloatVec{};
        const T* elements = from + line * stride + i;
        return length - i >= LANES ? load(elements) : load(elements, length - i);
    }
    FloatVec row_part(int64_t row, int64_t i) const { return part(row, rows, i, depth); }
    FloatVec column_part(int64_t i, int64_t row) const { return part(i, depth, row, rows); }
};

void pack(Threads& threads, const MatmulOperand& from, int64_t rows, int64_t depth, bool is_left, float* row_sums,
          const PackedMatrix& to) {
    auto run = [&](auto packer) {
        if (from.transposed)
            threads.parallel_for((to.panels + PANEL_GROUP - 1) / PANEL_GROUP,
                                 [&](int64_t item) { packer.pack_columns(item * PANEL_GROUP); });
        else
            threads.parallel_for(to.panels, [&](int64_t panel) { packer.pack_rows(panel); });
    };
    if (from.dtype == BFLOAT16)
        run(Packer<BFloat16>(from, rows, depth, is_left, row_sums, to));
    else
        run(Packer<float>(from, rows, depth, is_left, row_sums, to));
}

class Bf16Matmul {
   public:
    Bf16Matmul(const MatmulArgs& args, char* workspace)
        : args(args),
          left(args.rows, args.depth, workspace),
          right(args.columns, args.depth, workspace),
          partial(workspace),
          end(workspace + (left.tiles().row_bytes > ROW_BLOCK_BYTES
                               ? left.panels * right.panels * LANES * LANES * int64_t(sizeof(float))
                               : 0)) {}

    static int64_t workspace_size(const MatmulArgs& args) {
        return Bf16Matmul(args, nullptr).end - static_cast<char*>(nullptr);
    }

    void run(Threads& threads) const {
        pack(threads, args.left, args.rows, args.depth, true, args.row_sums, left);
        pack(threads, args.right, args.columns, args.depth, false, nullptr, right);
        multiply_tiles<BFloat16>(threads, left.tiles(), right.tiles(), partial,
                                 [&](int64_t row, int64_t column, const TileSums& sums) {
            if (args.dtype == BFLOAT16)
                store_tiles<BFloat16>(row, column, sums);
            else
                store_tiles<float>(row, column, sums);
        });
    }

   private:
    const MatmulArgs& args;
    const PackedMatrix left, right;
    char *const partial, *const end;

    template <class T>
    void store_tiles(int64_t row, int64_t column, const TileSums& sums) const {
        const int64_t count = min(TILES, args.columns - column);
        for (int64_t r = 0; r < min(TILES, args.rows - row); r++) {
            T* to = static_cast<T*>(args.out) + (row + r) * args.columns + column;
            FloatVec y[2];
            UNROLL
            for (int64_t t = 0; t < 2; t++) {
                const int64_t left = min(LANES, count - t * LANES);
                y[t] = load_as<FloatVec>(sums[r] + t * LANES);
                if (left <= 0) continue;
                if (args.bias) y[t] += loaded(args.bias + column + t * LANES, left);
                if (args.accumulate) y[t] += loaded(to + t * LANES, left);
                if (count < TILES) left < LANES ? store(to + t * LANES, y[t], left) : store(to + t * LANES, y[t]);
            }
            if (count == TILES) store_past_caches(to, y[0], y[1]);
        }
    }

    template <class T>
    static FloatVec loaded(const T* from, int64_t count) {
        return count < LANES ? load(from, count) : load(from);
    }
};
#elif defined(__AVX512BF16__)
typedef RegisterMatmul<true> Bf16Matmul;
#endif

}  // namespace

extern "C" {

// Without dot products of bfloat16 `run` does nothing.
EXPORTED int64_t supported() {
#if defined(USE_AMX)
    return HAS_AMX;
#else
    return REGISTER_BYTES == 64 && HAS_BF16_DOT;
#endif
}

EXPORTED int64_t workspace_size(const MatmulArgs* args) {
#if defined(__AVX512BF16__)
    return Bf16Matmul::workspace_size(*args);
#else
    return 0;
#endif
}

EXPORTED void run(const MatmulArgs* args, void* workspace) {
#if defined(__AVX512BF16__)
    parallel(args->num_threads, [&](Threads threads) {
        AmxTiles registers(true);
        Bf16Matmul(*args, static_cast<char*>(workspace)).run(threads);
    });
#endif
}
}
