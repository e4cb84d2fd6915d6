// The processor's peak: billions of floating-point operations per second in fused multiply-adds of registers, by the given number
// of threads. Prints one number; built and run by training_float32.py.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "../src/groundup/kernels/vector.h"

static float sink;

// Sums start at different values: the compiler would compute equal ones once, a twelfth of the work.
static void loop(long steps, float start) {
    f32::Vec sums[12], factor = f32::set1(0.999f), addend = f32::set1(0.001f);
    for (long i = 0; i < 12; i++) sums[i] = f32::set1(start + i);
    for (long k = 0; k < steps; k++) {
#pragma GCC unroll 12
        for (f32::Vec& sum : sums) sum = sum * factor + addend;
    }
    for (const f32::Vec& sum : sums) sink = sink + sum[0];
}

int main(int, char** arguments) {
    const long threads = std::atol(arguments[1]), steps = 20'000'000;
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::thread> workers;
    for (long i = 0; i < threads; i++) workers.emplace_back(loop, steps, (float)i);
    for (std::thread& worker : workers) worker.join();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::printf("%.2f\n", 2. * 12 * f32::LANES * steps * threads / seconds / 1e9);
}
