// Memory for activations: taken and given back within a forward pass, kept between passes.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

namespace sparse_runtime::encoder {

// Not thread-safe: one forward pass has it at a time.
class Workspace {
 public:
  Workspace() = default;
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // 64-byte aligned, contents unspecified. Throws std::bad_alloc.
  void* take(std::size_t bytes);
  void give(void* memory);
  // At least this many bytes that are no block's, until the next call; contents unspecified.
  char* scratch(std::size_t bytes);
  std::size_t bytes() const;  // held from the system
  void give_all();
  // Frees the largest blocks until no more than `keep` bytes are held. None may be in use.
  void trim(std::size_t keep);

 private:
  struct Block {
    void* memory;
    std::size_t bytes;
    bool used;
  };
  std::vector<Block> blocks_;
  void* scratch_ = nullptr;
  std::size_t scratch_bytes_ = 0;
};

// The workspaces of one model: as many as passes run at the same time.
class WorkspacePool {
 public:
  std::unique_ptr<Workspace> take();
  void give(std::unique_ptr<Workspace> workspace);
  std::size_t bytes() const;  // of those not in use

 private:
  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<Workspace>> free_;
};

}  // namespace sparse_runtime::encoder
