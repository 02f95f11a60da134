// The thread pool: every thread runs every job, barriers separate what they should, chunks are handed out
// once.
#include <atomic>
#include <chrono>
#include <numeric>
#include <thread>

#include "check.h"
#include "thread_pool.h"

using namespace flashlet;

TEST(pool_runs_every_thread_once) {
    for (const int threads : {1, 2, 3, 8}) {
        ThreadPool pool(threads);
        CHECK(pool.size() == threads);
        std::vector<int> calls(static_cast<size_t>(threads));
        for (int round = 1; round <= 500; ++round) {
            pool.run([&](int index) { ++calls[static_cast<size_t>(index)]; });
            for (const int count : calls) CHECK(count == round, "(%d threads)", threads);
        }
    }
}

// Plain variables that one side of a barrier writes and the other reads: ThreadSanitizer watches the barrier.
TEST(pool_barrier_separates_stages) {
    constexpr int kRounds = 20, kStages = 50;
    for (const int threads : {1, 2, 3, 8}) {
        ThreadPool pool(threads);
        std::vector<int> values(static_cast<size_t>(threads));
        std::vector<int> errors(static_cast<size_t>(threads));
        for (int round = 0; round < kRounds; ++round) {
            pool.run([&](int index) {
                const auto own = static_cast<size_t>(index);
                for (int stage = 0; stage < kStages; ++stage) {
                    values[own] = stage;
                    pool.barrier();
                    for (const int value : values) errors[own] += value != stage;
                    pool.barrier();
                }
            });
        }
        CHECK(std::accumulate(errors.begin(), errors.end(), 0) == 0, "(%d threads)", threads);
    }
}

// Whoever waits works on something else meanwhile, and no longer than that lasts.
TEST(pool_barrier_lends_waiting_threads) {
    ThreadPool pool(3);
    int calls[3] = {};
    std::atomic<int> idle{0};
    pool.run([&](int index) {
        while (index == 1 && idle.load() < 2) std::this_thread::yield();
        pool.barrier([&] {
            if (++calls[index] < 5) return true;
            ++idle;
            return false;
        });
    });
    CHECK(calls[0] == 5 && calls[1] == 0 && calls[2] == 5, "(%d %d %d)", calls[0], calls[1], calls[2]);
}

TEST(pool_wakes_parked_threads) {
    ThreadPool pool(3);
    int calls[3] = {};
    for (int round = 0; round < 5; ++round) {
        std::this_thread::sleep_for(std::chrono::milliseconds(30));
        pool.run([&](int index) {
            if (index == 1) std::this_thread::sleep_for(std::chrono::milliseconds(30));
            ++calls[index];
        });
    }
    for (const int count : calls) CHECK(count == 5);
}

TEST(pools_come_and_go) {
    for (int round = 0; round < 50; ++round) {
        ThreadPool pool(1 + round % 5);
        std::atomic<int> calls{0};
        if (round % 3 != 0) {  // some are never used
            pool.run([&](int) { ++calls; });
            CHECK(calls == pool.size());
        }
    }
}

TEST(chunks_are_handed_out_once) {
    constexpr int kStages = 4, kTotal = 101;
    for (const int threads : {1, 2, 3, 8}) {
        ThreadPool pool(threads);
        ChunkCounters counters(kStages, threads);
        for (int round = 0; round < 50; ++round) {
            std::vector<int> served(static_cast<size_t>(kStages * kTotal));
            counters.reset();
            pool.run([&](int index) {
                for (int stage = 0; stage < kStages; ++stage) {
                    counters.each(stage, kTotal, 1 + stage * 3, index, [&](int begin, int end) {
                        for (int i = begin; i < end; ++i) ++served[static_cast<size_t>(stage * kTotal + i)];
                    });
                }
            });
            for (const int count : served) CHECK(count == 1, "(%d threads)", threads);
        }
    }
}
