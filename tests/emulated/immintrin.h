// What the kernels in bfloat16 use of AVX-512 and AMX, in plain C++: slow, but any processor runs it, and the sanitizers see every access.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

typedef float __m512 __attribute__((vector_size(64)));
typedef long long __m512i __attribute__((vector_size(64)));
typedef long long __m256i __attribute__((vector_size(32)));
typedef short __m512bh __attribute__((vector_size(64)));
typedef short __m256bh __attribute__((vector_size(32)));
typedef uint16_t __mmask16;
enum { _MM_HINT_T1, _CMP_GT_OQ, _CMP_LT_OQ, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src };

namespace emulated {

template <class T, class V>
struct Lanes {
    T at[sizeof(V) / sizeof(T)];
    explicit Lanes(V v) { std::memcpy(at, &v, sizeof v); }
    T operator[](int i) const { return at[i]; }
};
template <class T, class V, class F>
V made(F f) {
    T at[sizeof(V) / sizeof(T)];
    for (unsigned i = 0; i < sizeof(V) / sizeof(T); i++) at[i] = f(i);
    V v;
    std::memcpy(&v, at, sizeof v);
    return v;
}
template <class F>
__m512 floats(F f) {
    return made<float, __m512>(f);
}
template <class T, class F>
__m512i ints(F f) {
    return made<T, __m512i>(f);
}
template <class T>
auto of(__m512i v) {
    return Lanes<T, __m512i>(v);
}
template <class V>
V read(const void* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
template <class V>
void aligned(const void* p) {
    if ((uintptr_t)p % sizeof(V)) __builtin_trap();
}
template <class F>
__mmask16 mask(F f) {
    __mmask16 found = 0;
    for (int i = 0; i < 16; i++) found |= (unsigned)(bool)f(i) << i;
    return found;
}
inline float widened(uint16_t v) {
    const uint32_t bits = (uint32_t)v << 16;
    return read<float>(&bits);
}
inline uint16_t rounded(float v) {  // to the nearest, of two the even one
    uint32_t bits = read<uint32_t>(&v);
    if (v != v) return bits >> 16 | 0x40;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
// A pair of 128 bits each: T low (high = 0) or high halves of a and b by turns.
template <class T>
__m512i unpacked(__m512i a, __m512i b, int high) {
    constexpr int half = 8 / sizeof(T);
    const auto x = of<T>(a), y = of<T>(b);
    return ints<T>([&](int i) {
        const int from = i / (2 * half) * 2 * half + high * half + i % (2 * half) / 2;
        return i % 2 ? y[from] : x[from];
    });
}
// 128 bits of a, a, b and b, as two bits each of `which` say.
template <class V>
V shuffled(V a, V b, int which) {
    typedef long long Half __attribute__((vector_size(16)));
    const Lanes<Half, V> x(a), y(b);
    return made<Half, V>([&](int i) { return (i < 2 ? x : y)[which >> 2 * i & 3]; });
}
inline thread_local float tiles[8][16][16];

}  // namespace emulated

inline __m512 _mm512_set1_ps(float v) { return v - __m512{}; }
inline __m512i _mm512_set1_epi32(int v) { return emulated::ints<int>([=](int) { return v; }); }
inline __m512 _mm512_add_ps(__m512 a, __m512 b) { return a + b; }
inline __m512 _mm512_sub_ps(__m512 a, __m512 b) { return a - b; }
inline __m512 _mm512_mul_ps(__m512 a, __m512 b) { return a * b; }
inline __m512 _mm512_div_ps(__m512 a, __m512 b) { return a / b; }
inline __m512 _mm512_max_ps(__m512 a, __m512 b) { return a > b ? a : b; }
inline __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
    return emulated::floats([&](int i) { return std::fma(a[i], b[i], c[i]); });
}
inline __m512 _mm512_fnmadd_ps(__m512 a, __m512 b, __m512 c) {
    return emulated::floats([&](int i) { return std::fma(-a[i], b[i], c[i]); });
}
inline __m512 _mm512_sqrt_ps(__m512 a) { return emulated::floats([&](int i) { return std::sqrt(a[i]); }); }
inline __m512 _mm512_rcp14_ps(__m512 a) { return 1.f / a; }
inline __m512 _mm512_roundscale_ps(__m512 a, int) { return emulated::floats([&](int i) { return std::nearbyint(a[i]); }); }
inline __m512 _mm512_scalef_ps(__m512 a, __m512 b) {
    return emulated::floats([&](int i) { return a[i] * std::exp2(b[i]); });
}
inline __m512 _mm512_getexp_ps(__m512 a) { return emulated::floats([&](int i) { return std::logb(a[i]); }); }
inline __m512 _mm512_getmant_ps(__m512 a, int, int) {
    int exponent;
    return emulated::floats([&](int i) { return 2 * std::frexp(a[i], &exponent); });
}
inline float _mm512_reduce_add_ps(__m512 v) {
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) v[i] += v[i + width];
    return v[0];
}
inline float _mm512_reduce_max_ps(__m512 v) {
    for (int i = 1; i < 16; i++) v[0] = v[i] > v[0] ? v[i] : v[0];
    return v[0];
}

inline __m512 _mm512_loadu_ps(const void* p) { return emulated::read<__m512>(p); }
inline __m512 _mm512_load_ps(const void* p) { return emulated::aligned<__m512>(p), _mm512_loadu_ps(p); }
inline void _mm512_storeu_ps(void* p, __m512 v) { std::memcpy(p, &v, sizeof v); }
inline void _mm512_store_ps(void* p, __m512 v) { emulated::aligned<__m512>(p), _mm512_storeu_ps(p, v); }
inline void _mm512_stream_ps(void* p, __m512 v) { _mm512_store_ps(p, v); }
inline __m512i _mm512_loadu_si512(const void* p) { return emulated::read<__m512i>(p); }
inline __m512i _mm512_load_si512(const void* p) { return emulated::aligned<__m512i>(p), _mm512_loadu_si512(p); }
inline void _mm512_storeu_si512(void* p, __m512i v) { std::memcpy(p, &v, sizeof v); }
inline void _mm512_store_si512(void* p, __m512i v) { emulated::aligned<__m512i>(p), _mm512_storeu_si512(p, v); }
inline void _mm512_stream_si512(__m512i* p, __m512i v) { _mm512_store_si512(p, v); }
inline __m256i _mm256_loadu_si256(const __m256i* p) { return emulated::read<__m256i>(p); }
inline void _mm256_storeu_si256(__m256i* p, __m256i v) { std::memcpy((void*)p, &v, sizeof v); }
inline void _mm_prefetch(const char*, int) {}
inline void _mm_sfence() {}

inline __m512 _mm512_castsi512_ps(__m512i v) { return (__m512)v; }
inline __m512i _mm512_and_si512(__m512i a, __m512i b) { return a & b; }
inline __m512i _mm512_slli_epi32(__m512i v, int by) {
    return emulated::ints<uint32_t>([&](int i) { return emulated::of<uint32_t>(v)[i] << by; });
}
inline __m512i _mm512_cvtepu16_epi32(__m256i v) {
    const emulated::Lanes<uint16_t, __m256i> from(v);
    return emulated::ints<uint32_t>([&](int i) { return from[i]; });
}
inline __m256bh _mm512_cvtneps_pbh(__m512 v) {
    return emulated::made<uint16_t, __m256bh>([&](int i) { return emulated::rounded(v[i]); });
}
inline __m512bh _mm512_cvtne2ps_pbh(__m512 high, __m512 low) {
    return emulated::made<uint16_t, __m512bh>([&](int i) { return emulated::rounded(i < 16 ? low[i] : high[i - 16]); });
}

inline __m512i _mm512_unpacklo_epi16(__m512i a, __m512i b) { return emulated::unpacked<uint16_t>(a, b, 0); }
inline __m512i _mm512_unpackhi_epi16(__m512i a, __m512i b) { return emulated::unpacked<uint16_t>(a, b, 1); }
inline __m512i _mm512_unpacklo_epi32(__m512i a, __m512i b) { return emulated::unpacked<uint32_t>(a, b, 0); }
inline __m512i _mm512_unpackhi_epi32(__m512i a, __m512i b) { return emulated::unpacked<uint32_t>(a, b, 1); }
inline __m512i _mm512_unpacklo_epi64(__m512i a, __m512i b) { return emulated::unpacked<uint64_t>(a, b, 0); }
inline __m512i _mm512_unpackhi_epi64(__m512i a, __m512i b) { return emulated::unpacked<uint64_t>(a, b, 1); }
inline __m512 _mm512_unpacklo_ps(__m512 a, __m512 b) { return (__m512)_mm512_unpacklo_epi32((__m512i)a, (__m512i)b); }
inline __m512 _mm512_unpackhi_ps(__m512 a, __m512 b) { return (__m512)_mm512_unpackhi_epi32((__m512i)a, (__m512i)b); }
inline __m512i _mm512_shuffle_i32x4(__m512i a, __m512i b, int which) { return emulated::shuffled(a, b, which); }
inline __m512 _mm512_shuffle_f32x4(__m512 a, __m512 b, int which) { return emulated::shuffled(a, b, which); }
inline __m512 _mm512_shuffle_ps(__m512 a, __m512 b, int which) {
    return emulated::floats([&](int i) { return (i % 4 < 2 ? a : b)[i / 4 * 4 + (which >> i % 4 * 2 & 3)]; });
}
inline __m512i _mm512_permutexvar_epi16(__m512i index, __m512i v) {
    const auto from = emulated::of<uint16_t>(v), at = emulated::of<uint16_t>(index);
    return emulated::ints<uint16_t>([&](int i) { return from[at[i] & 31]; });
}
inline __m512i _mm512_permutex2var_epi16(__m512i a, __m512i index, __m512i b) {
    const auto x = emulated::of<uint16_t>(a), y = emulated::of<uint16_t>(b), at = emulated::of<uint16_t>(index);
    return emulated::ints<uint16_t>([&](int i) { return (at[i] & 32 ? y : x)[at[i] & 31]; });
}

inline __m512 _mm512_maskz_mov_ps(__mmask16 kept, __m512 v) {
    return emulated::floats([&](int i) { return kept >> i & 1 ? v[i] : 0; });
}
inline __m512 _mm512_mask_max_ps(__m512 other, __mmask16 kept, __m512 a, __m512 b) {
    return emulated::floats([&](int i) { return kept >> i & 1 ? (a[i] > b[i] ? a[i] : b[i]) : other[i]; });
}
inline __mmask16 _mm512_mask_cmpeq_epi32_mask(__mmask16 asked, __m512i a, __m512i b) {
    const auto x = emulated::of<int>(a), y = emulated::of<int>(b);
    return asked & emulated::mask([&](int i) { return x[i] == y[i]; });
}
inline __mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int how) {
    return emulated::mask([&](int i) { return how == _CMP_GT_OQ ? a[i] > b[i] : a[i] < b[i]; });
}
inline __mmask16 _mm512_mask_cmp_ps_mask(__mmask16 asked, __m512 a, __m512 b, int how) {
    return asked & _mm512_cmp_ps_mask(a, b, how);
}

// c + the products of pairs of bfloat16.
inline __m512 _mm512_dpbf16_ps(__m512 c, __m512bh a, __m512bh b) {
    using emulated::widened;
    return emulated::floats([&](int i) {
        return c[i] + widened(a[2 * i]) * widened(b[2 * i]) + widened(a[2 * i + 1]) * widened(b[2 * i + 1]);
    });
}
inline void _tile_storeconfig(void* p) { std::memset(p, 0, 64); }
inline void _tile_loadconfig(const void*) {}
inline void _tile_release() {}
inline void _tile_zero(int t) { std::memset(emulated::tiles[t], 0, sizeof emulated::tiles[t]); }
inline void _tile_loadd(int t, const void* p, long stride) {
    for (int row = 0; row < 16; row++) std::memcpy(emulated::tiles[t][row], (const char*)p + row * stride, 64);
}
inline void _tile_stored(int t, void* p, long stride) {
    for (int row = 0; row < 16; row++) std::memcpy((char*)p + row * stride, emulated::tiles[t][row], 64);
}
inline void _tile_dpbf16ps(int c, int a, int b) {
    for (int m = 0; m < 16; m++)
        for (int k = 0; k < 16; k++) {
            uint16_t left[2];
            std::memcpy(left, &emulated::tiles[a][m][k], 4);
            for (int n = 0; n < 16; n++) {
                uint16_t right[2];
                std::memcpy(right, &emulated::tiles[b][k][n], 4);
                emulated::tiles[c][m][n] += emulated::widened(left[0]) * emulated::widened(right[0]);
                emulated::tiles[c][m][n] += emulated::widened(left[1]) * emulated::widened(right[1]);
            }
        }
}
