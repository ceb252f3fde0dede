// What the kernel says about this process, for the process_* metrics.
#pragma once

#include <optional>
#include <string_view>

namespace moe {

struct ProcessFigures {
  double cpu_seconds = 0;  // user and system, all threads
  double virtual_bytes = 0;
  double resident_bytes = 0;
  double threads = 0;
  double start_unix_seconds = 0;
};

/// The figures of one line of /proc/PID/stat (proc(5)). `boot_unix_seconds`: "btime" of /proc/stat. Nothing when the
/// line is not of that form. CPU seconds are counted in clock ticks there.
std::optional<ProcessFigures> ParseProcessStat(std::string_view line, double boot_unix_seconds);

/// This process, now, with CPU seconds as fine as the clock gives them. Nothing when /proc is not mounted.
std::optional<ProcessFigures> ReadProcessFigures();

/// Entries of /proc/self/fd without the one that reads them; -1 when /proc is not mounted.
int CountOpenFiles();

/// The soft limit on open files; +Inf when there is none.
double MaxOpenFiles();

}  // namespace moe
