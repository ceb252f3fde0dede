// HOST:PORT as users write it, and why one cannot be listened on.
#pragma once

#include <string>
#include <string_view>

#include "core/status.h"

namespace moe {

struct ListenAddress {
  std::string host;  // without brackets
  int port = 0;      // 0 for any free one

  /// "HOST:PORT" with another port, IPv6 in brackets.
  std::string WithPort(int other_port) const;
};

/// "127.0.0.1:50051", "localhost:0", "[::1]:50051". INVALID_ARGUMENT naming the text otherwise.
Result<ListenAddress> ParseListenAddress(std::string_view text);

/// Whether a server could bind to every address that the host stands for, tried and undone. gRPC itself is content with
/// one of them ("localhost" is two), and tells why it failed to a log only. UNAVAILABLE naming the address otherwise.
Status CheckBindable(const ListenAddress& address);

}  // namespace moe
