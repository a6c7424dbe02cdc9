// The products of a sparse gradient of logits with a weight and with its inputs, whose gradients they are.
#include "simd.h"
#include "structs.h"
#include "threads.h"

namespace {

constexpr int64_t GROUP_ROWS = 4;       // rows of the weight that are summed at a time
constexpr int64_t PREFETCHED_ROWS = 4;  // of the input
constexpr int64_t SLICE = 16 * LANES;   // columns of the weight's gradient that a thread takes at a time

// to += the sum of factors[i] * rows[i].
template <int COUNT, class T>
inline void add_rows(float* to, const float* factors, const T* const* rows, int64_t width) {
    auto add = [&](int64_t i, auto... count) {
        FloatVec sum = load(to + i, count...);
        UNROLL
        for (int r = 0; r < COUNT; r++) sum += factors[r] * load(rows[r] + i, count...);
        store(to + i, sum, count...);
    };
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) add(i);
    if (i < width) add(i, width - i);
}

// The weight is float or BFloat16.
template <class Weight>
class SparseMatmul {
   public:
    SparseMatmul(const SparseMatmulArgs& p, float* sum)
        : p(p), blocks((p.vocab_size + p.grad.block - 1) / p.grad.block), sum(sum) {}

    void run(Threads& threads) const {
        if (p.grad_input) threads.parallel_for(p.rows, [&](int64_t row) { write_grad_input(row); });
        const int64_t slices = (p.width + SLICE - 1) / SLICE;
        if (p.grad_weight)
            threads.parallel_for(blocks * slices,
                                 [&](int64_t item) { add_grad_weight(item / slices, item % slices * SLICE); });
        if (p.grad_bias) threads.parallel_for(blocks, [&](int64_t block) { add_grad_bias(block); });
    }

   private:
    const SparseMatmulArgs& p;
    const int64_t blocks;
    float* const sum;  // [width], of this thread

    void write_grad_input(int64_t row) const {
        const float* values = p.grad.values + row * p.grad.capacity;
        const int32_t* columns = p.grad.columns + row * p.grad.capacity;
        const int64_t count = p.grad.starts[row * (blocks + 1) + blocks];
        auto weight = [&](int64_t i) { return static_cast<const Weight*>(p.weight) + columns[i] * p.width; };
        memset(sum, 0, p.width * sizeof(float));
        int64_t i = 0;
        for (; i + GROUP_ROWS <= count; i += GROUP_ROWS) {
            const Weight* rows[GROUP_ROWS];
            for (int64_t r = 0; r < GROUP_ROWS; r++) {
                rows[r] = weight(i + r);
                prefetch(weight(min(i + r + GROUP_ROWS, count - 1)), p.width);  // rows lie anywhere in memory
            }
            add_rows<GROUP_ROWS>(sum, values + i, rows, p.width);
        }
        for (; i < count; i++) {
            const Weight* last = weight(i);
            add_rows<1>(sum, values + i, &last, p.width);
        }
        for (int64_t k = 0, to = row * p.width; k < p.width; k++)
            if (p.grad_input_dtype == BFLOAT16)
                store(static_cast<BFloat16*>(p.grad_input) + to + k, sum[k]);
            else
                store(static_cast<float*>(p.grad_input) + to + k, sum[k]);
    }

    template <class T>
    static void prefetch(const T* row, int64_t width) {
        auto bytes = reinterpret_cast<const char*>(row);
        for (int64_t i = 0; i < width * int64_t(sizeof(T)); i += 64) __builtin_prefetch(bytes + i);
    }

    // Call `visit(row, column, value)` for all numbers in a block of columns, whose gradients stay in a core's cache.
    template <class Visit>
    void visit_block(int64_t block, const Visit& visit) const {
        for (int64_t row = 0; row < p.rows; row++) {
            const int64_t first = row * p.grad.capacity;
            const int32_t* starts = p.grad.starts + row * (blocks + 1) + block;
            for (int64_t i = first + starts[0]; i < first + starts[1]; i++)
                visit(row, p.grad.columns[i], p.grad.values[i]);
        }
    }

    void add_grad_weight(int64_t block, int64_t column) const {
        const int64_t width = min(SLICE, p.width - column);
        auto input = [&](int64_t row) { return static_cast<const BFloat16*>(p.input) + row * p.width + column; };
        auto grad = [&](int64_t row) { return p.grad_weight + row * p.width + column; };
        for (int64_t row = block * p.grad.block; !p.accumulate && row < end(block); row++)
            memset(grad(row), 0, width * sizeof(float));
        visit_block(block, [&](int64_t row, int64_t output, float value) {
            prefetch(input(row + PREFETCHED_ROWS), width);
            const BFloat16* x = input(row);
            add_rows<1>(grad(output), &value, &x, width);
        });
    }

    void add_grad_bias(int64_t block) const {
        for (int64_t row = block * p.grad.block; !p.accumulate && row < end(block); row++) p.grad_bias[row] = 0;
        visit_block(block, [&](int64_t, int64_t output, float value) { p.grad_bias[output] += value; });
    }

    int64_t end(int64_t block) const { return min((block + 1) * p.grad.block, p.vocab_size); }
};

}  // namespace

extern "C" {

EXPORTED int64_t supported() { return 1; }
EXPORTED int64_t workspace_size(const SparseMatmulArgs* p) { return p->num_threads * p->width * sizeof(float); }

EXPORTED void run(const SparseMatmulArgs* p, void* workspace) {
    parallel(p->num_threads, [&](Threads threads) {
        float* sum = static_cast<float*>(workspace) + threads.index * p->width;
        if (p->weight_dtype == BFLOAT16)
            SparseMatmul<BFloat16>(*p, sum).run(threads);
        else
            SparseMatmul<float>(*p, sum).run(threads);
    });
}
}
