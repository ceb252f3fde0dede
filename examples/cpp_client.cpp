// Asks a running moe_serve to continue texts, and prints the tokens as they come. Text in, text out, for models whose
// tokens are bytes (the bundled ones); token ids in, token ids out, with --ids. The generated code of proto/moe/v1 is
// all that it needs of the project.

#include <grpcpp/grpcpp.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <exception>
#include <iostream>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "moe/v1/inference.grpc.pb.h"

namespace {

constexpr std::uint32_t kByteVocabulary = 256;  // a vocabulary of this size means: token id = byte
constexpr std::uint32_t kNewline = 10;

struct Options {
  std::string server = "127.0.0.1:50051";
  std::vector<std::string> texts;
  bool ids = false;
  std::uint32_t max_new_tokens = 64;
  float temperature = 0;
  std::optional<std::uint64_t> seed;
  bool stop_at_newline = false;
  bool usage = false;
  double timeout_s = 60;
};

/// What has come of one sequence of the batch.
struct Continuation {
  std::vector<std::uint32_t> token_ids;
  std::optional<moe::v1::Finish> finish;
};

void SetDeadline(grpc::ClientContext& context, const Options& options) {
  context.set_deadline(std::chrono::system_clock::now() +
                       std::chrono::milliseconds(static_cast<std::int64_t>(options.timeout_s * 1000)));
}

/// Token ids between blanks or commas; false, with `bad` the word that is not one.
bool ParseIds(std::string_view text, moe::v1::TokenSequence& sequence, std::string_view& bad) {
  while (true) {
    const std::size_t begin = text.find_first_not_of(" ,");
    if (begin == std::string_view::npos) return true;
    text.remove_prefix(begin);
    const std::string_view word = text.substr(0, text.find_first_of(" ,"));
    std::uint32_t id = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (error != std::errc() || end != word.data() + word.size()) {
      bad = word;
      return false;
    }
    sequence.add_token_ids(id);
    text.remove_prefix(word.size());
  }
}

void AddBytes(std::string_view text, moe::v1::TokenSequence& sequence) {
  for (const char c : text) sequence.add_token_ids(static_cast<unsigned char>(c));
}

/// Writes tokens as text or as ids; `first` when nothing of the sequence has been written.
void Show(const Options& options, const std::vector<std::uint32_t>& token_ids, bool first) {
  for (const std::uint32_t id : token_ids) {
    if (options.ids) {
      std::cout << (first ? "" : " ") << id;
    } else {
      std::cout << static_cast<char>(id);
    }
    first = false;
  }
  std::cout << std::flush;
}

void EndLine(const Options& options, const Continuation& result) {
  const bool ended = !options.ids && !result.token_ids.empty() && result.token_ids.back() == kNewline;
  if (!ended) std::cout << '\n';
}

int Fail(const grpc::Status& status) {
  std::cerr << "cpp_client: " << (status.error_message().empty() ? "the call failed" : status.error_message())
            << " (gRPC status " << status.error_code() << ")\n";
  return 1;
}

/// The sequences' ends: output that was not streamed, counts if asked for, and 1 when one of them failed.
int Report(const Options& options, const std::vector<Continuation>& results) {
  int exit_code = 0;
  for (std::size_t i = 0; i < results.size(); ++i) {
    const Continuation& result = results[i];
    if (results.size() > 1) Show(options, result.token_ids, true);
    EndLine(options, result);
    const moe::v1::FinishReason reason = result.finish ? result.finish->reason() : moe::v1::FINISH_REASON_UNSPECIFIED;
    if (reason != moe::v1::FINISH_REASON_STOP && reason != moe::v1::FINISH_REASON_LENGTH) {
      std::cerr << "cpp_client: sequence " << i
                << " failed: " << (result.finish ? result.finish->message() : "the stream ended before it did") << '\n';
      exit_code = 1;
    } else if (options.usage) {
      const moe::v1::Usage& usage = result.finish->usage();
      std::cerr << "sequence " << i << ": " << usage.prompt_tokens() << " prompt tokens, " << usage.generated_tokens()
                << " generated, first after " << usage.time_to_first_token_seconds() * 1000 << " ms, all after "
                << usage.total_seconds() * 1000 << " ms\n";
    }
  }
  return exit_code;
}

int Generate(const Options& options, const moe::v1::GenerateRequest& request, moe::v1::Inference::Stub& stub) {
  grpc::ClientContext context;
  SetDeadline(context, options);
  std::vector<Continuation> results(static_cast<std::size_t>(request.sequences_size()));
  const auto reader = stub.Generate(&context, request);
  moe::v1::GenerateEvent event;
  while (reader->Read(&event)) {
    if (event.sequence() >= results.size()) {
      std::cerr << "cpp_client: the server sent sequence " << event.sequence() << " of " << results.size() << '\n';
      context.TryCancel();
      return 1;
    }
    Continuation& result = results[event.sequence()];
    const std::vector<std::uint32_t> tokens(event.token_ids().begin(), event.token_ids().end());
    // One sequence is shown as it comes; several would interleave, so each is shown when all are there.
    if (results.size() == 1) Show(options, tokens, result.token_ids.empty());
    result.token_ids.insert(result.token_ids.end(), tokens.begin(), tokens.end());
    if (event.has_finish()) result.finish = event.finish();
  }
  if (const grpc::Status status = reader->Finish(); !status.ok()) return Fail(status);
  return Report(options, results);
}

int Run(const Options& options) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  const auto channel = grpc::CreateCustomChannel(options.server, grpc::InsecureChannelCredentials(), arguments);
  const auto stub = moe::v1::Inference::NewStub(channel);

  moe::v1::GenerateRequest request;
  for (const std::string& text : options.texts) {
    moe::v1::TokenSequence& sequence = *request.add_sequences();
    if (std::string_view bad; !options.ids) {
      AddBytes(text, sequence);
    } else if (!ParseIds(text, sequence, bad)) {
      std::cerr << "cpp_client: \"" << bad << "\" is not a token id (0 to 4294967295)\n";
      return 2;
    }
  }
  request.set_max_new_tokens(options.max_new_tokens);
  request.mutable_sampling()->set_temperature(options.temperature);
  if (options.seed) request.mutable_sampling()->set_seed(*options.seed);
  if (options.stop_at_newline) request.add_stop_token_ids(kNewline);

  if (!options.ids) {
    grpc::ClientContext context;
    SetDeadline(context, options);
    moe::v1::ModelDescription model;
    if (const grpc::Status status = stub->GetModel(&context, {}, &model); !status.ok()) return Fail(status);
    if (model.vocab_size() != kByteVocabulary) {
      std::cerr << "cpp_client: the tokens of " << model.name() << " are not bytes (its vocabulary has "
                << model.vocab_size() << "): give token ids with --ids\n";
      return 1;
    }
  }
  return Generate(options, request, *stub);
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Asks a running moe_serve to continue texts, and prints the tokens as they come.");
  app.footer(
      "Examples:\n"
      "  cpp_client \"25 August 2057 | \"\n"
      "  cpp_client --stop-at-newline \"25 August 2057 | \" \"974 in Roman figures: \"\n"
      "  cpp_client --ids \"50 53 32 77 97 121\"");
  app.add_option("texts", options.texts, "What to continue; several make one batch")->required();
  app.add_option("--server", options.server, "HOST:PORT")->capture_default_str();
  app.add_flag("--ids", options.ids, "Texts and output are token ids");
  app.add_option("--max-new-tokens", options.max_new_tokens)->capture_default_str()->check(CLI::Range(1, 1000000));
  app.add_option("--temperature", options.temperature, "0 is greedy")->capture_default_str();
  app.add_option("--seed", options.seed, "Of the random numbers (drawn by the server)");
  app.add_flag("--stop-at-newline", options.stop_at_newline, "End a sequence with its line");
  app.add_flag("--usage", options.usage, "Print counts and times to stderr");
  app.add_option("--timeout", options.timeout_s, "Seconds, of the whole call")
      ->capture_default_str()
      ->check(CLI::Range(0.001, 1e6));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  return Run(options);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return Main(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "cpp_client: " << error.what() << '\n';
    return 1;
  }
}
