#include "metrics/process_figures.h"

#include <dirent.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <ctime>
#include <fstream>
#include <iterator>
#include <limits>
#include <string>
#include <vector>

namespace moe {
namespace {

// Indices into the fields that follow the ")" of the command name; the state, field 3 of proc(5), is index 0.
constexpr std::size_t kUserTicks = 11;
constexpr std::size_t kSystemTicks = 12;
constexpr std::size_t kThreads = 17;
constexpr std::size_t kStartTicks = 19;
constexpr std::size_t kVirtualBytes = 20;
constexpr std::size_t kResidentPages = 21;

std::vector<std::string_view> SplitAtSpaces(std::string_view text) {
  std::vector<std::string_view> fields;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find_first_of(" \n"), text.size());
    if (end > 0) fields.push_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return fields;
}

std::optional<double> ParseCount(std::string_view field) {
  unsigned long long count = 0;
  const auto [end, error] = std::from_chars(field.data(), field.data() + field.size(), count);
  if (error != std::errc() || end != field.data() + field.size()) return std::nullopt;
  return static_cast<double>(count);
}

std::optional<std::string> ReadWhole(const char* path) {
  std::ifstream file(path);
  if (!file) return std::nullopt;
  return std::string(std::istreambuf_iterator<char>(file), {});
}

double BootUnixSeconds() {
  const std::string text = ReadWhole("/proc/stat").value_or("");
  constexpr std::string_view kKey = "\nbtime ";
  const std::size_t at = text.find(kKey);
  if (at == std::string::npos) return 0;
  const std::string_view rest = std::string_view(text).substr(at + kKey.size());
  return ParseCount(rest.substr(0, rest.find('\n'))).value_or(0);
}

}  // namespace

std::optional<ProcessFigures> ParseProcessStat(std::string_view line, double boot_unix_seconds) {
  // The command name may hold spaces and brackets of its own: the last ")" ends it.
  const std::size_t name_end = line.rfind(')');
  if (name_end == std::string_view::npos) return std::nullopt;
  const std::vector<std::string_view> fields = SplitAtSpaces(line.substr(name_end + 1));
  if (fields.size() <= kResidentPages) return std::nullopt;
  const auto user = ParseCount(fields[kUserTicks]);
  const auto system = ParseCount(fields[kSystemTicks]);
  const auto threads = ParseCount(fields[kThreads]);
  const auto start = ParseCount(fields[kStartTicks]);
  const auto virtual_bytes = ParseCount(fields[kVirtualBytes]);
  const auto pages = ParseCount(fields[kResidentPages]);
  if (!user || !system || !threads || !start || !virtual_bytes || !pages) return std::nullopt;
  const auto ticks_per_second = static_cast<double>(sysconf(_SC_CLK_TCK));
  return ProcessFigures{.cpu_seconds = (*user + *system) / ticks_per_second,
                        .virtual_bytes = *virtual_bytes,
                        .resident_bytes = *pages * static_cast<double>(sysconf(_SC_PAGESIZE)),
                        .threads = *threads,
                        .start_unix_seconds = boot_unix_seconds + *start / ticks_per_second};
}

std::optional<ProcessFigures> ReadProcessFigures() {
  // A process starts once: the boot time is read once, so that a clock that is set later does not move the start.
  static const double boot_unix_seconds = BootUnixSeconds();
  const std::optional<std::string> line = ReadWhole("/proc/self/stat");
  if (!line) return std::nullopt;
  std::optional<ProcessFigures> figures = ParseProcessStat(*line, boot_unix_seconds);
  timespec cpu{};
  // The same quantity as utime + stime, in nanoseconds in place of ticks of 10 ms.
  if (figures && clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu) == 0) {
    figures->cpu_seconds = static_cast<double>(cpu.tv_sec) + static_cast<double>(cpu.tv_nsec) * 1e-9;
  }
  return figures;
}

int CountOpenFiles() {
  DIR* const directory = opendir("/proc/self/fd");
  if (directory == nullptr) return -1;
  int entries = 0;
  while (readdir(directory) != nullptr) ++entries;
  closedir(directory);
  return entries - 3;  // ".", ".." and the directory itself
}

double MaxOpenFiles() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) {
    return std::numeric_limits<double>::infinity();
  }
  return static_cast<double>(limit.rlim_cur);
}

}  // namespace moe
