// Eight AMX tiles of 16 rows of 64 bytes, as every kernel on them uses them. To be included within
// a unit's anonymous namespace.

struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Static: the compiler may leave the stores to a local one out, for it sees eight bytes of it read.
constexpr TileConfig kConfig;
