// The one source file that sees Gloo. Its headers are Debian's, of another year than the wheel's library: nothing here
// constructs or derives from a gloo type.
#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include "trainer/parallel/group.h"

namespace cairn::parallel {
namespace {

// The address of this machine on the way to `host`: what a datagram socket that is "connected" there is bound to.
// Nothing is sent.
std::string own_address_towards(const std::string& host) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_DGRAM;
  if (getaddrinfo(host.c_str(), "9", &hints, &found) != 0) return "";
  std::string result;
  for (const addrinfo* at = found; at != nullptr && result.empty(); at = at->ai_next) {
    const int fd = socket(at->ai_family, SOCK_DGRAM, 0);
    if (fd < 0) continue;
    sockaddr_storage own{};
    socklen_t length = sizeof(own);
    char text[NI_MAXHOST];
    if (connect(fd, at->ai_addr, at->ai_addrlen) == 0 &&
        getsockname(fd, reinterpret_cast<sockaddr*>(&own), &length) == 0 &&
        getnameinfo(reinterpret_cast<sockaddr*>(&own), length, text, sizeof(text), nullptr, 0, NI_NUMERICHOST) == 0)
      result = text;
    close(fd);
  }
  freeaddrinfo(found);
  return result;
}

}  // namespace

c10::intrusive_ptr<c10d::Backend> make_gloo_group(const GroupPlace& place) {
  auto options = c10d::ProcessGroupGloo::Options::create(place.limit);
  const char* interface = std::getenv("GLOO_SOCKET_IFNAME");  // as in torch.distributed
  if (interface != nullptr && *interface != '\0') {
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForInterface(interface));
  } else {
    const std::string own = own_address_towards(place.address);
    const bool loopback = own.empty() || own.rfind("127.", 0) == 0 || own == "::1";
    // The machine of rank 0 may know itself by a loopback address; other machines cannot reach that one.
    options->devices.push_back(loopback && place.several_machines
                                   ? c10d::ProcessGroupGloo::createDefaultDevice()
                                   : c10d::ProcessGroupGloo::createDeviceForHostname(own.empty() ? "127.0.0.1" : own));
  }
  auto group = c10::make_intrusive<c10d::ProcessGroupGloo>(place.store, place.rank, place.size, options);
  group->setTimeout(place.patience);
  return group;
}

}  // namespace cairn::parallel
