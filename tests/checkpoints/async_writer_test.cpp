// labels: quick
// Saving beside the loop: the snapshot does not change with the tensors, the loop waits for a copy alone, errors
// surface.
#include "checkpoints/async_writer.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <future>
#include <stdexcept>
#include <thread>

#include "tests/checkpoints/temporary.h"

namespace cairn::checkpoints {
namespace {

using Clock = std::chrono::steady_clock;
double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

TEST(AsyncWriter, TheSnapshotIsOfTheMomentOfTheSave) {
  std::vector<float> a(300'000, 1), b(3, 1);
  std::vector<uint8_t> c(5, 1);
  const std::vector<TensorView> live = {{"a", DType::F32, {300'000}, a.data()},
                                        {"empty", DType::F32, {0}, nullptr},
                                        {"c", DType::U8, {5}, c.data()},
                                        {"b", DType::F32, {3}, b.data()}};
  AsyncWriter writer;
  const void* first = nullptr;
  for (int round = 1; round <= 5; ++round) {
    std::fill(a.begin(), a.end(), round), std::fill(b.begin(), b.end(), round), std::fill(c.begin(), c.end(), round);
    std::promise<void> go;
    bool equal = true;
    const void* place = nullptr;
    writer.save(live,
                [&, gate = std::make_shared<std::future<void>>(go.get_future())](std::span<const TensorView> snapshot) {
                  gate->wait();
                  place = snapshot[0].data;
                  for (size_t k : {0, 3})
                    for (int64_t i = 0; i < snapshot[k].numel(); ++i)
                      equal &= static_cast<const float*>(snapshot[k].data)[i] == round;
                  for (int i = 0; i < 5; ++i) equal &= static_cast<const uint8_t*>(snapshot[2].data)[i] == round;
                  equal &= snapshot[0].name == "a" && snapshot[1].numel() == 0 &&
                           reinterpret_cast<uintptr_t>(snapshot[3].data) % 64 == 0;
                });
    EXPECT_TRUE(writer.busy());
    std::fill(a.begin(), a.end(), -1), std::fill(b.begin(), b.end(), -1), std::fill(c.begin(), c.end(), 99);
    go.set_value();
    writer.drain();
    EXPECT_FALSE(writer.busy());
    EXPECT_TRUE(equal) << round;
    if (!first) first = place;
    EXPECT_EQ(place, first) << "the buffer is used again";
  }
}

TEST(AsyncWriter, ASecondSaveWaitsForTheFirst) {
  const std::vector<float> a(1000, 1);
  const std::vector<TensorView> live = {{"a", DType::F32, {1000}, a.data()}};
  AsyncWriter writer;
  std::promise<void> go;
  std::atomic<int> written = 0;
  writer.save(live, [&](auto) {
    go.get_future().wait();
    ++written;
  });
  std::atomic<bool> second = false;
  std::thread saver([&] {
    writer.save(live, [&](auto) { ++written; });
    second = true;
    EXPECT_GE(written, 1);
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  EXPECT_FALSE(second);
  go.set_value();
  saver.join();
  writer.drain();
  EXPECT_EQ(written, 2);
  EXPECT_GT(writer.last_stall(), 0.02);
  EXPECT_LT(writer.last_copy(), writer.last_stall());
}

TEST(AsyncWriter, AFailedWriteSurfacesAtTheNextCallOnce) {
  const std::vector<float> a(1000, 1);
  const std::vector<TensorView> live = {{"a", DType::F32, {1000}, a.data()}};
  const auto broken = [](auto) { throw std::runtime_error("the disk is full"); };
  AsyncWriter writer;
  writer.save(live, broken);
  bool ran = false;
  EXPECT_SAYS(message_of([&] { writer.save(live, [&](auto) { ran = true; }); }), "the disk is full");
  EXPECT_FALSE(ran);
  writer.save(live, [&](auto) { ran = true; });
  writer.drain();
  EXPECT_TRUE(ran) << "it goes on after the error was told";
  writer.save(live, broken);
  EXPECT_THROW(writer.drain(), std::runtime_error);
  EXPECT_NO_THROW(writer.drain());
  writer.save(live, broken);
  while (writer.busy()) std::this_thread::yield();
  EXPECT_THROW(writer.check(), std::runtime_error);
  EXPECT_NO_THROW(writer.check());
  EXPECT_THROW(
      writer.save(
          live, [](auto) {}, [](void*, const TensorView&, size_t, size_t) { throw std::runtime_error("device lost"); }),
      std::runtime_error);
  EXPECT_NO_THROW(writer.drain());
}

TEST(AsyncWriter, TheDestructorFinishesTheWrite) {
  const std::vector<float> a(1000, 1);
  bool written = false;
  {
    AsyncWriter writer;
    writer.save(std::vector<TensorView>{{"a", DType::F32, {1000}, a.data()}}, [&](auto) {
      std::this_thread::sleep_for(std::chrono::milliseconds(30));
      written = true;
    });
  }
  EXPECT_TRUE(written);
}

TEST(AsyncWriter, ADeviceCopyIsAskedForEveryByteOnce) {
  std::vector<uint8_t> a(5'000'001);
  for (size_t i = 0; i < a.size(); ++i) a[i] = static_cast<uint8_t>(i * 31 >> 3);
  AsyncWriter writer;
  std::atomic<size_t> bytes = 0;
  bool equal = false;
  writer.save(
      std::vector<TensorView>{{"a", DType::U8, {5'000'001}, a.data()}},
      [&](std::span<const TensorView> s) { equal = std::memcmp(s[0].data, a.data(), a.size()) == 0; },
      [&](void* to, const TensorView& from, size_t offset, size_t n) {
        std::memcpy(to, static_cast<const char*>(from.data) + offset, n);
        bytes += n;
      });
  writer.drain();
  EXPECT_TRUE(equal);
  EXPECT_EQ(bytes, a.size());
}

// The stall of a save against one copy of the same memory by the same threads. Best of several, since other
// programs share the machine.
TEST(AsyncWriter, TheStallIsOneMemoryCopy) {
  constexpr size_t kTensors = 40, kFloats = 400'000;  // 64 MB
  std::vector<std::vector<float>> data(kTensors, std::vector<float>(kFloats, 1.0f)), target = data;
  std::vector<TensorView> live;
  for (size_t k = 0; k < kTensors; ++k)
    live.push_back({"t" + std::to_string(k), DType::F32, {kFloats}, data[k].data()});
  AsyncWriter writer;
  writer.reserve(live);
  double stall = 1e9, copy = 1e9;
  for (int round = 0; round < 12; ++round) {
    writer.save(live, [](auto) {});
    stall = std::min(stall, writer.last_stall());
    writer.drain();
    const auto start = Clock::now();
#pragma omp parallel for schedule(static)
    for (size_t k = 0; k < kTensors; ++k) std::memcpy(target[k].data(), data[k].data(), kFloats * sizeof(float));
    copy = std::min(copy, since(start));
  }
  std::printf("64 MB: stall %.2f ms, one copy %.2f ms, ratio %.2f\n", stall * 1e3, copy * 1e3, stall / copy);
  EXPECT_LT(stall, 1.5 * copy);
}

}  // namespace
}  // namespace cairn::checkpoints
