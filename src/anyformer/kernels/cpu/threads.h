// Threads that stay together for a whole token: asking for them anew at each product would cost more than the product.
#pragma once
#include <atomic>
#include <cstdint>
#include <thread>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

inline void breathe() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Where the threads of a team meet. It belongs to no thread.
struct Meeting {
    alignas(64) std::atomic<int64_t> next{0};
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) std::atomic<int> turn{0};
};

class Team {
   public:
    const int size, me;

    Team(Meeting& meeting, int size, int me) : size(size), me(me), meeting(meeting) {}

    // Do every item once, whichever thread is free, and wait until all are done. Every thread calls this.
    template <class Work>
    void share(int64_t items, const Work& work) {
        auto take = [&] { return meeting.next.fetch_add(1, std::memory_order_relaxed); };
        for (int64_t item = take(); item < items; item = take()) work(item);
        wait();
    }

    void wait() {
        int turn = meeting.turn.load(std::memory_order_relaxed);
        if (meeting.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
            meeting.arrived.store(0, std::memory_order_relaxed);
            meeting.next.store(0, std::memory_order_relaxed);
            meeting.turn.store(turn + 1, std::memory_order_release);
            return;
        }
        // A thread that is late may be waiting for this very core.
        for (int spins = 0; meeting.turn.load(std::memory_order_acquire) == turn; spins++)
            if (spins < 4000)
                breathe();
            else
                std::this_thread::yield();
    }

   private:
    Meeting& meeting;
};

// The threads are those of torch's own OpenMP library, which are awake where torch was at work. Compilers without OpenMP
// can call them as well; libgomp, libomp and libiomp5 all have these.
extern "C" void GOMP_parallel(void (*work)(void*), void* data, unsigned threads, unsigned flags);
extern "C" int omp_get_num_threads();
extern "C" int omp_get_thread_num();

// Let a team do some work: `work(team)` in every thread of it.
template <class Work>
inline void together(int64_t threads, const Work& work) {
    struct Job {
        const Work& work;
        Meeting meeting;
    } job{work, {}};
    auto start = [](void* data) {
        auto& job = *static_cast<Job*>(data);
        job.work(Team(job.meeting, omp_get_num_threads(), omp_get_thread_num()));
    };
    GOMP_parallel(start, &job, unsigned(threads), 0);
}
