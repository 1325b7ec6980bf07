// Rows with units of their own, four side by side. To be included within the unit's anonymous
// namespace, by bands.h, after band4.h.

// A group of rows and a block of inputs of the band1 layouts.
struct Part {
  const std::int8_t* values;
  const std::uint16_t* index;
  const RowUnits* order;
  std::int64_t rows;
  bool first;             // of the row's blocks
  const std::uint8_t* x;  // of the block
  std::int32_t* acc;      // of the group
};

// Rows without units are last, and only the first block need write their sums.
SIMD_INLINE bool ends_at(const Part& part, std::int64_t row) {
  return row >= part.rows || (!part.first && part.order[row].units == 0);
}

SIMD_INLINE void add_to(std::int32_t* acc, I sum, bool first) {
  store(acc, first ? sum : load<I>(acc) + sum);
}

template <int kGroups>
void grouped_fours(const Part& part, int slot) {
  const std::int8_t* values = part.values;
  const std::uint16_t* index = part.index;
  const std::uint8_t* x = part.x + 4 * slot;
  for (std::int64_t row = 0; !ends_at(part, row); row += kBand) {
    const RowUnits* order = part.order + row;
    I sums[kBand][kGroups];
    UNROLL
    for (int r = 0; r < kBand; ++r) {
      UNROLL
      for (int g = 0; g < kGroups; ++g) sums[r][g] = I{};
    }
    for (int units = order->units; units > 0; --units) {
      const std::uint64_t offsets = four_at(index);
      fetch_ahead(values, index);
      const FourWords words(values);
      UNROLL
      for (int r = 0; r < kBand; ++r) {
        const std::uint8_t* from = x + one_of(offsets, r);
        const U w = words[r];
        UNROLL
        for (int g = 0; g < kGroups; ++g) {
          sums[r][g] = dot4(sums[r][g], load<U>(from + 4 * kLanes * g), w);
        }
      }
      values += kBand * kUnit;
      index += kBand;
    }
    UNROLL
    for (int r = 0; r < kBand; ++r) {
      std::int32_t* acc = part.acc + order[r].row * kPanelSlots + slot;
      UNROLL
      for (int g = 0; g < kGroups; ++g) add_to(acc + g * kLanes, sums[r][g], part.first);
    }
  }
}

// kRows of four rows.
template <int kRows, int kVectors>
SIMD_INLINE void gathered_four(const std::int8_t* values, const std::uint16_t* index, int units,
                               const RowUnits* order, const Part& part, int lanes) {
  I sums[kRows][kVectors];
  UNROLL
  for (int r = 0; r < kRows; ++r) {
    UNROLL
    for (int v = 0; v < kVectors; ++v) sums[r][v] = I{};
  }
  for (; units > 0; --units) {
    fetch_ahead(values, index);
    UNROLL
    for (int r = 0; r < kRows; ++r) {
      U inputs[4];
      interleave(part.x, four_at(index + r * kUnit), 1, lanes, inputs);
      const U w = spread_at(values + r * kUnit);
      UNROLL
      for (int v = 0; v < kVectors; ++v) sums[r][v] = dot4(sums[r][v], inputs[v], w);
    }
    values += kBand * kUnit;
    index += kBand * kUnit;
  }
  UNROLL
  for (int r = 0; r < kRows; ++r) {
    std::int32_t* acc = part.acc + order[r].row * kPanelSlots + lanes * kLanes;
    UNROLL
    for (int v = 0; v < kVectors; ++v) add_to(acc + 16 * v, sums[r][v], part.first);
  }
}

template <int kVectors>
void gathered_fours(const Part& part) {
  // Rows whose sums for four vectors fit the registers.
  constexpr int kRows = kRegisterLanes >= 4 * 16 ? kBand : kBand / 2;
  const std::int8_t* values = part.values;
  const std::uint16_t* index = part.index;
  for (std::int64_t row = 0; !ends_at(part, row); row += kBand) {
    const int units = part.order[row].units;
    for (int lanes = 0; lanes < kParts; ++lanes) {
      for (int r = 0; r < kBand; r += kRows) {
        gathered_four<kRows, kVectors>(values + r * kUnit, index + r * kUnit, units,
                                       part.order + row + r, part, lanes);
      }
    }
    values += units * kBand * kUnit;
    index += units * kBand * kUnit;
  }
}

void band1_grouped_part(const Part& part, int vectors) {
  over_slots(vectors, [&](auto groups, int slot) { grouped_fours<groups.value>(part, slot); });
}

void band1_gathered_part(const Part& part, int vectors) {
  switch (vectors) {
    case 1:
      return gathered_fours<1>(part);
    case 2:
      return gathered_fours<2>(part);
    case 3:
      return gathered_fours<3>(part);
    default:
      return gathered_fours<4>(part);
  }
}

// Every block of inputs passes over all rows of the call before the next one does.
template <bool kGathered>
void band1(const WeightView& w, const Call& call) {
  const std::int64_t group = row_group(w.layout, w.n, w.k), blocks = input_blocks(w.k);
  for (int p = 0; p < call.panels; ++p) {
    const int vectors = p + 1 == call.panels ? call.last_vectors : 4;
    const std::uint8_t* x = call.x + p * call.panel_stride;
    std::int32_t* acc = call.acc + p * call.rows * kPanelSlots;
    for (std::int64_t block = 0; block < blocks; ++block) {
      for (std::int64_t r = 0; r < call.rows; r += group) {
        const std::int64_t row = call.row + r, left = call.rows - r;
        const std::int64_t rows = left < group ? left : group;
        const std::int64_t start = w.starts[row / group * blocks + block];
        const Part part = {w.values + start * kUnit,
                           w.index + start * (kGathered ? kUnit : 1),
                           w.order + (row * blocks + block * rows),
                           rows,
                           block == 0,
                           x + block * kInputBlock * kPanelSlots,
                           acc + r * kPanelSlots};
        kGathered ? band1_gathered_part(part, vectors) : band1_grouped_part(part, vectors);
      }
    }
  }
}
