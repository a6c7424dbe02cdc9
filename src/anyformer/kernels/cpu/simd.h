// Sixteen numbers at a time, in the compiler's own vector types: they become AVX-512, AVX2, NEON or plain code.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

// Sums stay in registers only where their loops are written out, which -O2 alone doesn't do.
#define UNROLLED _Pragma("GCC unroll 16")

constexpr int LANES = 16;

inline int64_t up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Bytes that a register of the processor holds.
#if defined(__AVX512F__)
constexpr int REGISTER = 64;
#elif defined(__AVX__)
constexpr int REGISTER = 32;
#else
constexpr int REGISTER = 16;
#endif

template <class Number, int COUNT>
struct Halves;

template <class Number, int COUNT, bool FITS>
struct VectorOf {
    typedef Number Type __attribute__((vector_size(COUNT * sizeof(Number))));
};
template <class Number, int COUNT>
struct VectorOf<Number, COUNT, false> {
    typedef Halves<Number, COUNT> Type;
};
template <class Number, int COUNT>
using Vector = typename VectorOf<Number, COUNT, COUNT * sizeof(Number) <= REGISTER>::Type;

// GCC keeps vectors in memory that no register holds, so these are made of some that fit.
template <class Number, int COUNT>
struct Halves {
    typedef Vector<Number, COUNT / 2> Half;
    Half low, high;

    Halves() = default;
    Halves(Half low, Half high) : low(low), high(high) {}
    Halves(Number all) : low(all - Half{}), high(all - Half{}) {}

    Number operator[](int i) const { return i < COUNT / 2 ? low[i] : high[i - COUNT / 2]; }
    Halves operator-() const { return {-low, -high}; }

#define OF_HALVES(OPERATOR)                                               \
    friend Halves operator OPERATOR(const Halves& a, const Halves& b) {   \
        return {a.low OPERATOR b.low, a.high OPERATOR b.high};            \
    }                                                                     \
    Halves& operator OPERATOR##=(const Halves& other) { return *this = *this OPERATOR other; }
    OF_HALVES(+) OF_HALVES(-) OF_HALVES(*) OF_HALVES(/) OF_HALVES(&) OF_HALVES(|)
#undef OF_HALVES

    friend Halves operator<<(const Halves& a, int bits) { return {a.low << bits, a.high << bits}; }
    friend Halves operator>>(const Halves& a, int bits) { return {a.low >> bits, a.high >> bits}; }

    typedef Halves<int32_t, COUNT> Truths;
#define TRUTHS(OPERATOR)                                                  \
    friend Truths operator OPERATOR(const Halves& a, const Halves& b) {   \
        return {a.low OPERATOR b.low, a.high OPERATOR b.high};            \
    }
    TRUTHS(<) TRUTHS(<=) TRUTHS(>) TRUTHS(>=) TRUTHS(==)
#undef TRUTHS
};

typedef Vector<float, LANES> Floats;
typedef Vector<int32_t, LANES> Integers;
typedef Vector<uint32_t, LANES> Words;
struct BFloat16 {
    uint16_t bits;
};

template <class V>
constexpr bool HALVED = false;
template <class Number, int COUNT>
constexpr bool HALVED<Halves<Number, COUNT>> = true;

template <class To, class From>
inline To bits_of(const From& from) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    if constexpr (HALVED<To> && HALVED<From>) {
        return {bits_of<typename To::Half>(from.low), bits_of<typename To::Half>(from.high)};
    } else {
        To to;
        memcpy(&to, &from, sizeof to);
        return to;
    }
}

// Numbers as others of the same size: whole numbers as floating ones, and back.
template <class To, class From>
inline To convert(const From& from) {
    if constexpr (HALVED<To>)
        return {convert<typename To::Half>(from.low), convert<typename To::Half>(from.high)};
    else
        return __builtin_convertvector(from, To);
}

// Of each lane the one or the other.
template <class Truths, class V>
inline V choose(const Truths& truths, const V& yes, const V& no) {
    if constexpr (HALVED<V>)
        return {choose(truths.low, yes.low, no.low), choose(truths.high, yes.high, no.high)};
    else
        return truths ? yes : no;
}

inline Floats all(float value) { return value - Floats{}; }

// What lies in memory, unchanged.
template <class V>
inline V read(const void* from) {
    if constexpr (HALVED<V>) {
        return {read<typename V::Half>(from),
                read<typename V::Half>(static_cast<const char*>(from) + sizeof(typename V::Half))};
    } else {
        V to;
        memcpy(&to, from, sizeof to);
        return to;
    }
}

// Numbers of 32 bits that it has.
template <class V>
constexpr int COUNT_OF = sizeof(V) / 4;

// A vector of what lies in memory in another format, register by register: `made(from, an empty vector)`.
template <class V, class From, class Make>
inline V gather(const From* from, const Make& made) {
    if constexpr (HALVED<V>) {
        typedef typename V::Half Half;
        return {gather<Half>(from, made), gather<Half>(from + COUNT_OF<Half>, made)};
    } else {
        return made(from, V{});
    }
}

// The way back: `put(to, vector)`.
template <class To, class V, class Put>
inline void scatter(To* to, const V& v, const Put& put) {
    if constexpr (HALVED<V>)
        scatter(to, v.low, put), scatter(to + COUNT_OF<V> / 2, v.high, put);
    else
        put(to, v);
}

// Its halves, whether a register holds it or not.
template <class V>
inline auto halves_of(const V& v) {
    if constexpr (HALVED<V>) {
        return v;
    } else {
        typedef std::decay_t<decltype(v[0])> Number;
        typedef Halves<Number, sizeof(V) / sizeof(Number)> Two;
        typedef typename Two::Half Half;
#if defined(__AVX512F__)
        if constexpr (sizeof(V) == 64) {
            auto all = bits_of<__m512d>(v);
            return Two(bits_of<Half>(_mm512_castpd512_pd256(all)), bits_of<Half>(_mm512_extractf64x4_pd(all, 1)));
        }
#endif
        return Two(read<Half>(&v), read<Half>(reinterpret_cast<const char*>(&v) + sizeof(Half)));
    }
}

inline Floats load(const float* from) { return read<Floats>(from); }

inline Floats load(const BFloat16* from) {
    return gather<Floats>(from, [](const BFloat16* from, auto like) {
        constexpr int COUNT = COUNT_OF<decltype(like)>;
        auto wide = __builtin_convertvector(read<Vector<uint16_t, COUNT>>(from), Vector<uint32_t, COUNT>);
        return bits_of<decltype(like)>(wide << 16);
    });
}

template <class V>
inline void store(float* to, const V& from) {
    scatter(to, from, [](float* to, const auto& v) { memcpy(to, &v, sizeof v); });
}

// To the nearest, ties to even, as torch does.
inline BFloat16 rounded(float value) {
    auto bits = bits_of<uint32_t>(value);
    if (value != value) return {0x7fc0};
    return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

inline void store(BFloat16* to, const Floats& from) {
#if defined(__AVX512BF16__)
    auto halves = _mm512_cvtneps_pbh(bits_of<__m512>(from));
    memcpy(to, &halves, sizeof halves);
#else
    scatter(to, from, [](BFloat16* to, const auto& v) {
        constexpr int COUNT = COUNT_OF<std::decay_t<decltype(v)>>;
        auto bits = bits_of<Vector<uint32_t, COUNT>>(v);
        auto halves = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, Vector<uint16_t, COUNT>);
        memcpy(to, &halves, sizeof halves);
    });
#endif
}

// The lowest byte of each.
inline void store(int8_t* to, const Integers& from) {
#if defined(__AVX512F__)
    auto bytes = _mm512_cvtepi32_epi8(bits_of<__m512i>(from));  // GCC would take them out one by one
    memcpy(to, &bytes, sizeof bytes);
#else
    scatter(to, from, [](int8_t* to, const auto& v) {
        auto bytes = __builtin_convertvector(v, Vector<int8_t, COUNT_OF<std::decay_t<decltype(v)>>>);
        memcpy(to, &bytes, sizeof bytes);
    });
#endif
}

// The first `count` numbers, and `rest` beyond.
template <class T>
inline Floats load(const T* from, int64_t count, float rest = 0) {
    T padded[LANES];
    store(padded, all(rest));
    memcpy(padded, from, count * sizeof(T));
    return load(padded);
}

inline void store(float* to, float value) { *to = value; }
inline void store(BFloat16* to, float value) { *to = rounded(value); }

template <class T>
inline void store(T* to, const Floats& from, int64_t count) {
    T padded[LANES];
    store(padded, from);
    memcpy(to, padded, count * sizeof(T));
}

// IEEE half precision; 2^112 moves the exponent to its place, and makes subnormal numbers right as well.
template <class V>
inline V load_halves(const uint16_t* from) {
    return gather<V>(from, [](const uint16_t* from, auto like) {
        typedef decltype(like) Part;
        constexpr int COUNT = COUNT_OF<Part>;
#if defined(__AVX512F__)
        if constexpr (COUNT == 16) return bits_of<Part>(_mm512_cvtph_ps(read<__m256i>(from)));
#endif
#if defined(__F16C__)
        if constexpr (COUNT == 8) return bits_of<Part>(_mm256_cvtph_ps(read<__m128i>(from)));
#endif
        typedef Vector<uint32_t, COUNT> Bits;
        auto wide = __builtin_convertvector(read<Vector<uint16_t, COUNT>>(from), Bits);
        Part size = bits_of<Part>((wide & 0x7fff) << 13) * 0x1p112f;
        return bits_of<Part>(bits_of<Bits>(size) | ((wide & 0x8000) << 16));
    });
}

inline float larger(float a, float b) { return a > b ? a : b; }
inline int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }
template <class V>
inline V larger(const V& a, const V& b) {
    return choose(a > b, a, b);
}
#if defined(__AVX512F__)
// Of the choice, which means the same, GCC makes two instructions.
inline Floats larger(const Floats& a, const Floats& b) {
    return bits_of<Floats>(_mm512_max_ps(bits_of<__m512>(a), bits_of<__m512>(b)));
}
inline Integers larger(const Integers& a, const Integers& b) {
    return bits_of<Integers>(_mm512_max_epi32(bits_of<__m512i>(a), bits_of<__m512i>(b)));
}
inline Floats smaller(const Floats& a, const Floats& b) {
    return bits_of<Floats>(_mm512_min_ps(bits_of<__m512>(a), bits_of<__m512>(b)));
}
#else
inline Floats smaller(const Floats& a, const Floats& b) { return choose(a < b, a, b); }
#endif
inline Floats size_of(const Floats& v) { return bits_of<Floats>(bits_of<Words>(v) & 0x7fffffff); }

// One number of all lanes.
template <class V, class Both>
inline auto fold(const V& v, const Both& both) {
    if constexpr (sizeof(V) > 16) {
        auto two = halves_of(v);
        return fold(both(two.low, two.high), both);
    } else {
        return both(both(v[0], v[2]), both(v[1], v[3]));
    }
}

template <class V>
inline auto sum(const V& v) {
    return fold(v, [](const auto& a, const auto& b) { return a + b; });
}

template <class V>
inline auto largest(const V& v) {
    return fold(v, [](const auto& a, const auto& b) { return larger(a, b); });
}

// The largest absolute value, by its bits: so a NaN is the largest of all, and is not lost.
inline float largest_size(const Floats& a, const Floats& b) {
    return bits_of<float>(largest(larger(bits_of<Integers>(size_of(a)), bits_of<Integers>(size_of(b)))));
}

// Within a unit in the last place; an estimate and one step of Newton's take half the time of a division.
inline Floats reciprocal(Floats x) {
#if defined(__AVX512F__)
    auto estimate = bits_of<Floats>(_mm512_rcp14_ps(bits_of<__m512>(x)));
    return estimate * (2.0f - x * estimate);
#else
    return 1.0f / x;
#endif
}

// x 2^n, n being whole; nothing at all from n = LEAST_POWER on.
#if defined(__AVX512F__)
constexpr float LEAST_POWER = -151.0f;
inline Floats times_power(Floats x, Floats n) {
    return bits_of<Floats>(_mm512_scalef_ps(bits_of<__m512>(x), bits_of<__m512>(n)));
}
#else
constexpr float LEAST_POWER = -127.0f;
inline Floats times_power(Floats x, Floats n) { return x * bits_of<Floats>((convert<Integers>(n) + 127) << 23); }
#endif

// e^x within 2 units in the last place, and 0 for -inf: 2^n times a polynomial over [-ln(2)/2, ln(2)/2] (Cephes, expf).
inline Floats exp(Floats x) {
    x = smaller(all(88.7f), larger(all(LEAST_POWER * 0.6931472f), x));  // in this order a NaN stays one
    Floats n = x * 1.44269504f + 12582912.0f;  // adding 1.5 * 2^23 rounds to whole numbers
    n -= 12582912.0f;
    Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Floats p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return times_power(p * r * r + r + 1.0f, n);
}

inline Floats tanh(Floats x) {
    Floats size = size_of(x), square = x * x;
    Floats far = 1.0f - 2.0f / (exp(2.0f * size) + 1.0f);
    // Near 0 the difference above loses digits (Cephes, tanhf).
    Floats p = all(-5.70498872745e-3f);
    p = p * square + 2.06390887954e-2f;
    p = p * square - 5.37397155531e-2f;
    p = p * square + 1.33314422036e-1f;
    p = p * square - 3.33332819422e-1f;
    Floats near = p * square * size + size;
    Floats value = choose(size < 0.625f, near, far);
    return bits_of<Floats>(bits_of<Words>(value) | (bits_of<Words>(x) & 0x80000000u));
}

// Within 1.5e-7 (Abramowitz & Stegun 1964, 7.1.26).
inline Floats erf(Floats x) {
    Floats size = size_of(x), t = 1.0f / (1.0f + 0.3275911f * size);
    Floats p = all(1.061405429f);
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    Floats value = 1.0f - p * t * exp(-size * size);
    return bits_of<Floats>(bits_of<Words>(value) | (bits_of<Words>(x) & 0x80000000u));
}

// Sixteen rows of sixteen numbers of 32 bits become columns.
inline void transpose(const float* from, int64_t step, float* to, int64_t to_step) {
#if defined(__AVX512F__)
    __m512i a[LANES], b[LANES];
    UNROLLED
    for (int i = 0; i < LANES; i++) a[i] = _mm512_loadu_si512(from + i * step);
    UNROLLED
    for (int i = 0; i < LANES; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    // a[4q + c] now holds column 4j + c of rows 4q to 4q + 3, in its quarter j.
    UNROLLED
    for (int i = 0; i < LANES; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    UNROLLED
    for (int c = 0; c < 4; c++) {
        __m512i low = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x88), high = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x88);
        _mm512_storeu_si512(to + to_step * c, _mm512_shuffle_i32x4(low, high, 0x88));
        _mm512_storeu_si512(to + to_step * (8 + c), _mm512_shuffle_i32x4(low, high, 0xdd));
        low = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xdd), high = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xdd);
        _mm512_storeu_si512(to + to_step * (4 + c), _mm512_shuffle_i32x4(low, high, 0x88));
        _mm512_storeu_si512(to + to_step * (12 + c), _mm512_shuffle_i32x4(low, high, 0xdd));
    }
#else
    for (int row = 0; row < LANES; row++)
        for (int column = 0; column < LANES; column++)
            memcpy(to + column * to_step + row, from + row * step + column, sizeof(float));
#endif
}

// Numbers are multiplied as they are or, where processors can, as pairs of bfloat16 numbers: half as many steps.
#if defined(__AVX512BF16__)
constexpr bool HAS_PAIRS = true;
#else
constexpr bool HAS_PAIRS = false;
#endif

template <bool PAIRS>
inline Floats add_products(Floats total, float one, Floats each) {
#if defined(__AVX512BF16__)
    if constexpr (PAIRS)
        return bits_of<Floats>(
            _mm512_dpbf16_ps(bits_of<__m512>(total), (__m512bh)_mm512_set1_ps(one), bits_of<__m512bh>(each)));
#endif
    return total + one * each;
}

// Sixteen pairs of bfloat16 numbers.
inline Floats paired(Floats low, Floats high) {
#if defined(__AVX512BF16__)
    alignas(64) static const uint16_t ORDER[] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    auto both = _mm512_cvtne2ps_pbh(bits_of<__m512>(high), bits_of<__m512>(low));
    return bits_of<Floats>(_mm512_permutexvar_epi16(_mm512_load_si512(ORDER), bits_of<__m512i>(both)));
#else
    auto round = [](Floats x) {
        auto bits = bits_of<Words>(x);
        return bits + 0x7fff + ((bits >> 16) & 1);
    };
    return bits_of<Floats>((round(low) >> 16) | (round(high) & 0xffff0000u));
#endif
}
