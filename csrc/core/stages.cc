#include "core/stages.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <thread>

#include "core/thread_pool.h"

namespace sparse_runtime {
namespace {

using Clock = std::chrono::steady_clock;

struct alignas(64) Counter {
  std::atomic<std::int64_t> value{0};
};

void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#else
  std::this_thread::yield();
#endif
}

class Run {
 public:
  Run(const std::vector<Stage>& stages, int workers)
      : stages_(stages),
        workers_(workers),
        next_(new Counter[stages.size() * static_cast<std::size_t>(workers)]),
        done_(new Counter[stages.size()]) {}

  void work(int worker, double* seconds) {
    Clock::time_point before = Clock::now();
    for (std::size_t s = 0; s < stages_.size(); ++s) {
      const std::int64_t mine = take_tasks(s, worker);
      done_[s].value.fetch_add(mine, std::memory_order_acq_rel);
      wait_for(s);
      if (seconds == nullptr) continue;
      const Clock::time_point now = Clock::now();
      seconds[s] = std::chrono::duration<double>(now - before).count();
      before = now;
    }
  }

 private:
  std::int64_t take_tasks(std::size_t s, int worker) {
    const Stage& stage = stages_[s];
    std::int64_t taken = 0;
    for (int turn = 0; turn < workers_; ++turn) {
      const int share = (worker + turn) % workers_;
      const std::int64_t first = stage.tasks * share / workers_;
      const std::int64_t count = stage.tasks * (share + 1) / workers_ - first;
      std::atomic<std::int64_t>& next = next_[s * static_cast<std::size_t>(workers_) + share].value;
      // Reading first keeps the line shared where nothing is left.
      while (next.load(std::memory_order_relaxed) < count) {
        const std::int64_t index = next.fetch_add(1, std::memory_order_relaxed);
        if (index >= count) break;
        stage.run(first + index, worker);
        ++taken;
      }
    }
    return taken;
  }

  void wait_for(std::size_t s) {
    const std::int64_t tasks = stages_[s].tasks;
    for (int spins = 0; done_[s].value.load(std::memory_order_acquire) != tasks; ++spins) {
      // With more threads than cores, the one that still works may need this core.
      if (spins < 4096) {
        pause_cpu();
      } else {
        std::this_thread::yield();
      }
    }
  }

  const std::vector<Stage>& stages_;
  const int workers_;
  const std::unique_ptr<Counter[]> next_;  // [stage][share]
  const std::unique_ptr<Counter[]> done_;  // [stage]
};

}  // namespace

void run_stages(const std::vector<Stage>& stages, int num_threads, double* seconds) {
  // Waking threads that will find no task costs more than a small layer.
  std::int64_t most = 1;
  for (const Stage& stage : stages) most = std::max(most, stage.tasks);
  const int workers =
      static_cast<int>(std::min<std::int64_t>(std::clamp(num_threads, 1, kMaxThreads), most));
  Run run(stages, workers);
  parallel_for(workers, workers, [&](std::int64_t worker) {
    run.work(static_cast<int>(worker), worker == 0 ? seconds : nullptr);
  });
}

}  // namespace sparse_runtime
