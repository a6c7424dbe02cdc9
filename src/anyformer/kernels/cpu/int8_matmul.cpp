// The product of two matrices of floating numbers by way of 8-bit integers: each row is scaled to -127 ... 127 and rounded.
//
// What is rounded stays in a core's cache until it is multiplied, and sums of 32 bits in registers until they are scaled
// back: as steps of their own, rounding and scaling cost half as much as the products (docs/measurements/training.md).
#include "int_matmul.h"
#include "structs.h"
#include "threads.h"
#include "simd.h"

namespace {

#if defined(__AVX512VNNI__)
constexpr int64_t QUAD = 4;                  // products that an instruction sums, in each lane
constexpr int64_t CHUNK = QUAD * LANES;      // depth is made up to a multiple of it
constexpr int64_t SIDE = 4;                  // tiles that a thread rounds at a time, where rows lie side by side
constexpr int64_t ROWS = 8, TILES = 2;       // that are multiplied at a time: as many sums as there are registers for
constexpr int64_t CACHED = 1 << 18;          // bytes of the left matrix that stay in a core's cache
constexpr int64_t DEEP = 1 << 12;            // depth that is multiplied at a time: so both are read in small parts
constexpr float SMALLEST = 1.17549435e-38f;  // a scale below it is inexact: what has one counts as 0

// The larger of some sizes and those of x, by their bits: so a NaN is the largest of all.
Integers largest_sizes(Integers sizes, Floats x) { return larger(sizes, bits_of<Integers>(size_of(x))); }

// A matrix as bytes: of a tile of sixteen rows four neighbors each lie together, [tile, depth / 4, 16, 4].
struct Bytes {
    int64_t tiles, depth;  // depth: with what is missing to whole chunks
    int8_t* bytes;
    float* scales;       // [tiles * 16]
    int32_t* offsets;    // [tiles * 16]: -128 times the sum of a row's bytes; null: bytes are 128 too large

    // It takes its memory from a room, in whole lines of 64 bytes.
    Bytes(int64_t rows, int64_t depth, bool left, char*& room)
        : tiles(up(rows, LANES * TILES) / LANES), depth(up(depth, CHUNK)) {
        const int64_t count = tiles * LANES;
        bytes = reinterpret_cast<int8_t*>(room);
        scales = reinterpret_cast<float*>(room + count * this->depth);
        offsets = left ? reinterpret_cast<int32_t*>(scales + count) : nullptr;
        room = reinterpret_cast<char*>(scales + count * (left ? 2 : 1));
    }

    int8_t* tile(int64_t which) const { return bytes + which * LANES * depth; }
};

// Numbers in [-1/2, 1/2), the same for the same seed (Marsaglia 2003, "Xorshift RNGs", of 32 bits).
class Dither {
   public:
    explicit Dither(Words seed) : state(seed) {}

    Floats next() {
        state = state ^ state << 13;
        state = state ^ state >> 17;
        state = state ^ state << 5;
        return bits_of<Floats>(state >> 9 | 0x3f800000) - 1.5f;
    }

   private:
    Words state;
};

// Rounds the rows of a matrix, which lie one after the other or side by side.
template <class Number>
class Rounder {
   public:
    Rounder(const Int8Operand& from, int64_t rows, int64_t depth, bool dithers, float* sums, const Bytes& to)
        : from(static_cast<const Number*>(from.data)),
          step(from.stride),
          rows(rows),
          depth(depth),
          dithers(dithers),
          sums(sums),
          to(to) {}

    // Sixteen rows, each in one piece.
    void lying(int64_t tile) const {
        alignas(64) float inverses[LANES], scales[LANES];
        for (int64_t r = 0; r < LANES; r++) {
            Integers found{};
            Floats total{};
            auto meet = [&](Floats x) {
                found = largest_sizes(found, x);
                if (sums) total += x;
            };
            int64_t i = 0;
            if (tile * LANES + r < rows)
                for (; i + LANES <= depth; i += LANES) meet(load(line(tile, r) + i));
            if (i < depth) meet(row_part<false>(tile, r, i));
            if (sums && tile * LANES + r < rows) sums[tile * LANES + r] = sum(total);
            scales[r] = bits_of<float>(largest(found)) / 127.0f;
            inverses[r] = scales[r] < SMALLEST ? 0.0f : 1.0f / scales[r];
        }
        Dither dither = seeded(tile, load(scales));
        const int64_t whole = (tile + 1) * LANES <= rows ? depth : 0;
        for (int64_t i = 0; i < to.depth; i += CHUNK)
            i + CHUNK <= whole ? chunk<true>(tile, i, inverses, dither) : chunk<false>(tile, i, inverses, dither);
        finish(tile, load(scales));
    }

    // The rows of some tiles, side by side.
    void standing(int64_t first) const {
        if ((first + SIDE) * LANES <= rows)
            columns<true>(first);
        else
            columns<false>(first);
    }

   private:
    const Number* const from;
    const int64_t step, rows, depth;
    const bool dithers;
    float* const sums;
    const Bytes& to;

    const Number* line(int64_t tile, int64_t row) const { return from + (tile * LANES + row) * step; }

    template <bool WHOLE>
    Floats row_part(int64_t tile, int64_t row, int64_t i) const {
        if (WHOLE) return load(line(tile, row) + i);
        if (tile * LANES + row >= rows || i >= depth) return Floats{};
        return depth - i >= LANES ? load(line(tile, row) + i) : load(line(tile, row) + i, depth - i);
    }

    template <bool WHOLE>
    Floats column_part(int64_t k, int64_t tile) const {
        const Number* numbers = from + k * step + tile * LANES;
        if (WHOLE) return load(numbers);
        const int64_t left = rows - tile * LANES;
        if (left <= 0 || k >= depth) return Floats{};
        return left >= LANES ? load(numbers) : load(numbers, left);
    }

    template <bool WHOLE>
    void chunk(int64_t tile, int64_t i, const float* inverses, Dither& dither) const {
        alignas(64) int8_t made[LANES * CHUNK];
        for (int64_t r = 0; r < LANES; r++) {
            UNROLLED
            for (int64_t k = 0; k < CHUNK; k += LANES)
                store(made + r * CHUNK + k, rounded(row_part<WHOLE>(tile, r, i + k) * inverses[r], dither));
        }
        auto into = reinterpret_cast<float*>(to.tile(tile) + i * LANES);
        transpose(reinterpret_cast<const float*>(made), LANES, into, LANES);
    }

    template <bool WHOLE>
    void columns(int64_t first) const {
        const int64_t count = WHOLE ? SIDE : least(SIDE, to.tiles - first);
        Integers found[SIDE] = {};
        Floats totals[SIDE] = {};
        for (int64_t k = 0; k < depth; k++) {
            UNROLLED
            for (int64_t s = 0; s < SIDE; s++) {
                const Floats x = column_part<WHOLE>(k, first + s);
                found[s] = largest_sizes(found[s], x);
                if (sums) totals[s] += x;
            }
        }
        for (int64_t s = 0; sums && s < SIDE; s++) {
            const int64_t row = (first + s) * LANES;
            if (row < rows) store(sums + row, totals[s], least(LANES, rows - row));
        }
        Floats scales[SIDE], inverses[SIDE];
        for (int64_t s = 0; s < SIDE; s++) {
            scales[s] = bits_of<Floats>(found[s]) / 127.0f;
            inverses[s] = choose(scales[s] < SMALLEST, Floats{}, 1.0f / scales[s]);
        }
        Dither dither = seeded(first, scales[0]);
        const int64_t whole = WHOLE ? depth / QUAD * QUAD : 0;
        auto quads = [&](auto known, int64_t k) {
            UNROLLED
            for (int64_t s = 0; s < SIDE; s++) {
                Words quad{};
                UNROLLED
                for (int64_t q = 0; q < QUAD; q++) {
                    Words byte = bits_of<Words>(rounded(column_part<known>(k + q, first + s) * inverses[s], dither));
                    quad |= (q == QUAD - 1 ? byte : byte & 0xff) << (8 * q);
                }
                if (s < count) memcpy(to.tile(first + s) + k * LANES, &quad, sizeof quad);
            }
        };
        int64_t k = 0;
        for (; k < whole; k += QUAD) quads(std::true_type{}, k);
        for (; k < to.depth; k += QUAD) quads(std::false_type{}, k);
        for (int64_t s = 0; s < count; s++) finish(first + s, scales[s]);
    }

    Integers rounded(Floats x, Dither& dither) const {
        if (dithers) x = smaller(all(127.0f), x + dither.next());
        return bits_of<Integers>(x + (to.offsets ? 12582912.0f : 12583040.0f));
    }

    // By what is rounded: no place is rounded up in every batch.
    static Dither seeded(int64_t tile, Floats scales) {
        Words seed = bits_of<Words>(scales) + uint32_t(tile + 1) * 0x9e3779b9u;
        for (int lane = 0; lane < LANES; lane++) seed[lane] = (seed[lane] + lane) * 0x85ebca6bu | 1;
        return Dither(seed);
    }

    void finish(int64_t tile, Floats scales) const {
        store(to.scales + tile * LANES, scales);
        if (!to.offsets) return;
        Integers sums{};
        for (int64_t k = 0; k < to.depth; k += QUAD)
            sums = add_quads(sums, Integers{} + 0x01010101, read<Integers>(to.tile(tile) + k * LANES));
        sums *= -128;
        memcpy(to.offsets + tile * LANES, &sums, sizeof sums);
    }
};

void round_rows(Team& team, const Int8Operand& from, int64_t rows, int64_t depth, bool dither, float* sums, const Bytes& to) {
    auto all = [&](auto rounder) {
        if (from.transposed)
            team.share((to.tiles + SIDE - 1) / SIDE, [&](int64_t item) { rounder.standing(item * SIDE); });
        else
            team.share(to.tiles, [&](int64_t tile) { rounder.lying(tile); });
    };
    if (from.dtype == BFLOAT16)
        all(Rounder<BFloat16>(from, rows, depth, dither, sums, to));
    else
        all(Rounder<float>(from, rows, depth, dither, sums, to));
}

class Multiplier {
   public:
    Multiplier(const Int8MatmulArgs& p, char* room)
        : p(p),
          left(p.rows, p.depth, true, room),
          right(p.columns, p.depth, false, room),
          sums(reinterpret_cast<Integers*>(room)),
          end(room + (left.depth > DEEP ? left.tiles * right.tiles * LANES * int64_t(sizeof(Integers)) : 0)) {}

    static int64_t bytes(const Int8MatmulArgs& p) { return Multiplier(p, nullptr).end - static_cast<char*>(nullptr); }

    void run(Team& team) const {
        round_rows(team, p.left, p.rows, p.depth, p.stochastic_rounding, p.row_sums, left);
        round_rows(team, p.right, p.columns, p.depth, false, nullptr, right);
        for (int64_t begin = 0; begin < left.depth; begin += DEEP) {
            const int64_t end = least(begin + DEEP, left.depth), pairs = right.tiles / TILES;
            const int64_t high = up(least(CACHED / (end - begin), p.rows), ROWS);
            team.share((p.rows + high - 1) / high * pairs, [&](int64_t item) {
                const int64_t first = item / pairs * high, tile = item % pairs * TILES;
                for (int64_t row = first; row < least(first + high, p.rows); row += ROWS) multiply(row, tile, begin, end);
            });
        }
    }

   private:
    const Int8MatmulArgs& p;
    const Bytes left, right;
    Integers* const sums;  // [rows, tiles] of deep matrices, until they are complete
    char* const end;

    void multiply(int64_t row, int64_t tile, int64_t begin, int64_t end) const {
        const int8_t* x = left.tile(row / LANES) + row % LANES * QUAD;
        const int8_t *one = right.tile(tile), *two = right.tile(tile + 1);
        Integers* kept = sums + row * right.tiles + tile;
        Integers made[ROWS][TILES];
        UNROLLED
        for (int r = 0; r < ROWS; r++) {
            UNROLLED
            for (int t = 0; t < TILES; t++)
                made[r][t] = begin ? kept[r * right.tiles + t] : Integers{} + left.offsets[row + r];
        }
        for (int64_t k = begin; k < end; k += QUAD) {
            const auto first = read<Integers>(one + k * LANES), second = read<Integers>(two + k * LANES);
            UNROLLED
            for (int r = 0; r < ROWS; r++) {
                const Integers each = four(x + k * LANES + r * QUAD);
                made[r][0] = add_quads(made[r][0], first, each);
                made[r][1] = add_quads(made[r][1], second, each);
            }
        }
        UNROLLED
        for (int r = 0; r < ROWS; r++) {
            UNROLLED
            for (int t = 0; t < TILES; t++)
                if (end < left.depth)
                    kept[r * right.tiles + t] = made[r][t];
                else if (row + r < p.rows)
                    give(row + r, (tile + t) * LANES, made[r][t]);
        }
    }

    void give(int64_t row, int64_t output, Integers sum) const {
        const int64_t count = least(LANES, p.columns - output);
        if (count <= 0) return;
        Floats y = convert<Floats>(sum) * (load(right.scales + output) * left.scales[row]);
        if (p.bias) y += count < LANES ? load(p.bias + output, count) : load(p.bias + output);
        auto put = [&](auto* to) {
            to += row * p.columns + output;
            if (p.accumulate) y += count < LANES ? load(to, count) : load(to);
            count < LANES ? store(to, y, count) : store(to, y);
        };
        if (p.dtype == BFLOAT16)
            put(static_cast<BFloat16*>(p.out));
        else
            put(static_cast<float*>(p.out));
    }
};
#endif

}  // namespace

extern "C" {

// Whether this processor has the instructions; else nothing happens.
EXPORTED int64_t works() {
#if defined(__AVX512VNNI__)
    return 1;
#else
    return 0;
#endif
}

EXPORTED int64_t bytes(const Int8MatmulArgs* product) {
#if defined(__AVX512VNNI__)
    return Multiplier::bytes(*product);
#else
    return 0;
#endif
}

EXPORTED void run(const Int8MatmulArgs* product, void* workspace) {
#if defined(__AVX512VNNI__)
    together(product->num_threads, [&](Team team) { Multiplier(*product, static_cast<char*>(workspace)).run(team); });
#endif
}
}
