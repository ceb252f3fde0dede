#include "router/generate_events.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <moe/v1/inference.pb.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace moe {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

class GenerateEventsTest : public testing::Test {
 protected:
  /// The next sequence of the call, of which nothing has come out yet.
  SequenceOutput& Add() {
    const SequenceRequest request{.prompt = {1, 2, 3}, .max_new_tokens = 8};
    auto output = std::make_shared<SequenceOutput>(request, config_);
    events_.Add(output, request.sent_tokens());
    outputs_.push_back(output);
    return *output;
  }
  static void Generate(SequenceOutput& output, std::uint32_t token) {
    const std::size_t count = output.tokens();
    output.token_ids[count] = token;
    output.PublishTokens(count + 1);
  }
  static void Finish(SequenceOutput& output) { output.Finish({.finish = FinishKind::kLength}); }

  /// What is sent next, which must be something.
  v1::GenerateEvent Sent() {
    v1::GenerateEvent event;
    EXPECT_TRUE(events_.Next(event));
    return event;
  }
  bool NothingToSend() {
    v1::GenerateEvent event;
    return !events_.Next(event);
  }

  const InferenceSetup setup_{};
  const ModelConfig config_{};
  std::vector<std::shared_ptr<SequenceOutput>> outputs_;
  GenerateEvents events_{{.setup = setup_, .config = config_}};
};

TEST_F(GenerateEventsTest, ASequenceThatFinishesAfterTheLookStillHasItsFinishToSend) {
  SequenceOutput& output = Add();
  Generate(output, 5);
  EXPECT_THAT(Sent().token_ids(), ElementsAre(5));
  EXPECT_TRUE(NothingToSend());
  Finish(output);  // between the call's look for an event and its question whether that was all
  EXPECT_FALSE(events_.complete());
  const v1::GenerateEvent last = Sent();
  EXPECT_THAT(last.token_ids(), IsEmpty());
  EXPECT_EQ(last.finish().reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(last.finish().usage().prompt_tokens(), 3u);
  EXPECT_EQ(last.finish().usage().generated_tokens(), 1u);
  EXPECT_TRUE(events_.complete());
  EXPECT_TRUE(NothingToSend());
}

TEST_F(GenerateEventsTest, IsCompleteWithTheFinishOfEverySequence) {
  SequenceOutput& first = Add();
  SequenceOutput& second = Add();
  Finish(first);
  EXPECT_EQ(Sent().sequence(), 0u);
  EXPECT_FALSE(events_.complete());
  Finish(second);
  EXPECT_FALSE(events_.complete());
  EXPECT_EQ(Sent().sequence(), 1u);
  EXPECT_TRUE(events_.complete());
}

TEST_F(GenerateEventsTest, SequencesTakeTurnsAndSendWhatHasGathered) {
  SequenceOutput& first = Add();
  SequenceOutput& second = Add();
  Generate(first, 10);
  Generate(second, 20);
  v1::GenerateEvent event = Sent();
  EXPECT_EQ(event.sequence(), 0u);
  EXPECT_THAT(event.token_ids(), ElementsAre(10));
  Generate(first, 11);
  Generate(second, 21);
  Finish(second);
  event = Sent();
  EXPECT_EQ(event.sequence(), 1u) << "it was the other's turn";
  EXPECT_THAT(event.token_ids(), ElementsAre(20, 21));
  EXPECT_TRUE(event.has_finish());
  event = Sent();
  EXPECT_EQ(event.sequence(), 0u);
  EXPECT_THAT(event.token_ids(), ElementsAre(11));
  EXPECT_FALSE(event.has_finish());
  EXPECT_TRUE(NothingToSend());
  EXPECT_FALSE(events_.complete());
}

}  // namespace
}  // namespace moe
