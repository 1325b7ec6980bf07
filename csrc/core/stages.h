// Runs a list of stages, each a loop over independent tasks, in one parallel region: the threads
// stay together from the first stage to the last, and a stage begins when the one before is done.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace sparse_runtime {

struct Stage {
  std::string label;  // for the time breakdown
  std::int64_t tasks;
  // Called once for each task; `worker` (0 .. num_threads - 1) is this thread's alone for as long
  // as the stages run. Must not throw.
  std::function<void(std::int64_t task, int worker)> run;
};

// Each worker begins with its own contiguous share of a stage's tasks and then helps the others, so
// that consecutive stages over the same panels find them in the same core's cache.
//
// Workers need not all show up: a stage ends when its tasks are done, whoever did them.
//
// seconds: each stage's wall time as worker 0 saw it, or null.
void run_stages(const std::vector<Stage>& stages, int num_threads, double* seconds = nullptr);

}  // namespace sparse_runtime
