#include "core/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define SPARSE_RUNTIME_HAS_FORK 1
#endif

namespace sparse_runtime {
namespace {

// Consecutive linears of an encoder follow each other within microseconds; waking a sleeping
// thread costs more than that, spinning for longer would take cores from other libraries.
constexpr std::chrono::microseconds kSpinTime{50};

void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#else
  std::this_thread::yield();
#endif
}

class ThreadPool {
 public:
  // False when another caller has the pool.
  bool try_acquire() { return !busy_.exchange(true, std::memory_order_acquire); }
  void release() { busy_.store(false, std::memory_order_release); }

  // Requires acquisition.
  void run(std::int64_t count, int num_threads, detail::IndexFunction function, void* context) {
    const int helpers = grow(num_threads - 1);
    function_ = function;
    context_ = context;
    count_ = count;
    next_.store(0, std::memory_order_relaxed);
    finished_.store(0, std::memory_order_relaxed);
    publish(static_cast<std::uint32_t>(helpers));
    take_indices();
    // Helpers that have not woken by now find no slot and are not waited for.
    const std::uint64_t before = ticket_.fetch_and(~kSlotMask, std::memory_order_acq_rel);
    const int joined = helpers - static_cast<int>(before & kSlotMask);
    wait_for_helpers(joined);
  }

 private:
  // ticket_ = job number (high 32 bits), free helper slots of that job (low 32 bits).
  static constexpr std::uint64_t kSlotMask = 0xffffffffu;

  int grow(int wanted) {
    while (threads_ < wanted) {
      try {
        std::thread([this] { work(); }).detach();
      } catch (const std::system_error&) {
        break;  // The system gives no more threads: the job runs on those there are.
      }
      ++threads_;
    }
    return std::min(wanted, threads_);
  }

  void publish(std::uint32_t slots) {
    const std::uint64_t job = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
    ticket_.store((job << 32) | slots, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
      const std::lock_guard<std::mutex> lock(sleep_mutex_);
      wake_.notify_all();
    }
  }

  void wait_for_helpers(int joined) {
    for (int spins = 0; finished_.load(std::memory_order_acquire) != joined; ++spins) {
      // With more threads than cores, a helper may need this core to finish.
      if (spins < 4096) {
        pause_cpu();
      } else {
        std::this_thread::yield();
      }
    }
  }

  void take_indices() {
    for (;;) {
      const std::int64_t index = next_.fetch_add(1, std::memory_order_relaxed);
      if (index >= count_) return;
      function_(context_, index);
    }
  }

  bool take_slot() {
    std::uint64_t seen = ticket_.load(std::memory_order_acquire);
    while ((seen & kSlotMask) != 0) {
      if (ticket_.compare_exchange_weak(seen, seen - 1, std::memory_order_acq_rel)) return true;
    }
    return false;
  }

  void work() {
    std::uint64_t last_job = 0;
    for (;;) {
      last_job = wait_for_job(last_job);
      if (!take_slot()) continue;
      // With a slot taken, the job (and its members) stays until finished_ counts this helper.
      take_indices();
      last_job = ticket_.load(std::memory_order_relaxed) >> 32;
      finished_.fetch_add(1, std::memory_order_acq_rel);
    }
  }

  std::uint64_t job_number() const { return ticket_.load(std::memory_order_seq_cst) >> 32; }

  std::uint64_t wait_for_job(std::uint64_t last_job) {
    const auto deadline = std::chrono::steady_clock::now() + kSpinTime;
    do {
      for (int i = 0; i < 16; ++i) {
        const std::uint64_t job = job_number();
        if (job != last_job) return job;
        pause_cpu();
      }
    } while (std::chrono::steady_clock::now() < deadline);
    std::unique_lock<std::mutex> lock(sleep_mutex_);
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    wake_.wait(lock, [&] { return job_number() != last_job; });
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
    return job_number();
  }

  std::atomic<bool> busy_{false};
  int threads_ = 0;

  detail::IndexFunction function_ = nullptr;
  void* context_ = nullptr;
  std::int64_t count_ = 0;
  alignas(64) std::atomic<std::int64_t> next_{0};
  alignas(64) std::atomic<int> finished_{0};
  alignas(64) std::atomic<std::uint64_t> ticket_{0};

  std::mutex sleep_mutex_;
  std::condition_variable wake_;
  std::atomic<int> sleepers_{0};
};

// Never destroyed: at exit the sleeping threads end with the process, and no destructor can race
// with a thread that still runs. Made when the library loads, so that no fork meets a half-made
// pool; it starts no thread before it is used.
std::atomic<ThreadPool*> pool{nullptr};
std::atomic<OpenMpParallel> openmp{nullptr};

void start_child() {
  // Its threads are gone, and its runtime does not know.
  openmp.store(nullptr, std::memory_order_release);
  // The parent's mutex may be held for ever.
  pool.store(new ThreadPool, std::memory_order_release);
}

// One loop on an OpenMP team. The team has the runtime's own size whatever the loop asks for:
// another size would make the runtime end threads and start them again later.
struct TeamLoop {
  detail::IndexFunction function;
  void* context;
  std::int64_t count;
  int num_threads;
  std::atomic<int> joined{0};
  std::atomic<std::int64_t> next{0};

  static void body(void* data) {
    TeamLoop& loop = *static_cast<TeamLoop*>(data);
    if (loop.joined.fetch_add(1, std::memory_order_relaxed) >= loop.num_threads) return;
    for (;;) {
      const std::int64_t index = loop.next.fetch_add(1, std::memory_order_relaxed);
      if (index >= loop.count) return;
      loop.function(loop.context, index);
    }
  }
};

const bool pool_ready = [] {
  pool.store(new ThreadPool, std::memory_order_release);
#ifdef SPARSE_RUNTIME_HAS_FORK
  pthread_atfork(nullptr, nullptr, start_child);
#endif
  return true;
}();

}  // namespace

int usable_cpus() {
  const int cpus = static_cast<int>(std::thread::hardware_concurrency());
  return std::clamp(cpus, 1, kMaxThreads);
}

void use_openmp(OpenMpParallel parallel) {
  openmp.store(parallel, std::memory_order_release);
}

namespace detail {

void run_indices(std::int64_t count, int num_threads, IndexFunction function, void* context) {
  const std::int64_t wanted = std::min<std::int64_t>({count, num_threads, kMaxThreads});
  const OpenMpParallel team = openmp.load(std::memory_order_acquire);
  if (wanted > 1 && team != nullptr) {
    TeamLoop loop{function, context, count, static_cast<int>(wanted)};
    team(&TeamLoop::body, &loop, 0, 0);
    return;
  }
  ThreadPool* const mine = pool.load(std::memory_order_acquire);
  if (wanted > 1 && mine->try_acquire()) {
    mine->run(count, static_cast<int>(wanted), function, context);
    mine->release();
    return;
  }
  for (std::int64_t index = 0; index < count; ++index) function(context, index);
}

}  // namespace detail
}  // namespace sparse_runtime
