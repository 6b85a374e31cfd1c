// labels: quick
// A file that is open several times at once, in whatever order its users let it go.
#include "checkpoints/hdf5.h"

#include <memory>
#include <thread>

#include "tests/checkpoints/temporary.h"

namespace cairn::checkpoints::hdf5 {
namespace {

TEST(Hdf5, AFileOpenTwiceCountsForEach) {
  const TemporaryFolder folder;
  const std::vector<double> values(1000, 0.5);
  {
    File file = File::create(folder / "a.h5");
    file.write("x", values);
    file.finish();
  }
  auto first = std::make_unique<File>(File::open(folder / "a.h5"));
  const File second = File::open(folder / "a.h5");
  const uint64_t opened = first->bytes_read();
  EXPECT_GT(second.bytes_read(), 0u);
  EXPECT_EQ(second.read<double>("x"), values);
  EXPECT_EQ(first->bytes_read(), opened) << "what the second reads is not counted in the first";
  first.reset();
  EXPECT_EQ(second.read<double>("x"), values);
  EXPECT_GT(second.bytes_read(), 8000u);
}

TEST(Hdf5, ThreadsOpenAndCloseOneFile) {
  const TemporaryFolder folder;
  const std::vector<double> values(1000, 0.25);
  {
    File file = File::create(folder / "a.h5");
    file.write("group/x", values);
    file.finish();
  }
  std::vector<std::thread> threads;
  std::vector<int> right(4, 0);
  for (size_t k = 0; k < right.size(); ++k) {
    threads.emplace_back([&, k] {
      for (int i = 0; i < 50; ++i) right[k] += File::open(folder / "a.h5").read<double>("group/x") == values;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(right, (std::vector<int>{50, 50, 50, 50}));
}

}  // namespace
}  // namespace cairn::checkpoints::hdf5
