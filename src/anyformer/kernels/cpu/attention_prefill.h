// Attention of many queries that share their keys, as when a prompt is read.
//
// A lane is a query, so nothing is summed across lanes; keys and values come in as single numbers, for all lanes. Keys
// are taken a block at a time, with a running maximum and sum of every query's softmax (Milakov & Gimelshein 2018;
// Dao et al. 2022, algorithm 1).
#pragma once
#include <type_traits>

#include "simd.h"
#include "amx.h"

constexpr int64_t KEYS = 64;
constexpr int64_t CROWD = 3 * LANES;

// Sums that are kept in registers, of every lane.
template <int VECTORS>
constexpr int LINES = REGISTER == 64 ? 8 : VECTORS == 1 ? 4 : 2;

// How products are made: of single numbers, of pairs (see vectors.h), or of pairs in registers of 16 x 16 (see wide.h).
enum Way { SINGLE, PAIRED, TILED };

// What a lane asks for, and where its answer goes.
struct Query {
    float* vector = nullptr;
    const float* bias = nullptr;  // of every distance; null: none
    int64_t first = 0, end = 0;   // keys that it sees
};

// to[line] = factor to[line] + the sum over `steps` of lines[line] * lanes, for some lines and all lanes.
template <bool PAIRS, int VECTORS>
inline void add_lines(const float* lines, int64_t line_size, int64_t step_size, int64_t steps, const float* lanes,
                      const Floats* factor, float* to) {
    constexpr int LINES = ::LINES<VECTORS>;
    Floats total[LINES][VECTORS];
    UNROLLED
    for (int l = 0; l < LINES; l++) {
        UNROLLED
        for (int v = 0; v < VECTORS; v++)
            total[l][v] = factor ? load(to + (l * VECTORS + v) * LANES) * factor[v] : Floats{};
    }
    for (int64_t step = 0; step < steps; step++) {
        Floats each[VECTORS];
        UNROLLED
        for (int v = 0; v < VECTORS; v++) each[v] = load(lanes + (step * VECTORS + v) * LANES);
        UNROLLED
        for (int l = 0; l < LINES; l++) {
            float one = lines[l * line_size + step * step_size];
            UNROLLED
            for (int v = 0; v < VECTORS; v++) total[l][v] = add_products<PAIRS>(total[l][v], one, each[v]);
        }
    }
    UNROLLED
    for (int l = 0; l < LINES; l++) {
        UNROLLED
        for (int v = 0; v < VECTORS; v++) store(to + (l * VECTORS + v) * LANES, total[l][v]);
    }
}

template <Way WAY, int VECTORS>
class Crowd {
    static constexpr bool PAIRS = WAY != SINGLE;
    static constexpr int64_t WIDTH = VECTORS * LANES, EACH = PAIRS ? 2 : 1;
    static constexpr int LINES = ::LINES<VECTORS>;
    static constexpr int64_t LOT = WAY == TILED ? 32 : LINES;  // keys come in lots
    typedef std::conditional_t<PAIRS, BFloat16, float> Number;

   public:
    Crowd(float* memory, const Query* queries, int64_t count, int64_t head_dim, float scale)
        : asked(queries), count(count), head_dim(head_dim), wide(room(head_dim)) {
        lanes = memory;
        totals = lanes + CROWD * wide;
        keys = totals + CROWD * wide;
        values = keys + KEYS * wide;
        scores = values + KEYS * wide;
        memset(totals, 0, wide * WIDTH * sizeof(float));
        auto scaled = reinterpret_cast<Number*>(keys);  // they come later
        for (int64_t lane = 0; lane < WIDTH; lane++) {
            Query query = lane < count ? queries[lane] : Query{};
            first[lane] = int32_t(query.first), end[lane] = int32_t(query.end);
            for (int64_t i = 0; i < wide; i += LANES)
                store(scaled + lane % LANES * wide + i, part(query.vector, i) * scale);
            if ((lane + 1) % LANES) continue;
            for (int64_t i = 0; i < wide / EACH; i += LANES)
                transpose(keys + i, wide / EACH, lanes + i * WIDTH + lane + 1 - LANES, WIDTH);
        }
        for (int v = 0; v < VECTORS; v++) peaks[v] = all(-1e30f), sums[v] = Floats{};
    }

    // In floats, whatever they hold.
    static int64_t size(int64_t head_dim) { return 2 * (CROWD + KEYS) * room(head_dim) + KEYS * CROWD; }

    // Every query's place takes what it sees.
    template <class T>
    void look(const T* key, const T* value, int64_t key_step, int64_t value_step, const uint8_t* mask) {
        int64_t from = INT64_MAX, to = 0;
        for (int64_t lane = 0; lane < count; lane++) {
            if (asked[lane].first >= asked[lane].end) continue;
            from = asked[lane].first < from ? asked[lane].first : from;
            to = asked[lane].end > to ? asked[lane].end : to;
        }
        for (int64_t begin = from; begin < to; begin += KEYS) {
            int64_t some = to - begin < KEYS ? to - begin : KEYS;
            see(key + begin * key_step, value + begin * value_step, key_step, value_step, begin, some, mask);
        }
        for (int64_t lane = 0; lane < count; lane += LANES) {
            Floats total = sums[lane / LANES], inverse = choose(total > 0.0f, 1.0f / total, Floats{});
            for (int64_t i = 0; i < head_dim; i += LANES) {
                float turned[LANES * LANES];
                transpose(totals + i * WIDTH + lane, WIDTH, turned, LANES);
                for (int64_t l = 0; l < LANES && lane + l < count; l++) {
                    Floats answer = load(turned + l * LANES) * inverse[l];
                    float* to = asked[lane + l].vector + i;
                    if (head_dim - i >= LANES)
                        store(to, answer);
                    else
                        store(to, answer, head_dim - i);
                }
            }
        }
    }

   private:
    static int64_t room(int64_t head_dim) {
        constexpr int64_t STEP = WAY == TILED ? 32 : LANES;
        return (head_dim + STEP - 1) / STEP * STEP;
    }

    const Query* asked;
    const int64_t count, head_dim, wide;
    float *lanes, *totals, *keys, *values, *scores;
    alignas(64) int32_t first[WIDTH], end[WIDTH];
    Floats peaks[VECTORS], sums[VECTORS];

    template <class T>
    void see(const T* key, const T* value, int64_t key_step, int64_t value_step, int64_t begin, int64_t some,
             const uint8_t* mask) {
        int64_t lines = (some + LOT - 1) / LOT * LOT;
        auto row = [&](const T* from, int64_t step, int64_t t) { return t < some ? from + t * step : nullptr; };
        for (int64_t t = 0; t < lines; t++) {
            const T* one = row(key, key_step, t);
            Number* to = reinterpret_cast<Number*>(keys) + t * wide;
            for (int64_t i = 0; i < wide; i += LANES) store(to + i, part(one, i));
        }
        for (int64_t t = 0; t < lines; t += EACH) {
            const T *one = row(value, value_step, t), *two = row(value, value_step, t + 1);
            float* to = values + t / EACH * wide;
            for (int64_t i = 0; i < wide; i += LANES)
                store(to + i, PAIRS ? paired(part(one, i), part(two, i)) : part(one, i));
        }
        compare(lines);
        judge(begin, some, lines, mask);
        Floats factor[VECTORS];
        weigh(lines, factor);
        gather(lines, factor);
    }

    // Scores of all keys.
    void compare(int64_t lines) {
        if constexpr (WAY == TILED) {
            auto rows = reinterpret_cast<const BFloat16*>(keys);
            for (int64_t t = 0; t < lines; t += LANES)
                multiply_lanes<VECTORS>(rows + t * wide, wide, lanes, WIDTH, wide, false, scores + t * WIDTH, WIDTH);
        } else {
            for (int64_t t = 0; t < lines; t += LINES)
                add_lines<PAIRS, VECTORS>(keys + t * wide / EACH, wide / EACH, 1, wide / EACH, lanes, nullptr,
                                          scores + t * WIDTH);
        }
    }

    // What was gathered so far times `factor`, and the values, weighed.
    void gather(int64_t lines, const Floats* factor) {
        if constexpr (WAY == TILED) {
            // Pairs of keys become the columns, and dimensions the rows.
            auto pairs = reinterpret_cast<const BFloat16*>(values);
            auto rows = reinterpret_cast<BFloat16*>(values + KEYS / 2 * wide);
            for (int64_t t = 0; t < lines; t += 2 * LANES)
                for (int64_t i = 0; i < wide; i += LANES)
                    transpose(pairs + t * wide + 2 * i, 2 * wide, rows + i * KEYS + t, KEYS);
            for (int64_t i = 0; i < wide; i++)
                for (int v = 0; v < VECTORS; v++) {
                    float* total = totals + i * WIDTH + v * LANES;
                    store(total, load(total) * factor[v]);
                }
            for (int64_t i = 0; i < wide; i += LANES)
                multiply_lanes<VECTORS>(rows + i * KEYS, KEYS, scores, WIDTH, lines, true, totals + i * WIDTH, WIDTH);
        } else {
            for (int64_t i = 0; i < wide; i += LINES)
                add_lines<PAIRS, VECTORS>(values + i, 1, wide, lines / EACH, scores, factor, totals + i * WIDTH);
        }
    }

    // Part of a key, value or query; zeros where there is none.
    template <class T>
    Floats part(const T* from, int64_t i) const {
        if (!from || i >= head_dim) return Floats{};
        return head_dim - i >= LANES ? load(from + i) : load(from + i, head_dim - i);
    }

    // Biases are added, and what can't be seen becomes -inf.
    void judge(int64_t begin, int64_t some, int64_t lines, const uint8_t* mask) {
        bool all_see_all = some == lines && count == WIDTH && !mask;
        for (int64_t lane = 0; lane < count; lane++) {
            const Query& query = asked[lane];
            all_see_all = all_see_all && query.first <= begin && query.end >= begin + lines;
            if (!query.bias) continue;
            for (int64_t t = query.first > begin ? query.first - begin : 0; t < some && begin + t < query.end; t++)
                scores[t * WIDTH + lane] += query.bias[query.end - 1 - begin - t];
        }
        if (all_see_all) return;
        for (int64_t t = 0; t < lines; t++)
            for (int v = 0; v < VECTORS; v++) {
                auto from = read<Integers>(first + v * LANES), to = read<Integers>(end + v * LANES);
                Integers place = Integers{} + int32_t(begin + t);
                Integers seen = (place >= from) & (place < to);
                if (t >= some || (mask && !mask[begin + t])) seen = Integers{};
                float* score = scores + t * WIDTH + v * LANES;
                store(score, choose(seen, load(score), all(-INFINITY)));
            }
    }

    // Scores become weights, relative to the largest so far; `factor` makes earlier sums relative to it, too.
    void weigh(int64_t lines, Floats* factor) {
        for (int v = 0; v < VECTORS; v++) {
            Floats peak = peaks[v];
            for (int64_t t = 0; t < lines; t++) peak = larger(peak, load(scores + t * WIDTH + v * LANES));
            factor[v] = exp(peaks[v] - peak);
            peaks[v] = peak;
            sums[v] *= factor[v];
            for (int64_t t = 0; t < lines; t += EACH) {
                Floats weights[EACH];
                UNROLLED
                for (int e = 0; e < EACH; e++) {
                    weights[e] = exp(load(scores + (t + e) * WIDTH + v * LANES) - peak);
                    sums[v] += weights[e];
                }
                store(scores + t / EACH * WIDTH + v * LANES, PAIRS ? paired(weights[0], weights[EACH - 1]) : weights[0]);
            }
        }
    }
};
