#include "trainer/parallel/group_transport.h"

#include <fmt/format.h>

namespace cairn::parallel {
namespace {

class GroupPending : public Pending {
 public:
  struct Part {
    c10::intrusive_ptr<c10d::Work> work;
    at::Tensor tensor;  // kept alive until the message is through
    int rank;
    const char* verb;
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
    if (!error.empty()) watch_.explain(fmt::format("{} rank {}: {}", current->verb, current->rank, error));
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
  int peer = -1;
  try {
    const auto add = [&](const Message& message, bool send) {
      if (message.tensor.numel() == 0) return;
      peer = message.rank;
      std::vector<at::Tensor> tensors = {message.tensor};
      parts.push_back({send ? group_->send(tensors, message.rank, tag) : group_->recv(tensors, message.rank, tag),
                       message.tensor, message.rank, send ? "sending to" : "receiving from"});
    };
    for (const auto& message : receives) add(message, false);
    for (const auto& message : sends) add(message, true);
  } catch (const std::exception& e) {
    const std::string what = e.what();
    watch_.explain(fmt::format("with rank {}: {}", peer, what.substr(0, what.find('\n'))));
  }
  return std::make_unique<GroupPending>(std::move(parts), watch_);
}

}  // namespace cairn::parallel
