#include "trainer/parallel/gradients.h"

#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <bit>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

#include "optim/norm.h"
#include "trainer/parallel/side_stream.h"

namespace cairn::parallel {
namespace {

constexpr size_t kInFlight = 2;  // buckets whose chunks are on the way; each holds (ranks - 1) chunks of scratch

// The sum of parts[0..R) by the tree that pairs neighbours, left in parts[own]. Addition of two numbers commutes, so
// the order inside a pair is free and the own part is always the one that is added to.
void tree_join(std::vector<at::Tensor> parts, int own) {
  for (size_t stride = 1; stride < parts.size(); stride *= 2)
    for (size_t i = 0; i + stride < parts.size(); i += 2 * stride) {
      const bool own_is_right = static_cast<size_t>(own) >= i + stride && static_cast<size_t>(own) < i + 2 * stride;
      at::Tensor &left = parts[i], &right = parts[i + stride];
      if (own_is_right) std::swap(left, right);
      left.add_(right);
    }
}

}  // namespace

struct Reducer::Impl {
  World& world;
  at::Tensor gradient;
  std::vector<Bucket> buckets;
  Options options;
  std::unique_ptr<Transport> transport;

  // Who owns what, ascending: the chunks of all buckets, those of one rank that adjoin made one.
  struct Segment {
    int64_t begin, end;
    int rank;
    // Pieces whose first element lies in it.
    int64_t first_piece() const { return optim::piece_count(begin); }
    int64_t last_piece() const { return optim::piece_count(end); }  // one past
  };
  std::vector<Segment> segments;

  std::mutex mutex;
  std::condition_variable changed;
  std::vector<int64_t> remaining;                     // elements of each bucket that are not final yet
  std::vector<std::pair<int64_t, size_t>> by_offset;  // (offset, bucket), ascending
  int64_t asked = 0, done = 0;                        // steps begun, steps reduced
  bool in_step = false, stop = false;
  Pending* waiting = nullptr;  // what the thread waits for now
  std::exception_ptr error;
  std::optional<SideStream> side;  // of the thread, where the gradient lies on a GPU
  std::thread thread;

  Impl(World& w, at::Tensor g, std::vector<Bucket> b, Options o)
      : world(w), gradient(std::move(g)), buckets(std::move(b)), options(o) {}

  at::Tensor chunk(const at::Tensor& flat, const Bucket& bucket, int rank) const {
    return flat.narrow(0, bucket.splits[rank], bucket.splits[rank + 1] - bucket.splits[rank]);
  }
  void find_segments() {
    for (const auto& [offset, index] : by_offset)
      for (int r = 0; r < world.size; ++r) {
        const int64_t begin = buckets[index].splits[r], end = buckets[index].splits[r + 1];
        if (begin == end) continue;
        if (!segments.empty() && segments.back().rank == r)
          segments.back().end = end;
        else
          segments.push_back({begin, end, r});
      }
  }
  bool is_ready(size_t bucket) const { return remaining[bucket] == 0; }

  // Messages to and from every other rank, at once.
  void exchange(const std::vector<at::Tensor>& sends, const std::vector<at::Tensor>& receives) {
    std::vector<Message> out, in;
    for (int r = 0; r < world.size; ++r)
      if (r != world.rank) {
        out.push_back({sends[r], r});
        in.push_back({receives[r], r});
      }
    transport->post(out, in)->wait();
  }

  // Where a cut goes through a piece, its owner (of its first element) gets the rest of it from the ranks after it,
  // into its own gradient.
  void complete_pieces() {
    std::vector<std::vector<at::Tensor>> mine(world.size), theirs(world.size);  // by the other rank
    for (size_t i = 0; i < segments.size(); ++i) {
      const Segment& owner = segments[i];
      if (owner.first_piece() == owner.last_piece()) continue;
      const int64_t end = std::min(owner.last_piece() * optim::kPiece, gradient.numel());
      for (size_t k = i + 1; k < segments.size() && segments[k].begin < end; ++k) {
        const Segment& other = segments[k];
        const at::Tensor rest = gradient.narrow(0, other.begin, std::min(other.end, end) - other.begin);
        if (other.rank == owner.rank) continue;
        if (other.rank == world.rank) mine[owner.rank].push_back(rest);
        if (owner.rank == world.rank) theirs[other.rank].push_back(rest);
      }
    }
    std::vector<at::Tensor> sends, receives;
    const auto total = [](const std::vector<at::Tensor>& parts) {
      int64_t n = 0;
      for (const at::Tensor& part : parts) n += part.numel();
      return n;
    };
    for (int r = 0; r < world.size; ++r) {
      sends.push_back(mine[r].empty() ? at::empty({0}, gradient.options()) : at::cat(mine[r]));
      receives.push_back(at::empty({total(theirs[r])}, gradient.options()));
    }
    exchange(sends, receives);
    for (int r = 0; r < world.size; ++r) {
      int64_t at = 0;
      for (at::Tensor& part : theirs[r]) {
        part.copy_(receives[r].narrow(0, at, part.numel()));
        at += part.numel();
      }
    }
  }

  // ---- the communication thread ----
  struct Flight {
    size_t bucket;
    std::unique_ptr<Pending> pending;
    std::vector<at::Tensor> parts;  // of every rank; the own one lies in the gradient
    size_t scratch;
  };

  void wait(Pending& pending) {
    {
      std::lock_guard lock(mutex);
      if (stop) throw std::runtime_error("the step was given up");
      waiting = &pending;
    }
    try {
      pending.wait();
    } catch (...) {
      std::lock_guard lock(mutex);
      waiting = nullptr;
      throw;
    }
    std::lock_guard lock(mutex);
    waiting = nullptr;
  }

  Flight launch(size_t index, at::Tensor& scratch, size_t slot) {
    const Bucket& bucket = buckets[index];
    const int64_t own = bucket.splits[world.rank + 1] - bucket.splits[world.rank];
    if (!scratch.defined() || scratch.numel() < own * (world.size - 1))
      scratch = at::empty({own * (world.size - 1)}, gradient.options());
    Flight flight{index, nullptr, {}, slot};
    std::vector<Message> sends, receives;
    int64_t used = 0;
    for (int r = 0; r < world.size; ++r) {
      if (r == world.rank) {
        flight.parts.push_back(chunk(gradient, bucket, r));
        continue;
      }
      flight.parts.push_back(scratch.narrow(0, used, own));
      used += own;
      sends.push_back({chunk(gradient, bucket, r), r});
      receives.push_back({flight.parts.back(), r});
    }
    if (side) side->after_compute();
    flight.pending = transport->post(sends, receives);
    return flight;
  }

  std::unique_ptr<Pending> share(const at::Tensor& flat, const Bucket& bucket) {
    std::vector<Message> sends, receives;
    for (int r = 0; r < world.size; ++r)
      if (r != world.rank) {
        sends.push_back({chunk(flat, bucket, world.rank), r});
        receives.push_back({chunk(flat, bucket, r), r});
      }
    return transport->post(sends, receives);
  }

  // Which of "launch the next bucket" and "land the oldest" comes next hangs on timing, and differs between the ranks.
  // Posts meet by number, so their order is fixed: launches run ahead of landings by kInFlight, no more and no less.
  void reduce_step(std::vector<at::Tensor>& scratch) {
    std::deque<Flight> flights;
    std::vector<std::unique_ptr<Pending>> shared;
    const auto land = [&] {
      Flight flight = std::move(flights.front());
      flights.pop_front();
      wait(*flight.pending);
      tree_join(flight.parts, world.rank);
      if (options.gather) shared.push_back(share(gradient, buckets[flight.bucket]));
    };
    for (size_t next = 0; next < buckets.size(); ++next) {
      {
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] { return stop || is_ready(next); });
        if (stop) return;
      }
      if (flights.size() == kInFlight) land();
      flights.push_back(launch(next, scratch[next % kInFlight], next % kInFlight));
    }
    while (!flights.empty()) land();
    for (auto& pending : shared) wait(*pending);
    if (side) side->finish();
  }

  void loop() {
    omp_set_num_threads(1);  // of this thread alone: its additions must not start a second team beside the main one
    const at::NoGradGuard no_grad;
    try {
      if (!gradient.is_cpu()) side.emplace(gradient.device());
    } catch (...) {
      std::lock_guard lock(mutex);
      error = std::current_exception();
      done = asked;
      changed.notify_all();
      return;
    }
    std::vector<at::Tensor> scratch(kInFlight);
    work(scratch);
    side.reset();  // on the thread whose stream it chose
  }

  void work(std::vector<at::Tensor>& scratch) {
    while (true) {
      {
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] { return stop || asked > done; });
        if (stop) return;
      }
      std::exception_ptr failed;
      try {
        reduce_step(scratch);
      } catch (...) {
        failed = std::current_exception();
      }
      std::lock_guard lock(mutex);
      error = failed;
      ++done;
      changed.notify_all();
      if (failed) return;
    }
  }
};

Reducer::Reducer(World& world, at::Tensor gradient, std::vector<Bucket> buckets, Options options) {
  if (!gradient.is_contiguous() || gradient.dim() != 1 || gradient.scalar_type() != at::kFloat)
    throw std::invalid_argument("Reducer: the gradient is not one contiguous float32 dimension");
  if (!std::has_single_bit(static_cast<unsigned>(world.size)))
    throw std::invalid_argument(
        fmt::format("parallel.data: {} ranks are not a power of two, so they cannot divide train.lanes", world.size));
  check_buckets(buckets, gradient.numel(), world.size);
  impl_ = std::make_unique<Impl>(world, std::move(gradient), std::move(buckets), options);
  Impl& impl = *impl_;
  impl.remaining.assign(impl.buckets.size(), 0);
  for (size_t i = 0; i < impl.buckets.size(); ++i) impl.by_offset.emplace_back(impl.buckets[i].offset, i);
  std::sort(impl.by_offset.begin(), impl.by_offset.end());
  impl.find_segments();
  if (world.size == 1) return;
  std::string plan = fmt::format("{} elements, {},", impl.gradient.numel(), options.gather ? "gathered" : "sharded");
  for (const Bucket& bucket : impl.buckets) {
    plan += fmt::format(" {}", bucket.offset);
    for (int64_t split : bucket.splits) plan += fmt::format("/{}", split);
  }
  world.agree("the layout of the gradient", plan);
  impl.transport = world.transport("gradients", impl.gradient.device());
  impl.thread = std::thread([&impl] { impl.loop(); });
}

Reducer::~Reducer() {
  if (!impl_ || !impl_->thread.joinable()) return;
  {
    std::lock_guard lock(impl_->mutex);
    impl_->stop = true;
    if (impl_->waiting != nullptr) impl_->waiting->abort();
  }
  impl_->changed.notify_all();
  impl_->thread.join();
}

void Reducer::begin() {
  Impl& impl = *impl_;
  std::lock_guard lock(impl.mutex);
  if (impl.error) std::rethrow_exception(impl.error);
  if (impl.in_step) throw std::logic_error("Reducer: begin() without finish() of the step before");
  impl.in_step = true;
  for (size_t i = 0; i < impl.buckets.size(); ++i) impl.remaining[i] = impl.buckets[i].length;
  ++impl.asked;
  impl.changed.notify_all();
}

void Reducer::ready(int64_t offset, int64_t length) {
  Impl& impl = *impl_;
  if (length <= 0) return;
  std::lock_guard lock(impl.mutex);
  if (!impl.in_step) throw std::logic_error("Reducer: ready() outside of a step");
  auto at = std::upper_bound(impl.by_offset.begin(), impl.by_offset.end(), std::make_pair(offset, SIZE_MAX));
  bool complete = false;
  for (--at; at != impl.by_offset.end() && at->first < offset + length; ++at) {
    const Bucket& bucket = impl.buckets[at->second];
    const int64_t overlap = std::min(offset + length, bucket.offset + bucket.length) - std::max(offset, bucket.offset);
    int64_t& remaining = impl.remaining[at->second];
    remaining -= overlap;
    if (remaining < 0)
      throw std::logic_error(fmt::format("Reducer: elements from {} on are ready for the second time", offset));
    complete = complete || remaining == 0;
  }
  if (complete) impl.changed.notify_all();
}

void Reducer::finish() {
  Impl& impl = *impl_;
  std::unique_lock lock(impl.mutex);
  if (!impl.in_step) throw std::logic_error("Reducer: finish() without begin()");
  impl.in_step = false;
  std::fill(impl.remaining.begin(), impl.remaining.end(), 0);
  if (!impl.thread.joinable()) {
    impl.done = impl.asked;
    return;
  }
  impl.changed.notify_all();
  impl.changed.wait(lock, [&] { return impl.done == impl.asked; });
  if (impl.error) std::rethrow_exception(impl.error);
}

std::vector<std::pair<int64_t, int64_t>> Reducer::owned() const {
  const Impl& impl = *impl_;
  if (impl.world.size == 1 || impl.options.gather) return {{0, impl.gradient.numel()}};
  std::vector<std::pair<int64_t, int64_t>> parts;
  for (const auto& segment : impl.segments)
    if (segment.rank == impl.world.rank) parts.emplace_back(segment.begin, segment.end - segment.begin);
  return parts;
}

std::vector<double> Reducer::norms(const std::vector<std::pair<int64_t, int64_t>>& parts) {
  Impl& impl = *impl_;
  const int64_t total = impl.gradient.numel();
  std::vector<double> norms;
  if (impl.world.size == 1) {
    for (const auto& [begin, end] : parts)
      norms.push_back(optim::gradient_norm(impl.gradient.narrow(0, begin, std::min(end, total) - begin)));
    return norms;
  }
  const int ranks = impl.world.size;
  if (!impl.options.gather) impl.complete_pieces();
  // Every rank sums the pieces that begin in its own chunks; all know whose is where.
  std::vector<int64_t> counts(ranks, 0);
  for (const auto& segment : impl.segments) counts[segment.rank] += segment.last_piece() - segment.first_piece();
  std::vector<at::Tensor> sums;
  for (int r = 0; r < ranks; ++r) sums.push_back(at::empty({counts[r]}, at::kDouble));
  double* own = sums[impl.world.rank].data_ptr<double>();
  for (const auto& segment : impl.segments) {
    const int64_t first = segment.first_piece(), last = segment.last_piece();
    if (segment.rank != impl.world.rank || first == last) continue;
    const int64_t begin = first * optim::kPiece, end = std::min(last * optim::kPiece, impl.gradient.numel());
    optim::squared_norm_pieces(impl.gradient.narrow(0, begin, end - begin), own);
    own += last - first;
  }
  if (!impl.gradient.is_cpu())  // the transport's messages lie there
    for (at::Tensor& sum : sums) sum = sum.to(impl.gradient.device());
  impl.exchange(std::vector<at::Tensor>(ranks, sums[impl.world.rank]), sums);
  for (at::Tensor& sum : sums) sum = sum.cpu();

  std::vector<double> pieces(optim::piece_count(impl.gradient.numel()));
  std::vector<const double*> from;
  for (const at::Tensor& sum : sums) from.push_back(sum.const_data_ptr<double>());
  for (const auto& segment : impl.segments)
    for (int64_t piece = segment.first_piece(); piece < segment.last_piece(); ++piece)
      pieces[piece] = *from[segment.rank]++;
  for (const auto& [begin, end] : parts) {
    const int64_t first = begin / optim::kPiece, last = optim::piece_count(std::min(end, total));
    norms.push_back(std::sqrt(optim::tree_sum(pieces.data() + first, last - first)));
  }
  return norms;
}

void Reducer::gather_owned(const at::Tensor& flat) {
  Impl& impl = *impl_;
  if (impl.world.size == 1 || impl.options.gather) return;
  if (!flat.is_contiguous() || flat.dim() != 1 || flat.numel() != impl.gradient.numel())
    throw std::invalid_argument(fmt::format("gather_owned: got {} elements; expected the flat {} of the gradient",
                                            flat.numel(), impl.gradient.numel()));
  std::vector<std::unique_ptr<Pending>> pending;
  for (const Bucket& bucket : impl.buckets) pending.push_back(impl.share(flat, bucket));
  for (auto& one : pending) one->wait();
}

}  // namespace cairn::parallel
