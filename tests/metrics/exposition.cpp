#include "tests/metrics/exposition.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "core/text.h"
#include "test_folders.h"

namespace moe {

std::optional<double> SampleValue(std::string_view text, std::string_view series) {
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    if (line.size() > series.size() && line.starts_with(series) && line[series.size()] == ' ') {
      return std::stod(std::string(line.substr(series.size() + 1)));
    }
    text.remove_prefix(std::min(line.size() + 1, text.size()));
  }
  return std::nullopt;
}

CommandResult CheckWithPromtool(std::string_view text) {
  std::string path = Cat(MOE_BINARY_DIR, "/metrics-XXXXXX");
  const int file = mkstemp(path.data());
  if (file < 0 || write(file, text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    return {1, Cat("cannot write ", path)};
  }
  close(file);
  CommandResult result;
  FILE* const pipe = popen(Cat("promtool check metrics < ", path, " 2>&1").c_str(), "r");
  std::array<char, 4096> block{};
  while (const std::size_t count = fread(block.data(), 1, block.size(), pipe))
    result.output.append(block.data(), count);
  const int status = pclose(pipe);
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 1;
  unlink(path.c_str());
  return result;
}

HttpResponse HttpGet(const std::string& address, const std::string& path) {
  const std::size_t colon = address.rfind(':');
  sockaddr_in peer{};
  peer.sin_family = AF_INET;
  peer.sin_port = htons(static_cast<std::uint16_t>(std::stoi(address.substr(colon + 1))));
  if (inet_pton(AF_INET, address.substr(0, colon).c_str(), &peer.sin_addr) != 1) return {};
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  std::string reply;
  if (connect(fd, reinterpret_cast<const sockaddr*>(&peer), sizeof(peer)) == 0) {
    const std::string request = Cat("GET ", path, " HTTP/1.0\r\nHost: ", address, "\r\n\r\n");
    if (send(fd, request.data(), request.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(request.size())) {
      std::array<char, 4096> block{};
      for (ssize_t count = 0; (count = recv(fd, block.data(), block.size(), 0)) > 0;) {
        reply.append(block.data(), static_cast<std::size_t>(count));
      }
    }
  }
  close(fd);
  HttpResponse response;
  const std::size_t header_end = reply.find("\r\n\r\n");
  if (header_end == std::string::npos || std::sscanf(reply.c_str(), "HTTP/%*s %d", &response.status) != 1) return {};
  response.body = reply.substr(header_end + 4);
  return response;
}

}  // namespace moe
