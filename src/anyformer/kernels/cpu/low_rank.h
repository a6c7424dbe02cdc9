// Low-rank adapters: y = W x + s B (A x) (Hu et al. 2021, section 4.1).
#pragma once
#include <initializer_list>
#include "packed_inputs.h"

// A panel of a factor, [parts, 16], times ROWS vectors. Each of them has the same sums in any company.
template <bool BF16, int ROWS>
inline void multiply_factor(const float* panel, const float* const* x, int64_t parts, FloatVec* y) {
    constexpr int64_t CHAINS = 2;
    FloatVec total[ROWS][CHAINS] = {};
    auto add = [&](int64_t i, int64_t chain) {
        const FloatVec w = load(panel + i * LANES);
        UNROLL
        for (int r = 0; r < ROWS; r++) total[r][chain] = multiply_add<BF16>(total[r][chain], x[r][i], w);
    };
    int64_t i = 0;
    for (; i + CHAINS <= parts; i += CHAINS) {
        UNROLL
        for (int64_t chain = 0; chain < CHAINS; chain++) add(i + chain, chain);
    }
    for (; i < parts; i++) add(i, 0);
    UNROLL
    for (int r = 0; r < ROWS; r++) y[r] = total[r][0] + total[r][1];
}

// The low-rank terms of a batch in one of its threads. Rows of one adapter are multiplied together, as far as they are in
// one block of ROW_BLOCK rows: the thread that prepares their inputs multiplies them by A, without a barrier between.
class LowRankTerms {
   public:
    // Beside a weight in float32 factors and their inputs are float32, elsewhere pairs of bfloat16.
    static bool has_pairs(const Matrix& matrix) { return matrix.dtype != FLOAT32; }

    // Bytes of A x, and of each thread.
    static int64_t inner_size(int64_t rows, int64_t max_rank) {
        return MAX_SHARING * rows * round_up(max_rank, LANES) * int64_t(sizeof(float));
    }
    static int64_t thread_size(int64_t rows, int64_t max_rank) {
        return max_rank ? 2 * round_up(rows + 1, 8) * 8 + AMX_PANELS * rows * LANES * int64_t(sizeof(float)) : 0;
    }

    LowRankTerms() = default;

    LowRankTerms(const Batch& batch, void* inner, void* thread_memory)
        : adapters(batch.adapters),
          all_rows(batch.rows),
          stride(round_up(batch.max_rank, LANES)),
          inner(static_cast<float*>(inner)),
          order(static_cast<int64_t*>(thread_memory)),
          lengths(order + round_up(all_rows + 1, 8)),
          outer(reinterpret_cast<float*>(lengths + round_up(all_rows + 1, 8))) {
        group(batch.rows);
    }

    // Whether the adapter of any row may act on a matrix.
    bool act_on(const Matrix& matrix) const { return stride && matrix.adapted; }

    // Order the rows of each block by their adapters, in runs of MAX_RUN, half of it, ..., 1. Terms of rows without an
    // adapter stay 0.
    void group(int64_t rows) {
        if (!stride) return;
        this->rows = rows;
        memset(outer, 0, AMX_PANELS * rows * LANES * sizeof(float));
        int64_t place = 0;
        for (int64_t row = 0; row < rows; row++) {
            const int64_t block = row / ROW_BLOCK * ROW_BLOCK, end = min(rows, block + ROW_BLOCK);
            int64_t first = block, count = 0;
            while (adapters[first] != adapters[row]) first++;
            for (int64_t i = row; first == row && i < end; i++)
                if (adapters[i] == adapters[row]) order[place + count++] = i;
            for (int64_t length = MAX_RUN; count; length = count >= length ? length : length / 2)
                if (count >= length) lengths[place] = length, place += length, count -= length;
        }
    }

    // Take the matrices of which `multiply_a` comes next. Every thread must call this.
    void share(std::initializer_list<const Matrix*> matrices) {
        num_sharing = 0;
        for (auto matrix : matrices)
            if (act_on(*matrix)) sharing[num_sharing++] = matrix;
    }

    // Ask for the part of A that falls to a row among those of its block: it arrives while their inputs are prepared.
    void prefetch_a(int64_t row) const {
        const int64_t begin = row / ROW_BLOCK * ROW_BLOCK, end = min(rows, begin + ROW_BLOCK), count = end - begin;
        for (int64_t place = 0; place < num_sharing; place++) {
            const Matrix& matrix = *sharing[place];
            for_each_run(matrix, begin, end, [&](int64_t run, const LowRank& term) {
                if (run > begin && adapters[order[run - 1]] == adapters[order[run]]) return;
                const int64_t parts = num_parts(matrix, matrix.in_features) * round_up(term.rank, LANES) / LANES;
                prefetch(term.a, parts * (row - begin) / count, parts * (row - begin + 1) / count);
            });
        }
    }

    // A x of a block of rows, for all matrices that share the inputs x.
    void multiply_a(const Inputs& x, int64_t block) const {
        for (int64_t place = 0; place < num_sharing; place++) {
            const Matrix& matrix = *sharing[place];
            const int64_t parts = num_parts(matrix, matrix.in_features);
            auto from = [&](int64_t row) {
                return has_pairs(matrix) ? reinterpret_cast<const float*>(x.bfloat16 + row * x.width)
                                         : x.float32 + row * x.width;
            };
            for_each_run(matrix, block * ROW_BLOCK, min(rows, (block + 1) * ROW_BLOCK),
                         [&](int64_t run, const LowRank& term) {
                             for (int64_t i = 0; i < term.rank; i += LANES)
                                 multiply_run(matrix, run, term.a + i * parts, parts, from, [&](int64_t row, FloatVec y) {
                                     float* to = inner_of(place, row);
                                     has_pairs(matrix) ? store(reinterpret_cast<BFloat16*>(to) + i, y) : store(to + i, y);
                                 });
                         });
        }
    }

    // s B (A x) for up to AMX_PANELS panels: [panels, rows, 16].
    const float* multiply_b(const Matrix& matrix, int64_t panel, int64_t panels) const {
        const int64_t place = &matrix == sharing[0] ? 0 : &matrix == sharing[1] ? 1 : 2;
        for_each_run(matrix, 0, rows, [&](int64_t run, const LowRank& term) {
            const int64_t parts = num_parts(matrix, term.rank);
            for (int64_t i = 0; i < panels; i++)
                multiply_run(
                    matrix, run, term.b + (panel + i) * LANES * parts, parts,
                    [&](int64_t row) { return inner_of(place, row); },
                    [&](int64_t row, FloatVec y) { store(outer + (i * rows + row) * LANES, y); });
            prefetch(term.b, (panel + panels) * parts, (panel + 2 * panels) * parts);  // while W is multiplied
        });
        return outer;
    }

   private:
    static constexpr int64_t MAX_SHARING = 3;  // matrices that have the same inputs
    static constexpr int MAX_RUN = REGISTER_BYTES == 64 ? ROW_BLOCK : 2;

    const LowRank** adapters;
    int64_t all_rows, rows = 0, stride;
    float* inner;                             // A x: [place in `sharing`, row, stride]
    int64_t num_sharing = 0;
    const Matrix* sharing[MAX_SHARING] = {};  // the matrices of the latest A x
    int64_t *order, *lengths;                 // rows by adapter; the length of the run that begins at a place
    float* outer;                             // B (A x)

    static void prefetch(const float* panels, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) __builtin_prefetch(panels + i * LANES, 0, 2);
    }

    // The floats or pairs of a vector.
    static int64_t num_parts(const Matrix& matrix, int64_t depth) {
        return has_pairs(matrix) ? (depth + 1) / 2 : depth;
    }

    float* inner_of(int64_t place, int64_t row) const { return inner + (place * all_rows + row) * stride; }

    // Call `body(run, term)` for the runs of whole blocks whose adapter has a term for the matrix.
    template <class Body>
    void for_each_run(const Matrix& matrix, int64_t begin, int64_t end, const Body& body) const {
        for (int64_t run = begin; run < end; run += lengths[run])
            if (const LowRank* terms = adapters[order[run]]) body(run, terms[matrix.adapted]);
    }

    // A panel of a factor times the vectors `from(row)` of a run; `write(row, y)` gets each product.
    template <int ROWS = MAX_RUN, class From, class Write>
    void multiply_run(const Matrix& matrix, int64_t run, const float* panel, int64_t parts, const From& from,
                      const Write& write) const {
        if constexpr (ROWS > 1)
            if (lengths[run] < ROWS) return multiply_run<ROWS / 2>(matrix, run, panel, parts, from, write);
        const float* x[ROWS];
        FloatVec y[ROWS];
        for (int r = 0; r < ROWS; r++) x[r] = from(order[run + r]);
        has_pairs(matrix) ? multiply_factor<true, ROWS>(panel, x, parts, y)
                          : multiply_factor<false, ROWS>(panel, x, parts, y);
        for (int r = 0; r < ROWS; r++) write(order[run + r], y[r]);
    }
};
