// Where a server listens as users write it, and why that cannot be listened on.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "core/status.h"

namespace moe {

struct ListenAddress {
  enum class Kind : std::uint8_t {
    kTcp,       // HOST:PORT
    kFile,      // unix:/PATH, a socket of this machine with a file that says who may connect
    kAbstract,  // unix-abstract:NAME, one with a name alone, which goes with its server; anybody here may connect
  };
  Kind kind = Kind::kTcp;
  std::string host;  // kTcp: without brackets; kFile: the path; kAbstract: the name
  int port = 0;      // kTcp: 0 for any free one

  bool local() const { return kind != Kind::kTcp; }
  /// As users write it, with another port where there is one; IPv6 in brackets.
  std::string WithPort(int other_port) const;
};

/// "127.0.0.1:50051", "localhost:0", "[::1]:50051", "unix:/run/moe/1", "unix-abstract:moe-1". INVALID_ARGUMENT naming
/// the text otherwise: paths and names have at most 107 bytes, which are letters, digits and any of /._-+@~ (gRPC takes
/// the address for a URI).
Result<ListenAddress> ParseListenAddress(std::string_view text);

/// Whether a server could bind to every address that the host stands for, tried and undone. gRPC itself is content with
/// one of them ("localhost" is two), and tells why it failed to a log only. A file that a killed server has left in the
/// place of a local socket is removed; gRPC would remove that of a running one too. UNAVAILABLE naming the address
/// otherwise.
Status CheckBindable(const ListenAddress& address);

}  // namespace moe
