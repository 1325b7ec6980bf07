// Large blocks of memory, on huge pages where the system has them for the asking: activations are
// read at strides of a page and more, and a virtual machine's page walks are long.
#pragma once

#include <cstddef>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sparse_runtime {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
// Smaller blocks would waste most of a huge page.
constexpr std::size_t kHugeWorthwhile = kHugePage / 2;

inline std::align_val_t page_alignment(std::size_t bytes) {
  return std::align_val_t{bytes >= kHugeWorthwhile ? kHugePage : 64};
}

// What a block of at least `bytes` takes.
inline std::size_t page_bytes(std::size_t bytes) {
  const std::size_t granularity = bytes >= kHugeWorthwhile ? kHugePage : 4096;
  return (bytes + granularity - 1) / granularity * granularity;
}

// bytes: of page_bytes(). 64-byte aligned, contents unspecified. Throws std::bad_alloc.
inline void* allocate_pages(std::size_t bytes) {
  void* memory = ::operator new(bytes, page_alignment(bytes));
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  // Refused, the block has pages as they are.
  if (bytes >= kHugePage) static_cast<void>(madvise(memory, bytes, MADV_HUGEPAGE));
#endif
  return memory;
}

inline void free_pages(void* memory, std::size_t bytes) {
  ::operator delete(memory, page_alignment(bytes));
}

}  // namespace sparse_runtime
