// moe_bench engine, kernels, quality and transport as programs, with a tiny load: exit codes, JSON, held-out loss.
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

std::string Source(const std::string& relative) { return Cat(MOE_SOURCE_DIR, "/", relative); }

json ReadJson(const std::string& path) { return json::parse(std::ifstream(path)); }

TEST_F(Program, EngineWritesTheEnvelopeWithTheMachinesRoofs) {
  const Outcome run = Run(Cat("engine --model ", Source("models/eight-languages-moe"),
                              " -p 8 -n 3,2 -b 1,2 -r 2 --threads 1 --json --output ", folder_, "/result.json"));
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(run.err, "");
  const json report = json::parse(run.out);
  EXPECT_EQ(json::parse(Read("result.json")), report);
  EXPECT_EQ(report["schema"], 1);
  EXPECT_EQ(report["kind"], "engine");
  EXPECT_GT(report["host"]["read_bandwidth_bytes_per_s"], 0);
  EXPECT_GT(report["host"]["peak_flops"], 0);
  EXPECT_EQ(report["config"]["prompt_lengths"], "8");
  EXPECT_EQ(report["config"]["generate"], "3,2");
  EXPECT_EQ(report["config"]["repetitions"], 2);
  EXPECT_EQ(report["config"]["threads"], 1);
  EXPECT_EQ(report["config"]["weight_type"], "auto");

  const json& results = report["results"];
  ASSERT_EQ(results.size(), 6u);
  const std::pair<const char*, int> tests[] = {{"pp8", 1}, {"pp8", 2}, {"tg3", 1}, {"tg3", 2}, {"tg2", 1}, {"tg2", 2}};
  for (std::size_t i = 0; i < results.size(); ++i) {
    const json& result = results[i];
    EXPECT_EQ(result["test"], tests[i].first);
    EXPECT_EQ(result["batch"], tests[i].second);
    EXPECT_EQ(result["weight_type"], "bf16");
    EXPECT_EQ(result["kv_type"], "f32");
    EXPECT_EQ(result["threads"], 1);
    EXPECT_EQ(result["ranks"], 1);
    EXPECT_EQ(result["transport"], "inprocess");
    EXPECT_EQ(result["model"], "eight-languages-moe");
    for (const char* key : {"tokens_per_s", "step_seconds", "s_mbu", "s_mfu", "bytes_per_token"})
      EXPECT_GT(result[key], 0) << key;
    EXPECT_GE(result["tokens_per_s_stddev"], 0);
    EXPECT_EQ(result["repetitions"].size(), 2u);
  }
  for (const json& result : results) {
    EXPECT_THAT(result["binding"]["roof"], testing::AnyOf("bandwidth", "arithmetic"));
    EXPECT_GT(result["binding"]["share"], 0);
    EXPECT_EQ(result["machine"].size(), 2u);
    EXPECT_GT(result["machine"][1]["read_bandwidth_bytes_per_s"], 0);
  }
  EXPECT_EQ(results[2]["distinct_experts"], 2);  // one token at a time
}

TEST_F(Program, EngineTakesAttentionInATypeOfItsOwn) {
  const auto bytes_per_token = [&](const std::string& flags) {
    const Outcome run = Run(Cat("engine --model ", Source("models/eight-languages-moe"),
                                " -p 0 -n 1 -b 1 -r 1 --threads 1 --no-roofs --json --weight-type int4 "
                                "--weight-cache off ",
                                flags));
    EXPECT_EQ(run.exit_code, 0) << run.err;
    const json result = json::parse(run.out)["results"][0];
    EXPECT_EQ(result["weight_type"], "int4");
    return result["bytes_per_token"].get<double>();
  };
  const double int8 = bytes_per_token("");
  EXPECT_EQ(bytes_per_token("--attention-weight-type int8"), int8) << "what int4 stands for";
  EXPECT_GT(bytes_per_token("--attention-weight-type f32"), int8);
}

TEST_F(Program, EngineAndQualityShareWhatIsQuantized) {
  const std::string model = Source("models/eight-languages-moe");
  const bool beside = std::filesystem::exists(model + "/moe-cache");
  const std::string cache = Cat(" --weight-type int8 --weight-cache ", folder_, "/kept");
  const std::string engine = Cat("engine --model ", model, " -p 0 -n 1 -b 1 -r 1 --threads 1 --no-roofs", cache);
  const Outcome first = Run(engine);
  ASSERT_EQ(first.exit_code, 0) << first.err;
  EXPECT_EQ(first.err, "");
  const std::filesystem::path head = folder_ + "/kept/eight-languages-moe/int8/head.moew";
  ASSERT_TRUE(std::filesystem::exists(head));
  const auto written = std::filesystem::last_write_time(head);

  const std::string quality =
      Cat("quality --model ", model, " --text ", Source("models/held-out.txt"), " --max-windows 1 --json", cache);
  const Outcome read = Run(quality);
  ASSERT_EQ(read.exit_code, 0) << read.err;
  EXPECT_EQ(std::filesystem::last_write_time(head), written) << "read, not written again";

  std::filesystem::resize_file(head, 99);
  const Outcome again = Run(engine);
  ASSERT_EQ(again.exit_code, 0) << again.err;
  EXPECT_THAT(again.err,
              HasSubstr(Cat("moe_bench: rank 0: weight cache: refused ", head.string(), ", which has 99 b")));
  EXPECT_EQ(Run(engine).err, "");
  const Outcome other = Run(quality);
  EXPECT_EQ(json::parse(other.out)["results"], json::parse(read.out)["results"]);
  EXPECT_EQ(std::filesystem::exists(model + "/moe-cache"), beside) << "and nothing is left in the model's folder";
}

TEST_F(Program, EngineAndQualityRefuseAFolderThatCannotBeWritten) {
  const std::string quality = Cat("quality --text ", Source("models/held-out.txt"));
  for (const std::string& command : {std::string("engine"), quality}) {
    const Outcome run =
        Run(Cat(command, " --model ", Source("models/eight-languages-moe"), " --weight-cache /proc/kept"));
    EXPECT_EQ(run.exit_code, 2) << run.err;
    EXPECT_THAT(run.err, HasSubstr("--weight-cache \"/proc/kept\""));
  }
}

TEST_F(Program, ReplayTakesATraceOfTheEngine) {
  const std::string model = Source("models/eight-languages-moe");
  const Outcome engine = Run(Cat("engine --model ", model, " -p 24 -n 8 -b 2 -r 1 --threads 1 --no-roofs --json",
                                 " --routing zipf:1.0 --trace ", folder_, "/engine.moetrace"));
  ASSERT_EQ(engine.exit_code, 0) << engine.err;
  const std::string replay = Cat("replay --trace ", folder_, "/engine.moetrace --model ", model,
                                 " --workers 3 --placement auto --redundant-experts 4 --threads 1 -r 2");
  const Outcome run = Run(replay + " --json");
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(run.err, "");
  const json report = json::parse(run.out);
  EXPECT_EQ(report["schema"], 1);
  EXPECT_EQ(report["kind"], "replay");
  EXPECT_EQ(report["config"]["placement"], "auto");
  EXPECT_EQ(report["config"]["workers"], 3);
  ASSERT_EQ(report["results"].size(), 1u);
  const json& result = report["results"][0];
  EXPECT_EQ(result["trace_model"], "eight-languages-moe");
  EXPECT_EQ(result["routing"], "zipf:1");
  EXPECT_EQ(result["placement"], "auto");
  EXPECT_EQ(result["slots"], 12);
  EXPECT_EQ(result["rows"], 2 * (2 * 24) + 2 * (8 + 4)) << "repetitions and warm-ups";
  EXPECT_GT(result["tokens_per_s"], 0);
  EXPECT_GT(result["prediction"]["steps"], 0);
  const Outcome table = Run(replay);
  EXPECT_THAT(table.out, HasSubstr("slowest/mean"));
  EXPECT_THAT(table.out, HasSubstr("cost model of"));
}

TEST_F(Program, EnginePrintsATable) {
  const Outcome run = Run(Cat("engine --model ", Source("models/eight-languages-dense"),
                              " -p 4 -n 0 -b 1 -r 1 --weight-type f32 --kv-type bf16 --no-roofs"));
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("eight-languages-dense, f32, KV cache bf16, 1 rank(s)"));
  EXPECT_THAT(run.out, HasSubstr("\npp4 "));
}

TEST_F(Program, KernelsAreMeasuredBesideTheRoofs) {
  const Outcome run =
      Run("kernels --models qwen3-30b-a3b --rows 1,2 --contexts 64 --weight-types bf16 --seconds 0.001 --cold-bytes 1 "
          "--json");
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const json report = json::parse(run.out);
  EXPECT_EQ(report["kind"], "kernels");
  EXPECT_GT(report["host"]["read_bandwidth_bytes_per_s"], 0);
  EXPECT_EQ(report["config"]["rows"], "1,2");
  const json& kernels = report["results"]["kernels"];
  ASSERT_EQ(kernels.size(), 3u * 2 + 2);
  EXPECT_EQ(kernels[6]["weight_type"], "f32") << "of the cache";
  EXPECT_EQ(kernels[7]["weight_type"], "bf16");
  for (const json& kernel : report["results"]["kernels"]) {
    EXPECT_GT(kernel["share_of_bandwidth"], 0) << kernel;
    EXPECT_GT(kernel["share_of_peak"], 0) << kernel;
    EXPECT_LE(kernel["largest_error"], 1) << kernel;
  }
}

// The whole text, as an independent implementation scored it.
TEST_F(Program, QualityFindsTheHeldOutLossOfTheBundledModels) {
  for (const char* name : {"eight-languages-moe", "eight-languages-dense", "eight-languages-collapsed"}) {
    const std::string model = Source(Cat("models/", name));
    const json golden = ReadJson(model + "/golden.json");
    const Outcome run = Run(Cat("quality --model ", model, " --text ", Source("models/held-out.txt"), " --window ",
                                golden["val_window_bytes"].get<int>(), " --weight-type f32 --json"));
    ASSERT_EQ(run.exit_code, 0) << run.err;
    EXPECT_EQ(run.err, "");
    const json report = json::parse(run.out);
    EXPECT_EQ(report["kind"], "quality");
    EXPECT_EQ(report["config"]["window"], 256);
    const json& result = report["results"][0];
    EXPECT_EQ(result["weight_type"], "f32");
    EXPECT_EQ(result["tokens"], golden["val_scored_bytes"]);
    EXPECT_NEAR(result["mean_nll"], golden["val_nll_256_float64"], 1e-5) << name;
    EXPECT_EQ(result["kl"], 0);
    EXPECT_EQ(result["tasks"], json::object());
  }
}

TEST_F(Program, QualityFindsTheTasksThatACollapsedModelAnswers) {
  const std::string model = Source("models/eight-languages-collapsed");
  const Outcome run =
      Run(Cat("quality --model ", model, " --text ", Source("models/held-out.txt"),
              " --max-windows 2 --weight-type auto,f32 --tasks ", Source("models/tasks.jsonl"), " --json"));
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const json results = json::parse(run.out)["results"];
  ASSERT_EQ(results.size(), 2u);
  EXPECT_EQ(results[0]["weight_type"], "bf16");
  for (const json& result : results) {
    EXPECT_EQ(result["tasks"], ReadJson(model + "/golden.json")["accuracy"]);
    EXPECT_EQ(result["num_tasks"], 320);
    EXPECT_EQ(result["tokens"], 2 * 255);
  }
}

TEST_F(Program, QualityPrintsATable) {
  const Outcome run =
      Run(Cat("quality --model ", Source("models/eight-languages-moe"), " --text ", Source("models/held-out.txt"),
              " --window 32 --max-windows 4 --tasks ", Source("models/tasks.jsonl"), " --max-tasks 8"));
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("KL from f32"));
  EXPECT_THAT(run.out, HasSubstr("\nmirror        1  100.0%\n"));
}

TEST_F(Program, CommandsRefuseBadUsageInOneSentence) {
  const std::string model = Source("models/eight-languages-moe");
  const std::string text = Source("models/held-out.txt");
  std::ofstream(folder_ + "/bad.jsonl") << "{\"language\": \"a\"}\n";
  std::ofstream(folder_ + "/bad.toml") << "[engine]\nrepetition = 3\n";
  const std::pair<std::string, const char*> cases[] = {
      {"engine", "--model"},
      {"engine --model /nonexistent", "/nonexistent"},
      {Cat("engine --model ", model, " -p x"), "x"},
      {Cat("engine --model ", model, " -p 0 -n 0"), "nothing to measure"},
      {Cat("engine --model ", model, " -p 513"), "context of 512"},
      {Cat("engine --model ", model, " -b 0"), "-b 0"},
      {Cat("engine --model ", model, " -r 0"), "-r is 0"},
      {Cat("engine --model ", model, " --weight-type int3"), "int3"},
      {Cat("engine --model ", model, " --kv-type f16"), "f16"},
      {Cat("engine --model ", model, " --transport mpi"), "mpirun"},
      {Cat("engine --model ", model, " --transport grpc"), "mpirun"},
      {Cat("engine --model ", model, " --micro-batches 1,5"), "--micro-batches"},
      {Cat("engine --model ", model, " --micro-batches 2,2"), "--micro-batches has 2 twice"},
      {Cat("engine --model ", model, " --micro-batches 1,auto"), "--micro-batches auto stands alone"},
      {Cat("engine --model ", model, " --placement diagonal"), "diagonal"},
      {Cat("engine --model ", model, " --output /nonexistent/x"), "/nonexistent/x"},
      {Cat("engine --model ", model, " --config ", folder_, "/bad.toml"), "repetition"},
      {Cat("replay --model ", model), "--trace"},
      {Cat("replay --trace /nonexistent --model ", model), "/nonexistent"},
      {Cat("replay --trace ", text, " --model ", model), "held-out.txt"},
      {Cat("replay --trace /nonexistent --model ", model, " --workers 0"), "--workers"},
      {Cat("replay --trace /nonexistent --model ", model, " --calibrate 1"), "--calibrate is 1"},
      {Cat("replay --trace /nonexistent --model ", model, " --kv-type bf16"), "--kv-type"},
      {"transport --rows 0", "--rows 0"},
      {"transport --rows 4000000000", "--rows 4000000000"},
      {"transport --hidden 0", "--hidden is 0"},
      {"transport --exchange-type f17", "f17"},
      {"transport --workers 0", "--workers"},
      {"transport --workers 1,257", "--workers"},
      {"transport --bytes 64,0", "--bytes 0: a message holds 1 to"},
      {"transport --bytes 64,x", "--bytes"},
      {"transport --bytes 64 --rows 4", "--bytes excludes --rows"},
      {"transport --transports carrier-pigeon", "--transports carrier-pigeon is unknown"},
      {"transport --transports mpi", "--transports mpi: mpi needs mpirun"},
      {"transport --transports inprocess,nccl", "--transports nccl: nccl needs"},
      {"transport --repetitions 0", "--repetitions is 0"},
      {"transport --output /nonexistent/x", "/nonexistent/x"},
      {"kernels --rows 0", "--rows 0"},
      {"kernels --models gpt-5", "gpt-5 is unknown"},
      {"kernels --weight-types int3", "int3 is unknown"},
      {"kernels --kv-types f16", "--kv-types f16 is unknown"},
      {Cat("quality --text ", text), "--model"},
      {Cat("quality --model ", model), "--text"},
      {Cat("quality --model ", model, " --text /nonexistent"), "/nonexistent"},
      {Cat("quality --model /nonexistent --text ", text), "/nonexistent"},
      {Cat("quality --model ", model, " --text ", text, " --weight-type f32,f17"), "f17"},
      {Cat("quality --model ", model, " --text ", text, " --kv-type f16"), "f16"},
      {Cat("quality --model ", model, " --text ", text, " --window 1"), "--window 1"},
      {Cat("quality --model ", model, " --text ", text, " --window 1000"), "context of 512"},
      {Cat("quality --model ", model, " --text ", text, " --tasks ", folder_, "/bad.jsonl"), "line 1"},
      {Cat("quality --model ", model, " --text ", text, " --output /nonexistent/x"), "/nonexistent/x"},
  };
  for (const auto& [arguments, expected] : cases) ExpectRefused(arguments, expected);
}

TEST_F(Program, TransportWritesTheEnvelope) {
  const Outcome run =
      Run("transport --rows 1,5 --hidden 16 --exchange-type bf16 --workers 2 --repetitions 2 --exchanges 3 --json");
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(run.err, "");
  const json report = json::parse(run.out);
  EXPECT_EQ(report["kind"], "transport");
  EXPECT_EQ(report["config"]["rows"], "1,5");
  EXPECT_EQ(report["config"]["exchange_type"], "bf16");
  const json& results = report["results"];
  ASSERT_EQ(results.size(), 2u);
  EXPECT_EQ(results[1]["rows"], 5);
  EXPECT_EQ(results[1]["transport"], "inprocess");
  EXPECT_EQ(results[1]["workers"], 2);
  EXPECT_EQ(results[1]["exchange_type"], "bf16");
  EXPECT_EQ(results[1]["exchanges"], 6);
  EXPECT_GT(results[1]["seconds"]["p50"], 0);
  EXPECT_EQ(results[1]["baselines"][0]["name"], "memcpy");
  EXPECT_GT(results[1]["baselines"][0]["ratio"], 0);
}

TEST_F(Program, TransportMeasuresWhatOneProcessCanHave) {
  const Outcome run =
      Run("transport --transports all --bytes 64,4K --workers 2 --repetitions 2 --exchanges 3 --json --output "
          "transport.json");
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.err, testing::MatchesRegex("moe_bench: --transports all leaves out mpi: mpi needs mpirun [^\n]*\n"
                                             "moe_bench: --transports all leaves out nccl: nccl needs [^\n]*\n"));
  const json report = json::parse(run.out);
  EXPECT_EQ(json::parse(Read("transport.json")), report);
  EXPECT_EQ(report["config"]["transports"], "all");
  EXPECT_EQ(report["config"]["bytes"], "64,4096");
  EXPECT_EQ(report["config"]["workers"], "2");
  const json& results = report["results"];
  ASSERT_EQ(results.size(), 9u);
  const char* const transports[] = {"inprocess", "grpc", "grpc_streams"};
  const std::pair<int, int> tests[] = {{1, 64}, {2, 64}, {2, 4096}};
  for (std::size_t i = 0; i < results.size(); ++i) {
    EXPECT_EQ(results[i]["transport"], transports[i / 3]);
    EXPECT_EQ(results[i]["baselines"][0]["name"], i < 3 ? "memcpy" : "raw_grpc");
    EXPECT_EQ(results[i]["workers"], tests[i % 3].first);
    EXPECT_EQ(results[i]["request_bytes"], tests[i % 3].second);
    EXPECT_TRUE(results[i]["rows"].is_null());
    EXPECT_EQ(results[i]["one_way_latency_seconds"].is_null(), i % 3 != 0);
    EXPECT_GT(results[i]["busbw_bytes_per_s"], 0);
    EXPECT_GT(results[i]["seconds"]["p99"], 0);
  }
}

TEST_F(Program, EngineTakesAListOfMicroBatches) {
  const Outcome run = Run(Cat("engine --model ", Source("models/eight-languages-moe"),
                              " -p 0 -n 2 -b 4 -r 1 --threads 1 --no-roofs --micro-batches 1,2,4"));
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("\nmicro-batches in turn: "));
  EXPECT_EQ(std::count(run.out.begin(), run.out.end(), '\n'), 1 + 2 + 3 + 1 + 1 + 2 + 3);
}

TEST_F(Program, EngineTakesFlagsFromTheEnvironment) {
  const Outcome run =
      Run("engine --json -p 4 -n 0 -b 1 --no-roofs", Cat("MOE_BENCH_MODEL=", Source("models/eight-languages-dense"),
                                                         " MOE_BENCH_REPETITIONS=1 MOE_BENCH_WEIGHT_TYPE=f16"));
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const json results = json::parse(run.out)["results"];
  EXPECT_EQ(results[0]["weight_type"], "f16");
  EXPECT_TRUE(results[0]["s_mbu"].is_null());
  EXPECT_TRUE(results[0]["s_mfu"].is_null());
  EXPECT_TRUE(results[0]["binding"].is_null());
  EXPECT_EQ(results[0]["repetitions"].size(), 1u);
}

}  // namespace
}  // namespace moe
