// A fixed team of threads that runs one job at a time and meets at barriers inside it.
#pragma once

#include <algorithm>
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

    // Inside a job: waits until every thread has arrived, and meanwhile calls idle() until it returns false.
    template <class Idle>
    void barrier(Idle&& idle) {
        const uint32_t generation = generation_.load(std::memory_order_relaxed);
        if (last_to_arrive(generation)) return;
        while (generation_.load(std::memory_order_acquire) == generation && idle()) continue;
        await_change(generation_, generation);
    }
    void barrier() {
        barrier([] { return false; });
    }

  private:
    void work(int index);
    bool last_to_arrive(uint32_t generation);
    static void await_change(const std::atomic<uint32_t>& value, uint32_t old);

    const int size_;
    const std::function<void(int)>* job_ = nullptr;
    std::atomic<bool> stopping_{false};
    alignas(64) std::atomic<uint32_t> round_{0};       // incremented for each job
    alignas(64) std::atomic<int> arrived_{0};          // at the current barrier
    alignas(64) std::atomic<uint32_t> generation_{0};  // of barriers
    std::vector<std::thread> threads_;
};

// Where thread `index` of `threads` begins its part of [0, total), in whole chunks.
constexpr int part_begin(int total, int chunk, int index, int threads) {
    const int chunks = (total + chunk - 1) / chunk;
    return chunks * index / threads * chunk;
}

// Hands out [0, total) in chunks, once per stage. Each thread first walks a part of its own, so that it reads
// memory in order; a thread that is done takes chunks of the others', so that one that loses its core to
// another process delays nobody by more than a chunk.
class ChunkCounters {
  public:
    ChunkCounters(int stages, int threads)
        : threads_(threads), counters_(static_cast<size_t>(stages) * static_cast<size_t>(threads)) {}
    void reset() {
        for (Counter& counter : counters_) counter.taken.store(0, std::memory_order_relaxed);
    }
    template <class Body>
    void each(int stage, int total, int chunk, int index, Body&& body) {
        for (int i = 0; i < threads_; ++i) {
            const int owner = (index + i) % threads_;
            const int first = part_begin(total, chunk, owner, threads_);
            const int last = std::min(part_begin(total, chunk, owner + 1, threads_), total);
            std::atomic<int>& taken = counters_[static_cast<size_t>(stage * threads_ + owner)].taken;
            for (;;) {
                const int begin = first + taken.fetch_add(chunk, std::memory_order_relaxed);
                if (begin >= last) break;
                body(begin, std::min(begin + chunk, last));
            }
        }
    }

  private:
    struct alignas(64) Counter {
        std::atomic<int> taken{0};
    };
    const int threads_;
    std::vector<Counter> counters_;
};

}  // namespace flashlet
