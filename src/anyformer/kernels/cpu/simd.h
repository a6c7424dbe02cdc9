// SIMD vectors of 16 lanes in the compiler's vector extensions, which become AVX-512, AVX2, SSE2 or NEON.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// Arrays of accumulators stay in registers only if the loops over them are unrolled, which -O2 alone does not do.
#define UNROLL _Pragma("GCC unroll 16")

constexpr int LANES = 16;

inline int64_t round_up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

// Size of a SIMD register.
#if defined(__AVX512F__)
constexpr int REGISTER_BYTES = 64;
#elif defined(__AVX__)
constexpr int REGISTER_BYTES = 32;
#else
constexpr int REGISTER_BYTES = 16;
#endif

template <class T, int COUNT>
struct SplitVector;

template <class T, int COUNT, bool FITS_REGISTER>
struct VectorOf {
    typedef T Type __attribute__((vector_size(COUNT * sizeof(T))));
};
template <class T, int COUNT>
struct VectorOf<T, COUNT, false> {
    typedef SplitVector<T, COUNT> Type;
};
template <class T, int COUNT>
using Vector = typename VectorOf<T, COUNT, COUNT * sizeof(T) <= REGISTER_BYTES>::Type;

// A vector wider than a register, as two halves: GCC would keep it in memory.
template <class T, int COUNT>
struct SplitVector {
    typedef Vector<T, COUNT / 2> Half;
    Half low, high;

    SplitVector() = default;
    SplitVector(Half low, Half high) : low(low), high(high) {}
    SplitVector(T all) : low(all - Half{}), high(all - Half{}) {}

    T operator[](int i) const { return i < COUNT / 2 ? low[i] : high[i - COUNT / 2]; }
    SplitVector operator-() const { return {-low, -high}; }

#define SPLIT_OPERATOR(OPERATOR)                                                       \
    friend SplitVector operator OPERATOR(const SplitVector& a, const SplitVector& b) { \
        return {a.low OPERATOR b.low, a.high OPERATOR b.high};                         \
    }                                                                                  \
    SplitVector& operator OPERATOR## = (const SplitVector& other) { return *this = *this OPERATOR other; }
    SPLIT_OPERATOR(+)
    SPLIT_OPERATOR(-)
    SPLIT_OPERATOR(*) SPLIT_OPERATOR(/) SPLIT_OPERATOR(&) SPLIT_OPERATOR(|) SPLIT_OPERATOR(^)
#undef SPLIT_OPERATOR

        friend SplitVector operator<<(const SplitVector& a, int bits) {
        return {a.low << bits, a.high << bits};
    }
    friend SplitVector operator>>(const SplitVector& a, int bits) { return {a.low >> bits, a.high >> bits}; }

    typedef SplitVector<int32_t, COUNT> Mask;
#define SPLIT_COMPARISON(OPERATOR)                                              \
    friend Mask operator OPERATOR(const SplitVector& a, const SplitVector& b) { \
        return {a.low OPERATOR b.low, a.high OPERATOR b.high};                  \
    }
    SPLIT_COMPARISON(<) SPLIT_COMPARISON(<=) SPLIT_COMPARISON(>) SPLIT_COMPARISON(>=) SPLIT_COMPARISON(==)
#undef SPLIT_COMPARISON
};

typedef Vector<float, LANES> FloatVec;
typedef Vector<int32_t, LANES> IntVec;
typedef Vector<uint32_t, LANES> UIntVec;
struct BFloat16 {
    uint16_t bits;
};

template <class V>
constexpr bool IS_SPLIT = false;
template <class T, int COUNT>
constexpr bool IS_SPLIT<SplitVector<T, COUNT>> = true;

template <class To, class From>
inline To bit_cast(const From& from) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    if constexpr (IS_SPLIT<To> && IS_SPLIT<From>) {
        return {bit_cast<typename To::Half>(from.low), bit_cast<typename To::Half>(from.high)};
    } else {
        To to;
        memcpy(&to, &from, sizeof to);
        return to;
    }
}

// Convert each lane between integers and floats.
template <class To, class From>
inline To convert(const From& from) {
    if constexpr (IS_SPLIT<To>)
        return {convert<typename To::Half>(from.low), convert<typename To::Half>(from.high)};
    else
        return __builtin_convertvector(from, To);
}

// mask ? yes : no in each lane.
template <class Mask, class V>
inline V select(const Mask& mask, const V& yes, const V& no) {
    if constexpr (IS_SPLIT<V>)
        return {select(mask.low, yes.low, no.low), select(mask.high, yes.high, no.high)};
    else
        return mask ? yes : no;
}

inline FloatVec broadcast(float value) { return value - FloatVec{}; }

// Unaligned load.
template <class V>
inline V load_as(const void* from) {
    if constexpr (IS_SPLIT<V>) {
        return {load_as<typename V::Half>(from),
                load_as<typename V::Half>(static_cast<const char*>(from) + sizeof(typename V::Half))};
    } else {
        V to;
        memcpy(&to, from, sizeof to);
        return to;
    }
}

// 32-bit lanes of a vector type.
template <class V>
constexpr int LANES_OF = sizeof(V) / 4;

// Load and convert from another dtype, register by register: `load(from, V{})` returns a vector of the second
// argument's type.
template <class V, class From, class Load>
inline V map_load(const From* from, const Load& load) {
    if constexpr (IS_SPLIT<V>) {
        typedef typename V::Half Half;
        return {map_load<Half>(from, load), map_load<Half>(from + LANES_OF<Half>, load)};
    } else {
        return load(from, V{});
    }
}

// Convert and store register by register: `store(to, v)`.
template <class To, class V, class Store>
inline void map_store(To* to, const V& v, const Store& store) {
    if constexpr (IS_SPLIT<V>)
        map_store(to, v.low, store), map_store(to + LANES_OF<V> / 2, v.high, store);
    else
        store(to, v);
}

// The two halves of any vector.
template <class V>
inline auto split(const V& v) {
    if constexpr (IS_SPLIT<V>) {
        return v;
    } else {
        typedef std::decay_t<decltype(v[0])> T;
        typedef SplitVector<T, sizeof(V) / sizeof(T)> Split;
        typedef typename Split::Half Half;
#if defined(__AVX512F__)
        if constexpr (sizeof(V) == 64) {
            auto all = bit_cast<__m512d>(v);
            return Split(bit_cast<Half>(_mm512_castpd512_pd256(all)), bit_cast<Half>(_mm512_extractf64x4_pd(all, 1)));
        }
#endif
        return Split(load_as<Half>(&v), load_as<Half>(reinterpret_cast<const char*>(&v) + sizeof(Half)));
    }
}

inline FloatVec load(const float* from) { return load_as<FloatVec>(from); }

inline FloatVec load(const BFloat16* from) {
#if defined(__AVX512F__)
    auto bits = _mm512_cvtepu16_epi32(load_as<__m256i>(from));  // GCC would convert each half by itself
    return bit_cast<FloatVec>(_mm512_slli_epi32(bits, 16));
#else
    return map_load<FloatVec>(from, [](const BFloat16* from, auto like) {
        constexpr int COUNT = LANES_OF<decltype(like)>;
        auto bits = __builtin_convertvector(load_as<Vector<uint16_t, COUNT>>(from), Vector<uint32_t, COUNT>);
        return bit_cast<decltype(like)>(bits << 16);
    });
#endif
}

template <class V>
inline void store(float* to, const V& from) {
    map_store(to, from, [](float* to, const auto& v) { memcpy(to, &v, sizeof v); });
}

// Round to nearest, ties to even, as torch does.
inline BFloat16 to_bfloat16(float value) {
    auto bits = bit_cast<uint32_t>(value);
    if (value != value) return {0x7fc0};
    return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

inline float to_float32(BFloat16 value) { return bit_cast<float>(uint32_t(value.bits) << 16); }

inline void store(BFloat16* to, const FloatVec& from) {
#if defined(__AVX512BF16__)
    auto halves = _mm512_cvtneps_pbh(bit_cast<__m512>(from));
    memcpy(to, &halves, sizeof halves);
#else
    map_store(to, from, [](BFloat16* to, const auto& v) {
        constexpr int COUNT = LANES_OF<std::decay_t<decltype(v)>>;
        auto bits = bit_cast<Vector<uint32_t, COUNT>>(v);
        auto halves = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, Vector<uint16_t, COUNT>);
        memcpy(to, &halves, sizeof halves);
    });
#endif
}

// The lowest byte of each lane.
inline void store(int8_t* to, const IntVec& from) {
#if defined(__AVX512F__)
    auto bytes = _mm512_cvtepi32_epi8(bit_cast<__m512i>(from));  // GCC would extract each byte by itself
    memcpy(to, &bytes, sizeof bytes);
#else
    map_store(to, from, [](int8_t* to, const auto& v) {
        auto bytes = __builtin_convertvector(v, Vector<int8_t, LANES_OF<std::decay_t<decltype(v)>>>);
        memcpy(to, &bytes, sizeof bytes);
    });
#endif
}

#if defined(__AVX512BW__) && defined(__AVX512VL__)
inline __mmask16 first_lanes(int64_t count) { return __mmask16((1u << count) - 1); }
#endif

// Partial load of `count` lanes; the others are `fill`.
template <class T>
inline FloatVec load(const T* from, int64_t count, float fill = 0) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    const __mmask16 mask = first_lanes(count);
    const __m512 rest = _mm512_set1_ps(fill);
    if constexpr (sizeof(T) == 4) return bit_cast<FloatVec>(_mm512_mask_loadu_ps(rest, mask, from));
    auto bits = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from)), 16);
    return bit_cast<FloatVec>(_mm512_mask_mov_ps(rest, mask, bit_cast<__m512>(bits)));
#else
    T padded[LANES];
    store(padded, broadcast(fill));
    memcpy(padded, from, count * sizeof(T));
    return load(padded);
#endif
}

inline void store(float* to, float value) { *to = value; }
inline void store(BFloat16* to, float value) { *to = to_bfloat16(value); }

// Partial store of `count` lanes.
template <class T>
inline void store(T* to, const FloatVec& from, int64_t count) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    if constexpr (sizeof(T) == 4) return _mm512_mask_storeu_ps(to, first_lanes(count), bit_cast<__m512>(from));
#if defined(__AVX512BF16__)
    return _mm256_mask_storeu_epi16(to, first_lanes(count),
                                    bit_cast<__m256i>(_mm512_cvtneps_pbh(bit_cast<__m512>(from))));
#endif
#endif
    T padded[LANES];
    store(padded, from);
    memcpy(to, padded, count * sizeof(T));
}

// float16 to float32. Multiplying by 2^112 corrects the exponent's bias, of subnormal numbers too.
template <class V>
inline V load_float16(const uint16_t* from) {
    return map_load<V>(from, [](const uint16_t* from, auto like) {
        typedef decltype(like) Part;
        constexpr int COUNT = LANES_OF<Part>;
#if defined(__AVX512F__)
        if constexpr (COUNT == 16) return bit_cast<Part>(_mm512_cvtph_ps(load_as<__m256i>(from)));
#endif
#if defined(__F16C__)
        if constexpr (COUNT == 8) return bit_cast<Part>(_mm256_cvtph_ps(load_as<__m128i>(from)));
#endif
        typedef Vector<uint32_t, COUNT> Bits;
        auto bits = __builtin_convertvector(load_as<Vector<uint16_t, COUNT>>(from), Bits);
        Part size = bit_cast<Part>((bits & 0x7fff) << 13) * 0x1p112f;
        return bit_cast<Part>(bit_cast<Bits>(size) | ((bits & 0x8000) << 16));
    });
}

// float32 to float16, to nearest, ties to even. Beyond the largest float16 it is infinity; there must be no NaN.
inline void store_float16(uint16_t* to, const FloatVec& from) {
    map_store(to, from, [](uint16_t* to, const auto& v) {
        typedef std::decay_t<decltype(v)> Part;
        constexpr int COUNT = LANES_OF<Part>;
#if defined(__AVX512F__)
        if constexpr (COUNT == 16) {
            auto halves = _mm512_cvtps_ph(bit_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT);
            memcpy(to, &halves, sizeof halves);
            return;
        }
#endif
#if defined(__F16C__)
        if constexpr (COUNT == 8) {
            auto halves = _mm256_cvtps_ph(bit_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT);
            memcpy(to, &halves, sizeof halves);
            return;
        }
#endif
        typedef Vector<uint32_t, COUNT> Bits;
        auto sign = bit_cast<Bits>(v) & 0x80000000u, size = bit_cast<Bits>(v) ^ sign;
        // Adding 1/2 rounds to multiples of 2^-24, of which there are as many as a subnormal float16's bits count.
        auto subnormal = bit_cast<Bits>(bit_cast<Part>(size) + 0.5f) - 0x3f000000u;
        auto normal = (size + 0xfff + ((size >> 13) & 1) - (112u << 23)) >> 13;
        auto rounded = size < Bits{} + (113u << 23) ? subnormal : normal;
        rounded = size < Bits{} + (143u << 23) && rounded < Bits{} + 0x7c00u ? rounded : Bits{} + 0x7c00u;
        auto halves = __builtin_convertvector(rounded | (sign >> 16), Vector<uint16_t, COUNT>);
        memcpy(to, &halves, sizeof halves);
    });
}

inline float max(float a, float b) { return a > b ? a : b; }
inline int32_t max(int32_t a, int32_t b) { return a > b ? a : b; }
template <class V>
inline V max(const V& a, const V& b) {
    return select(a > b, a, b);
}
#if defined(__AVX512F__)
// GCC would compile the select to two instructions.
inline FloatVec max(const FloatVec& a, const FloatVec& b) {
    return bit_cast<FloatVec>(_mm512_max_ps(bit_cast<__m512>(a), bit_cast<__m512>(b)));
}
inline IntVec max(const IntVec& a, const IntVec& b) {
    return bit_cast<IntVec>(_mm512_max_epi32(bit_cast<__m512i>(a), bit_cast<__m512i>(b)));
}
inline FloatVec min(const FloatVec& a, const FloatVec& b) {
    return bit_cast<FloatVec>(_mm512_min_ps(bit_cast<__m512>(a), bit_cast<__m512>(b)));
}
#else
inline FloatVec min(const FloatVec& a, const FloatVec& b) { return select(a < b, a, b); }
#endif
inline FloatVec abs(const FloatVec& v) { return bit_cast<FloatVec>(bit_cast<UIntVec>(v) & 0x7fffffff); }

// Reduce all lanes to one scalar.
template <class V, class Combine>
inline auto reduce(const V& v, const Combine& combine) {
    if constexpr (sizeof(V) > 16) {
        auto two = split(v);
        return reduce(combine(two.low, two.high), combine);
    } else {
        return combine(combine(v[0], v[2]), combine(v[1], v[3]));
    }
}

template <class V>
inline auto reduce_add(const V& v) {
    return reduce(v, [](const auto& a, const auto& b) { return a + b; });
}

template <class V>
inline auto reduce_max(const V& v) {
    return reduce(v, [](const auto& a, const auto& b) { return max(a, b); });
}

// The largest absolute value of two vectors. Comparing the bits as integers makes NaN the largest of all.
inline float max_abs(const FloatVec& a, const FloatVec& b) {
    return bit_cast<float>(reduce_max(max(bit_cast<IntVec>(abs(a)), bit_cast<IntVec>(abs(b)))));
}

// 1 / x within 1 ulp: an estimate and one Newton step take half the time of a division.
inline FloatVec reciprocal(FloatVec x) {
#if defined(__AVX512F__)
    auto estimate = bit_cast<FloatVec>(_mm512_rcp14_ps(bit_cast<__m512>(x)));
    return estimate * (2.0f - x * estimate);
#else
    return 1.0f / x;
#endif
}

// x * 2^n for integral n; 0 for n <= MIN_EXPONENT.
#if defined(__AVX512F__)
constexpr float MIN_EXPONENT = -151.0f;
inline FloatVec scale_by_power_of_two(FloatVec x, FloatVec n) {
    return bit_cast<FloatVec>(_mm512_scalef_ps(bit_cast<__m512>(x), bit_cast<__m512>(n)));
}
#else
constexpr float MIN_EXPONENT = -127.0f;
inline FloatVec scale_by_power_of_two(FloatVec x, FloatVec n) {
    return x * bit_cast<FloatVec>((convert<IntVec>(n) + 127) << 23);
}
#endif

// e^x within 2 ulp, 0 for -inf: 2^n times a polynomial on [-ln(2)/2, ln(2)/2] (Cephes, expf).
inline FloatVec exp(FloatVec x) {
    x = min(broadcast(88.7f), max(broadcast(MIN_EXPONENT * 0.6931472f), x));  // in this order NaN propagates
    FloatVec n = x * 1.44269504f + 12582912.0f;                               // adding 1.5 * 2^23 rounds to integers
    n -= 12582912.0f;
    FloatVec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    FloatVec p = broadcast(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return scale_by_power_of_two(p * r * r + r + 1.0f, n);
}

// e^x within 1e-5 of it, for weights that are rounded to 8 bits: half the instructions.
inline FloatVec exp_of_8_bits(FloatVec x) {
#if defined(__AVX512DQ__)
    const FloatVec t = x * 1.44269504f;
    // 2^t is 2^floor(t), which `scalef` takes itself, times a polynomial of the fraction (-inf: of 0).
    const FloatVec f = bit_cast<FloatVec>(_mm512_reduce_ps(bit_cast<__m512>(t), _MM_FROUND_TO_NEG_INF));
    FloatVec p = broadcast(1.353416524e-02f);
    p = p * f + 5.201146575e-02f;
    p = p * f + 2.414427539e-01f;
    p = p * f + 6.930038350e-01f;
    return scale_by_power_of_two(p * f + 1.000002593e+00f, t);
#else
    return exp(x);
#endif
}

inline FloatVec tanh(FloatVec x) {
    FloatVec size = abs(x), square = x * x;
    FloatVec far = 1.0f - 2.0f / (exp(2.0f * size) + 1.0f);
    // Near 0 the difference above cancels (Cephes, tanhf).
    FloatVec p = broadcast(-5.70498872745e-3f);
    p = p * square + 2.06390887954e-2f;
    p = p * square - 5.37397155531e-2f;
    p = p * square + 1.33314422036e-1f;
    p = p * square - 3.33332819422e-1f;
    FloatVec near = p * square * size + size;
    FloatVec value = select(size < 0.625f, near, far);
    return bit_cast<FloatVec>(bit_cast<UIntVec>(value) | (bit_cast<UIntVec>(x) & 0x80000000u));
}

// erf(x) within 1.5e-7, given e^(-x^2) (Abramowitz & Stegun 1964, 7.1.26).
inline FloatVec erf(FloatVec x, FloatVec exp_minus_square) {
    FloatVec size = min(broadcast(10.0f), abs(x));  // beyond, it is 1; in this order NaN propagates
    FloatVec t = reciprocal(1.0f + 0.3275911f * size);
    FloatVec p = broadcast(1.061405429f);
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    FloatVec value = 1.0f - p * t * exp_minus_square;
    return bit_cast<FloatVec>(bit_cast<UIntVec>(value) | (bit_cast<UIntVec>(x) & 0x80000000u));
}

// Transpose a 16 x 16 block of 32-bit elements.
inline void transpose(const float* from, int64_t stride, float* to, int64_t to_stride) {
#if defined(__AVX512F__)
    __m512i a[LANES], b[LANES];
    UNROLL
    for (int i = 0; i < LANES; i++) a[i] = _mm512_loadu_si512(from + i * stride);
    UNROLL
    for (int i = 0; i < LANES; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    // a[4q + c] now holds column 4j + c of rows 4q to 4q + 3 in its 128-bit lane j.
    UNROLL
    for (int i = 0; i < LANES; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    UNROLL
    for (int c = 0; c < 4; c++) {
        __m512i low = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x88),
                high = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x88);
        _mm512_storeu_si512(to + to_stride * c, _mm512_shuffle_i32x4(low, high, 0x88));
        _mm512_storeu_si512(to + to_stride * (8 + c), _mm512_shuffle_i32x4(low, high, 0xdd));
        low = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xdd), high = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xdd);
        _mm512_storeu_si512(to + to_stride * (4 + c), _mm512_shuffle_i32x4(low, high, 0x88));
        _mm512_storeu_si512(to + to_stride * (12 + c), _mm512_shuffle_i32x4(low, high, 0xdd));
    }
#else
    for (int row = 0; row < LANES; row++)
        for (int column = 0; column < LANES; column++)
            memcpy(to + column * to_stride + row, from + row * stride + column, sizeof(float));
#endif
}

#if defined(__AVX512BF16__)
// Store 32 elements without reading what they replace, if they fill cache lines: twice as fast where the output is
// larger than the caches.
inline void store_past_caches(float* to, FloatVec low, FloatVec high) {
    if (reinterpret_cast<uintptr_t>(to) % 64) return store(to, low), store(to + LANES, high);
    _mm512_stream_ps(to, bit_cast<__m512>(low));
    _mm512_stream_ps(to + LANES, bit_cast<__m512>(high));
}
inline void store_past_caches(BFloat16* to, FloatVec low, FloatVec high) {
    if (reinterpret_cast<uintptr_t>(to) % 64) return store(to, low), store(to + LANES, high);
    auto both = _mm512_cvtne2ps_pbh(bit_cast<__m512>(high), bit_cast<__m512>(low));
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), bit_cast<__m512i>(both));
}
#endif

// In each lane: total + both products of two pairs of bfloat16.
#if defined(__AVX512BF16__)
constexpr bool HAS_BF16_DOT = true;
inline FloatVec dot_pairs(FloatVec total, FloatVec a, FloatVec b) {
    return bit_cast<FloatVec>(
        _mm512_dpbf16_ps(bit_cast<__m512>(total), bit_cast<__m512bh>(a), bit_cast<__m512bh>(b)));
}
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
constexpr bool HAS_BF16_DOT = true;
template <class V>
inline V dot_pairs(const V& total, const V& a, const V& b) {
    if constexpr (IS_SPLIT<V>)
        return {dot_pairs(total.low, a.low, b.low), dot_pairs(total.high, a.high, b.high)};
    else
        return (V)vbfdotq_f32((float32x4_t)total, (bfloat16x8_t)a, (bfloat16x8_t)b);
}
#else
constexpr bool HAS_BF16_DOT = false;
inline FloatVec dot_pairs(FloatVec total, FloatVec a, FloatVec b) {
    auto first = [](FloatVec pairs) { return bit_cast<FloatVec>(bit_cast<UIntVec>(pairs) << 16); };
    auto second = [](FloatVec pairs) { return bit_cast<FloatVec>(bit_cast<UIntVec>(pairs) & 0xffff0000u); };
    return total + first(a) * first(b) + second(a) * second(b);
}
#endif

// Partial load of `count` elements, as pairs; the others are 0.
inline FloatVec load_pairs(const BFloat16* from, int64_t count) {
#if defined(__AVX512BW__)
    return bit_cast<FloatVec>(_mm512_maskz_loadu_epi16((1u << count) - 1, from));
#else
    BFloat16 padded[2 * LANES] = {};
    memcpy(padded, from, count * sizeof(BFloat16));
    return load_as<FloatVec>(padded);
#endif
}

// total + one * each; with BF16, the lanes of both are pairs of bfloat16, and both products are added.
template <bool BF16>
inline FloatVec multiply_add(FloatVec total, FloatVec one, FloatVec each) {
    if constexpr (BF16)
        return dot_pairs(total, one, each);
    else
        return total + one * each;
}
template <bool BF16>
inline FloatVec multiply_add(FloatVec total, float one, FloatVec each) {
    return multiply_add<BF16>(total, broadcast(one), each);
}

// Lanes of bfloat16 pairs (low, high).
inline FloatVec to_bf16_pairs(FloatVec low, FloatVec high) {
#if defined(__AVX512BF16__)
    alignas(64) static const uint16_t ORDER[] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    auto both = _mm512_cvtne2ps_pbh(bit_cast<__m512>(high), bit_cast<__m512>(low));
    return bit_cast<FloatVec>(_mm512_permutexvar_epi16(_mm512_load_si512(ORDER), bit_cast<__m512i>(both)));
#else
    auto round = [](FloatVec x) {
        auto bits = bit_cast<UIntVec>(x);
        return bits + 0x7fff + ((bits >> 16) & 1);
    };
    return bit_cast<FloatVec>((round(low) >> 16) | (round(high) & 0xffff0000u));
#endif
}
