// Yarn, and rope settings in families other than Llama's: both published styles give the same rotation.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/config.h"
#include "tests/model/published_config.h"

namespace moe {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

bool SameRope(const RopeSpec& a, const RopeSpec& b) {
  return a.width == b.width && a.theta == b.theta && a.pairing == b.pairing && a.scaling == b.scaling &&
         a.factor == b.factor && a.low_freq_factor == b.low_freq_factor && a.high_freq_factor == b.high_freq_factor &&
         a.original_max_positions == b.original_max_positions && a.beta_fast == b.beta_fast &&
         a.beta_slow == b.beta_slow && a.truncate == b.truncate && a.magnitude == b.magnitude;
}

/// One published configuration of each family that rotates.
const std::vector<std::string> kRopeFamilies = {
    "llama-2-7b",  "mistral-7b-v0.1",  "mixtral-8x7b", "qwen2-57b-a14b", "qwen3-30b-a3b",
    "olmoe-1b-7b", "deepseek-v2-lite", "deepseek-v3",  "gpt-oss-20b",    "llama-4-scout"};

/// `changes` to the part of the configuration that describes the text model.
json WithRope(const std::string& name, const json& changes) {
  json config = Published(name);
  json& text = config.contains("text_config") ? config["text_config"] : config;
  text.erase("rope_theta");
  text.erase("rope_scaling");
  text.update(changes);
  return config;
}

RopeSpec RopeOf(const json& config) {
  const Result<ModelConfig> read = Read(config);
  EXPECT_TRUE(read.ok()) << read.status().message();
  if (!read.ok()) return {};
  EXPECT_THAT(read->warnings, IsEmpty());
  return read->rope;
}

TEST(RopeStyles, BothGiveTheSameRotationInEveryFamily) {
  const std::vector<std::pair<json, RopeScaling>> scalings = {
      {{{"rope_type", "default"}}, RopeScaling::kNone},
      {{{"rope_type", "linear"}, {"factor", 4.0}}, RopeScaling::kLinear},
      {{{"rope_type", "llama3"},
        {"factor", 8.0},
        {"low_freq_factor", 1.0},
        {"high_freq_factor", 4.0},
        {"original_max_position_embeddings", 512}},
       RopeScaling::kLlama3},
      {{{"rope_type", "yarn"},
        {"factor", 16.0},
        {"beta_fast", 30},
        {"beta_slow", 2},
        {"original_max_position_embeddings", 512}},
       RopeScaling::kYarn},
  };
  for (const std::string& name : kRopeFamilies) {
    for (const auto& [settings, scaling] : scalings) {
      json parameters = settings;
      parameters["rope_theta"] = 54321.0;
      const RopeSpec published = RopeOf(WithRope(name, {{"rope_theta", 54321.0}, {"rope_scaling", settings}}));
      EXPECT_TRUE(SameRope(published, RopeOf(WithRope(name, {{"rope_parameters", parameters}})))) << name << settings;
      EXPECT_EQ(published.scaling, scaling) << name;
      EXPECT_EQ(published.theta, 54321) << name;
      EXPECT_EQ(published.factor, settings.value("factor", 1.0)) << name;
      EXPECT_EQ(published.original_max_positions, settings.value("original_max_position_embeddings", 0)) << name;
    }
  }
}

TEST(RopeStyles, ThetaDefaultsByFamily) {
  const json none = {{"rope_scaling", {{"rope_type", "default"}}}};
  for (const std::string& name : kRopeFamilies) {
    const double theta = name == "mixtral-8x7b"    ? 1e6
                         : name == "gpt-oss-20b"   ? 15e4
                         : name == "llama-4-scout" ? 5e5
                                                   : 1e4;
    EXPECT_EQ(RopeOf(WithRope(name, none)).theta, theta) << name;
  }
}

TEST(RopeStyles, PairingAndWidthByFamily) {
  for (const std::string& name : kRopeFamilies) {
    const bool interleaved = name.starts_with("deepseek") || name.starts_with("llama-4");
    const RopeSpec rope = ReadWith(name).rope;
    EXPECT_EQ(rope.pairing, interleaved ? RopePairing::kInterleaved : RopePairing::kHalfSplit) << name;
    EXPECT_EQ(rope.width, name.starts_with("deepseek") || name.starts_with("gpt-oss") ? 64 : 128) << name;
  }
}

TEST(RopeStyles, OriginalPositionsMayStandOutside) {
  const json yarn = {{"rope_type", "yarn"}, {"factor", 4.0}};
  EXPECT_EQ(RopeOf(WithRope("qwen3-30b-a3b", {{"rope_scaling", yarn}})).original_max_positions, 40960);
  EXPECT_EQ(RopeOf(WithRope("qwen3-30b-a3b", {{"rope_scaling", yarn}, {"original_max_position_embeddings", 256}}))
                .original_max_positions,
            256);
  json inside = yarn;
  inside["original_max_position_embeddings"] = 128;
  EXPECT_THAT(Error(WithRope("qwen3-30b-a3b", {{"rope_scaling", inside}, {"original_max_position_embeddings", 256}})),
              HasSubstr("original_max_position_embeddings is 256, not 128, as rope_scaling says"));
}

TEST(RopeStyles, ThetaInsideTheScalingCounts) {
  json config = WithRope("qwen3-30b-a3b", {{"rope_scaling", {{"rope_type", "default"}, {"rope_theta", 77.0}}}});
  EXPECT_EQ(RopeOf(config).theta, 77);
  config["rope_theta"] = 78.0;
  EXPECT_EQ(Error(config), "config.json: rope_theta is 78, not 77, as rope_scaling says");
}

// Expected values below: f_i = theta^(-2i/r); a pair makes P f_i / 2π turns within the original P positions; it keeps
// f_i above beta_fast turns, has f_i / s below beta_slow, and a linear mix in between, with i as the abscissa. Computed
// apart from this code, from the wavelengths.

TEST(Yarn, FrequenciesOfDeepseek) {
  const std::vector<double> f = ReadWith("deepseek-v3").rope.Frequencies();
  ASSERT_EQ(f.size(), 32u);
  EXPECT_EQ(f[0], 1);
  EXPECT_NEAR(f[1], 0.7498942093324558, 1e-14);
  EXPECT_NEAR(f[10], 0.056234132519034884, 1e-15);  // the ramp is from 10 to 23
  EXPECT_NEAR(f[11], 0.03900692656714385, 1e-15);
  EXPECT_NEAR(f[15], 0.008334508951020768, 1e-16);
  EXPECT_NEAR(f[22], 0.00017782794100389213, 1e-17);
  EXPECT_NEAR(f[23], 3.333803580408307e-05, 1e-18);
  EXPECT_NEAR(f[31], 3.3338035804083093e-06, 1e-19);
}

TEST(Yarn, FrequenciesOfGptOssHaveAFractionalRamp) {
  const RopeSpec rope = ReadWith("gpt-oss-20b").rope;
  EXPECT_FALSE(rope.truncate);
  const std::vector<double> f = rope.Frequencies();
  ASSERT_EQ(f.size(), 32u);
  EXPECT_NEAR(f[1], 0.6890443058881632, 1e-14);
  EXPECT_NEAR(f[8], 0.05081327481546148, 1e-15);  // the ramp is from 8.0928 to 17.3980
  EXPECT_NEAR(f[9], 0.03170569618466377, 1e-15);
  EXPECT_NEAR(f[13], 0.0038603593171920676, 1e-16);
  EXPECT_NEAR(f[17], 0.00012931870124506322, 1e-17);
  EXPECT_NEAR(f[31], 3.0235114281192165e-07, 1e-20);
}

TEST(Yarn, RampBeginsAtTheFirstPair) {
  // r 16, theta 1e6, factor 4, P 512: 32 turns would be before pair 0, so the ramp is from 0 to 3.
  const RopeSpec rope{
      .width = 16, .theta = 1e6, .scaling = RopeScaling::kYarn, .factor = 4, .original_max_positions = 512};
  const std::vector<double> f = rope.Frequencies();
  EXPECT_EQ(f[0], 1);
  EXPECT_NEAR(f[1], 0.1333709557529192, 1e-15);
  EXPECT_NEAR(f[2], 0.0158113883008419, 1e-16);
  EXPECT_NEAR(f[3], 0.001405853312975873, 1e-17);
}

TEST(RopeFrequencies, OfLlama3AndLlama4ByTheirWavelengths) {
  const std::vector<double> llama3 = ReadWith("llama-3.1-8b").rope.Frequencies();
  EXPECT_NEAR(llama3[28], 0.0032114459947525913, 1e-16);
  EXPECT_NEAR(llama3[29], 0.00216657076350336, 1e-16);
  EXPECT_NEAR(llama3[31], 0.0008567514129196325, 1e-17);
  EXPECT_NEAR(llama3[34], 0.00017850781276799665, 1e-18);
  EXPECT_NEAR(llama3[35], 9.556212353964687e-05, 1e-18);
  const std::vector<double> scout = ReadWith("llama-4-scout").rope.Frequencies();
  EXPECT_NEAR(scout[34], 0.0009384738703573806, 1e-17);
  EXPECT_NEAR(scout[35], 4.778106176982344e-05, 1e-19);
}

// A = 0.1 ln s + 1 unless said; with both mscales M(mscale) / M(mscale_all_dim), M(m) = 0.1 m ln s + 1.
double Magnitude(const json& settings) {
  json yarn = {{"rope_type", "yarn"}, {"factor", 40.0}, {"original_max_position_embeddings", 4096}};
  yarn.update(settings);
  return RopeOf(WithRope("qwen3-30b-a3b", {{"rope_scaling", yarn}})).magnitude;
}

TEST(Yarn, AttentionFactor) {
  EXPECT_NEAR(Magnitude(json::object()), 1.3688879454113936, 1e-15);
  EXPECT_NEAR(Magnitude({{"factor", 32.0}}), 1.3465735902799727, 1e-15);
  EXPECT_EQ(Magnitude({{"factor", 1.0}}), 1);
  EXPECT_EQ(Magnitude({{"attention_factor", 0.5}, {"mscale", 1.0}, {"mscale_all_dim", 0.707}}), 0.5);
  EXPECT_NEAR(Magnitude({{"mscale", 1.0}, {"mscale_all_dim", 0.707}}), 1.0857263992561355, 1e-15);
  EXPECT_EQ(Magnitude({{"mscale", 0.707}, {"mscale_all_dim", 0.707}}), 1);
  EXPECT_NEAR(Magnitude({{"mscale", 0.707}}), 1.3688879454113936, 1e-15);
  EXPECT_NEAR(Magnitude({{"mscale", 0.707}, {"mscale_all_dim", 0}}), 1.3688879454113936, 1e-15);
  EXPECT_NEAR(ReadWith("gpt-oss-120b").rope.magnitude, 1.3465735902799727, 1e-15);
  EXPECT_EQ(ReadWith("deepseek-v3").rope.magnitude, 1);
}

TEST(Yarn, DefaultsOfTheRamp) {
  const RopeSpec rope = RopeOf(WithRope("qwen3-30b-a3b", {{"rope_scaling", {{"type", "yarn"}, {"factor", 4.0}}}}));
  EXPECT_EQ(rope.beta_fast, 32);
  EXPECT_EQ(rope.beta_slow, 1);
  EXPECT_TRUE(rope.truncate);
}

TEST(Yarn, NamesBadSettings) {
  const auto error = [](const json& changes) {
    json yarn = {{"rope_type", "yarn"}, {"factor", 4.0}};
    yarn.update(changes);
    return Error(WithRope("qwen3-30b-a3b", {{"rope_scaling", yarn}}));
  };
  EXPECT_EQ(error(json::object()), "no error");
  EXPECT_EQ(error({{"factor", nullptr}}), "config.json: key rope_scaling.factor is null");
  EXPECT_THAT(error({{"beta_fast", 0}}), HasSubstr("rope_scaling.beta_fast is 0, not a number from"));
  EXPECT_THAT(error({{"beta_fast", 1}, {"beta_slow", 32}}), HasSubstr("rope_scaling.beta_fast is 1, not such that"));
  EXPECT_THAT(error({{"truncate", 1}}), HasSubstr("rope_scaling.truncate is 1, not true or false"));
  EXPECT_THAT(error({{"mscale", -1}}), HasSubstr("rope_scaling.mscale is -1"));
  EXPECT_THAT(error({{"attention_factor", 0}}), HasSubstr("rope_scaling.attention_factor is 0"));
  EXPECT_THAT(error({{"rope_theta", 1}}), HasSubstr("rope_theta is 1, not more than 1, as yarn needs"));
  EXPECT_THAT(error({{"rope_type", "linear"}, {"mscale_all_dim", 1}}),
              HasSubstr("rope_scaling.mscale_all_dim is 1, not absent or 0"));
}

TEST(RopeWidth, OddOnesAreNamed) {
  EXPECT_THAT(ErrorWith("qwen3-30b-a3b", {{"head_dim", 33}}), HasSubstr("head_dim is 33, not even"));
  EXPECT_THAT(ErrorWith("mixtral-8x7b", {{"hidden_size", 32 * 33}}), HasSubstr("num_attention_heads is 32"));
  EXPECT_THAT(ErrorWith("deepseek-v3", {{"qk_rope_head_dim", 63}}), HasSubstr("qk_rope_head_dim is 63, not even"));
}

}  // namespace
}  // namespace moe
