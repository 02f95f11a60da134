#include "thread_pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace flashlet {
namespace {

constexpr int kSpins = 2000;   // about 20 us to 50 us: longer than any stage should differ between threads
constexpr int kYields = 2000;  // then let another runnable thread have this core, before parking: waking
                               // up costs 30 us, and from one step to the next pass 100 us to 300 us

inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) : size_(threads < 1 ? 1 : threads) {
    for (int index = 1; index < size_; ++index) threads_.emplace_back([this, index] { work(index); });
}

ThreadPool::~ThreadPool() {
    stopping_.store(true, std::memory_order_relaxed);
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
    for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::await_change(const std::atomic<uint32_t>& value, uint32_t old) {
    for (int i = 0; i < kSpins; ++i) {
        if (value.load(std::memory_order_acquire) != old) return;
        pause();
    }
    for (int i = 0; i < kYields; ++i) {
        if (value.load(std::memory_order_acquire) != old) return;
        std::this_thread::yield();
    }
    while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

void ThreadPool::run(const std::function<void(int)>& job) {
    job_ = &job;
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
    job(0);
    barrier();
}

// Who is last opens the barrier.
bool ThreadPool::last_to_arrive(uint32_t generation) {
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < size_) return false;
    arrived_.store(0, std::memory_order_relaxed);
    generation_.store(generation + 1, std::memory_order_release);
    generation_.notify_all();
    return true;
}

void ThreadPool::work(int index) {
    uint32_t round = 0;
    for (;;) {
        await_change(round_, round);
        ++round;
        if (stopping_.load(std::memory_order_relaxed)) return;
        (*job_)(index);
        barrier();
    }
}

}  // namespace flashlet
