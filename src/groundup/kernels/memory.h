// For kernels of both formats: memory that is reused between calls, and sums of rows.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>

struct Scratch {
    char* memory = nullptr;
    size_t size = 0, used = 0;
    void reserve(size_t bytes) {  // never freed: the system would have to clear it again
        used = 0;
        if (bytes <= size) return;
        free(memory);
        size = (bytes + (1 << 21)) >> 21 << 21;
        memory = (char*)aligned_alloc(1 << 21, size);
#ifdef MADV_HUGEPAGE
        madvise(memory, size, MADV_HUGEPAGE);
#endif
    }
    template <class T>
    T* alloc(size_t count) {
        T* allocation = (T*)(memory + used);
        used += (count * sizeof(T) + 127) / 64 * 64;
        return allocation;
    }
};
inline thread_local Scratch scratch;

// The sum of `count` rows of `parts`, `stride` apart, always in the same order.
static inline void sum_rows(const float* parts, long count, long stride, long width, float* sums) {
    for (long i = 0; i < width; i++) {
        float total = 0;
        for (long r = 0; r < count; r++) total += parts[r * stride + i];
        sums[i] = total;
    }
}
