// Sixteen numbers at a time, in the compiler's own vector types: they become AVX-512, AVX2, NEON or plain code.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

// Sums stay in registers only where their loops are written out, which -O2 alone doesn't do.
#define UNROLLED _Pragma("GCC unroll 16")

constexpr int LANES = 16;
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Integers __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Shorts __attribute__((vector_size(32)));
struct BFloat16 {
    uint16_t bits;
};

template <class To, class From>
inline To bits_of(const From& from) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

inline Floats all(float value) { return Floats{} + value; }

inline Floats load(const float* from) {
    Floats to;
    memcpy(&to, from, sizeof to);
    return to;
}

inline Floats widen(Shorts halves) { return bits_of<Floats>(__builtin_convertvector(halves, Words) << 16); }

inline Floats load(const BFloat16* from) {
    Shorts halves;
    memcpy(&halves, from, sizeof halves);
    return widen(halves);
}

// The first `count` numbers, and zeros.
template <class T>
inline Floats load(const T* from, int64_t count) {
    T padded[LANES] = {};
    memcpy(padded, from, count * sizeof(T));
    return load(padded);
}

inline void store(float* to, Floats from) { memcpy(to, &from, sizeof from); }

// To the nearest, ties to even, as torch does.
inline BFloat16 rounded(float value) {
    auto bits = bits_of<uint32_t>(value);
    if (value != value) return {0x7fc0};
    return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

inline void store(BFloat16* to, Floats from) {
    auto bits = bits_of<Words>(from);
    Shorts halves = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, Shorts);
    memcpy(to, &halves, sizeof halves);
}

inline void store(float* to, float value) { *to = value; }
inline void store(BFloat16* to, float value) { *to = rounded(value); }

template <class T>
inline void store(T* to, Floats from, int64_t count) {
    T padded[LANES];
    store(padded, from);
    memcpy(to, padded, count * sizeof(T));
}

// IEEE half precision; 2^112 moves the exponent to its place, and makes subnormal numbers right as well.
inline Floats load_halves(const uint16_t* from) {
    Shorts halves;
    memcpy(&halves, from, sizeof halves);
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(bits_of<__m256i>(halves));
#else
    auto wide = __builtin_convertvector(halves, Words);
    Floats size = bits_of<Floats>((wide & 0x7fff) << 13) * 0x1p112f;
    return bits_of<Floats>(bits_of<Words>(size) | ((wide & 0x8000) << 16));
#endif
}

inline float sum(Floats v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps(v);
#else
    float total[LANES];
    store(total, v);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) total[i] += total[i + half];
    return total[0];
#endif
}

inline int32_t sum(Integers v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_epi32(bits_of<__m512i>(v));
#else
    int32_t total = 0;
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
#endif
}

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
inline Floats size_of(Floats v) { return bits_of<Floats>(bits_of<Words>(v) & 0x7fffffff); }

inline float largest(Floats v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps(v);
#else
    float most = v[0];
    for (int i = 1; i < LANES; i++) most = most < v[i] ? v[i] : most;
    return most;
#endif
}

// The largest absolute value, by its bits: so a NaN is the largest of all, and is not lost.
inline float largest_size(Floats a, Floats b) {
    auto one = bits_of<Integers>(size_of(a)), two = bits_of<Integers>(size_of(b));
    Integers most = one > two ? one : two;
#if defined(__AVX512F__)
    return bits_of<float>(int32_t(_mm512_reduce_max_epi32(bits_of<__m512i>(most))));
#else
    int32_t found = most[0];
    for (int i = 1; i < LANES; i++) found = found < most[i] ? most[i] : found;
    return bits_of<float>(found);
#endif
}

// e^x within 2 units in the last place: 2^n times a polynomial over [-ln(2)/2, ln(2)/2] (Cephes, expf).
inline Floats exp(Floats x) {
    x = smaller(all(88.7f), larger(all(-87.3f), x));  // in this order a NaN stays one
    Floats n = x * 1.44269504f + 12582912.0f;  // adding 1.5 * 2^23 rounds to whole numbers
    n -= 12582912.0f;
    Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Floats p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * bits_of<Floats>((__builtin_convertvector(n, Integers) + 127) << 23);
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
    Floats value = size < 0.625f ? near : far;
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
