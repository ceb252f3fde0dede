// The program itself: exit codes, one sentence on stderr, pure JSON on stdout, flags from file and environment.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "test_folders.h"
#include "tests/bench/program.h"

namespace moe {
namespace {

using nlohmann::json;
using testing::HasSubstr;

class PlanProgram : public Program {
 protected:
  PlanProgram() : Program("moe_plan") {}

  json Json(const std::string& arguments, const std::string& environment = "") const {
    const Outcome run = Run(arguments + " --json", environment);
    EXPECT_EQ(run.exit_code, 0) << run.err;
    EXPECT_EQ(run.err, "");
    return json::parse(run.out);
  }
};

TEST_F(PlanProgram, HelpAndVersionAreNoErrors) {
  for (const char* command : {"", "params", "memory", "cost", "compare", "placement"}) {
    const Outcome help = Run(Cat(command, " --help"));
    EXPECT_EQ(help.exit_code, 0) << command;
    EXPECT_THAT(help.out, HasSubstr("Examples:")) << command;
  }
  const Outcome version = Run("--version");
  EXPECT_EQ(version.exit_code, 0);
  EXPECT_THAT(version.out, testing::StartsWith("moe_plan "));
}

TEST_F(PlanProgram, CountsABuiltInModelAnywhere) {
  const json params = Json("params mixtral-8x7b");
  EXPECT_EQ(params["total"], 46'702'792'704);
  EXPECT_EQ(params["active"], 12'879'925'248);
  EXPECT_EQ(params["active_without_embedding"], 12'748'853'248);
  EXPECT_EQ(params["experts"], (json{{"count", 8}, {"per_token", 2}, {"parameters_each", 176'160'768}}));
  EXPECT_EQ(params["quoted"][0]["label"], "46.7B");
  EXPECT_EQ(Json("params --model mixtral-8x7b"), params);
  EXPECT_THAT(Run("params mixtral-8x7b").out, HasSubstr("46,702,792,704"));
}

TEST_F(PlanProgram, CountsAFolder) {
  const json golden = json::parse(std::ifstream(MOE_SOURCE_DIR "/tests/goldens/deepseek_v3_fp8/golden.json"));
  const json params = Json("params " MOE_SOURCE_DIR "/tests/goldens/deepseek_v3_fp8");
  EXPECT_EQ(params["total"], golden["num_parameters"]);
  EXPECT_GT(params["checkpoint"]["scales"], 0);
}

TEST_F(PlanProgram, FoldersOfShapesAreThePublishedModelsOfTheirName) {
  int shapes = 0;
  for (const auto& folder : std::filesystem::directory_iterator(MOE_SOURCE_DIR "/models/shapes")) {
    const std::string name = folder.path().filename();
    const json from_folder = Json(Cat("params --model '", folder.path().string(), "'"));
    const json published = Json("params " + name);
    for (const char* key : {"name", "total", "active", "active_without_embedding", "by_part", "experts"})
      EXPECT_EQ(from_folder[key], published[key]) << name << ": " << key;
    ++shapes;
  }
  EXPECT_GE(shapes, 1);
  EXPECT_EQ(Json("params " MOE_SOURCE_DIR "/models/shapes/olmoe-1b-7b")["total"], 6'919'161'856);
}

TEST_F(PlanProgram, ListsItsModels) {
  EXPECT_EQ(Json("params --list").size(), 36u);
  EXPECT_THAT(Run("params --list").out, HasSubstr("switch-c-2048"));
}

TEST_F(PlanProgram, PlansMemory) {
  const json plan = Json(
      "memory mixtral-8x7b --workers 2 --device-memory 64GiB --memory-share 1 --weight-type bf16,int4 "
      "--context 1024 --batch 4 --kv-type bf16");
  EXPECT_EQ(plan["kv"]["bytes"], 4u * 1024 * 65536 * 2);
  EXPECT_EQ(plan["usable_bytes_per_rank"], std::uint64_t{64} << 30);
  ASSERT_EQ(plan["by_weight_type"].size(), 2u);
  EXPECT_EQ(plan["by_weight_type"][0]["weights"]["bytes"], 93'408'215'040);
  EXPECT_EQ(plan["by_weight_type"][0]["ranks"].size(), 3u);
  EXPECT_EQ(plan["by_weight_type"][0]["fits"], true);
  EXPECT_EQ(plan["by_weight_type"][1]["smallest_workers"], 0);
  EXPECT_THAT(std::string(plan["by_weight_type"][1]["held_as"]), HasSubstr("MLPs int4, attention and head int8"));
  const std::string wide = Run("memory mixtral-8x7b --weight-type int4 --attention-weight-type f32").out;
  EXPECT_THAT(wide, HasSubstr("int4: experts and other MLPs int4, attention and head f32"));
  EXPECT_THAT(Run("memory mixtral-8x7b --workers 2 --weight-type int4").out, HasSubstr("1…2 each a worker"));
}

TEST_F(PlanProgram, TakesThisMachineAndTheModelsContextUnlessTold) {
  const json plan = Json("memory gpt2");
  EXPECT_EQ(plan["assumptions"]["device"], "this machine");
  EXPECT_EQ(plan["assumptions"]["context"], 1024);
  EXPECT_EQ(plan["by_weight_type"].size(), 5u);
  EXPECT_EQ(Json("memory mixtral-8x7b")["assumptions"]["context"], 4096);
}

TEST_F(PlanProgram, EstimatesCost) {
  const json cost =
      Json("cost mixtral-8x7b --bandwidth 1TB/s --flops 100T --batch 1,16 --price-per-hour 2 --watts 300");
  ASSERT_EQ(cost["batches"].size(), 2u);
  EXPECT_EQ(cost["batches"][0]["bound"], "memory");
  EXPECT_GT(cost["batches"][1]["tokens_per_s"], cost["batches"][0]["tokens_per_s"]);
  EXPECT_EQ(cost["assumptions"]["bandwidth"], 1e12);
  const json preset = Json("cost mixtral-8x7b --device h100-sxm --flops 1T");
  EXPECT_EQ(preset["assumptions"]["bandwidth"], 3.35e12);
  EXPECT_EQ(preset["assumptions"]["flops"], 1e12);
  EXPECT_EQ(preset["assumptions"]["watts"], 700);
  EXPECT_EQ(preset["assumptions"]["device"], "h100-sxm, changed by flags");
  EXPECT_THAT(Run("cost mixtral-8x7b --device h100-sxm").out, HasSubstr("data sheet"));
}

TEST_F(PlanProgram, ComparesModels) {
  const json table = Json("compare mixtral-8x7b llama-2-70b");
  EXPECT_EQ(table["models"][0]["total"], 46'702'792'704);
  EXPECT_EQ(table["models"][1]["active_share"], 1);
  EXPECT_EQ(table["models"][1]["weight_bytes_read_per_token"].size(), 2u);
  EXPECT_THAT(Run("compare mixtral-8x7b llama-2-70b").out, HasSubstr("68,976,648,192"));
}

TEST_F(PlanProgram, TakesFlagsFromFileAndEnvironment) {
  std::ofstream(folder_ + "/plan.toml") << "[memory]\nbatch = 3\ncontext = 64\n[cost]\ndevice = \"l40s\"\n";
  const json plan = Json("memory mixtral-8x7b --config plan.toml --context 128", "MOE_MAX_STEP_TOKENS=7");
  EXPECT_EQ(plan["assumptions"]["batch"], 3);
  EXPECT_EQ(plan["assumptions"]["context"], 128);  // the command line wins
  EXPECT_EQ(plan["assumptions"]["max_step_tokens"], 7);
  EXPECT_EQ(Json("cost mixtral-8x7b --config plan.toml")["assumptions"]["device"], "l40s");
  EXPECT_EQ(Json("params", "MOE_MODEL=gpt2")["name"], "gpt2");
}

TEST_F(PlanProgram, PlacesExpertsByTheirLoads) {
  std::ofstream(folder_ + "/loads.json") << R"({"layers": [
      [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86], [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27]]})";
  const std::string flags = "placement --loads loads.json --workers 8 --slots 16 --nodes 2 --groups 4";
  const json eplb = Json(flags + " --algorithm eplb --output eplb.json");
  EXPECT_EQ(eplb["schema"], 1);
  EXPECT_EQ(eplb["num_experts"], 12);
  EXPECT_EQ(eplb["workers"], 8);
  EXPECT_EQ(eplb["layers"][0]["slots"],
            json::parse("[[5, 6], [5, 7], [8, 4], [3, 4], [10, 9], [10, 2], [0, 1], [11, 1]]"));
  EXPECT_NEAR(eplb["figures"]["balancedness_after"], (0.828 + 0.805) / 2, 5e-4);
  EXPECT_EQ(json::parse(Read("eplb.json"))["layers"], eplb["layers"]);

  const json ours = Json(flags + " --current eplb.json --bytes-per-expert 10MB");
  const json& figures = ours["figures"];
  EXPECT_EQ(figures["balancedness_before"], eplb["figures"]["balancedness_after"]);
  EXPECT_GT(figures["balancedness_after"], figures["balancedness_before"]);
  EXPECT_GE(figures["lower_bound_balancedness"], figures["balancedness_after"]);
  EXPECT_EQ(figures["bytes_moved"], figures["experts_moved"].get<int>() * 10'000'000);
  EXPECT_GE(figures["seconds"], 0);
  const json costly = Json(flags + " --current eplb.json --bytes-per-expert 10MB --cost-per-byte 1");
  EXPECT_EQ(costly["figures"]["bytes_moved"], 0);
  EXPECT_EQ(costly["layers"], eplb["layers"]);
  EXPECT_EQ(Json("placement --loads loads.json --workers 7 --slots 17")["layers"][1]["slots"].size(), 7u);
  EXPECT_THAT(Run(flags).out, HasSubstr("balancedness"));
}

TEST_F(PlanProgram, SaysWhetherExpertsShouldMove) {
  // Of 100 steps; linear gives the first of two workers three quarters of the rows.
  std::ofstream(folder_ + "/loads.json") << R"({"layers": [[3000, 3000, 1000, 1000]]})";
  const std::string flags = "placement --loads loads.json --workers 2";
  const json loads_alone = Json(flags)["verdict"];
  EXPECT_EQ(loads_alone["rebalance"], true);
  EXPECT_EQ(loads_alone["reason"], "pays");
  EXPECT_EQ(loads_alone["step_seconds"], nullptr);
  EXPECT_EQ(loads_alone["cost"], nullptr);
  EXPECT_THAT(loads_alone["sentence"].get<std::string>(), testing::StartsWith("Yes, as far as loads can tell:"));

  const std::string cost = " --steps 100 --step-seconds 0.02 --exposed-seconds 0.012 --row-seconds 0.0002";
  const json verdict = Json(flags + cost + " --bytes-per-expert 10MB --migration-bandwidth 5MB/s")["verdict"];
  EXPECT_EQ(verdict["rebalance"], true);
  EXPECT_EQ(verdict["balancedness"], 4000.0 / 6000);
  ASSERT_EQ(verdict["candidates"].size(), 4u);
  EXPECT_EQ(verdict["candidates"][0]["algorithm"], "linear");
  EXPECT_EQ(verdict["candidates"][0]["gain"], 0);
  const json& best = verdict["candidates"][3];
  EXPECT_EQ(verdict["best"], "auto");
  EXPECT_EQ(best["algorithm"], "auto");
  EXPECT_EQ(best["experts_moved"], 2);
  EXPECT_EQ(best["bytes_moved"], 20'000'000);
  EXPECT_EQ(best["move_seconds"], 2) << "one of them to each worker";
  // The 60 rows of a step that set the pace take 12 ms, all of which is waited for; 20 of them go.
  EXPECT_NEAR(best["step_seconds"], 0.016, 1e-9);
  EXPECT_NEAR(best["gain"], 0.2, 1e-9);
  EXPECT_NEAR(best["break_even_seconds"], 2 + 0.05 * 2 / 0.004 * 0.016, 1e-9);
  EXPECT_EQ(verdict["cost"]["row_seconds"], 0.0002);
  EXPECT_EQ(Json(flags + cost + " --least-gain 0.3")["verdict"]["reason"], "little_gain");
  EXPECT_EQ(Json(flags + cost + " --bytes-per-expert 10MB --horizon 0.1")["verdict"]["reason"], "too_expensive");

  std::ofstream(folder_ + "/now.json")
      << R"({"schema": 1, "num_experts": 4, "workers": 2, "layers": [{"layer": 0, "slots": [[0, 2], [1, 3]]}]})";
  const json balanced = Json(flags + cost + " --current now.json")["verdict"];
  EXPECT_EQ(balanced["rebalance"], false);
  EXPECT_EQ(balanced["balancedness"], 1);
  const Outcome text = Run(flags + cost);
  EXPECT_THAT(text.out, HasSubstr("Should I rebalance? Yes: "));
}

TEST_F(PlanProgram, AServerThatIsNotThereIsExitCodeOne) {
  const Outcome run = Run("placement --server 127.0.0.1:1 --server-timeout 0.2");
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr("--server 127.0.0.1:1"));
}

TEST_F(PlanProgram, BadUsageIsExitCodeTwoAndOneSentence) {
  std::ofstream(folder_ + "/bad.toml") << "[memory]\nbach = 3\n";
  std::ofstream(folder_ + "/two.json") << R"({"layers": [[3, 4]]})";
  std::ofstream(folder_ + "/bad.json") << R"({"model_type": "mixtral", "vocab_size": 9, "hidden_size": -3})";
  std::ofstream(folder_ + "/huge.json") << R"({"model_type": "mixtral", "vocab_size": 32000, "hidden_size": 1e30})";
  const std::pair<const char*, const char*> cases[] = {
      {"", "subcommand"},
      {"nonsense", "nonsense"},
      {"params", "a model is missing"},
      {"params mixtrl-8x7b", "near: mixtral-8x7b"},
      {"params nowhere/config.json", "nowhere/config.json"},
      {"params bad.json", "hidden_size"},
      {"params huge.json", "hidden_size"},
      {"params mixtral-8x7b gpt2", "gpt2"},
      {"params mixtral-8x7b --nonsense", "--nonsense"},
      {"memory", "a model is missing"},
      {"memory mixtral-8x7b --batch 0", "--batch"},
      {"memory mixtral-8x7b --batch many", "--batch"},
      {"memory mixtral-8x7b --context -1", "--context"},
      {"memory mixtral-8x7b --device-memory abc", "--device-memory: \"abc\""},
      {"memory mixtral-8x7b --device-memory 80GB --device h100-sxm", "exclude each other"},
      {"memory mixtral-8x7b --device h9", "\"h9\""},
      {"memory mixtral-8x7b --memory-share 0", "memory_share 0"},
      {"memory mixtral-8x7b --weight-type int3", "\"int3\""},
      {"memory mixtral-8x7b --kv-type int8", "int8"},
      {"memory mixtral-8x7b --attention-weight-type int3", "int3"},
      {"memory mixtral-8x7b --placement nowhere.json", "nowhere.json"},
      {"memory mixtral-8x7b --redundant-experts 1", "--redundant-experts 1"},
      {"memory mixtral-8x7b --loads two.json", "linear does not weigh loads"},
      {"memory mixtral-8x7b --placement auto --loads two.json", "two.json"},
      {"memory mixtral-8x7b --context 1000000000000 --batch 1000000", "63 bits"},
      {"memory mixtral-8x7b --config bad.toml", "bach"},
      {"memory mixtral-8x7b --config nowhere.toml", "nowhere.toml"},
      {"cost mixtral-8x7b", "--bandwidth and --flops"},
      {"cost mixtral-8x7b --bandwidth 1TB/s", "--bandwidth and --flops"},
      {"cost mixtral-8x7b --bandwidth 1TB/s --flops fast", "--flops: \"fast\""},
      {"cost mixtral-8x7b --device h100-sxm --batch 1,0", "--batch"},
      {"cost mixtral-8x7b --device h100-sxm --efficiency 0", "efficiency 0"},
      {"cost mixtral-8x7b --device h100-sxm --devices 2 --workers 2", "exclude each other"},
      {"cost mixtral-8x7b --device h100-sxm --network 1GB/s", "--workers"},
      {"placement --workers 2", "one of --loads FILE, --trace FILE and --server ADDR is missing"},
      {"placement --workers 2 --loads two.json --server 127.0.0.1:1", "only one of --loads FILE"},
      {"placement --workers 2 --trace two.json", "two.json"},
      {"placement --workers 2 --trace nowhere.moetrace", "nowhere.moetrace"},
      {"placement --loads two.json --workers 2 --row-seconds 1e-4", "need --step-seconds"},
      {"placement --loads two.json --workers 2 --step-seconds 1", "needs --row-seconds and --exposed-seconds"},
      {"placement --loads two.json --workers 2 --step-seconds 1 --row-seconds 1e-4 --exposed-seconds 0.5", "--steps"},
      {"placement --loads two.json --workers 2 --steps 9 --step-seconds 1 --row-seconds 1 --exposed-seconds 2",
       "--exposed-seconds 2"},
      {"placement --trace two.json --workers 2 --steps 9", "--steps is for --loads"},
      {"placement --loads two.json --workers 2 --migration-bandwidth fast", "--migration-bandwidth: \"fast\""},
      {"placement --loads two.json --workers 2 --least-gain 2", "--least-gain"},
      {"placement --loads two.json --workers 2 --least-gain nan", "--least-gain: nan is not a number"},
      {"placement --server 127.0.0.1:1 --server-timeout nan", "--server-timeout: nan is not a number"},
      {"placement --loads two.json", "--workers is missing"},
      {"placement --loads nowhere.json --workers 2", "nowhere.json"},
      {"placement --loads bad.toml --workers 2", "bad.toml"},
      {"placement --loads two.json --workers 2 --algorithm magic", "magic"},
      {"placement --loads two.json --workers 2 --slots 3 --algorithm eplb", "3 slots cannot be divided evenly by 2"},
      {"placement --loads two.json --workers 2 --slots 1", "slots 1"},
      {"placement --loads two.json --workers 2 --slots 5", "slots 5"},
      {"placement --loads two.json --workers 2 --bytes-per-expert big", "--bytes-per-expert: \"big\""},
      {"placement --loads two.json --workers 2 --cost-per-byte 1", "--bytes-per-expert"},
      {"placement --loads two.json --workers 2 --worker-speeds 1", "speeds of 1 workers"},
      {"placement --loads two.json --workers 2 --worker-slots 2,0 --algorithm linear", "--worker-slots are for auto"},
      {"placement --loads two.json --workers 2 --current two.json", "two.json"},
      {"compare", "models are missing"},
      {"compare gpt2 gpt5", "gpt5"},
  };
  for (const auto& [arguments, expected] : cases) ExpectRefused(arguments, expected);
}

TEST_F(PlanProgram, AFullDiskIsExitCodeOne) {
  const std::string command =
      Cat("'", MOE_BINARY_DIR, "/bin/moe_plan' params --list > /dev/full 2> '", folder_, "/err'");
  const int status = std::system(command.c_str());
  EXPECT_EQ(WEXITSTATUS(status), 1);
  EXPECT_THAT(Read("err"), HasSubstr("could not be written"));
}

}  // namespace
}  // namespace moe
