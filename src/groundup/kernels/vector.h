// Vectors of float32 for any processor, by the compilers' vector extensions: 16 lanes with AVX-512, else 8, which on ARM are
// two registers.
//
// +, -, *, / and comparisons are the language's own; `a * b + c` is one fused operation (-ffp-contract=fast).
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#if !defined(VECTOR_LANES)  // defined by tests that run 16 lanes on a processor with 8
#if defined(__AVX512F__)
#define VECTOR_LANES 16
#else
#define VECTOR_LANES 8
#endif
#endif

namespace f32 {  // blocks.h has a Vec of its own

constexpr long LANES = VECTOR_LANES;
constexpr long REGISTERS = VECTOR_LANES == 16 ? 32 : 16;

typedef float Vec __attribute__((vector_size(VECTOR_LANES * 4)));
typedef int32_t IntVec __attribute__((vector_size(VECTOR_LANES * 4)));
typedef float Vec4 __attribute__((vector_size(16)));
typedef float UnalignedVec __attribute__((vector_size(VECTOR_LANES * 4), aligned(4), may_alias));
typedef float UnalignedVec4 __attribute__((vector_size(16), aligned(4), may_alias));

static inline Vec load(const float* p) { return *(const UnalignedVec*)p; }
static inline void store(float* p, Vec v) { *(UnalignedVec*)p = v; }
static inline void store(float* p, Vec4 v) { *(UnalignedVec4*)p = v; }
static inline Vec set1(float v) { return v - Vec{}; }
static inline Vec max(Vec a, Vec b) { return a > b ? a : b; }

#if defined(__clang__)
#define VECTOR_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define VECTOR_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, IntVec{__VA_ARGS__})
#endif

// In each group of 4 lanes: lanes p and q of a, then r and s of b (as _mm512_shuffle_ps).
template <int p, int q, int r, int s>
static inline Vec shuffle4(Vec a, Vec b) {
    constexpr int L = LANES;
#if VECTOR_LANES == 16
    return VECTOR_SHUFFLE(a, b, p, q, L + r, L + s, 4 + p, 4 + q, L + 4 + r, L + 4 + s, 8 + p, 8 + q, L + 8 + r, L + 8 + s,
                          12 + p, 12 + q, L + 12 + r, L + 12 + s);
#else
    return VECTOR_SHUFFLE(a, b, p, q, L + r, L + s, 4 + p, 4 + q, L + 4 + r, L + 4 + s);
#endif
}

// The sum of its groups of 4 lanes.
static inline Vec4 fold_to_4(Vec v) {
    Vec4 parts[LANES / 4];
    std::memcpy(parts, &v, sizeof v);
    for (long width = LANES / 8; width; width /= 2)
        for (long i = 0; i < width; i++) parts[i] += parts[i + width];
    return parts[0];
}

// The horizontal sums of four vectors.
static inline Vec4 sums(Vec a, Vec b, Vec c, Vec d) {
    const Vec ab = shuffle4<0, 1, 0, 1>(a, b) + shuffle4<2, 3, 2, 3>(a, b);  // a0 a1 b0 b1
    const Vec cd = shuffle4<0, 1, 0, 1>(c, d) + shuffle4<2, 3, 2, 3>(c, d);
    return fold_to_4(shuffle4<0, 2, 0, 2>(ab, cd) + shuffle4<1, 3, 1, 3>(ab, cd));
}
static inline float sum(Vec v) {
    const Vec4 partial = fold_to_4(v);
    return (partial[0] + partial[2]) + (partial[1] + partial[3]);
}
static inline float reduce_max(Vec v) {
    float maximum = v[0];
    for (long i = 1; i < LANES; i++) maximum = v[i] > maximum ? v[i] : maximum;
    return maximum;
}

// e^x to the last bits: 2^exponent times a polynomial of the remainder, at most ln(2) / 2. 0 below -87; NaN stays NaN.
static inline Vec exponential(Vec x) {
    constexpr float ROUNDING = 12582912.f;  // 1.5 * 2^23: floats near it are integers
    const Vec exponent = (x * 1.44269504f + ROUNDING) - ROUNDING;
    const Vec remainder = (x - exponent * 0.693359375f) + exponent * 2.12194440e-4f;
    Vec y = set1(1.f / 720);
    for (float c : {1.f / 120, 1.f / 24, 1.f / 6, 1.f / 2, 1.f, 1.f}) y = y * remainder + c;
    const IntVec exponent_bits = (__builtin_convertvector(exponent, IntVec) + 127) << 23;
    Vec scale;
    std::memcpy(&scale, &exponent_bits, sizeof scale);
    y *= scale;
    y = x < -87.f ? Vec{} : y;
    return x > 88.f ? set1(INFINITY) : y;
}

}  // namespace f32
