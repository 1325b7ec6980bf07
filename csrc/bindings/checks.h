// Checks of arguments that come from Python. Failures throw std::invalid_argument, which pybind11
// turns into ValueError; every message names the function, the argument, what was expected and
// what came.
#pragma once

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

namespace sparse_runtime::bindings {

// The largest array one may address, in bytes.
constexpr std::int64_t kMaxBytes = std::numeric_limits<std::int64_t>::max() / 4;

class Checks {
 public:
  explicit Checks(const char* function) : function_(function) {}

  [[noreturn]] void fail(const char* argument, const std::string& expected,
                         const std::string& got) const {
    throw std::invalid_argument(std::string(function_) + ": " + argument + ": expected " +
                                expected + "; got " + got);
  }

  void range(const char* argument, std::int64_t value, std::int64_t low, std::int64_t high) const {
    if (value >= low && value <= high) return;
    fail(argument, "a value in " + std::to_string(low) + ".." + std::to_string(high),
         std::to_string(value));
  }

  // Bytes of rows x columns elements whose rows start `stride` elements apart.
  std::int64_t matrix_bytes(const char* stride_name, std::int64_t rows, std::int64_t columns,
                            std::int64_t stride, std::int64_t element_bytes) const {
    if (rows <= 0 || columns <= 0) return 0;
    if (rows == 1) stride = columns;  // never used to step
    if (stride < columns) {
      fail(stride_name, "at least the row length " + std::to_string(columns),
           std::to_string(stride));
    }
    std::int64_t elements = 0;
    if (__builtin_mul_overflow(rows, stride, &elements) || elements > kMaxBytes / element_bytes) {
      fail(stride_name, "an array below 2^61 bytes",
           std::to_string(rows) + " rows of " + std::to_string(stride) + " elements");
    }
    return elements * element_bytes;
  }

  // The address of `bytes` bytes (at least; zero bytes may be at null).
  template <typename Element>
  Element* pointer(const char* argument, std::uintptr_t address, std::int64_t bytes) const {
    if (bytes == 0) return reinterpret_cast<Element*>(address);
    if (address == 0) fail(argument, "a non-null address", "0");
    if (address % alignof(Element) != 0) {
      fail(argument, "an address that is a multiple of " + std::to_string(alignof(Element)),
           std::to_string(address));
    }
    if (address > std::numeric_limits<std::uintptr_t>::max() - static_cast<std::uintptr_t>(bytes)) {
      fail(argument, "an array that ends within the address space", std::to_string(address));
    }
    return reinterpret_cast<Element*>(address);
  }

 private:
  const char* function_;
};

}  // namespace sparse_runtime::bindings
