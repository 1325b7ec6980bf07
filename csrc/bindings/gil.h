// Runs C++ without Python's global lock.
#pragma once

#include <pybind11/pybind11.h>

namespace sparse_runtime::bindings {

// Unlike py::gil_scoped_release, its destructor may throw: while the interpreter shuts down, Python
// ends a daemon thread that asks for the lock by pthread_exit, which unwinds the stack, and an
// unwinding that meets a noexcept destructor aborts the process.
class WithoutGil {
 public:
  WithoutGil() : thread_(PyEval_SaveThread()) {}
  ~WithoutGil() noexcept(false) { PyEval_RestoreThread(thread_); }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* thread_;
};

}  // namespace sparse_runtime::bindings
