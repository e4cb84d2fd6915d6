// A thread pool: a computation has phases, each has numbered chunks, and any thread may take any chunk.
//
// A phase ends when its chunks are done, without a barrier of all threads: where a core is busy with something else, the others
// do its share. The thread that finishes the last chunk begins the next phase. One atomic number, the ticket, holds this state:
// a thread takes a chunk by adding one to it, and does nothing if it got no valid chunk. With OpenMP the threads are its own, for
// PyTorch's spin for a while after each operation and would keep other threads off their cores.
#pragma once
#include <pthread.h>
#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#endif

#ifdef _OPENMP
#include <omp.h>
#endif

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "memory.h"

// Two libraries with threads of two kinds must not share a team, which the linker would have them do by its name.
#ifdef _OPENMP
inline namespace of_openmp {
#else
inline namespace of_its_own {
#endif

static inline void pause_spinning() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

// This thread's rounding mode and treatment of denormals: all threads must have the caller's.
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

// Where a thread of the team runs, for the others: one that lost its core within a chunk keeps them waiting for some 3 ms. Linux
// moves no thread to an idle core that ran within the last half millisecond.
class alignas(64) Place {  // a cache line each, as every chunk writes to its own
#if defined(__linux__)
   public:
    void begin_chunk() {  // by the thread itself, as the next
        static thread_local const Thread own;
        clock.store(own.clock, std::memory_order_relaxed), tid.store(own.tid, std::memory_order_relaxed);
        core.store(sched_getcpu(), std::memory_order_relaxed);
        waited_for.store(true, std::memory_order_release);
    }
    void end_chunk() { waited_for.store(false, std::memory_order_release); }
    void wait_for() { waited_for.store(core >= 0, std::memory_order_release); }  // by another thread: for what it does elsewhere

    // Gives this thread the caller's core, and the caller its, if it is waited for and does not run.
    bool trade() {
        if (!waited_for.load(std::memory_order_acquire)) return false;
        const int theirs = core.load(std::memory_order_relaxed), mine = sched_getcpu();
        if (theirs == mine || runs() || !waited_for.load(std::memory_order_acquire) || core != theirs) return false;
        cpu_set_t their_cores, my_cores;  // that each may use
        if (sched_getaffinity(tid, sizeof their_cores, &their_cores)) return false;
        if (sched_getaffinity(0, sizeof my_cores, &my_cores)) return false;
        if (!CPU_ISSET(mine, &their_cores) || !CPU_ISSET(theirs, &my_cores)) return false;
        move(tid, mine, their_cores);
        move(0, theirs, my_cores);
        return true;
    }

   private:
    struct Thread {
        pid_t tid = syscall(SYS_gettid);
        clockid_t clock = 0;
        Thread() { pthread_getcpuclockid(pthread_self(), &clock); }
    };
    std::atomic<bool> waited_for{false};
    std::atomic<int> core{-1};  // on which its last chunk began
    std::atomic<pid_t> tid{0};
    std::atomic<clockid_t> clock{0};  // its processor time

    bool runs() const {
        constexpr auto watched = std::chrono::microseconds(50);
        timespec before, after;
        const auto start = std::chrono::steady_clock::now();
        if (clock_gettime(clock, &before)) return true;
        while (std::chrono::steady_clock::now() - start < watched) pause_spinning();
        if (clock_gettime(clock, &after)) return true;
        const long nanoseconds = (after.tv_sec - before.tv_sec) * 1000000000L + after.tv_nsec - before.tv_nsec;
        return std::chrono::nanoseconds(nanoseconds) > watched / 4;
    }

    static void move(pid_t thread, int to, const cpu_set_t& allowed) {
        cpu_set_t only;
        CPU_ZERO(&only);
        CPU_SET(to, &only);
        sched_setaffinity(thread, sizeof only, &only);
        sched_setaffinity(thread, sizeof allowed, &allowed);
    }
#else
   public:
    void begin_chunk() {}
    void end_chunk() {}
    void wait_for() {}
    bool trade() { return false; }
#endif
};

struct Phase {
    long chunks;
    std::function<void(long)> chunk;  // called with 0 to chunks - 1
};

class Team {
   public:
    std::mutex call_mutex;  // held by the caller of `run`
    Scratch shared;         // for all threads of a computation

    static constexpr long MAX_CHUNKS = 1 << 21;  // of a phase

    // One team per process: a forked child has none of its parent's threads.
    static Team& get() {
        static std::atomic<Team*> team{nullptr};
        static std::once_flag once;
        std::call_once(once, [] {
            team = new Team;  // never deleted: its threads may be asleep when the process ends
            pthread_atfork(nullptr, nullptr, [] { team = new Team; });
        });
        return *team;
    }

    // Runs all chunks, phase by phase, on this many threads, of which the caller is one.
    void run(long threads, const std::vector<Phase>& new_phases) {
        phases = &new_phases, mode = float_mode();
        team_size = threads;
        first_phase = (phase_of(ticket) + 1) & PHASE_MASK;
        const uint64_t end = (first_phase + new_phases.size()) & PHASE_MASK;
        const auto finished = [&] { return phase_of(ticket) == end; };
#ifdef _OPENMP
        begin_phase(0);
        left = 0;
        for (long id = 1; id < std::min(threads, MAX_TRADING); id++) places[id].wait_for();
#pragma omp parallel num_threads(threads)
        {
            const long id = omp_get_thread_num();
            while (!finished()) run_or_wait(id, [] { return true; }, finished);
            leave(id, omp_get_num_threads());
        }
        for (long id = 1; id < std::min(threads, MAX_TRADING); id++) places[id].end_chunk();  // OpenMP may have given fewer
#else
        start_threads();
        begin_phase(0);
        while (!finished()) run_or_wait(0, [] { return true; }, finished);
#endif
    }

   private:
    static constexpr int BITS = 22;  // of the ticket: phase (20 bits), number of its chunks, next chunk
    static constexpr uint64_t CHUNK_MASK = (1 << BITS) - 1, PHASE_MASK = (1 << 20) - 1;
    static constexpr long MAX_TRADING = 64;  // threads that trade their cores
    static constexpr auto SPIN_TIME = std::chrono::microseconds(200);  // as long as the time between two calls

    alignas(64) std::atomic<uint64_t> ticket{0};
    alignas(64) std::atomic<uint64_t> chunks_done{0};
    alignas(64) std::atomic<long> team_size{1};
    std::atomic<long> sleepers{0}, left{0};  // `left`: of OpenMP's threads, those that are done
    std::array<Place, MAX_TRADING> places;
    std::atomic_flag trading = ATOMIC_FLAG_INIT;
    long started = 1;
    uint64_t first_phase = 0, mode = 0;
    const std::vector<Phase>* phases = nullptr;
    std::mutex sleep_mutex;
    std::condition_variable wake;

    static uint64_t phase_of(uint64_t ticket) { return ticket >> (2 * BITS); }
    static uint64_t chunks_of(uint64_t ticket) { return ticket >> BITS & CHUNK_MASK; }
    static bool has_chunk(uint64_t ticket) { return (ticket & CHUNK_MASK) < chunks_of(ticket); }

    void start_threads() {
        try {
            for (; started < team_size; started++) std::thread([this, id = started] { worker_loop(id); }).detach();
        } catch (const std::system_error&) {  // no more threads: those that have started are enough
        }
    }

    void begin_phase(size_t phase) {
        while (phase < phases->size() && !(*phases)[phase].chunks) phase++;
        const uint64_t chunks = phase < phases->size() ? (*phases)[phase].chunks : 0;
        chunks_done.store(0, std::memory_order_relaxed);
        const bool has_workers = team_size > 1;
        ticket = ((first_phase + phase) & PHASE_MASK) << (2 * BITS) | chunks << BITS;
        if (has_workers && sleepers) {  // `phases` may be gone by now: it must not be read here
            std::lock_guard<std::mutex> lock(sleep_mutex);
            wake.notify_all();
        }
    }

    bool run_one_chunk(long id) {
        if (!has_chunk(ticket.load(std::memory_order_acquire))) return false;
        const uint64_t taken = ticket.fetch_add(1, std::memory_order_acq_rel);
        if (!has_chunk(taken)) return false;
        const long phase = (phase_of(taken) - first_phase) & PHASE_MASK;
        set_float_mode(mode);
        if (id < MAX_TRADING) places[id].begin_chunk();
        (*phases)[phase].chunk(taken & CHUNK_MASK);
        if (id < MAX_TRADING) places[id].end_chunk();
        if (chunks_done.fetch_add(1, std::memory_order_acq_rel) + 1 == chunks_of(taken)) begin_phase(phase + 1);
        return true;
    }

    // Runs a chunk or waits for one, at last asleep, with its core given to a thread that lost its own within a chunk.
    template <class InTeam, class Finished>
    void run_or_wait(long id, InTeam in_team, Finished finished) {
        const auto start = std::chrono::steady_clock::now();
        do {
            if (in_team() && run_one_chunk(id)) return;
            for (int spin = 0; spin < 16 && !has_chunk(ticket.load(std::memory_order_relaxed)); spin++) pause_spinning();
            if (finished()) return;
        } while (std::chrono::steady_clock::now() - start < SPIN_TIME);
        trade_with_another(id);
        std::unique_lock<std::mutex> lock(sleep_mutex);
        sleepers++;
        wake.wait(lock, [&] { return finished() || (in_team() && has_chunk(ticket)); });
        sleepers--;
    }

    // OpenMP waits for all threads, also for one that has no core to find out on that nothing is left to do.
    void leave(long id, long threads) {
        if (id < MAX_TRADING) places[id].end_chunk();
        const auto start = std::chrono::steady_clock::now();
        left.fetch_add(1, std::memory_order_acq_rel);
        while (left.load(std::memory_order_acquire) < threads) {
            pause_spinning();
            if (std::chrono::steady_clock::now() - start > SPIN_TIME) return trade_with_another(id);
        }
    }

    void trade_with_another(long id) {
        if (trading.test_and_set()) return;
        const long others = std::min<long>(team_size, MAX_TRADING);
        for (long other = 0; other < others && (other == id || !places[other].trade()); other++) continue;
        trading.clear();
    }

    void worker_loop(long id) {
        for (;;) run_or_wait(id, [&] { return id < team_size; }, [] { return false; });
    }
};

}  // namespace
