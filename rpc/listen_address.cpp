#include "rpc/listen_address.h"

#include <netdb.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstddef>
#include <cstring>
#include <memory>
#include <system_error>

#include "core/errno_text.h"

namespace moe {
namespace {

constexpr std::string_view kFilePrefix = "unix:";
constexpr std::string_view kAbstractPrefix = "unix-abstract:";
// The kernel's array, less the zero that ends a path, or that begins a name.
constexpr std::size_t kMostLocalBytes = sizeof(sockaddr_un::sun_path) - 1;

bool IsPlain(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
         std::string_view("/._-+@~").find(c) != std::string_view::npos;
}

Result<ListenAddress> ParseLocal(std::string_view text, ListenAddress::Kind kind, std::string_view name) {
  const bool file = kind == ListenAddress::Kind::kFile;
  if (name.empty() || (file && name.front() != '/')) {
    return InvalidArgument("address \"", text, "\" names no ",
                           file ? "path; unix:/PATH was expected, from the root" : "socket");
  }
  if (name.size() > kMostLocalBytes) {
    return InvalidArgument("address \"", text, "\" has a ", file ? "path" : "name", " of ", name.size(),
                           " bytes (at most ", kMostLocalBytes, ")");
  }
  if (const auto odd = std::ranges::find_if_not(name, &IsPlain); odd != name.end())
    return InvalidArgument("address \"", text, "\" has a \"", *odd, "\" (letters, digits and /._-+@~ are allowed)");
  return ListenAddress{.kind = kind, .host = std::string(name)};
}

Status CannotListen(const ListenAddress& address, std::string_view why) {
  return Unavailable("cannot listen on ", address.WithPort(address.port), ": ", why);
}

Status CannotListen(const ListenAddress& address, int error) { return CannotListen(address, ErrnoText(error)); }

// 0 or the error number of binding a listening socket to it.
int TryBind(int family, int protocol, const sockaddr* address, socklen_t bytes) {
  const int descriptor = socket(family, SOCK_STREAM | SOCK_CLOEXEC, protocol);
  if (descriptor < 0) return errno;
  // As gRPC does: connections of an earlier server that linger in TIME_WAIT do not count.
  const int on = 1;
  setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  const int error = bind(descriptor, address, bytes) == 0 ? 0 : errno;
  close(descriptor);
  return error;
}

// 0 when somebody listens there, or the error number of connecting to it.
int TryConnect(const sockaddr* address, socklen_t bytes) {
  const int descriptor = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (descriptor < 0) return errno;
  const int error = connect(descriptor, address, bytes) == 0 ? 0 : errno;
  close(descriptor);
  return error == EAGAIN ? 0 : error;  // its queue of connections is full
}

// Removes the file that a killed server has left, if there is one.
Status RemoveStaleSocket(const ListenAddress& address, const sockaddr* socket, socklen_t bytes) {
  struct stat found {};
  if (lstat(address.host.c_str(), &found) != 0) return Status::Ok();  // binding tells why, if it matters
  if (!S_ISSOCK(found.st_mode)) return CannotListen(address, "there is a file that is no socket");
  const int error = TryConnect(socket, bytes);
  if (error == 0) return CannotListen(address, EADDRINUSE);
  if (error != ECONNREFUSED) return CannotListen(address, error);
  return unlink(address.host.c_str()) == 0 ? Status::Ok() : CannotListen(address, errno);
}

Status CheckLocalBindable(const ListenAddress& address) {
  const bool file = address.kind == ListenAddress::Kind::kFile;
  MOE_CHECK(address.host.size() <= kMostLocalBytes, "an address that ParseListenAddress refuses");
  sockaddr_un local{};
  local.sun_family = AF_UNIX;
  std::memcpy(local.sun_path + (file ? 0 : 1), address.host.data(), address.host.size());
  const auto bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + address.host.size());
  const auto* const socket = reinterpret_cast<const sockaddr*>(&local);
  if (file) MOE_RETURN_IF_ERROR(RemoveStaleSocket(address, socket, bytes));
  if (const int error = TryBind(AF_UNIX, 0, socket, bytes); error != 0) return CannotListen(address, error);
  if (file) unlink(address.host.c_str());
  return Status::Ok();
}

}  // namespace

std::string ListenAddress::WithPort(int other_port) const {
  if (local()) return Cat(kind == Kind::kFile ? kFilePrefix : kAbstractPrefix, host);
  const bool ipv6 = host.find(':') != std::string::npos;
  return ipv6 ? Cat("[", host, "]:", other_port) : Cat(host, ":", other_port);
}

Result<ListenAddress> ParseListenAddress(std::string_view text) {
  if (text.starts_with(kFilePrefix))
    return ParseLocal(text, ListenAddress::Kind::kFile, text.substr(kFilePrefix.size()));
  if (text.starts_with(kAbstractPrefix))
    return ParseLocal(text, ListenAddress::Kind::kAbstract, text.substr(kAbstractPrefix.size()));
  const Status malformed =
      InvalidArgument("address \"", text, "\" is not HOST:PORT with a port from 0 to 65535, nor unix:/PATH");
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
  if (address.local()) return CheckLocalBindable(address);
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* list = nullptr;
  const int resolved = getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(), &hints, &list);
  if (resolved != 0) return CannotListen(address, gai_strerror(resolved));
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(list, freeaddrinfo);

  int bound = 0;
  int first_error = 0;
  for (const addrinfo* candidate = list; candidate != nullptr; candidate = candidate->ai_next) {
    const int error = TryBind(candidate->ai_family, candidate->ai_protocol, candidate->ai_addr, candidate->ai_addrlen);
    if (error == 0) ++bound;
    if (first_error == 0) first_error = error;
    if (error == EADDRINUSE || error == EACCES) return CannotListen(address, error);
  }
  // A name may stand for addresses that this machine lacks, such as IPv6 where it is off; one that it has is enough.
  if (bound == 0) return CannotListen(address, first_error);
  return Status::Ok();
}

}  // namespace moe
