// CUDA thread blocks on the host, for tests: what a kernel computes, and which addresses it
// touches.
//
// Every thread of a block is a fiber. It runs until it reaches something that threads do together
// (a barrier, a shuffle, a matrix product), waits there until all who take part have come, and goes
// on. Shared memory and the ranges that a test has named are the only ones that may be read or
// written. Copies that a kernel starts arrive as late as the program allows: until then their
// target holds bytes that no test expects. Blocks run one after the other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace sparse_runtime::emulate {

constexpr int kWarp = 32;

// A range of global memory that a kernel may use.
struct Range {
  const void* begin;
  std::size_t bytes;
  bool writable;
};

struct Launch {
  int blocks_x = 1;
  int blocks_y = 1;
  int threads = kWarp;
  std::size_t shared_bytes = 0;
  std::vector<Range> memory;
  // In which order runnable threads go on; another seed shows what depends on it.
  std::uint32_t seed = 0;
};

// Runs `kernel` in every thread of every block. Throws std::runtime_error: an address outside of
// all ranges or misaligned, threads that wait for each other at different places, or a copy never
// waited for. The message names the block and the thread.
void run(const Launch& launch, const std::function<void()>& kernel);

// What follows is called by kernels, through ptx.h.
int thread();
int block_x();
int block_y();
void* shared();
void check_global(const void* address, std::size_t bytes, std::size_t alignment, bool write);
void check_shared(const void* address, std::size_t bytes, std::size_t alignment);
void sync_threads();
// All lanes of a warp come with their operands; `together` is run once, on those of lanes 0 to 31.
void sync_warp(const char* what, void* operands, void (*together)(void* const* lanes));
void copy_async(void* shared, const void* global, std::size_t bytes, std::size_t valid);
void commit_copies();
void wait_copies(int groups_in_flight);

}  // namespace sparse_runtime::emulate
