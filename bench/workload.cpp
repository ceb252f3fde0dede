#include "bench/workload.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <optional>
#include <sstream>

#include "bench/random_stream.h"
#include "core/text.h"

namespace moe {
namespace {

std::optional<std::uint32_t> ParseLength(std::string_view text) {
  std::uint32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value == 0) return std::nullopt;
  return value;
}

Result<std::string> ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return InvalidArgument("--text ", path, ": cannot be opened, a readable file was expected.");
  std::ostringstream text;
  text << file.rdbuf();  // fails on an empty file, and on a folder
  if (!text) return InvalidArgument("--text ", path, ": nothing can be read, a file that is not empty was expected.");
  return std::move(text).str();
}

constexpr std::size_t kLongestText = std::size_t{1} << 30;  // positions in it fit 32 bits

Status CheckText(const std::string& text, const WorkloadOptions& options, const ServedModel& model) {
  if (text.size() < options.input_len.high) {
    return InvalidArgument("--text ", options.text_file, " has ", text.size(), " bytes, but --input-len asks for ",
                           options.input_len.high, ".");
  }
  if (text.size() > kLongestText) {
    return InvalidArgument("--text ", options.text_file, " has ", text.size(), " bytes, but at most ", kLongestText,
                           " are read.");
  }
  std::uint32_t largest = 0;
  for (const char c : text) largest = std::max(largest, static_cast<std::uint32_t>(static_cast<unsigned char>(c)));
  if (largest >= model.vocab_size) {
    return InvalidArgument("--text ", options.text_file, " has a byte of value ", largest, ", but model \"", model.name,
                           "\" has only ", model.vocab_size, " tokens.");
  }
  return Status::Ok();
}

std::uint32_t Draw(LengthRange range, RandomStream& random) {
  return range.low + random.Below(range.high - range.low + 1);
}

}  // namespace

Result<LengthRange> ParseLengthRange(std::string_view text) {
  const std::size_t colon = text.find(':');
  const auto low = ParseLength(text.substr(0, colon));
  const auto high = colon == std::string_view::npos ? low : ParseLength(text.substr(colon + 1));
  // The upper limit keeps sums of two lengths, and the width of a range, within 32 bits.
  constexpr std::uint32_t kLongest = 1U << 30;
  if (!low || !high || *low > *high || *high > kLongest) {
    return InvalidArgument("length \"", text, "\" is not N or A:B with 1 <= A <= B <= ", kLongest, ".");
  }
  return LengthRange{*low, *high};
}

Result<Workload> Workload::Create(const WorkloadOptions& options, const ServedModel& model) {
  if (options.input_len.high + options.output_len.high > model.context_length) {
    return InvalidArgument("--input-len ", options.input_len.high, " and --output-len ", options.output_len.high,
                           " together exceed the context of ", model.context_length, " tokens of model \"", model.name,
                           "\".");
  }
  if (model.max_sequences_per_request > 0 && options.sequences_per_request > model.max_sequences_per_request) {
    return InvalidArgument("--sequences-per-request ", options.sequences_per_request, " exceeds the server's limit of ",
                           model.max_sequences_per_request, ".");
  }
  std::string text;
  if (!options.text_file.empty()) {
    MOE_ASSIGN_OR_RETURN(text, ReadText(options.text_file));
    MOE_RETURN_IF_ERROR(CheckText(text, options, model));
  }
  return Workload(options, model.vocab_size, std::move(text));
}

PlannedCall Workload::Make(Phase phase, std::uint64_t index) const {
  RandomStream random{options_.seed, static_cast<std::uint64_t>(phase), index};
  PlannedCall call;
  call.request_id = Cat("moe-bench-", phase == Phase::kWarmup ? "warmup-" : "", index);
  call.sampling_seed = random.Next();
  call.max_new_tokens = Draw(options_.output_len, random);
  call.prompts.resize(options_.sequences_per_request);
  for (std::vector<std::uint32_t>& prompt : call.prompts) {
    prompt.resize(Draw(options_.input_len, random));
    if (text_.empty()) {
      for (std::uint32_t& token : prompt) token = random.Below(vocab_size_);
    } else {
      const std::uint32_t begin = random.Below(static_cast<std::uint32_t>(text_.size() - prompt.size() + 1));
      for (std::size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<unsigned char>(text_[begin + i]);
    }
  }
  return call;
}

}  // namespace moe
