#include "rpc/listen_address.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <memory>
#include <system_error>

namespace moe {
namespace {

// 0 or the error number of binding a listening socket to it.
int TryBind(const addrinfo& candidate) {
  const int descriptor = socket(candidate.ai_family, candidate.ai_socktype | SOCK_CLOEXEC, candidate.ai_protocol);
  if (descriptor < 0) return errno;
  // As gRPC does: connections of an earlier server that linger in TIME_WAIT do not count.
  const int on = 1;
  setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  const int error = bind(descriptor, candidate.ai_addr, candidate.ai_addrlen) == 0 ? 0 : errno;
  close(descriptor);
  return error;
}

}  // namespace

std::string ListenAddress::WithPort(int other_port) const {
  const bool ipv6 = host.find(':') != std::string::npos;
  return ipv6 ? Cat("[", host, "]:", other_port) : Cat(host, ":", other_port);
}

Result<ListenAddress> ParseListenAddress(std::string_view text) {
  const Status malformed =
      InvalidArgument("listen address \"", text, "\" is not HOST:PORT with a port from 0 to 65535");
  const std::size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return malformed;
  std::string_view host = text.substr(0, colon);
  const std::string_view digits = text.substr(colon + 1);
  if (host.starts_with('[') && host.ends_with(']')) {
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string_view::npos) {
    return malformed;
  }
  unsigned port = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), port);
  if (host.empty() || error != std::errc() || end != digits.data() + digits.size() || port > 65535) return malformed;
  return ListenAddress{.host = std::string(host), .port = static_cast<int>(port)};
}

Status CheckBindable(const ListenAddress& address) {
  const std::string name = address.WithPort(address.port);
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* list = nullptr;
  const int resolved = getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(), &hints, &list);
  if (resolved != 0) return Unavailable("cannot listen on ", name, ": ", gai_strerror(resolved));
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(list, freeaddrinfo);

  int bound = 0;
  int first_error = 0;
  for (const addrinfo* candidate = list; candidate != nullptr; candidate = candidate->ai_next) {
    const int error = TryBind(*candidate);
    if (error == 0) ++bound;
    if (first_error == 0) first_error = error;
    if (error == EADDRINUSE || error == EACCES) {
      return Unavailable("cannot listen on ", name, ": ", std::generic_category().message(error));
    }
  }
  // A name may stand for addresses that this machine lacks, such as IPv6 where it is off; one that it has is enough.
  if (bound == 0) return Unavailable("cannot listen on ", name, ": ", std::generic_category().message(first_error));
  return Status::Ok();
}

}  // namespace moe
