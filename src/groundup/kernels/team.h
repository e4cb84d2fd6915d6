// Threads that share work: a computation of phases, each of chunks that any thread may take and that are told apart by number.
//
// A phase is over when its chunks are done, not when every thread has come by: where a core is busy with something else, the
// others do its share. Whoever finishes the last chunk begins the next phase. All of it depends on one number, the ticket,
// from which a thread takes a chunk by adding one; one who gets no valid chunk touches nothing.
#pragma once
#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <system_error>
#include <thread>
#include <vector>

#include "memory.h"

static inline void pause_spinning() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

// How this thread rounds, and what it makes of denormal numbers: all threads must do as the caller does.
static inline uint64_t float_mode() {
#if defined(__x86_64__)
    return __builtin_ia32_stmxcsr();
#elif defined(__aarch64__)
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
#else
    return 0;
#endif
}
static inline void set_float_mode(uint64_t mode) {
#if defined(__x86_64__)
    __builtin_ia32_ldmxcsr((unsigned)mode);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" ::"r"(mode));
#endif
}

struct Phase {
    long chunks;
    std::function<void(long)> chunk;  // of each number below
};

class Team {
   public:
    std::mutex alone;  // held by who uses the team
    Scratch common;    // for all threads of a computation

    static constexpr long MOST_CHUNKS = 1 << 21;  // of a phase

    // The process's own: a child that was forked has none of its parent's threads.
    static Team& get() {
        static std::atomic<Team*> team{nullptr};
        static std::once_flag once;
        std::call_once(once, [] {
            team = new Team;  // never deleted: its threads may be asleep when the process ends
            pthread_atfork(nullptr, nullptr, [] { team = new Team; });
        });
        return *team;
    }

    // All chunks of a phase, phase by phase, by so many threads and the caller's one of them.
    void run(long wanted, const std::vector<Phase>& given) {
        phases = &given, mode = float_mode();
        members = wanted;
        hire();
        first_phase = (phase_of(ticket) + 1) & PHASES;
        const uint64_t end = (first_phase + given.size()) & PHASES;
        begin(0);
        const auto over = [&] { return phase_of(ticket) == end; };
        while (!over()) take_or_rest([] { return true; }, over);
    }

   private:
    static constexpr int BITS = 22;  // of the ticket: a phase, how many chunks it has, the next of them
    static constexpr uint64_t NUMBERS = (1 << BITS) - 1, PHASES = (1 << 20) - 1;
    static constexpr auto AWAKE = std::chrono::microseconds(200);  // as long as what is between two calls

    alignas(64) std::atomic<uint64_t> ticket{0};
    alignas(64) std::atomic<uint64_t> done{0};
    alignas(64) std::atomic<long> members{1};
    std::atomic<long> asleep{0};
    long hired = 1;
    uint64_t first_phase = 0, mode = 0;
    const std::vector<Phase>* phases = nullptr;
    std::mutex bed;
    std::condition_variable alarm;

    static uint64_t phase_of(uint64_t ticket) { return ticket >> (2 * BITS); }
    static uint64_t chunks_of(uint64_t ticket) { return ticket >> BITS & NUMBERS; }
    static bool valid(uint64_t ticket) { return (ticket & NUMBERS) < chunks_of(ticket); }

    void hire() {
        try {
            for (; hired < members; hired++) std::thread([this, id = hired] { work(id); }).detach();
        } catch (const std::system_error&) {  // no more threads: those that are will do
        }
    }

    void begin(size_t phase) {
        while (phase < phases->size() && !(*phases)[phase].chunks) phase++;
        const uint64_t chunks = phase < phases->size() ? (*phases)[phase].chunks : 0;
        done.store(0, std::memory_order_relaxed);
        const bool share = members > 1;
        ticket = ((first_phase + phase) & PHASES) << (2 * BITS) | chunks << BITS;
        if (share && asleep) {  // nothing of the phases may be read any more
            std::lock_guard<std::mutex> lock(bed);
            alarm.notify_all();
        }
    }

    bool take_one() {
        if (!valid(ticket.load(std::memory_order_acquire))) return false;
        const uint64_t taken = ticket.fetch_add(1, std::memory_order_acq_rel);
        if (!valid(taken)) return false;
        const long phase = (phase_of(taken) - first_phase) & PHASES;
        set_float_mode(mode);
        (*phases)[phase].chunk(taken & NUMBERS);
        if (done.fetch_add(1, std::memory_order_acq_rel) + 1 == chunks_of(taken)) begin(phase + 1);
        return true;
    }

    // A chunk, or some waiting for one: at last asleep, which leaves the core to a thread that was put off its own amid a chunk.
    template <class Mine, class Over>
    void take_or_rest(Mine mine, Over over) {
        const auto since = std::chrono::steady_clock::now();
        do {
            if (mine() && take_one()) return;
            for (int spin = 0; spin < 16 && !valid(ticket.load(std::memory_order_relaxed)); spin++) pause_spinning();
            if (over()) return;
        } while (std::chrono::steady_clock::now() - since < AWAKE);
        std::unique_lock<std::mutex> lock(bed);
        asleep++;
        alarm.wait(lock, [&] { return over() || (mine() && valid(ticket)); });
        asleep--;
    }

    void work(long id) {
        for (;;) take_or_rest([&] { return id < members; }, [] { return false; });
    }
};
