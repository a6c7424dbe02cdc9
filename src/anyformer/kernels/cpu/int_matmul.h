// Products of matrices of integers, which lie as tiling.py says, with some vectors.
#pragma once
#include "packed_inputs.h"

// Integers are multiplied for a lot of outputs at a time: as many as a register holds.
constexpr int LOT = REGISTER / 4;
typedef Vector<int32_t, LOT> Lot;
typedef Vector<float, LOT> FloatLot;

// Four bytes of an input, for all lanes.
inline Lot four(const int8_t* inputs) { return Lot{} + read<int32_t>(inputs); }

// Clang would call what sums a group, and its sums would pass through memory: a prompt took a quarter longer.
#define INLINED [[gnu::always_inline]] inline

#if defined(__AVX2__) && !defined(__AVX512VNNI__) && (!defined(__AVX512F__) || defined(__AVX512BW__))
#if defined(__AVX512BW__)
typedef __m512i Register;
#define BY_REGISTER(NAME) _mm512_##NAME
#else
typedef __m256i Register;
#define BY_REGISTER(NAME) _mm256_##NAME
#endif
inline Lot multiply_bytes(Lot a, Lot b) { return (Lot)BY_REGISTER(maddubs_epi16)((Register)a, (Register)b); }
inline Lot multiply_shorts(Lot a, Lot b) { return (Lot)BY_REGISTER(madd_epi16)((Register)a, (Register)b); }
inline Lot add_shorts(Lot a, Lot b) { return (Lot)BY_REGISTER(add_epi16)((Register)a, (Register)b); }
inline Lot even_bytes(Lot a) { return (Lot)BY_REGISTER(srai_epi16)(BY_REGISTER(slli_epi16)((Register)a, 8), 8); }
inline Lot odd_bytes(Lot a) { return (Lot)BY_REGISTER(srai_epi16)((Register)a, 8); }
#undef BY_REGISTER

// Sums over a group: of a lot of outputs, for some rows of a block. The products of 4 and 8 bits can be summed in 16 bits,
// for a whole group (16 * 15 * 127 < 2^15); those of 8 and 8 can't.
template <Dtype DTYPE, int ROWS>
INLINED void sum_group(const uint8_t* weights, const int8_t* inputs, const int32_t* offsets, FloatLot* to) {
    constexpr bool WHOLE = DTYPE == INT8;
    Lot sums[ROWS] = {};
    for (int k = 0; k < (WHOLE ? QUADS : QUADS / 2); k++) {
        Lot quads = read<Lot>(weights + 64 * k);
        UNROLLED
        for (int part = 0; part < 2; part++) {
            Lot some = (part ? quads >> (WHOLE ? 8 : 4) : quads) & (WHOLE ? 0x00ff00ff : 0x0f0f0f0f);
            UNROLLED
            for (int r = 0; r < ROWS; r++) {
                Lot x = four(inputs + r * GROUP + 4 * (WHOLE ? k : k + part * QUADS / 2));
                if (WHOLE)
                    sums[r] += multiply_shorts(some, part ? odd_bytes(x) : even_bytes(x));
                else
                    sums[r] = add_shorts(sums[r], multiply_bytes(some, x));
                asm("" : "+v"(sums[r]));  // GCC would add products to each other first, and has no registers for them
            }
        }
    }
    UNROLLED
    for (int r = 0; r < ROWS; r++)
        to[r] = convert<FloatLot>(WHOLE ? sums[r] + offsets[r] : multiply_shorts(sums[r], Lot{} + 0x00010001));
}
#else
// total + the products of four unsigned and four signed bytes in each lane.
inline Lot add_quads(Lot total, Lot weights, Lot inputs) {
#if defined(__AVX512VNNI__)
    return (Lot)_mm512_dpbusd_epi32((__m512i)total, (__m512i)weights, (__m512i)inputs);
#else
    UNROLLED
    for (int bit = 0; bit < 32; bit += 8) total += ((weights >> bit) & 0xff) * (inputs << (24 - bit) >> 24);
    return total;
#endif
}

// Sums over a group: of a lot of outputs, for some rows of a block. Rows come one after the other, so that no sum waits
// for the one before; a few have several sums each.
template <Dtype DTYPE, int ROWS>
INLINED void sum_group(const uint8_t* weights, const int8_t* inputs, const int32_t* offsets, FloatLot* to) {
    constexpr int EACH = ROWS >= 8 ? 1 : ROWS >= 4 ? 2 : 4;
    Lot sums[EACH][ROWS] = {};
    if (DTYPE == INT8) {
        UNROLLED
        for (int r = 0; r < ROWS; r++) sums[0][r] += offsets[r];
    }
    UNROLLED
    for (int k = 0; k < QUADS; k++) {
        Lot quads = read<Lot>(weights + 64 * (DTYPE == INT8 ? k : k % 4));
        if (DTYPE == INT4) quads = (k < 4 ? quads : quads >> 4) & 0x0f0f0f0f;
        UNROLLED
        for (int r = 0; r < ROWS; r++)
            sums[k % EACH][r] = add_quads(sums[k % EACH][r], quads, four(inputs + r * GROUP + 4 * k));
    }
    UNROLLED
    for (int r = 0; r < ROWS; r++) {
        UNROLLED
        for (int e = 1; e < EACH; e++) sums[0][r] += sums[e][r];
        to[r] = convert<FloatLot>(sums[0][r]);
    }
}
#endif

// A lot of outputs of a tile, from this lane on.
template <Dtype DTYPE, int ROWS>
inline void multiply_lot(const Matrix& matrix, int64_t tile, int lane, const Inputs& x, int64_t row, Floats* y) {
    constexpr int64_t SIZE = DTYPE == INT8 ? 512 : 256;
    const int64_t groups = matrix.in_features / GROUP;
    auto weights = static_cast<const uint8_t*>(matrix.weights) + tile * groups * SIZE + lane * 4;
    const uint16_t* scales = matrix.scales + tile * groups * LANES + lane;
    const uint16_t* minima = DTYPE == INT8 ? nullptr : matrix.minima + tile * groups * LANES + lane;
    FloatLot total[ROWS] = {};
    for (int64_t group = 0; group < groups; group++) {
        int64_t place = x.place(row, group);
        FloatLot sums[ROWS], scale = load_halves<FloatLot>(scales + group * LANES);
        FloatLot minimum = DTYPE == INT8 ? FloatLot{} : load_halves<FloatLot>(minima + group * LANES);
        sum_group<DTYPE, ROWS>(weights + group * SIZE, x.bytes + place * GROUP, x.offsets + place, sums);
        UNROLLED
        for (int r = 0; r < ROWS; r++) {
            total[r] += sums[r] * (scale * x.scales[place + r]);
            if (DTYPE == INT4) total[r] += minimum * x.sums[place + r];
        }
    }
    UNROLLED
    for (int r = 0; r < ROWS; r++) store(reinterpret_cast<float*>(y + r) + lane, total[r]);
}

template <Dtype DTYPE, int ROWS>
inline void integer_tile(const Matrix& matrix, int64_t tile, const Inputs& x, int64_t row, Floats* y) {
    for (int lane = 0; lane < LANES; lane += LOT) multiply_lot<DTYPE, ROWS>(matrix, tile, lane, x, row, y);
}

#if defined(__AVX512VNNI__)
// Sixteen outputs of 4 bits as bytes, 128 too large, [group, quad, output, 4], with one scale an output, which is returned.
// A group's sum then costs one instruction besides its products, and not three. Rounding the numbers once more adds an
// error of 1% of their size to the 7% of 4 bits.
inline Floats unpack_codes(const Matrix& matrix, int64_t tile, uint8_t* to) {
    typedef Vector<uint16_t, 2 * LOT> Pairs;  // of bytes: the even ones, or the odd ones
    const int64_t groups = matrix.in_features / GROUP, first = tile * groups;
    auto scale_of = [&](int64_t group) { return load_halves<Floats>(matrix.scales + (first + group) * LANES); };
    auto least_of = [&](int64_t group) { return load_halves<Floats>(matrix.minima + (first + group) * LANES); };
    Integers bits{};  // of the largest size, so that a NaN is not lost
    for (int64_t group = 0; group < groups; group++) {
        Floats least = least_of(group), last = least + 15.0f * scale_of(group);
        bits = larger(bits, larger(bits_of<Integers>(size_of(least)), bits_of<Integers>(size_of(last))));
    }
    Floats most = bits_of<Floats>(bits), inverse = choose(most > 0.0f, 127.0f / most, Floats{});
    for (int64_t group = 0; group < groups; group++) {
        auto codes = static_cast<const uint8_t*>(matrix.weights) + (first + group) * GROUP / 2 * LANES;
        // Whole numbers of 1/256, twice in 32 bits; adding 1.5 * 2^23 rounds to them.
        auto twice = [](Floats x) {
            Words low = bits_of<Words>(x * 256.0f + 12582912.0f) & 0xffff;
            return low | (low << 16);
        };
        // Half a code is added, for what lies behind the point is cut off.
        Words factor = twice(scale_of(group) * inverse), base = twice(least_of(group) * inverse + 128.5f);
        auto made = [&](Words quads, int shift) {
            auto pairs = bits_of<Pairs>((quads >> shift) & 0x000f000f);
            return bits_of<Words>(pairs * bits_of<Pairs>(factor) + bits_of<Pairs>(base));
        };
        UNROLLED
        for (int k = 0; k < QUADS; k++) {
            auto quads = read<Words>(codes + 64 * (k % 4));
            int shift = k < 4 ? 0 : 4;
            Words bytes = ((made(quads, shift) >> 8) & 0x00ff00ff) | (made(quads, shift + 8) & 0xff00ff00);
            memcpy(to + group * 512 + 64 * k, &bytes, sizeof bytes);
        }
    }
    return most / 127.0f;
}

// All rows times a tile of 4 bits, by way of bytes.
template <class Write>
inline void multiply_codes(const Matrix& matrix, int64_t tile, const Inputs& x, int64_t rows, const Write& write) {
    Part part(matrix, tile);
    Floats scale = unpack_codes(matrix, tile, x.codes);
    for (int64_t row = 0; row < rows; row += BLOCK) {
        Floats total[BLOCK] = {};
        for (int64_t group = 0; group < matrix.in_features / GROUP; group++) {
            int64_t place = x.place(row, group);
            Floats sums[BLOCK];
            sum_group<INT8, BLOCK>(x.codes + group * 512, x.bytes + place * GROUP, x.offsets + place, sums);
            UNROLLED
            for (int r = 0; r < BLOCK; r++) total[r] += sums[r] * x.scales[place + r];
        }
        for (int64_t r = 0; r < BLOCK && row + r < rows; r++)
            write(row + r, part.first, total[r] * scale + part.bias, part.count);
    }
}
#endif
