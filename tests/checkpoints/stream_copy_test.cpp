// labels: quick
// The copy past the caches is memcpy: every length around its blocks, aligned or not, nothing written beside.
#include "checkpoints/kernels/stream_copy.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace cairn::checkpoints {
namespace {

TEST(StreamCopy, IsMemcpy) {
  std::vector<uint8_t> from(200'000), to(200'000);
  for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<uint8_t>(i * 2654435761u >> 13);
  for (size_t bytes : {0, 1, 15, 64, 4095, 4096, 32767, 32768, 32769, 65536, 70'001, 131'072, 163'841}) {
    for (size_t to_offset : {16, 32, 33}) {
      for (size_t from_offset : {0, 1, 7}) {
        std::fill(to.begin(), to.end(), 0xee);
        uint8_t* target =
            to.data() + (16 - reinterpret_cast<uintptr_t>(to.data()) % 16) % 16 + to_offset;  // 33: not aligned
        stream_copy(target, from.data() + from_offset, bytes);
        ASSERT_EQ(std::memcmp(target, from.data() + from_offset, bytes), 0)
            << bytes << " " << to_offset << " " << from_offset;
        ASSERT_EQ(target[-1], 0xee);
        ASSERT_EQ(target[bytes], 0xee) << bytes;
      }
    }
  }
}

}  // namespace
}  // namespace cairn::checkpoints
