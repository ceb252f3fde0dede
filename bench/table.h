// Aligned columns for people.
#pragma once

#include <string>
#include <vector>

namespace moe {

/// One cell or line, as printf writes it.
std::string Format(const char* format, ...) __attribute__((format(printf, 1, 2)));

/// Cells by row and column; the first column is aligned left, the others right. Widths count characters, not bytes.
class TextTable {
 public:
  explicit TextTable(std::vector<std::string> header) : rows_{std::move(header)} {}

  /// As many cells as the header has; fewer leave the rest empty.
  void Add(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
  /// The header, a rule and the rows, two spaces between columns, no spaces at the ends of lines.
  std::string Text() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace moe
