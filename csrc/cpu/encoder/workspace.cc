#include "cpu/encoder/workspace.h"

#include <algorithm>
#include <utility>

#include "core/pages.h"

namespace sparse_runtime::encoder {
namespace {

// A free block may serve a request of at least a quarter of its size.
constexpr std::size_t kMostWaste = 4;
// Kept between passes; a pass that needs more has its largest blocks freed at its end.
constexpr std::size_t kKeptBytes = std::size_t{256} << 20;
constexpr std::size_t kGranularity = 4096;

}  // namespace

Workspace::~Workspace() {
  for (const Block& block : blocks_) free_pages(block.memory, block.bytes);
  if (scratch_ != nullptr) free_pages(scratch_, scratch_bytes_);
}

void* Workspace::take(std::size_t bytes) {
  bytes = std::max(bytes, std::size_t{1});
  Block* best = nullptr;
  for (Block& block : blocks_) {
    if (block.used || block.bytes < bytes || block.bytes / kMostWaste > bytes + kGranularity) {
      continue;
    }
    if (best == nullptr || block.bytes < best->bytes) best = &block;
  }
  if (best != nullptr) {
    best->used = true;
    return best->memory;
  }
  const std::size_t rounded = page_bytes(bytes);
  blocks_.reserve(blocks_.size() + 1);
  void* memory = allocate_pages(rounded);
  blocks_.push_back({memory, rounded, true});
  return memory;
}

void Workspace::give(void* memory) {
  for (Block& block : blocks_) {
    if (block.memory == memory) block.used = false;
  }
}

char* Workspace::scratch(std::size_t bytes) {
  if (scratch_bytes_ >= bytes) return static_cast<char*>(scratch_);
  if (scratch_ != nullptr) free_pages(scratch_, scratch_bytes_);
  scratch_ = nullptr;
  scratch_bytes_ = 0;
  scratch_ = allocate_pages(page_bytes(bytes));
  scratch_bytes_ = page_bytes(bytes);
  return static_cast<char*>(scratch_);
}

std::size_t Workspace::bytes() const {
  std::size_t total = scratch_bytes_;
  for (const Block& block : blocks_) total += block.bytes;
  return total;
}

void Workspace::trim(std::size_t keep) {
  std::sort(blocks_.begin(), blocks_.end(),
            [](const Block& a, const Block& b) { return a.bytes < b.bytes; });
  while (!blocks_.empty() && bytes() > keep) {
    free_pages(blocks_.back().memory, blocks_.back().bytes);
    blocks_.pop_back();
  }
}

void Workspace::give_all() {
  for (Block& block : blocks_) block.used = false;
}

std::unique_ptr<Workspace> WorkspacePool::take() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (free_.empty()) return std::make_unique<Workspace>();
  std::unique_ptr<Workspace> workspace = std::move(free_.back());
  free_.pop_back();
  return workspace;
}

void WorkspacePool::give(std::unique_ptr<Workspace> workspace) {
  workspace->give_all();  // a pass that failed has given nothing back
  workspace->trim(kKeptBytes);
  const std::lock_guard<std::mutex> lock(mutex_);
  free_.push_back(std::move(workspace));
}

std::size_t WorkspacePool::bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::size_t total = 0;
  for (const auto& workspace : free_) total += workspace->bytes();
  return total;
}

}  // namespace sparse_runtime::encoder
