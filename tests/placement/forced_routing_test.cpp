#include "placement/forced_routing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <string>

namespace moe {
namespace {

using testing::HasSubstr;

// Sparse at 1 and 2.
ModelConfig SomeModel(int experts, int per_token, int groups = 1, int top_groups = 1) {
  ModelConfig config;
  config.model_type = "some";
  config.layers.resize(3);
  for (const std::size_t layer : {1u, 2u})
    config.layers[layer].moe = MoeSpec{
        .gate = {.num_experts = experts, .experts_per_token = per_token, .groups = groups, .top_groups = top_groups}};
  return config;
}

std::shared_ptr<const RoutingOverride> Make(const std::string& text, const ModelConfig& config,
                                            std::uint64_t seed = 1) {
  const Result<RoutingDial> dial = ParseRouting(text);
  EXPECT_TRUE(dial.ok()) << dial.status().message();
  Result<std::shared_ptr<const RoutingOverride>> routing = MakeForcedRouting(*dial, seed, config);
  EXPECT_TRUE(routing.ok()) << routing.status().message();
  return *routing;
}

// Shares of the rows of a layer by expert, most popular first. Also checks that a token's experts are distinct and that
// they come from no more groups than the gate takes.
std::vector<double> SharesOf(const std::string& text, const ModelConfig& config) {
  constexpr std::uint32_t kTokens = 20'000;
  const auto routing = Make(text, config);
  const GateSpec& gate = config.layers[1].moe->gate;
  const int group_size = gate.num_experts / gate.groups;
  std::vector<std::int32_t> ids(static_cast<std::size_t>(gate.experts_per_token));
  std::vector<double> counts(static_cast<std::size_t>(gate.num_experts));
  for (std::uint32_t token = 0; token < kTokens; ++token) {
    routing->Choose(1, token % 250, token / 250, ids);
    std::set<std::int32_t> experts;
    std::set<std::int32_t> groups;
    for (const std::int32_t id : ids) {
      EXPECT_TRUE(id >= 0 && id < gate.num_experts);
      experts.insert(id);
      groups.insert(id / group_size);
      ++counts[static_cast<std::size_t>(id)];
    }
    EXPECT_EQ(experts.size(), ids.size());
    EXPECT_LE(static_cast<int>(groups.size()), gate.groups == 1 ? 1 : gate.top_groups);
  }
  std::ranges::sort(counts, std::greater<>());
  for (double& count : counts) count /= kTokens * static_cast<double>(gate.experts_per_token);
  return counts;
}

void ExpectShares(const std::string& text, const ModelConfig& config, double tolerance) {
  const GateSpec& gate = config.layers[1].moe->gate;
  Result<std::vector<double>> expected = RowShares(*ParseRouting(text), gate.num_experts, gate.experts_per_token);
  ASSERT_TRUE(expected.ok()) << expected.status().message();
  std::ranges::sort(*expected, std::greater<>());  // hot experts may be many and have less than the others
  const std::vector<double> shares = SharesOf(text, config);
  EXPECT_NEAR(std::accumulate(shares.begin(), shares.end(), 0.0), 1, 1e-9);
  for (std::size_t i = 0; i < shares.size(); ++i)
    EXPECT_NEAR(shares[i], (*expected)[i], tolerance) << text << ", " << i;
}

TEST(ForcedRouting, SharesAreAsTheDialSays) {
  // Four standard deviations of 20,000 draws, which are at least as even as independent ones, and what sorting moves.
  for (const char* text :
       {"uniform", "zipf:0.6", "zipf:1.0", "zipf:1.4", "zipf:8", "hot:4,0.5", "hot:1,0.125", "hot:8,1", "hot:60,0.5"}) {
    ExpectShares(text, SomeModel(64, 8), 0.002);
  }
  ExpectShares("zipf:1.0", SomeModel(8, 2), 0.008);
  ExpectShares("uniform", SomeModel(4, 4), 1e-9);
  ExpectShares("hot:1,0.9", SomeModel(16, 1), 0.01);
}

TEST(ForcedRouting, KnownShares) {
  // No share is above 1 / k; what is above goes to the others.
  const Result<std::vector<double>> shares = RowShares(*ParseRouting("zipf:1"), 4, 2);
  ASSERT_TRUE(shares.ok());
  EXPECT_NEAR((*shares)[0], 0.48, 1e-12);  // (12, 6, 4, 3) / 25
  EXPECT_NEAR((*shares)[3], 0.12, 1e-12);
  EXPECT_NEAR((*RowShares(*ParseRouting("zipf:2"), 4, 2))[0], 0.5, 1e-12);
  EXPECT_NEAR((*RowShares(*ParseRouting("zipf:2"), 4, 2))[1], 0.5 * (1 / 4.0) / (1 / 4.0 + 1 / 9.0 + 1 / 16.0), 1e-12);
  EXPECT_NEAR((*RowShares(*ParseRouting("hot:2,0.5"), 10, 2))[1], 0.25, 1e-12);
}

TEST(ForcedRouting, GroupedGatesKeepTheirGroups) {
  // The shares of a grouped gate hold in the mean over its 64 orders.
  ExpectShares("uniform", SomeModel(64, 8, 8, 4), 0.004);
  ExpectShares("zipf:0.6", SomeModel(64, 8, 8, 4), 0.03);
  ExpectShares("uniform", SomeModel(256, 8, 8, 4), 0.003);
  SharesOf("hot:8,1", SomeModel(64, 8, 8, 2));
  SharesOf("zipf:1.4", SomeModel(256, 8, 8, 4));
}

TEST(ForcedRouting, FollowsFromSeedLayerTokenAndPositionAlone) {
  const ModelConfig config = SomeModel(64, 8);
  const auto choose = [](const RoutingOverride& routing, std::size_t layer, std::uint32_t token,
                         std::uint32_t position) {
    std::vector<std::int32_t> ids(8);
    routing.Choose(layer, token, position, ids);
    return ids;
  };
  const auto routing = Make("zipf:1", config);
  const auto same = Make("zipf:1.0", config);
  const auto other = Make("zipf:1", config, 2);
  int differ = 0;
  for (std::uint32_t i = 0; i < 50; ++i) {
    const auto ids = choose(*routing, 1, i, 2 * i);
    EXPECT_EQ(ids, choose(*same, 1, i, 2 * i));
    differ += ids != choose(*other, 1, i, 2 * i);
    differ += ids != choose(*routing, 2, i, 2 * i);
    differ += ids != choose(*routing, 1, i + 1, 2 * i);
    differ += ids != choose(*routing, 1, i, 2 * i + 1);
  }
  EXPECT_GT(differ, 190);
}

TEST(ForcedRouting, ReadsItsForms) {
  for (const char* text : {"gate", "uniform", "zipf:1", "zipf:0.75", "hot:4,0.5", "trace:/a/b.moetrace"}) {
    const Result<RoutingDial> dial = ParseRouting(text);
    ASSERT_TRUE(dial.ok()) << dial.status().message();
    EXPECT_EQ(RoutingName(*dial), text);
    EXPECT_EQ(dial->forced(), std::string(text) != "gate");
  }
}

TEST(ForcedRouting, RefusesWhatItDoesNotKnow) {
  const std::map<std::string, std::string> cases = {{"", "is unknown (gate, uniform"},
                                                    {"zipf", "is unknown"},
                                                    {"zipf:", "S is not a number"},
                                                    {"zipf:-1", "S is not a number"},
                                                    {"zipf:nan", "S is not a number"},
                                                    {"zipf:9", "S is not a number in 0 … 8"},
                                                    {"zipf:1x", "S is not a number"},
                                                    {"hot:3", "not of the form"},
                                                    {"hot:0,0.5", "N is not a whole number"},
                                                    {"hot:1.5,0.5", "N is not a whole"},
                                                    {"hot:2,0", "SHARE is not in"},
                                                    {"hot:2,1.1", "SHARE is not in"},
                                                    {"hot:2,nan", "SHARE is not in"},
                                                    {"trace:", "is unknown"},
                                                    {"Uniform", "is unknown"}};
  for (const auto& [text, needle] : cases) {
    const Result<RoutingDial> dial = ParseRouting(text);
    EXPECT_EQ(dial.status().code(), StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(dial.status().message(), HasSubstr(needle)) << text;
  }
}

TEST(ForcedRouting, RefusesWhatAModelCannotDo) {
  const auto refusal = [](const std::string& text, const ModelConfig& config) {
    return MakeForcedRouting(*ParseRouting(text), 1, config).status().message();
  };
  EXPECT_THAT(refusal("hot:8,0.5", SomeModel(8, 2)), HasSubstr("N is not below the model's 8 experts"));
  EXPECT_THAT(refusal("hot:1,0.9", SomeModel(8, 2)), HasSubstr("1 get at most 0.5 of the rows"));
  EXPECT_THAT(refusal("hot:7,0.4", SomeModel(8, 2)), HasSubstr("the other 1 get at most 0.5 of the rows"));
  EXPECT_THAT(refusal("uniform", ModelConfig{.model_type = "llama"}), HasSubstr("llama has no experts"));
  EXPECT_THAT(refusal("trace:/nonexistent/t", SomeModel(8, 2)), HasSubstr("/nonexistent/t"));
  const auto none = MakeForcedRouting(RoutingDial{}, 1, SomeModel(8, 2));
  EXPECT_TRUE(none.ok() && *none == nullptr);
}

}  // namespace
}  // namespace moe
