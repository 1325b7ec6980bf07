// One forward pass: operations are recorded, and run together when a result is asked for.
//
// Recording first lets each operation know who reads its result: a linear hands its consumer bytes
// quantized for it, in the form that its kernel reads, straight from the epilogue or the
// normalization, and floats are written only where a residual or the caller needs them. And all
// stages of the pass run in one parallel region.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/panels.h"
#include "core/stages.h"
#include "cpu/encoder/ending.h"
#include "cpu/encoder/layers.h"
#include "cpu/encoder/product.h"
#include "cpu/encoder/tiling.h"
#include "cpu/encoder/workspace.h"
#include "cpu/isa.h"
#include "cpu/panel_attention/panel_attention.h"
#include "cpu/token_ops/token_ops.h"

namespace sparse_runtime::encoder {

using ValueId = std::size_t;
constexpr ValueId kNoValue = static_cast<ValueId>(-1);

// One parallel stage's label and seconds.
using StageTimes = std::vector<std::pair<std::string, double>>;

class Recording;

class Forward {
 public:
  // Sequences follow each other in the stream; their lengths sum to its tokens, at least 1.
  // far_cores: a line of the cache may take long from one core to another.
  Forward(std::vector<Sequence> sequences, int num_threads, Isa isa,
          std::shared_ptr<WorkspacePool> pool, bool far_cores);
  ~Forward();
  Forward(const Forward&) = delete;
  Forward& operator=(const Forward&) = delete;

  // Pointers must stay valid until run() returns. Norms and linears may be null only where said.
  ValueId embed(std::vector<Table> tables, std::vector<const std::int64_t*> ids,
                std::int64_t features, std::shared_ptr<const Norm> norm_or_null);
  ValueId from_rows(const float* rows, std::int64_t stride, std::int64_t features,
                    std::shared_ptr<const Norm> norm_or_null);
  // norm(activation(linear(x)) + residual)
  ValueId linear(ValueId x, std::shared_ptr<const Linear> linear, token_ops::Activation activation,
                 ValueId residual, std::shared_ptr<const Norm> norm_or_null);
  // quantizers: or null, attention in floats. With them, throws std::invalid_argument where a sum
  // of integers could leave 32 bits.
  ValueId attention(ValueId qkv, std::int64_t heads, float scale, const float* bias,
                    std::int64_t span,
                    std::shared_ptr<const panel_attention::Quantizers> quantizers);
  void to_rows(ValueId x, float* rows, std::int64_t stride);

  // Nobody outside will name this value again.
  void release(ValueId x);

  // Runs what was recorded since the last run. times: filled if not null.
  void run(StageTimes* times = nullptr);

  // What leads from one embed() to x, to be recorded again for other tokens. Null where something
  // else of the caller's went in, or has run already.
  std::shared_ptr<const Recording> recording(ValueId x) const;
  // ids: as many as embed() had.
  void replay(const Recording& recording, std::vector<const std::int64_t*> ids, float* rows,
              std::int64_t stride);

  // Throws std::invalid_argument if a sequence's positions do not lie within attention's bias.
  void check_span(std::int64_t span) const;

  std::int64_t tokens() const { return tokens_; }
  std::int64_t features(ValueId x) const { return values_[x].features; }

 private:
  enum class Op { kEmbed, kFromRows, kLinear, kAttention, kToRows };

  friend class Recording;

  struct Node {
    explicit Node(Op operation) : op(operation) {}
    Op op;
    ValueId x = kNoValue;
    ValueId y = kNoValue;
    ValueId residual = kNoValue;
    std::shared_ptr<const Linear> linear;
    std::shared_ptr<const Norm> norm;
    token_ops::Activation activation = token_ops::Activation::kNone;
    std::vector<Table> tables;
    std::vector<const std::int64_t*> ids;
    std::int64_t heads = 0;
    float scale = 1.0f;
    const float* bias = nullptr;
    std::int64_t span = 0;
    std::shared_ptr<const panel_attention::Quantizers> quantizers;
    const float* rows_in = nullptr;
    float* rows_out = nullptr;
    std::int64_t stride = 0;
  };

  struct Value {
    std::int64_t features = 0;
    bool held = true;             // somebody outside may still name it
    int readers = 0;              // recorded operations that have not been planned yet
    std::vector<Form> wanted;     // by them
    std::vector<Shape> shapes;    // materialised
    bool attention_bf16 = false;  // its producer can write that form
  };

  ValueId new_value(std::int64_t features);
  void read_by(ValueId x, const Form& form);
  Form form_for(const Linear& linear) const;

  void plan(const Node& node);
  void plan_embed(const Node& node);
  void plan_from_rows(const Node& node);
  void plan_linear(const Node& node);
  void plan_attention(const Node& node);
  void plan_to_rows(const Node& node);
  // A linear layer whose results the attention that follows alone reads, both head by head.
  bool goes_by_heads(const Node& qkv, const Node& attention) const;
  void plan_heads(const Node& qkv, const Node& attention);
  Product product_of(const Node& node);
  panel_attention::Problem problem_of(const Node& node) const;
  // Begins the ending of a value whose floats are about to be there: its shapes, its parts and
  // memory for their statistics. Null where nothing is wanted of it but floats.
  std::shared_ptr<Ending> begin_ending(ValueId y, float* floats, std::shared_ptr<const Norm> norm,
                                       std::int64_t part_rows);
  // Adds the stages that are left: all of them, or those after the first step.
  void end_by_parts(const std::shared_ptr<Ending>& ending, bool first_done,
                    const std::string& label);
  void end_whole(const std::shared_ptr<Ending>& ending, const std::string& label);
  // All stages, in whichever way the number of panels calls for.
  void end_apart(ValueId y, float* floats, std::shared_ptr<const Norm> norm,
                 const std::string& label);
  // Keeps the floats if somebody wants them, and frees what the ending alone needed.
  void close_ending(ValueId y, float* floats, const std::shared_ptr<Ending>& ending);
  void done_reading(ValueId x);
  void drop_shapes(Value& value);

  bool wants(const Value& value, Form::Kind kind) const;
  // Creates the shape with memory; its contents come from a stage.
  Shape& add_shape(ValueId x, const Form& form);
  Shape* find_shape(ValueId x, const Form& form);
  // The shape, after adding a conversion from floats where it is missing.
  Shape& shape_of(ValueId x, const Form& form);
  float* take_floats(std::int64_t features);
  // The memory of a value's floats, for the caller to give back, if nobody reads them after the
  // operation that is being planned; else null.
  float* take_over(ValueId x);

  std::int64_t longest_sequence() const;
  void lay_out_panels();
  int vectors_of(std::int64_t panel) const;
  std::int64_t tokens_of(std::int64_t panel) const;
  // Whether each panel may be one task: they share out evenly, or are enough for it not to matter.
  bool many_panels() const {
    return shares_evenly(panels_, num_threads_) || panels_ >= 3 * num_threads_;
  }
  // How many columns of its rows a task transposes.
  std::int64_t columns_of_task(std::int64_t features) const;
  char* worker_scratch(int worker) const { return scratch_ + scratch_bytes_ * worker; }
  void need_scratch(std::int64_t bytes);
  void add_stage(std::string label, std::int64_t tasks, std::function<void(std::int64_t, int)> run);

  const std::vector<Sequence> sequences_;
  const std::int64_t tokens_;
  // How the stream lies in panels (core/panels.h); known once it runs.
  std::int64_t filled_ = panels::kSlots;
  std::int64_t panels_ = 0;
  const int num_threads_;
  const Isa isa_;
  const token_ops::Kernels& ops_;
  const bool far_cores_;
  const std::shared_ptr<WorkspacePool> pool_;  // lives as long as any pass
  std::unique_ptr<Workspace> workspace_;
  std::vector<Value> values_;
  std::vector<Node> pending_;
  std::vector<Stage> stages_;
  bool has_run_ = false;
  char* scratch_ = nullptr;
  std::int64_t scratch_bytes_ = 0;  // per worker
};

// The operations of a pass without its tokens. Embedding tables must live as long as it is used.
class Recording {
 public:
  const std::vector<Table>& tables() const { return nodes_.front().tables; }
  std::int64_t features() const { return features_; }

 private:
  friend class Forward;
  std::vector<Forward::Node> nodes_;
  ValueId result_ = kNoValue;
  std::int64_t features_ = 0;  // of the result
  std::int64_t embedding_features_ = 0;
};

}  // namespace sparse_runtime::encoder
