#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numbers>

#include "model/config.h"
#include "tests/model/published_config.h"

namespace moe {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

const json kLlama3Scaling = {
    {"factor", 8.0}, {"high_freq_factor", 4.0}, {"low_freq_factor", 1.0}, {"original_max_position_embeddings", 8192}};

json ScalingOf(const std::string& type_key, const std::string& type, json settings = kLlama3Scaling) {
  settings[type_key] = type;
  return settings;
}

TEST(Rope, ReadsLlama3Scaling) {
  const RopeSpec rope = ReadWith("llama-3.1-8b").rope;
  EXPECT_EQ(rope.scaling, RopeScaling::kLlama3);
  EXPECT_EQ(rope.theta, 500000);
  EXPECT_EQ(rope.factor, 8);
  EXPECT_EQ(rope.low_freq_factor, 1);
  EXPECT_EQ(rope.high_freq_factor, 4);
  EXPECT_EQ(rope.original_max_positions, 8192);
}

TEST(Rope, OriginalPositionsDefaultToTheContext) {
  json settings = ScalingOf("rope_type", "llama3");
  settings.erase("original_max_position_embeddings");
  EXPECT_EQ(ReadWith("llama-3.1-8b", {{"rope_scaling", settings}}).rope.original_max_positions, 131072);
}

TEST(Rope, AcceptsTheOlderTypeKey) {
  const RopeSpec rope = ReadWith("llama-2-7b", {{"rope_scaling", {{"type", "linear"}, {"factor", 4.0}}}}).rope;
  EXPECT_EQ(rope.scaling, RopeScaling::kLinear);
  EXPECT_EQ(rope.factor, 4);
  EXPECT_EQ(ErrorWith("llama-2-7b", {{"rope_scaling", {{"type", "linear"}, {"rope_type", "linear"}, {"factor", 4.0}}}}),
            "no error");
  EXPECT_THAT(
      ErrorWith("llama-2-7b", {{"rope_scaling", {{"type", "linear"}, {"rope_type", "default"}, {"factor", 4.0}}}}),
      HasSubstr("rope_scaling.type is \"linear\", not default, as rope_type says"));
}

TEST(Rope, AcceptsNoScalingInEveryForm) {
  for (const json& settings :
       {json(nullptr), json::object(), json({{"rope_type", "default"}}), json({{"type", "default"}})}) {
    EXPECT_EQ(ReadWith("llama-2-7b", {{"rope_scaling", settings}}).rope.scaling, RopeScaling::kNone) << settings;
  }
}

TEST(Rope, AcceptsRopeParameters) {
  json config = Published("llama-3.1-8b");
  config.erase("rope_theta");
  config.erase("rope_scaling");
  config["rope_parameters"] = ScalingOf("rope_type", "llama3");
  config["rope_parameters"]["rope_theta"] = 250000.0;
  const RopeSpec rope = Read(config)->rope;
  EXPECT_EQ(rope.theta, 250000);
  EXPECT_EQ(rope.scaling, RopeScaling::kLlama3);
  EXPECT_EQ(rope.factor, 8);
  EXPECT_THAT(Read(config)->warnings, IsEmpty());

  config["rope_theta"] = 10000.0;
  EXPECT_THAT(Error(config), HasSubstr("rope_theta is 10000, not 250000, as rope_parameters says"));
  config["rope_theta"] = 250000.0;
  EXPECT_EQ(Error(config), "no error");
  config["rope_scaling"] = ScalingOf("rope_type", "llama3");
  EXPECT_THAT(Error(config), HasSubstr("rope_scaling"));
  config["rope_scaling"] = nullptr;
  config["rope_parameters"]["partial_rotary_factor"] = 0.5;
  EXPECT_THAT(Error(config), HasSubstr("rope_parameters.partial_rotary_factor is 0.5"));
}

TEST(Rope, RefusesOneDictionaryPerLayerType) {
  json config = Published("llama-3.1-8b");
  config["rope_scaling"] = nullptr;
  config["rope_parameters"] = {{"full_attention", {{"rope_theta", 1e6}}}};
  EXPECT_THAT(Error(config), HasSubstr("rope_parameters.full_attention is {\"rope_theta\": 1e+06}"));
}

TEST(Rope, NamesUnknownTypes) {
  for (const char* type : {"dynamic", "longrope", "proportional", "frob"}) {
    EXPECT_THAT(ErrorWith("mixtral-8x7b", {{"rope_scaling", {{"rope_type", type}, {"factor", 2.0}}}}),
                AllOf(StartsWith(std::string("config.json: rope_scaling.rope_type \"") + type + "\" is unknown"),
                      HasSubstr("linear, llama3, yarn")));
    EXPECT_THAT(ErrorWith("mixtral-8x7b", {{"rope_scaling", {{"type", type}}}}),
                HasSubstr(std::string("rope_scaling.type \"") + type));
  }
}

TEST(Rope, NamesBadSettings) {
  const auto error = [](const json& changes) {
    json settings = ScalingOf("rope_type", "llama3");
    settings.update(changes);
    return ErrorWith("llama-3.1-8b", {{"rope_scaling", settings}});
  };
  EXPECT_THAT(error({{"factor", 0.0}}), HasSubstr("rope_scaling.factor is 0"));
  EXPECT_THAT(error({{"factor", "8"}}), HasSubstr("rope_scaling.factor is \"8\""));
  EXPECT_THAT(error({{"factor", nullptr}}), HasSubstr("key rope_scaling.factor is null"));
  EXPECT_THAT(error({{"low_freq_factor", -1}}), HasSubstr("rope_scaling.low_freq_factor is -1"));
  EXPECT_THAT(error({{"low_freq_factor", 5}}),
              HasSubstr("rope_scaling.high_freq_factor is 4, not at least low_freq_factor, 5"));
  EXPECT_THAT(error({{"original_max_position_embeddings", 0}}),
              HasSubstr("rope_scaling.original_max_position_embeddings is 0"));
  EXPECT_THAT(ErrorWith("llama-3.1-8b", {{"rope_scaling", {{"rope_type", "llama3"}}}}),
              HasSubstr("key rope_scaling.factor is missing"));
  EXPECT_THAT(ErrorWith("llama-3.1-8b", {{"rope_scaling", "llama3"}}),
              HasSubstr("rope_scaling is \"llama3\", not an object"));
}

TEST(Rope, UnknownSettingsGetAWarning) {
  json settings = ScalingOf("rope_type", "llama3");
  settings["wobble"] = 3;
  EXPECT_THAT(ReadWith("llama-3.1-8b", {{"rope_scaling", settings}}).warnings,
              ElementsAre("config.json: key rope_scaling.wobble is unknown and ignored"));
}

TEST(RopeFrequencies, FallGeometrically) {
  const RopeSpec rope{.width = 8, .theta = 10000};
  const std::vector<double> frequencies = rope.Frequencies();
  ASSERT_EQ(frequencies.size(), 4u);
  EXPECT_EQ(frequencies[0], 1);
  EXPECT_NEAR(frequencies[1], 0.1, 1e-15);
  EXPECT_NEAR(frequencies[2], 0.01, 1e-16);
  EXPECT_NEAR(frequencies[3], 0.001, 1e-17);
}

TEST(RopeFrequencies, LinearScalingDividesAll) {
  const RopeSpec plain{.width = 8, .theta = 10000};
  const RopeSpec scaled{.width = 8, .theta = 10000, .scaling = RopeScaling::kLinear, .factor = 4};
  for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(scaled.Frequencies()[i], plain.Frequencies()[i] / 4);
}

TEST(RopeFrequencies, Llama3ScalesByWavelength) {
  const RopeSpec rope = ReadWith("llama-3.1-8b").rope;
  const RopeSpec plain{.width = 128, .theta = 500000};
  const std::vector<double> scaled = rope.Frequencies();
  const std::vector<double> base = plain.Frequencies();
  int kept = 0;
  int divided = 0;
  int between = 0;
  for (std::size_t i = 0; i < base.size(); ++i) {
    const double wavelength = 2 * std::numbers::pi / base[i];
    if (wavelength < 8192.0 / 4) {
      EXPECT_EQ(scaled[i], base[i]);
      ++kept;
    } else if (wavelength > 8192.0 / 1) {
      EXPECT_EQ(scaled[i], base[i] / 8);
      ++divided;
    } else {
      const double a = (8192 / wavelength - 1) / (4.0 - 1);
      EXPECT_NEAR(scaled[i], (1 - a) * base[i] / 8 + a * base[i], 1e-15);
      EXPECT_GT(scaled[i], base[i] / 8);
      EXPECT_LT(scaled[i], base[i]);
      ++between;
    }
  }
  // Wavelengths 2π 500000^(i/64) pass 2048 after i = 28 and 8192 after i = 34.
  EXPECT_EQ(kept, 29);
  EXPECT_EQ(between, 6);
  EXPECT_EQ(divided, 29);
}

TEST(RopeFrequencies, Llama3WithoutAMiddleBandDividesByNothing) {
  RopeSpec rope{.width = 64,
                .theta = 500000,
                .scaling = RopeScaling::kLlama3,
                .factor = 16,
                .low_freq_factor = 1,
                .high_freq_factor = 1};
  // A wavelength that is exactly the limit, too: 2π turns of frequency 1.
  rope.original_max_positions = 2 * std::numbers::pi;
  const std::vector<double> frequencies = rope.Frequencies();
  const std::vector<double> base = RopeSpec{.width = 64, .theta = 500000}.Frequencies();
  EXPECT_EQ(frequencies[0], 1);
  for (std::size_t i = 1; i < frequencies.size(); ++i) EXPECT_EQ(frequencies[i], base[i] / 16);
}

}  // namespace
}  // namespace moe
