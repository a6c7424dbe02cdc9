// Matrix products of packed integer weights (see packed_weight.py) and quantized inputs.
#pragma once
#include <type_traits>

#include "packed_inputs.h"

// As many output features at a time as a register has 32-bit lanes: a panel may take several registers.
constexpr int REGISTER_LANES = REGISTER_BYTES / 4;
typedef Vector<int32_t, REGISTER_LANES> IntRegister;
typedef Vector<float, REGISTER_LANES> FloatRegister;

// Four bytes of an input, in all lanes.
inline IntRegister broadcast_quad(const int8_t* x) { return IntRegister{} + load_as<int32_t>(x); }

// Clang would not inline dot_group, so that its accumulators pass through memory: prefilling took a quarter longer.
#define ALWAYS_INLINE [[gnu::always_inline]] inline

#if defined(__AVX2__) && !defined(__AVX512VNNI__) && (!defined(__AVX512F__) || defined(__AVX512BW__))
#if defined(__AVX512BW__)
typedef __m512i NativeRegister;
#define INTRINSIC(NAME) _mm512_##NAME
#else
typedef __m256i NativeRegister;
#define INTRINSIC(NAME) _mm256_##NAME
#endif
inline IntRegister maddubs(IntRegister a, IntRegister b) {
    return (IntRegister)INTRINSIC(maddubs_epi16)((NativeRegister)a, (NativeRegister)b);
}
inline IntRegister madd(IntRegister a, IntRegister b) {
    return (IntRegister)INTRINSIC(madd_epi16)((NativeRegister)a, (NativeRegister)b);
}
inline IntRegister add_int16(IntRegister a, IntRegister b) {
    return (IntRegister)INTRINSIC(add_epi16)((NativeRegister)a, (NativeRegister)b);
}
inline IntRegister even_bytes(IntRegister a) {
    return (IntRegister)INTRINSIC(srai_epi16)(INTRINSIC(slli_epi16)((NativeRegister)a, 8), 8);
}
inline IntRegister odd_bytes(IntRegister a) { return (IntRegister)INTRINSIC(srai_epi16)((NativeRegister)a, 8); }
#undef INTRINSIC

// to[r] = the dot product of a group of weights and of input row r. Products of 4 and 8 bits can be summed in 16 bits
// over a whole group (16 * 15 * 127 < 2^15), those of 8 and 8 cannot.
template <Dtype DTYPE, int ROWS>
ALWAYS_INLINE void dot_group(const uint8_t* weights, const int8_t* x, const int32_t* offsets, FloatRegister* to) {
    constexpr bool IS_INT8 = DTYPE == INT8;
    IntRegister sums[ROWS] = {};
    for (int k = 0; k < (IS_INT8 ? QUADS : QUADS / 2); k++) {
        IntRegister quads = load_as<IntRegister>(weights + 64 * k);
        UNROLL
        for (int part = 0; part < 2; part++) {
            IntRegister integers = (part ? quads >> (IS_INT8 ? 8 : 4) : quads) & (IS_INT8 ? 0x00ff00ff : 0x0f0f0f0f);
            UNROLL
            for (int r = 0; r < ROWS; r++) {
                IntRegister quad = broadcast_quad(x + r * GROUP + 4 * (IS_INT8 ? k : k + part * QUADS / 2));
                if (IS_INT8)
                    sums[r] += madd(integers, part ? odd_bytes(quad) : even_bytes(quad));
                else
                    sums[r] = add_int16(sums[r], maddubs(integers, quad));
                asm("" : "+v"(sums[r]));  // else GCC adds products to each other first, and spills
            }
        }
    }
    UNROLL
    for (int r = 0; r < ROWS; r++)
        to[r] = convert<FloatRegister>(IS_INT8 ? sums[r] + offsets[r] : madd(sums[r], IntRegister{} + 0x00010001));
}
#else
// In each lane: total + the dot product of four unsigned and four signed bytes.
inline IntRegister dot_quads(IntRegister total, IntRegister weights, IntRegister x) {
#if defined(__AVX512VNNI__)
    return (IntRegister)_mm512_dpbusd_epi32((__m512i)total, (__m512i)weights, (__m512i)x);
#elif defined(__ARM_FEATURE_MATMUL_INT8)
    return (IntRegister)vusdotq_s32((int32x4_t)total, (uint8x16_t)weights, (int8x16_t)x);
#elif defined(__ARM_FEATURE_DOTPROD)
    return (IntRegister)vdotq_s32((int32x4_t)total, (int8x16_t)weights, (int8x16_t)x);
#else
    UNROLL
    for (int bit = 0; bit < 32; bit += 8) total += ((weights >> bit) & 0xff) * (x << (24 - bit) >> 24);
    return total;
#endif
}

// Older dot products of ARM take signed bytes only: 128 is subtracted from 8-bit weights, as it is from the offsets.
#if defined(__ARM_FEATURE_DOTPROD) && !defined(__ARM_FEATURE_MATMUL_INT8)
constexpr bool IS_SIGNED = true;
#else
constexpr bool IS_SIGNED = false;
#endif

#if defined(__ARM_FEATURE_MATMUL_INT8)
// Two outputs times two input rows, eight columns each, are one instruction: half as many as dot products of four.
template <Dtype DTYPE, int ROWS>
ALWAYS_INLINE void dot_group_of_pairs(const uint8_t* weights, const int8_t* x, const int32_t* offsets,
                                      FloatRegister* to) {
    int32x4_t sums[ROWS / 2][2] = {};  // [output][row]
    auto load_quads = [&](int k) {
        auto quads = load_as<uint32x4_t>(weights + 64 * (DTYPE == INT8 ? k : k % 4));
        return DTYPE == INT8 ? quads : (k < 4 ? quads : quads >> 4) & 0x0f0f0f0f;
    };
    UNROLL
    for (int k = 0; k < QUADS; k += 2) {
        auto first = load_quads(k), second = load_quads(k + 1);
        const uint8x16_t outputs[] = {(uint8x16_t)vzip1q_u32(first, second), (uint8x16_t)vzip2q_u32(first, second)};
        UNROLL
        for (int r = 0; r < ROWS; r += 2) {
            auto rows = vcombine_s8(vld1_s8(x + r * GROUP + 4 * k), vld1_s8(x + (r + 1) * GROUP + 4 * k));
            UNROLL
            for (int half = 0; half < 2; half++)
                sums[r / 2][half] = vusmmlaq_s32(sums[r / 2][half], outputs[half], rows);
        }
    }
    UNROLL
    for (int r = 0; r < ROWS; r++) {
        auto pairs = sums[r / 2];
        auto row = (IntRegister)(r % 2 ? vuzp2q_s32(pairs[0], pairs[1]) : vuzp1q_s32(pairs[0], pairs[1]));
        to[r] = convert<FloatRegister>(DTYPE == INT8 ? row + offsets[r] : row);
    }
}
#endif

// to[r] = the dot product of a group of weights and of input row r. Rows alternate, so that no addition waits for the
// one before; few rows have several accumulators each.
template <Dtype DTYPE, int ROWS>
ALWAYS_INLINE void dot_group(const uint8_t* weights, const int8_t* x, const int32_t* offsets, FloatRegister* to) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
    if constexpr (ROWS % 2 == 0) return dot_group_of_pairs<DTYPE, ROWS>(weights, x, offsets, to);
#endif
    constexpr int ACCUMULATORS = ROWS >= 8 ? 1 : ROWS >= 4 ? 2 : 4;
    IntRegister sums[ACCUMULATORS][ROWS] = {};
    if (DTYPE == INT8 && !IS_SIGNED) {
        UNROLL
        for (int r = 0; r < ROWS; r++) sums[0][r] += offsets[r];
    }
    UNROLL
    for (int k = 0; k < QUADS; k++) {
        IntRegister quads = load_as<IntRegister>(weights + 64 * (DTYPE == INT8 ? k : k % 4));
        if (DTYPE != INT8) quads = (k < 4 ? quads : quads >> 4) & 0x0f0f0f0f;
        if (DTYPE == INT8 && IS_SIGNED) quads ^= 0x80808080;
        UNROLL
        for (int r = 0; r < ROWS; r++)
            sums[k % ACCUMULATORS][r] =
                dot_quads(sums[k % ACCUMULATORS][r], quads, broadcast_quad(x + r * GROUP + 4 * k));
    }
    UNROLL
    for (int r = 0; r < ROWS; r++) {
        UNROLL
        for (int e = 1; e < ACCUMULATORS; e++) sums[0][r] += sums[e][r];
        to[r] = convert<FloatRegister>(sums[0][r]);
    }
}
#endif

// The scales and minima of some lanes of a panel, by group.
template <Dtype DTYPE, class V>
class PanelScales {
   public:
    PanelScales(const Matrix& matrix, int64_t panel, int lane = 0) {
        const int64_t offset = panel * (matrix.in_features / GROUP) * LANES + lane;
        scales = matrix.scales + offset;
        minima = DTYPE == INT4 ? matrix.minima + offset : nullptr;
    }

    V scale(int64_t group) const { return load_float16<V>(scales + group * LANES); }

    V minimum(int64_t group, V scale) const {
        if constexpr (DTYPE == INT8) return V{};
        if constexpr (DTYPE == INT4_CENTERED) return scale * -8.0f;
        return load_float16<V>(minima + group * LANES);
    }

    void prefetch(int64_t group) const {
        __builtin_prefetch(scales + group * LANES);
        if (DTYPE == INT4) __builtin_prefetch(minima + group * LANES);
    }

   private:
    const uint16_t *scales, *minima;
};

// Call `body` with the dtype of integers as a constant.
template <class Body>
inline void with_constant(Dtype dtype, const Body& body) {
    if (dtype == INT8) body(std::integral_constant<Dtype, INT8>{});
    if (dtype == INT4) body(std::integral_constant<Dtype, INT4>{});
    if (dtype == INT4_CENTERED) body(std::integral_constant<Dtype, INT4_CENTERED>{});
}

// Some lanes of a panel, times ROWS input rows.
template <Dtype DTYPE, int ROWS>
inline void int_panel_lanes(const Matrix& matrix, int64_t panel, int lane, const Inputs& x, int64_t row, FloatVec* y) {
    // Hardware prefetches less than memory has to give: a core read 9.6 of 13 GB/s without this.
    constexpr int64_t GROUP_BYTES = DTYPE == INT8 ? 512 : 256, AHEAD = 4096 / GROUP_BYTES;
    const int64_t groups = matrix.in_features / GROUP;
    auto weights = static_cast<const uint8_t*>(matrix.weights) + panel * groups * GROUP_BYTES + lane * 4;
    const PanelScales<DTYPE, FloatRegister> scales(matrix, panel, lane);
    FloatRegister total[ROWS] = {};
    for (int64_t group = 0; group < groups; group++) {
        if (lane == 0 && row == 0) {
            for (int64_t i = 0; i < GROUP_BYTES; i += 64)
                __builtin_prefetch(weights + (group + AHEAD) * GROUP_BYTES + i);
            scales.prefetch(group + AHEAD);
        }
        int64_t index = x.group_index(row, group);
        FloatRegister sums[ROWS], scale = scales.scale(group), minimum = scales.minimum(group, scale);
        dot_group<DTYPE, ROWS>(weights + group * GROUP_BYTES, x.int8 + index * GROUP, x.offsets + index, sums);
        UNROLL
        for (int r = 0; r < ROWS; r++) {
            total[r] += sums[r] * (scale * x.scales[index + r]);
            if (DTYPE != INT8) total[r] += minimum * x.sums[index + r];
        }
    }
    UNROLL
    for (int r = 0; r < ROWS; r++) store(reinterpret_cast<float*>(y + r) + lane, total[r]);
}

template <Dtype DTYPE, int ROWS>
inline void int_panel(const Matrix& matrix, int64_t panel, const Inputs& x, int64_t row, FloatVec* y) {
    for (int lane = 0; lane < LANES; lane += REGISTER_LANES)
        int_panel_lanes<DTYPE, ROWS>(matrix, panel, lane, x, row, y);
}

#if defined(__AVX512VNNI__)
// Unpack a panel of 4-bit weights to 8 bits with 128 added, [group, quad, output, 4], and one scale for each output,
// which is returned. Then a group costs one instruction besides its dot products instead of three. This second rounding
// adds an error of 1% to the 7% of 4 bits.
template <Dtype DTYPE>
inline FloatVec unpack_int4(const Matrix& matrix, int64_t panel, uint8_t* to) {
    typedef Vector<uint16_t, 2 * REGISTER_LANES> Pairs;
    const int64_t groups = matrix.in_features / GROUP, first = panel * groups;
    const PanelScales<DTYPE, FloatVec> scales(matrix, panel);
    auto scale_of = [&](int64_t group) { return scales.scale(group); };
    auto minimum_of = [&](int64_t group) { return scales.minimum(group, scales.scale(group)); };
    IntVec bits{};  // of the largest absolute value: compared as integers, NaN is the largest
    for (int64_t group = 0; group < groups; group++) {
        FloatVec low = minimum_of(group), high = low + 15.0f * scale_of(group);
        bits = max(bits, max(bit_cast<IntVec>(abs(low)), bit_cast<IntVec>(abs(high))));
    }
    FloatVec maximum = bit_cast<FloatVec>(bits), inverse = select(maximum > 0.0f, 127.0f / maximum, FloatVec{});
    for (int64_t group = 0; group < groups; group++) {
        auto packed = static_cast<const uint8_t*>(matrix.weights) + (first + group) * GROUP / 2 * LANES;
        // 8.8 fixed point, in both halves of 32 bits; adding 1.5 * 2^23 rounds.
        auto fixed_point = [](FloatVec x) {
            UIntVec low = bit_cast<UIntVec>(x * 256.0f + 12582912.0f) & 0xffff;
            return low | (low << 16);
        };
        // 128.5, because the fraction is truncated below.
        UIntVec factor = fixed_point(scale_of(group) * inverse),
                base = fixed_point(minimum_of(group) * inverse + 128.5f);
        auto pairs_of = [&](UIntVec quads, int shift) {
            auto pairs = bit_cast<Pairs>((quads >> shift) & 0x000f000f);
            return bit_cast<UIntVec>(pairs * bit_cast<Pairs>(factor) + bit_cast<Pairs>(base));
        };
        UNROLL
        for (int k = 0; k < QUADS; k++) {
            auto quads = load_as<UIntVec>(packed + 64 * (k % 4));
            int shift = k < 4 ? 0 : 4;
            UIntVec bytes = ((pairs_of(quads, shift) >> 8) & 0x00ff00ff) | (pairs_of(quads, shift + 8) & 0xff00ff00);
            memcpy(to + group * 512 + 64 * k, &bytes, sizeof bytes);
        }
    }
    return maximum / 127.0f;
}

// All rows times a panel of 4-bit weights, unpacked to 8 bits.
template <class Write>
inline void multiply_unpacked_int4(const Matrix& matrix, int64_t panel, const Inputs& x, int64_t rows,
                                   const Write& write) {
    OutputPanel part(matrix, panel);
    FloatVec scale{};
    with_constant(matrix.dtype, [&](auto dtype) {
        if constexpr (decltype(dtype)::value != INT8)
            scale = unpack_int4<decltype(dtype)::value>(matrix, panel, x.unpacked_int8);
    });
    for (int64_t row = 0; row < rows; row += ROW_BLOCK) {
        FloatVec total[ROW_BLOCK] = {};
        for (int64_t group = 0; group < matrix.in_features / GROUP; group++) {
            int64_t index = x.group_index(row, group);
            FloatVec sums[ROW_BLOCK];
            dot_group<INT8, ROW_BLOCK>(x.unpacked_int8 + group * 512, x.int8 + index * GROUP, x.offsets + index, sums);
            UNROLL
            for (int r = 0; r < ROW_BLOCK; r++) total[r] += sums[r] * x.scales[index + r];
        }
        for (int64_t r = 0; r < ROW_BLOCK && row + r < rows; r++)
            write(row + r, part.first, total[r] * scale + part.bias, part.count);
    }
}
#endif
