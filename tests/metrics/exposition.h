// Reads the text exposition format and runs promtool over it, for the tests of what is exported.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace moe {

/// The value of the sample whose name and labels are written exactly as `series`, such as `a_total{rank="1"}`.
std::optional<double> SampleValue(std::string_view text, std::string_view series);

struct CommandResult {
  int exit_code = 0;
  std::string output;  // stdout and stderr
};

/// `promtool check metrics` over `text`. Its exit code is not 0 when promtool is not installed (Debian package
/// prometheus, which scripts/setup.sh installs).
CommandResult CheckWithPromtool(std::string_view text);

struct HttpResponse {
  int status = 0;
  std::string body;
};

/// GET http://`address``path`; status 0 when nobody answers.
HttpResponse HttpGet(const std::string& address, const std::string& path);

}  // namespace moe
