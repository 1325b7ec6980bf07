// Loops over indices on several threads: those of the OpenMP runtime that the process already has,
// where its entry point is made known, else a persistent pool of std::threads.
//
// Two sets of threads in one process compete for the same cores: after a parallel region the
// threads of libgomp go on spinning for milliseconds, and a second pool has to wait for the
// scheduler to take a core from them. So this library neither brings an OpenMP runtime of its own
// nor uses its pool beside one.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

namespace sparse_runtime {

// Threads that one parallel_for can use at most.
constexpr int kMaxThreads = 256;

// CPUs this process may run on, at least 1, at most kMaxThreads.
int usable_cpus();

// GOMP_parallel, which libgomp, libiomp5 and LLVM's libomp export: runs body(data) on a team of
// threads, the calling one among them; num_threads 0 takes the runtime's own number.
using OpenMpParallel = void (*)(void (*body)(void* data), void* data, unsigned num_threads,
                                unsigned flags);

// Runs loops on this runtime's threads from now on, nullptr on the pool. A forked child always uses
// the pool: OpenMP runtimes do not survive a fork.
void use_openmp(OpenMpParallel parallel);

namespace detail {
using IndexFunction = void (*)(void* context, std::int64_t index);
void run_indices(std::int64_t count, int num_threads, IndexFunction function, void* context);
}  // namespace detail

// Calls fn(index) once for every index in [0, count), on at most num_threads threads, the calling
// one among them; returns when all calls are done. fn must not throw.
//
// Safe from any thread. While one caller has the pool, other callers (and nested calls) run their
// indices serially on their own thread; an OpenMP runtime gives each caller a team. A forked child
// starts with a fresh pool.
template <typename Fn>
void parallel_for(std::int64_t count, int num_threads, Fn&& fn) {
  using F = std::remove_reference_t<Fn>;
  detail::run_indices(
      count, num_threads,
      [](void* context, std::int64_t index) { (*static_cast<F*>(context))(index); },
      const_cast<void*>(static_cast<const void*>(&fn)));
}

}  // namespace sparse_runtime
