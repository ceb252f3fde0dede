// An Inference service inside a test: answers as it should, or in one of the ways in which a server can go wrong.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace moe {

enum class Fault {
  kNone,
  kDropFinish,
  kDropToken,    // counted, never sent
  kDoubleToken,  // sent twice, counted once
  kTokenAfterFinish,
  kDoubleFinish,
  kFailSequence,   // Finish FAILED "worker lost"
  kStraySequence,  // an event for a sequence that the call does not have
  kInvalidToken,
  kRefuse,      // RESOURCE_EXHAUSTED at once
  kBreakOff,    // UNAVAILABLE after half of the tokens
  kHang,        // no end until the client cancels
  kCancelCall,  // CANCELLED, which the client did not ask for
};

struct FakeInferenceOptions {
  std::map<std::string, Fault> faults;  // by request id; all sequences of that call but the first, or the only one
  int open_together = 0;                // nothing is answered until so many measured calls have been opened
  std::string refuse_all_with;          // not empty: every call gets RESOURCE_EXHAUSTED with this message
  int tokens_per_event = 1;
};

/// Vocabulary 256, context 512.
class FakeInferenceServer {
 public:
  explicit FakeInferenceServer(FakeInferenceOptions options = {});
  ~FakeInferenceServer();

  const std::string& address() const { return address_; }

  struct Seen {
    std::string request_id;
    std::vector<std::vector<std::uint32_t>> prompts;
    std::uint32_t max_new_tokens = 0;
    bool ignore_eos = false;
    float temperature = 0;
    std::uint64_t seed = 0;
  };
  /// All calls so far, by request id.
  std::map<std::string, Seen> seen() const;
  /// Of calls open at one time.
  int most_open() const;
  /// Returns when so many calls hang (Fault::kHang).
  void WaitForHanging(int calls);

 private:
  class Service;
  std::unique_ptr<Service> service_;
  std::string address_;
};

}  // namespace moe
