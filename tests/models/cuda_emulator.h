// Runs the .cu files of models/kernels/cuda on a CPU: include this header first, then the .cu file, in an ordinary C++
// file. It proves arithmetic, indices and synchronisation where there is no GPU; of speed and of what a GPU's memory
// model allows it says nothing.
//
// Blocks run one after another. The threads of a block are fibers: one runs until it waits for others (__syncthreads,
// __syncwarp, shuffles, votes) or ends, and a warp goes on until a barrier holds all of it. `order()` says who goes
// first, so a result that changes with it has found a missing barrier. Dynamic shared memory is full of NaN when a
// block begins. Threads that wait for one another forever, lanes outside their mask and launches that no GPU takes end
// in std::logic_error.
//
// NOTE: every .cu file belongs into one test file only (launchers are ordinary functions and would be there twice), and
// two .cu files in one test file must not share names of their anonymous namespaces.
#pragma once

#define CAIRN_CUDA_EMULATOR 1

#ifndef __x86_64__
#include <ucontext.h>
#endif

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static  // blocks come one after another, all on one thread of the CPU
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct dim3 {
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  unsigned x, y, z;
};
struct uint3 {
  unsigned x, y, z;
};
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

enum cudaError_t { cudaSuccess = 0 };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorName(cudaError_t) { return "cudaSuccess"; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }

namespace cairn::emulator {

enum class Order { forward, backward };
inline Order& order() {
  static Order chosen = Order::forward;
  return chosen;
}

// A place where a stack has been left. Switching is what takes the time here, so no system call is made of it where
// that can be helped.
#ifdef __x86_64__
struct Context {
  void* stack_pointer = nullptr;
};
// Registers that a function keeps go to the stack; `to` has its own there.
__attribute__((naked, noinline)) inline void switch_context(Context* /*from: rdi*/, const Context* /*to: rsi*/) {
  __asm__(
      "push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
      "mov %rsp, (%rdi)\n mov (%rsi), %rsp\n"
      "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret");
}
inline void make_context(Context* context, char* stack, size_t size, void (*enter)()) {
  const uintptr_t top = (reinterpret_cast<uintptr_t>(stack) + size) / 16 * 16;
  void** slot = reinterpret_cast<void**>(top - 64);  // six registers, the return address, nothing
  std::fill_n(slot, 8, nullptr);
  slot[6] = reinterpret_cast<void*>(enter);
  context->stack_pointer = slot;
}
#else
using Context = ucontext_t;
inline void switch_context(Context* from, const Context* to) { swapcontext(from, to); }
inline void make_context(Context* context, char* stack, size_t size, void (*enter)()) {
  getcontext(context);
  context->uc_stack.ss_sp = stack, context->uc_stack.ss_size = size;
  context->uc_link = nullptr;
  makecontext(context, enter, 0);
}
#endif

class Machine {
 public:
  static Machine& self() {
    static Machine machine;
    return machine;
  }

  // `body` is called once for each thread of each block.
  template <class Body>
  void run(dim3 grid, dim3 block, size_t shared_bytes, Body& body) {
    const uint64_t count = uint64_t{block.x} * block.y * block.z;
    if (count == 0 || count > 1024 || block.z > 64) throw std::logic_error("emulator: no GPU takes such a block");
    if (grid.x == 0 || grid.x > 0x7FFFFFFFu || grid.y == 0 || grid.y > 65535 || grid.z == 0 || grid.z > 65535)
      throw std::logic_error("emulator: no GPU takes such a grid");
    if (shared_bytes > 163 * 1024) throw std::logic_error("emulator: sm_80 has no more than 163 KiB a block");
    call_ = [](void* f) { (*static_cast<Body*>(f))(); };
    body_ = &body;
    shared_.resize(shared_bytes / 16 + 1);
    fibers_.reserve(1024);  // contexts stay where they were made
    while (fibers_.size() < count) fibers_.emplace_back();
    live_count_ = static_cast<int>(count);
    ::gridDim = grid, ::blockDim = block;
    for (unsigned z = 0; z < grid.z; ++z)
      for (unsigned y = 0; y < grid.y; ++y)
        for (unsigned x = 0; x < grid.x; ++x) {
          ::blockIdx = {x, y, z};
          run_block(static_cast<int>(count), block);
        }
  }

  void* dynamic_shared() { return shared_.data(); }

  // __syncthreads; threads that have ended are not waited for.
  void wait_for_block() {
    Fiber& me = fibers_[current_];
    me.state = State::at_barrier;
    ++waiting_;
    yield(me);
  }

  // Deposits `value`; returns what the 32 lanes of the warp have deposited, once all of `mask` have. Slots are used in
  // turns, so one wait does: nobody comes to the turn after the next before all have read this one.
  const uint64_t* exchange(uint32_t mask, uint64_t value) {
    Fiber& me = fibers_[current_];
    const int lane = current_ % 32;
    if (!(mask >> lane & 1)) fail("a lane that its own mask leaves out");
    Group& group = group_of(current_ / 32, mask);
    const int turn = group.turn[lane];
    group.turn[lane] ^= 1;
    group.slots[turn][lane] = value;
    group.arrived[turn] |= 1u << lane;
    if (group.arrived[turn] == mask) {
      group.arrived[turn ^ 1] = 0;
    } else {
      me.state = State::at_warp, me.word = &group.arrived[turn], me.wanted = mask;
      yield(me);
    }
    return group.slots[turn];
  }

  [[noreturn]] void fail(const std::string& why) {
    fault_ = why;
    switch_context(&fibers_[current_].here, &home_);
    std::abort();  // nobody comes back to it
  }

 private:
  enum class State { ready, at_barrier, at_warp, done };
  struct Fiber {
    Context here;
    std::unique_ptr<char[]> stack;
    State state = State::done;
    const uint32_t* word = nullptr;  // at_warp: may go on when *word is `wanted`
    uint32_t wanted = 0;
    uint3 index{};
  };
  struct Group {  // lanes of a warp that work together
    uint32_t mask = 0;
    uint32_t arrived[2] = {};
    uint8_t turn[32] = {};
    uint64_t slots[2][32];
  };
  static constexpr size_t kStack = 128 << 10;

  static void enter() {
    Machine& machine = self();
    while (true) {
      machine.call_(machine.body_);
      Fiber& me = machine.fibers_[machine.current_];
      me.state = State::done;
      machine.yield(me);
    }
  }

  // Back to the scheduler, until it comes here again.
  void yield(Fiber& me) { switch_context(&me.here, &home_); }

  // Lets thread i run until it waits or ends; false where it failed.
  bool resume(int i) {
    Fiber& fiber = fibers_[i];
    current_ = i;
    ::threadIdx = fiber.index;
    fiber.state = State::ready;
    if (!fiber.stack) {
      fiber.stack.reset(new char[kStack]);
      make_context(&fiber.here, fiber.stack.get(), kStack, enter);
    }
    switch_context(&home_, &fiber.here);
    return fault_.empty();
  }

  bool may_run(const Fiber& fiber) const {
    return fiber.state == State::ready || (fiber.state == State::at_warp && *fiber.word == fiber.wanted);
  }

  void run_block(int count, dim3 block) {
    std::memset(shared_.data(), 0xFF, shared_.size() * sizeof(shared_[0]));
    groups_.clear();
    groups_.resize((count + 31) / 32);
    for (int i = 0; i < count; ++i) {
      Fiber& fiber = fibers_[i];
      fiber.state = State::ready;
      const unsigned n = static_cast<unsigned>(i);
      fiber.index = {n % block.x, n / block.x % block.y, n / block.x / block.y};
    }
    waiting_ = 0;
    int live = count;
    const int warps = (count + 31) / 32;
    while (live > 0) {
      bool moved = false;
      for (int k = 0; k < warps; ++k) {
        const int warp = order() == Order::forward ? k : warps - 1 - k, first = warp * 32;
        const int lanes = std::min(32, count - first);
        // A warp goes as far as it can: nothing but barriers holds it back for the others.
        for (bool again = true; again;) {
          again = false;
          for (int n = 0; n < lanes; ++n) {
            const int i = first + (order() == Order::forward ? n : lanes - 1 - n);
            if (!may_run(fibers_[i])) continue;
            moved = again = true;
            if (!resume(i)) give_up();
            if (fibers_[i].state == State::done) --live;
          }
        }
      }
      if (moved || live == 0) continue;
      if (waiting_ != live) {
        fault_ = "some threads wait at a barrier and others for lanes that never come";
        give_up();
      }
      for (int i = 0; i < count; ++i)
        if (fibers_[i].state == State::at_barrier) fibers_[i].state = State::ready;
      waiting_ = 0;
    }
  }

  [[noreturn]] void give_up() {
    fibers_.clear();  // what they were doing is lost
    const std::string why = std::exchange(fault_, "");
    throw std::logic_error("emulator: block " + std::to_string(::blockIdx.x) + ", thread " + std::to_string(current_) +
                           ": " + why);
  }

  Group& group_of(int warp, uint32_t mask) {
    for (auto& group : groups_[warp])
      if (group->mask == mask) return *group;
    const int left = live_count_ - warp * 32;
    if (left < 32 && mask >> left) fail("a mask with lanes that the block does not have");
    groups_[warp].push_back(std::make_unique<Group>());
    groups_[warp].back()->mask = mask;
    return *groups_[warp].back();
  }

  void (*call_)(void*) = nullptr;
  void* body_ = nullptr;
  std::vector<Fiber> fibers_;
  std::vector<std::vector<std::unique_ptr<Group>>> groups_;  // of each warp
  struct alignas(16) Chunk {
    char bytes[16];
  };
  std::vector<Chunk> shared_;
  Context home_;
  int current_ = 0, waiting_ = 0, live_count_ = 0;
  std::string fault_;
};

template <class... Parameters>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, std::decay_t<Parameters>... p) {
  auto body = [&] { kernel(p...); };
  Machine::self().run(grid, block, shared_bytes, body);
}

template <class T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}
template <class T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline int lane() { return static_cast<int>(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32; }

// What lane `from` of the warp deposited; the thread's own value where it is none of the thread's segment.
template <class T>
T shuffled(uint32_t mask, T value, int from, bool inside) {
  const uint64_t* slots = Machine::self().exchange(mask, to_bits(value));
  if (!inside) return value;
  if (!(mask >> from & 1)) Machine::self().fail("a shuffle from a lane outside the mask");
  return from_bits<T>(slots[from]);
}

}  // namespace cairn::emulator

inline void __syncthreads() { cairn::emulator::Machine::self().wait_for_block(); }
inline void __syncwarp(uint32_t mask = 0xFFFFFFFFu) { cairn::emulator::Machine::self().exchange(mask, 0); }

template <class T>
T __shfl_sync(uint32_t mask, T value, int from, int width = 32) {
  const int lane = cairn::emulator::lane();
  return cairn::emulator::shuffled(mask, value, lane / width * width + (from & (width - 1)), true);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32) {
  const int lane = cairn::emulator::lane(), from = lane ^ bits;
  return cairn::emulator::shuffled(mask, value, from, from / width <= lane / width);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned distance, int width = 32) {
  const int lane = cairn::emulator::lane(), from = lane + static_cast<int>(distance);
  return cairn::emulator::shuffled(mask, value, from, from / width == lane / width);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned distance, int width = 32) {
  const int lane = cairn::emulator::lane(), from = lane - static_cast<int>(distance);
  return cairn::emulator::shuffled(mask, value, from, from >= lane / width * width);
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate) {
  const uint64_t* slots = cairn::emulator::Machine::self().exchange(mask, predicate != 0);
  uint32_t votes = 0;
  for (int i = 0; i < 32; ++i)
    if (mask >> i & 1 && slots[i]) votes |= 1u << i;
  return votes;
}
inline int __any_sync(uint32_t mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(uint32_t mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

inline int __popc(uint32_t x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<uint32_t>(x)); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<uint32_t>(x)) + 1; }
inline uint32_t __float_as_uint(float x) { return std::bit_cast<uint32_t>(x); }
inline float __uint_as_float(uint32_t x) { return std::bit_cast<float>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
template <class T>
T __ldg(const T* x) {
  return *x;
}

// One thread runs at a time, so these are atomic. Integers alone: float sums in any order are not wanted anywhere.
template <class T>
T cairn_emulator_replace(T* at, T value) {
  static_assert(std::is_integral_v<T>);
  return std::exchange(*at, value);
}
inline int atomicAdd(int* at, int x) { return cairn_emulator_replace(at, *at + x); }
inline uint32_t atomicAdd(uint32_t* at, uint32_t x) { return cairn_emulator_replace(at, *at + x); }
inline int atomicMax(int* at, int x) { return cairn_emulator_replace(at, std::max(*at, x)); }
inline uint32_t atomicMax(uint32_t* at, uint32_t x) { return cairn_emulator_replace(at, std::max(*at, x)); }
inline int atomicMin(int* at, int x) { return cairn_emulator_replace(at, std::min(*at, x)); }
inline uint32_t atomicOr(uint32_t* at, uint32_t x) { return cairn_emulator_replace(at, *at | x); }
