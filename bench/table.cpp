#include "bench/table.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>

namespace moe {
namespace {

// UTF-8 continuation bytes start no character.
std::size_t Characters(const std::string& text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

void AddLine(const std::vector<std::string>& cells, const std::vector<std::size_t>& widths, std::string& text) {
  std::string line;
  for (std::size_t i = 0; i < cells.size(); ++i) {
    const std::string padding(widths[i] - Characters(cells[i]), ' ');
    line += i == 0 ? cells[i] + padding : "  " + padding + cells[i];
  }
  line.erase(line.find_last_not_of(' ') + 1);
  text += line + '\n';
}

}  // namespace

std::string Format(const char* format, ...) {
  std::va_list values, again;
  va_start(values, format);
  va_copy(again, values);
  std::string text(static_cast<std::size_t>(std::max(0, std::vsnprintf(nullptr, 0, format, values))), '\0');
  (void)std::vsnprintf(text.data(), text.size() + 1, format, again);
  va_end(again);
  va_end(values);
  return text;
}

std::string TextTable::Text() const {
  std::vector<std::size_t> widths(rows_.front().size(), 0);
  for (const auto& row : rows_)
    for (std::size_t i = 0; i < std::min(row.size(), widths.size()); ++i)
      widths[i] = std::max(widths[i], Characters(row[i]));
  std::string text;
  AddLine(rows_.front(), widths, text);
  std::size_t total = 0;
  for (const std::size_t width : widths) total += width + 2;
  text += std::string(total - 2, '-') + '\n';
  for (std::size_t i = 1; i < rows_.size(); ++i) AddLine(rows_[i], widths, text);
  return text;
}

}  // namespace moe
