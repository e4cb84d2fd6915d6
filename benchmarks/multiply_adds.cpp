// What the processor can do: billions of floating-point operations a second in fused multiply-adds of numbers in registers, by as
// many threads as asked for. Printed once; built and run by training_float32.py.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "../src/groundup/kernels/vector.h"

static float found;

// Sums that begin alike would be one to the compiler, of which it would then make a twelfth.
static void loop(long steps, float first) {
    f32::Vec sums[12], by = f32::all(0.999f), more = f32::all(0.001f);
    for (long i = 0; i < 12; i++) sums[i] = f32::all(first + i);
    for (long k = 0; k < steps; k++) {
#pragma GCC unroll 12
        for (f32::Vec& sum : sums) sum = sum * by + more;
    }
    for (const f32::Vec& sum : sums) found = found + sum[0];
}

int main(int, char** given) {
    const long threads = std::atol(given[1]), steps = 20'000'000;
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::thread> all;
    for (long i = 0; i < threads; i++) all.emplace_back(loop, steps, (float)i);
    for (std::thread& one : all) one.join();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::printf("%.2f\n", 2. * 12 * f32::LANES * steps * threads / seconds / 1e9);
}
