// A parallel region that spans many operations: starting threads for each matmul would cost more than the matmul.
#pragma once
#include <atomic>
#include <cstdint>
#include "structs.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(_WIN32)
extern "C" __declspec(dllimport) int __stdcall SwitchToThread();
#else
#include <sched.h>
#endif

inline void cpu_pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Sleep while `value` is `expected`, or for a moment.
inline void sleep_while(const std::atomic<int>& value, int expected) {
#if defined(__linux__)
    syscall(SYS_futex, &value, FUTEX_WAIT_PRIVATE, expected, nullptr, nullptr, 0);
#elif defined(_WIN32)
    SwitchToThread();
#else
    sched_yield();
#endif
}

inline void wake_all(const std::atomic<int>& value) {
#if defined(__linux__)
    syscall(SYS_futex, &value, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
#endif
}

// The state that the threads of a parallel region share.
struct Barrier {
    static constexpr int MAX_PARTS = 64;
    struct alignas(64) Counter {
        std::atomic<int64_t> next{0};
    };
    Counter items, part_items[MAX_PARTS];
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) std::atomic<int> generation{0};
    std::atomic<int> sleeping{0};
};

// One thread's handle on its parallel region.
class Threads {
   public:
    const int size, index;

    Threads(Barrier& shared, int size, int index) : size(size), index(index), shared(shared) {}

    // Call `body(item)` once for each item, scheduled dynamically, then wait for all. Every thread must call this.
    template <class Body>
    void parallel_for(int64_t items, const Body& body) {
        take(shared.items, 0, items, body);
        barrier();
    }

    // The same, of neighboring items for each thread, which reads memory in order; a thread that is done takes items
    // of the others.
    template <class Body>
    void parallel_for_neighbors(int64_t items, const Body& body) {
        const int parts = num_parts();
        for (int i = 0; i < parts; i++) {
            const int part = (index + i) % parts;
            take(shared.part_items[part], items * part / parts, items * (part + 1) / parts, body);
        }
        barrier();
    }

    void barrier() {
        int generation = shared.generation.load(std::memory_order_relaxed);
        if (shared.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
            shared.arrived.store(0, std::memory_order_relaxed);
            shared.items.next.store(0, std::memory_order_relaxed);
            for (int part = 0; part < num_parts(); part++)
                shared.part_items[part].next.store(0, std::memory_order_relaxed);
            shared.generation.store(generation + 1);
            if (shared.sleeping.load()) wake_all(shared.generation);
            return;
        }
        const int patience = spins.load(std::memory_order_relaxed);
        for (int spin = 0; spin < patience; spin++) {
            if (shared.generation.load(std::memory_order_acquire) != generation) {
                if (patience < MOST_SPINS) spins.store(patience + patience / 64 + 1, std::memory_order_relaxed);
                return;
            }
            cpu_pause();
        }
        // A thread that is so late has no core, for another program has it. One that spins meanwhile uses up its share
        // of the time, and is without a core when the other is back; one that sleeps is not.
        spins.store(LEAST_SPINS, std::memory_order_relaxed);
        shared.sleeping.fetch_add(1);
        while (shared.generation.load() == generation) sleep_while(shared.generation, generation);
        shared.sleeping.fetch_sub(1);
    }

   private:
    static constexpr int LEAST_SPINS = 100, MOST_SPINS = 4000;
    // How often a thread looks for the others before it sleeps: few times soon after it was in vain.
    static inline std::atomic<int> spins{MOST_SPINS};

    int num_parts() const { return size < Barrier::MAX_PARTS ? size : Barrier::MAX_PARTS; }

    // Call `body` for items [first, end) that no thread has taken yet.
    template <class Body>
    static void take(Barrier::Counter& counter, int64_t first, int64_t end, const Body& body) {
        auto next = [&] { return first + counter.next.fetch_add(1, std::memory_order_relaxed); };
        for (int64_t item = next(); item < end; item = next()) body(item);
    }

    Barrier& shared;
};

// A place in the source, as LLVM's and Intel's OpenMP libraries want one.
struct Place {
    int32_t reserved, flags, more[2];
    const char* source;
};

// The threads are those of torch's OpenMP library, which still spin where torch was at work; whoever loads this library
// passes its functions, as that library has another name and place in each build of torch.
struct OpenMp {
    int (*num_threads)();
    int (*thread_num)();
    void (*parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags);  // null: as on Windows, by fork
    int32_t (*global_thread_num)(const Place*);
    void (*push_num_threads)(const Place*, int32_t thread, int32_t threads);
    void (*fork)(const Place*, int32_t arguments, void (*task)(int32_t*, int32_t*, ...), ...);

    void start(void (*work)(void*), void* data, int32_t threads) const {
        if (parallel) return parallel(work, data, uint32_t(threads), 0);
        static constexpr Place here{0, 2, {0, 0}, ";anyformer;anyformer;0;0;;"};
        const auto task = +[](int32_t*, int32_t*, void (*work)(void*), void* data) { work(data); };
        push_num_threads(&here, global_thread_num(&here), threads);
        fork(&here, 2, reinterpret_cast<void (*)(int32_t*, int32_t*, ...)>(task), work, data);
    }
};
inline OpenMp openmp;

extern "C" EXPORTED __attribute__((used)) inline void use_openmp(const OpenMp* functions) { openmp = *functions; }

// Call `body(threads)` in each of `num_threads` threads.
template <class Body>
inline void parallel(int64_t num_threads, const Body& body) {
    struct Region {
        const Body& body;
        Barrier barrier;
    } region{body, {}};
    auto start = [](void* data) {
        auto& region = *static_cast<Region*>(data);
        region.body(Threads(region.barrier, openmp.num_threads(), openmp.thread_num()));
    };
    openmp.start(start, &region, int32_t(num_threads));
}
