// Vectors of float32 for any processor, by the compilers' vector extensions: 16 numbers where there is AVX-512, else 8,
// which on ARM are two registers.
//
// +, -, *, / and comparisons are the language's own; `a * b + c` is one fused operation (-ffp-contract=fast).
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#if !defined(VECTOR_LANES)  // given where 16 are to be tried on a processor that has 8
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
typedef int32_t Ints __attribute__((vector_size(VECTOR_LANES * 4)));
typedef float Four __attribute__((vector_size(16)));
typedef float Anywhere __attribute__((vector_size(VECTOR_LANES * 4), aligned(4), may_alias));
typedef float FourAnywhere __attribute__((vector_size(16), aligned(4), may_alias));

static inline Vec load(const float* p) { return *(const Anywhere*)p; }
static inline void store(float* p, Vec v) { *(Anywhere*)p = v; }
static inline void store(float* p, Four v) { *(FourAnywhere*)p = v; }
static inline Vec all(float v) { return v - Vec{}; }
static inline Vec max(Vec a, Vec b) { return a > b ? a : b; }

#if defined(__clang__)
#define VECTOR_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define VECTOR_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Ints{__VA_ARGS__})
#endif

// In each four of lanes: numbers p and q of a, then r and s of b.
template <int p, int q, int r, int s>
static inline Vec shuffle_fours(Vec a, Vec b) {
    constexpr int L = LANES;
#if VECTOR_LANES == 16
    return VECTOR_SHUFFLE(a, b, p, q, L + r, L + s, 4 + p, 4 + q, L + 4 + r, L + 4 + s, 8 + p, 8 + q, L + 8 + r, L + 8 + s,
                          12 + p, 12 + q, L + 12 + r, L + 12 + s);
#else
    return VECTOR_SHUFFLE(a, b, p, q, L + r, L + s, 4 + p, 4 + q, L + 4 + r, L + 4 + s);
#endif
}

// Its fours, added up.
static inline Four sum_of_fours(Vec v) {
    Four parts[LANES / 4];
    std::memcpy(parts, &v, sizeof v);
    for (long width = LANES / 8; width; width /= 2)
        for (long i = 0; i < width; i++) parts[i] += parts[i + width];
    return parts[0];
}

// The sums of four vectors.
static inline Four sums(Vec a, Vec b, Vec c, Vec d) {
    const Vec ab = shuffle_fours<0, 1, 0, 1>(a, b) + shuffle_fours<2, 3, 2, 3>(a, b);  // a0 a1 b0 b1
    const Vec cd = shuffle_fours<0, 1, 0, 1>(c, d) + shuffle_fours<2, 3, 2, 3>(c, d);
    return sum_of_fours(shuffle_fours<0, 2, 0, 2>(ab, cd) + shuffle_fours<1, 3, 1, 3>(ab, cd));
}
static inline float sum(Vec v) {
    const Four four = sum_of_fours(v);
    return (four[0] + four[2]) + (four[1] + four[3]);
}
static inline float highest(Vec v) {
    float found = v[0];
    for (long i = 1; i < LANES; i++) found = v[i] > found ? v[i] : found;
    return found;
}

// e^x to the last bits: 2^whole times a polynomial of the rest, at most ln(2) / 2. 0 below -87, and NaN stays.
static inline Vec exponential(Vec x) {
    constexpr float ROUNDS = 12582912.f;  // 1.5 * 2^23: numbers beside it are whole
    const Vec whole = (x * 1.44269504f + ROUNDS) - ROUNDS;
    const Vec rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    Vec y = all(1.f / 720);
    for (float c : {1.f / 120, 1.f / 24, 1.f / 6, 1.f / 2, 1.f, 1.f}) y = y * rest + c;
    const Ints power = (__builtin_convertvector(whole, Ints) + 127) << 23;
    Vec scale;
    std::memcpy(&scale, &power, sizeof scale);
    y *= scale;
    y = x < -87.f ? Vec{} : y;
    return x > 88.f ? all(INFINITY) : y;
}

}  // namespace f32
