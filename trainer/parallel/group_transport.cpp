#include "trainer/parallel/group_transport.h"

#include <fmt/format.h>

namespace cairn::parallel {
namespace {

class GroupPending : public Pending {
 public:
  struct Part {
    c10::intrusive_ptr<c10d::Work> work;
    std::vector<at::Tensor> tensors;  // kept alive until the messages are through
    std::string what;                 // "sending to rank 1"
  };
  GroupPending(std::vector<Part> parts, Watch& watch) : parts_(std::move(parts)), watch_(watch) {}
  ~GroupPending() override { watch_.forget(this); }

  void wait() override {
    const Part* current = nullptr;
    std::string error;
    watch_.guard(this);
    try {
      for (const Part& part : parts_) {
        current = &part;
        if (!part.work->wait()) {
          error = "ended from outside";
          break;
        }
      }
    } catch (const std::exception& e) {
      error = e.what();
      error.resize(std::min(error.size(), error.find('\n')));  // c10 appends a stack of C++ frames
    }
    watch_.forget(this);
    if (!error.empty()) watch_.explain(fmt::format("{}: {}", current->what, error));
  }
  void abort() override {
    for (Part& part : parts_) part.work->abort();
  }

 private:
  std::vector<Part> parts_;
  Watch& watch_;
};

}  // namespace

GroupTransport::GroupTransport(c10::intrusive_ptr<c10d::Backend> group, Watch& watch)
    : group_(std::move(group)), watch_(watch) {}

std::unique_ptr<Pending> GroupTransport::post(const std::vector<Message>& sends, const std::vector<Message>& receives) {
  const int tag = static_cast<int>(posted_++ % 0x7FFFFFF0);
  std::vector<GroupPending::Part> parts;
  std::string doing;
  try {
    const auto add = [&](const Message& message, bool send) {
      if (message.tensor.numel() == 0) return;
      doing = fmt::format("{} rank {}", send ? "sending to" : "receiving from", message.rank);
      // Groups that run messages in the order of the calls take those of one exchange as one; else two ranks that both
      // receive first would wait for one another.
      if (parts.empty() && group_->supportsCoalescing()) group_->startCoalescing();
      std::vector<at::Tensor> tensors = {message.tensor};
      auto work = send ? group_->send(tensors, message.rank, tag) : group_->recv(tensors, message.rank, tag);
      parts.push_back({std::move(work), std::move(tensors), doing});
    };
    for (const auto& message : receives) add(message, false);
    for (const auto& message : sends) add(message, true);
    if (!parts.empty() && group_->supportsCoalescing()) {
      GroupPending::Part all{group_->endCoalescing(), {}, ""};
      for (const auto& part : parts) {
        all.tensors.push_back(part.tensors.front());
        all.what += (all.what.empty() ? "" : ", ") + part.what;
      }
      parts.clear();
      parts.push_back(std::move(all));
    }
  } catch (const std::exception& e) {
    const std::string what = e.what();
    watch_.explain(fmt::format("{}: {}", doing, what.substr(0, what.find('\n'))));
  }
  return std::make_unique<GroupPending>(std::move(parts), watch_);
}

}  // namespace cairn::parallel
