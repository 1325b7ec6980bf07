// A persistent pool of std::threads. Not OpenMP: torch brings its own OpenMP runtime, and two of
// them in one process compete for the same cores.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

namespace sparse_runtime {

// Threads that one parallel_for can use at most.
constexpr int kMaxThreads = 256;

// CPUs this process may run on, at least 1, at most kMaxThreads.
int usable_cpus();

namespace detail {
using IndexFunction = void (*)(void* context, std::int64_t index);
void run_indices(std::int64_t count, int num_threads, IndexFunction function, void* context);
}  // namespace detail

// Calls fn(index) once for every index in [0, count), on at most num_threads threads, the calling
// one among them; returns when all calls are done. fn must not throw.
//
// Safe from any thread: while one caller has the pool, other callers (and nested calls) run their
// indices serially on their own thread. A forked child starts with a fresh pool.
template <typename Fn>
void parallel_for(std::int64_t count, int num_threads, Fn&& fn) {
  using F = std::remove_reference_t<Fn>;
  detail::run_indices(
      count, num_threads,
      [](void* context, std::int64_t index) { (*static_cast<F*>(context))(index); },
      const_cast<void*>(static_cast<const void*>(&fn)));
}

}  // namespace sparse_runtime
