#include "emulate.h"

#include <ucontext.h>

#include <cstring>
#include <exception>
#include <memory>
#include <random>
#include <stdexcept>

namespace sparse_runtime::emulate {
namespace {

constexpr std::size_t kStack = 256 * 1024;
constexpr unsigned char kNotYet = 0xA5;  // in the target of a copy that has not arrived

struct Copy {
  void* to;
  const void* from;
  std::size_t bytes, valid;
};

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool done = false;
  bool waits = false;
  std::vector<Copy> open;                 // not committed yet
  std::vector<std::vector<Copy>> groups;  // committed, not waited for
};

struct Warp {
  const char* what = nullptr;
  void* operands[kWarp];
  int arrived = 0;
};

struct Block {
  const Launch* launch;
  const std::function<void()>* kernel;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<unsigned char> shared_memory;
  unsigned char* shared = nullptr;
  int x = 0, y = 0;
  int current = 0;
  int at_barrier = 0;
  ucontext_t scheduler;
  std::exception_ptr error;
};

Block* block = nullptr;

Thread& self() {
  return block->threads[block->current];
}

[[noreturn]] void fail(const std::string& what) {
  throw std::runtime_error("block (" + std::to_string(block->x) + ", " + std::to_string(block->y) +
                           "), thread " + std::to_string(block->current) + ": " + what);
}

void yield() {
  self().waits = true;
  swapcontext(&self().context, &block->scheduler);
}

void wake(int first, int count) {
  for (int i = first; i < first + count; ++i) block->threads[i].waits = false;
}

void enter() {
  try {
    (*block->kernel)();
    if (!self().open.empty() || !self().groups.empty()) fail("ends before its copies have arrived");
  } catch (...) {
    if (!block->error) block->error = std::current_exception();
  }
  self().done = true;
  swapcontext(&self().context, &block->scheduler);
}

void start(Thread& thread) {
  getcontext(&thread.context);
  thread.context.uc_stack.ss_sp = thread.stack.get();
  thread.context.uc_stack.ss_size = kStack;
  thread.context.uc_link = nullptr;
  makecontext(&thread.context, enter, 0);
  thread.done = thread.waits = false;
  thread.open.clear();
  thread.groups.clear();
}

void run_block(std::mt19937& random) {
  const int count = block->launch->threads;
  std::memset(block->shared_memory.data(), kNotYet, block->shared_memory.size());
  for (Warp& warp : block->warps) warp.arrived = 0;
  block->at_barrier = 0;
  for (Thread& thread : block->threads) start(thread);
  int left = count;
  while (left > 0 && !block->error) {
    const int first = block->launch->seed ? static_cast<int>(random() % count) : 0;
    bool moved = false;
    for (int i = 0; i < count && !block->error; ++i) {
      block->current = (first + i) % count;
      if (self().done || self().waits) continue;
      moved = true;
      swapcontext(&block->scheduler, &self().context);
      left -= self().done;
    }
    if (!moved && !block->error) {
      try {
        fail("threads wait for others that have ended or wait elsewhere");
      } catch (...) {
        block->error = std::current_exception();
      }
    }
  }
  if (block->error) std::rethrow_exception(block->error);
}

void arrive(const Copy& copy) {
  std::memcpy(copy.to, copy.from, copy.valid);
  std::memset(static_cast<char*>(copy.to) + copy.valid, 0, copy.bytes - copy.valid);
}

bool holds(const void* begin, std::size_t size, const void* address, std::size_t bytes) {
  const auto first = reinterpret_cast<std::uintptr_t>(begin);
  const auto at = reinterpret_cast<std::uintptr_t>(address);
  return at >= first && bytes <= size && at - first <= size - bytes;
}

std::string described(const void* address, std::size_t bytes) {
  return std::to_string(bytes) + " bytes at " +
         std::to_string(reinterpret_cast<std::uintptr_t>(address));
}

}  // namespace

void run(const Launch& launch, const std::function<void()>& kernel) {
  if (launch.threads < 1 || launch.threads % kWarp) {
    throw std::runtime_error("threads: expected a multiple of 32, got " +
                             std::to_string(launch.threads));
  }
  Block here;
  here.launch = &launch;
  here.kernel = &kernel;
  here.threads.resize(launch.threads);
  here.warps.resize(launch.threads / kWarp);
  here.shared_memory.resize(launch.shared_bytes + 1024);
  const auto base = reinterpret_cast<std::uintptr_t>(here.shared_memory.data());
  here.shared = here.shared_memory.data() + (1024 - base % 1024) % 1024;
  Block* const outer = block;
  block = &here;
  std::mt19937 random(launch.seed);
  try {
    for (here.y = 0; here.y < launch.blocks_y; ++here.y) {
      for (here.x = 0; here.x < launch.blocks_x; ++here.x) run_block(random);
    }
  } catch (...) {
    block = outer;
    throw;
  }
  block = outer;
}

int thread() {
  return block->current;
}
int block_x() {
  return block->x;
}
int block_y() {
  return block->y;
}
void* shared() {
  return block->shared;
}

void check_global(const void* address, std::size_t bytes, std::size_t alignment, bool write) {
  if (reinterpret_cast<std::uintptr_t>(address) % alignment) {
    fail("misaligned global access, " + described(address, bytes));
  }
  for (const Range& range : block->launch->memory) {
    if (holds(range.begin, range.bytes, address, bytes) && (range.writable || !write)) return;
  }
  fail((write ? "global write out of bounds, " : "global read out of bounds, ") +
       described(address, bytes));
}

void check_shared(const void* address, std::size_t bytes, std::size_t alignment) {
  if (reinterpret_cast<std::uintptr_t>(address) % alignment) {
    fail("misaligned shared access, " + described(address, bytes));
  }
  if (!holds(block->shared, block->launch->shared_bytes, address, bytes)) {
    const auto offset = static_cast<const unsigned char*>(address) - block->shared;
    fail("shared access out of bounds, " + std::to_string(bytes) + " bytes at offset " +
         std::to_string(offset) + " of " + std::to_string(block->launch->shared_bytes));
  }
}

void sync_threads() {
  if (++block->at_barrier < block->launch->threads) {
    yield();
    return;
  }
  block->at_barrier = 0;
  wake(0, block->launch->threads);
}

void sync_warp(const char* what, void* operands, void (*together)(void* const* lanes)) {
  const int number = block->current / kWarp;
  Warp& warp = block->warps[number];
  if (warp.arrived && std::strcmp(warp.what, what)) {
    fail(std::string("comes to ") + what + " while its warp is at " + warp.what);
  }
  warp.what = what;
  warp.operands[block->current % kWarp] = operands;
  if (++warp.arrived < kWarp) {
    yield();
    return;
  }
  together(warp.operands);
  warp.arrived = 0;
  wake(number * kWarp, kWarp);
}

void copy_async(void* to, const void* from, std::size_t bytes, std::size_t valid) {
  check_shared(to, bytes, bytes);
  if (valid) check_global(from, valid, bytes, false);
  std::memset(to, kNotYet, bytes);
  self().open.push_back({to, from, bytes, valid});
}

void commit_copies() {
  self().groups.push_back(std::move(self().open));
  self().open.clear();
}

void wait_copies(int groups_in_flight) {
  auto& groups = self().groups;
  while (static_cast<int>(groups.size()) > groups_in_flight) {
    for (const Copy& copy : groups.front()) arrive(copy);
    groups.erase(groups.begin());
  }
}

}  // namespace sparse_runtime::emulate
