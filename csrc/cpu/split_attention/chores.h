// What the vector units do between instructions of the matrix unit, a few nanoseconds at a time:
// both work side by side only within the few hundred operations that a core looks ahead. Each chore
// is `units()` calls of `step()`. To be included within the unit's anonymous namespace, after
// weigh.h.

template <typename First, typename Second>
class Then {
 public:
  Then(First& first, Second& second) : first_(first), second_(second) {}
  std::int64_t units() const { return first_.units() + second_.units(); }
  bool done() const { return first_.done() && second_.done(); }
  SIMD_INLINE void step() {
    if (!first_.done()) {
      first_.step();
    } else {
      second_.step();
    }
  }

 private:
  First& first_;
  Second& second_;
};

// A chore in even shares over `parts` calls.
template <typename Chore>
class Shares {
 public:
  Shares(Chore& chore, std::int64_t parts) : chore_(chore), units_(chore.units()), parts_(parts) {}

  SIMD_INLINE void operator()() {
    due_ += units_;
    for (; due_ >= parts_ && !chore_.done(); due_ -= parts_) chore_.step();
  }

  void finish() {
    while (!chore_.done()) chore_.step();
  }

 private:
  Chore& chore_;
  const std::int64_t units_;
  const std::int64_t parts_;
  std::int64_t due_ = 0;  // units, times parts
};

// Splits the values of `count` tokens, a multiple of kStep, into operands [token / 32][feature /
// 16].
class ValueSplitter {
 public:
  ValueSplitter(const Rows& rows, std::int64_t token, std::int64_t count, std::int64_t padded,
                std::uint16_t* operands, Magnitude& magnitude)
      : rows_(rows),
        magnitude_(magnitude),
        padded_(padded),
        token_(token),
        operands_(operands),
        units_(count / kStep * padded) {}

  std::int64_t units() const { return units_; }
  bool done() const { return units_ == unit_; }

  SIMD_INLINE void step() {
    const Reader low(rows_, token_), high(rows_, token_ + 16);
    low.fetch(feature_ + kAhead);
    split_row(low(feature_), high(feature_), operands_, feature_ % kTileRows, magnitude_);
    ++unit_;
    ++feature_;
    if (feature_ % kTileRows == 0) operands_ += kOperandSize;
    if (feature_ == padded_) {
      feature_ = 0;
      token_ += kStep;
    }
  }

 private:
  const Rows rows_;
  Magnitude& magnitude_;
  const std::int64_t padded_;
  std::int64_t token_;
  std::uint16_t* operands_;
  const std::int64_t units_;
  std::int64_t unit_ = 0;
  std::int64_t feature_ = 0;
};

// Splits queries of `vectors` times sixteen tokens into operands [vector][feature / 32].
class QuerySplitter {
 public:
  QuerySplitter(const Rows& rows, std::int64_t token, std::int64_t vectors, std::int64_t padded,
                std::uint16_t* operands, Magnitude& magnitude)
      : rows_(rows),
        magnitude_(magnitude),
        padded_(padded),
        token_(token),
        operands_(operands),
        units_(vectors * (padded / 2)) {}

  std::int64_t units() const { return units_; }
  bool done() const { return units_ == unit_; }

  SIMD_INLINE void step() {
    const Reader read(rows_, token_);
    const std::int64_t feature = first_ + row_;
    read.fetch(feature + kAhead);
    read.fetch(feature + kAhead + 16);
    split_row(read(feature), read(feature + 16), operands_, row_, magnitude_);
    ++unit_;
    if (++row_ < kTileRows) return;
    row_ = 0;
    operands_ += kOperandSize;
    first_ += kStep;
    if (first_ == padded_) {
      first_ = 0;
      token_ += kTileRows;
    }
  }

 private:
  const Rows rows_;
  Magnitude& magnitude_;
  const std::int64_t padded_;
  std::int64_t token_;
  std::uint16_t* operands_;
  const std::int64_t units_;
  std::int64_t unit_ = 0;
  std::int64_t first_ = 0;  // of 32 features
  std::int64_t row_ = 0;
};

// Brings the lines that will be written.
class Fetcher {
 public:
  Fetcher(float* const (&lines)[kVectors], std::int64_t features)
      : lines_{lines[0], lines[1]}, units_(features) {}

  std::int64_t units() const { return units_; }
  bool done() const { return units_ == unit_; }

  SIMD_INLINE void step() {
    for (float* line : lines_) {
      __asm__ volatile("prefetchw %0" : : "m"(line[unit_ * panels::kSlots]));
    }
    ++unit_;
  }

 private:
  float* const lines_[kVectors];
  const std::int64_t units_;
  std::int64_t unit_ = 0;
};
