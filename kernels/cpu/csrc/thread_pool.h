// A fixed team of threads that runs one job at a time and meets at barriers inside it.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace flashlet {

class ThreadPool {
  public:
    explicit ThreadPool(int threads);  // the caller of run() is one of them
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int size() const { return size_; }

    // Calls job(thread index) on every thread; returns when all are done. The job must not throw.
    void run(const std::function<void(int)>& job);

    // Inside a job: waits until every thread has arrived.
    void barrier();

  private:
    void work(int index);
    static void await_change(const std::atomic<uint32_t>& value, uint32_t old);

    const int size_;
    const std::function<void(int)>* job_ = nullptr;
    std::atomic<bool> stopping_{false};
    alignas(64) std::atomic<uint32_t> round_{0};       // incremented for each job
    alignas(64) std::atomic<int> arrived_{0};          // at the current barrier
    alignas(64) std::atomic<uint32_t> generation_{0};  // of barriers
    std::vector<std::thread> threads_;
};

// Hands out [0, total) in chunks, once per stage, to whichever thread asks: a thread that loses its core to
// another process then delays nobody by more than a chunk.
class ChunkCounters {
  public:
    explicit ChunkCounters(int stages) : counters_(static_cast<size_t>(stages)) {}
    void reset() {
        for (Counter& counter : counters_) counter.next.store(0, std::memory_order_relaxed);
    }
    template <class Body>
    void each(int stage, int total, int chunk, Body&& body) {
        std::atomic<int>& next = counters_[static_cast<size_t>(stage)].next;
        for (;;) {
            const int begin = next.fetch_add(chunk, std::memory_order_relaxed);
            if (begin >= total) return;
            body(begin, begin + chunk < total ? begin + chunk : total);
        }
    }

  private:
    struct alignas(64) Counter {
        std::atomic<int> next{0};
    };
    std::vector<Counter> counters_;
};

}  // namespace flashlet
