// The CPU figures of docs/benchmarks.md, each beside the machine's own limit
// measured in the same run:
//
//   bazel run //tools:benchmark_cpu -- [--output=json] [--threads=2]
//
// Model: hidden 512, 6 layers, 4 heads, vocabulary 8192, tied; steps of 8 x 512
// tokens, by the trainer's own Trainer::Step on random text. The GLA op: B 2,
// H 4, T 2048, K 128, V 256, forward and backward.
#include <cblas.h>
#include <stdlib.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/str_cat.h"
#include "gla/v1/dataset.pb.h"
#include "glog/logging.h"
#include "google/protobuf/util/json_util.h"
#include "kernels/base/arena.h"
#include "kernels/base/execution_context.h"
#include "kernels/base/philox.h"
#include "kernels/base/thread_pool.h"
#include "kernels/gla/gla_benchmark.h"
#include "kernels/matmul/matmul.h"
#include "model/checkpoint/sha256.h"
#include "model/decode_states.h"
#include "model/flops.h"
#include "model/gla_model.h"
#include "model/parameters.h"
#include "model/tokenizer/tokenizer.h"
#include "nlohmann/json.hpp"
#include "trainer_service/job_spec.h"
#include "trainer_service/trainer.h"

ABSL_FLAG(std::string, output, "text", "text or json");
ABSL_FLAG(int32_t, threads, 2, "CPU threads");

namespace gla {
namespace {

constexpr int32_t kBatch = 8, kLength = 512;
constexpr int kTrainingSteps = 5;
constexpr int kDecodeSteps = 40;
constexpr int kGlaRounds = 9;

double Seconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start)
      .count();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

gla::v1::ModelConfig BenchmarkModel() {
  gla::v1::ModelConfig model;
  model.set_hidden_size(512);
  model.set_num_hidden_layers(6);
  model.set_num_heads(4);
  model.set_vocab_size(8192);
  model.set_tie_word_embeddings(true);
  return model;
}

// The machine's float32 product rate in FLOP/s: the best of a few 2048^3
// products, cut by us over the threads or by OpenBLAS itself, so that what we
// call the limit does not depend on our cutting.
class Sgemm {
 public:
  explicit Sgemm(const ExecutionContext& ctx)
      : ctx_(ctx), a_(kSize * kSize, 0.5f), b_(a_), c_(a_) {}

  double Rate() {
    const std::array<int64_t, 2> shape = {kSize, kSize};
    const auto run = [&] {
      MatmulNT(ctx_, {a_.data(), shape}, {b_.data(), shape},
               {c_.data(), shape});
    };
    const auto run_openblas = [&] {
      openblas_set_num_threads(ctx_.threads->num_threads());
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, kSize, kSize, kSize,
                  1, a_.data(), kSize, b_.data(), kSize, 0, c_.data(), kSize);
      openblas_set_num_threads(1);  // as all ops expect it
    };
    const double seconds = std::min({Seconds(run), Seconds(run_openblas),
                                     Seconds(run), Seconds(run_openblas)});
    return 2.0 * kSize * kSize * kSize / seconds;
  }

 private:
  static constexpr int64_t kSize = 2048;
  const ExecutionContext& ctx_;
  std::vector<float> a_, b_, c_;
};

// Bytes read and written per second by a copy of 256 MiB over all threads.
double CopyBandwidth(const ExecutionContext& ctx) {
  constexpr int64_t kBytes = int64_t{256} << 20;
  std::vector<char> from(kBytes, 1), to(kBytes, 2);
  double best = 0;
  for (int round = 0; round < 7; ++round) {
    const double seconds = Seconds([&] {
      ctx.threads->ParallelRanges(
          kBytes, 4096, [&](int64_t begin, int64_t end) {
            std::memcpy(to.data() + begin, from.data() + begin, end - begin);
          });
    });
    best = std::max(best, 2.0 * kBytes / seconds);
  }
  return best;
}

// A dataset of random tokens in `directory`.
void WriteRandomDataset(const std::string& directory, int32_t vocab_size) {
  constexpr int64_t kTokens = int64_t{1} << 17;
  std::string bytes;
  for (int64_t i = 0; i < kTokens; ++i) {
    const uint32_t id = Philox(1, 2, i)[0] % static_cast<uint32_t>(vocab_size);
    bytes += static_cast<char>(id);
    bytes += static_cast<char>(id >> 8);
  }
  std::ofstream(directory + "/train.tokens", std::ios::binary) << bytes;
  const auto tokenizer = MakeByteTokenizer();
  CHECK(tokenizer->Save(directory).ok());
  gla::v1::DatasetManifest manifest;
  manifest.set_format_version(1);
  manifest.set_tokenizer_sha256(tokenizer->Digest());
  manifest.set_vocab_size(vocab_size);
  manifest.set_bytes_per_token(2);
  gla::v1::Split* split = manifest.add_splits();
  split->set_name("train");
  split->set_tokens(kTokens);
  split->set_text_bytes(kTokens);
  gla::v1::Shard* shard = split->add_shards();
  shard->set_path("train.tokens");
  shard->set_tokens(kTokens);
  shard->set_sha256(Sha256(bytes));
  std::string json;
  CHECK(google::protobuf::util::MessageToJsonString(manifest, &json).ok());
  std::ofstream(directory + "/manifest.json") << json;
}

// A folder that is gone when this is.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern =
        (std::filesystem::temp_directory_path() / "gla-benchmark-XXXXXX")
            .string();
    CHECK(mkdtemp(pattern.data()) != nullptr) << pattern;
    path_ = pattern;
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

struct Training {
  double tokens_per_second = 0;
  double utilisation = 0;  // 6 N tokens/s over sgemm, by pairs
  double step_seconds = 0;
};

// Steps and sgemm alternate, so that both see the same machine.
Training MeasureTraining(Sgemm& sgemm, int threads) {
  const TemporaryFolder folder;
  WriteRandomDataset(folder.path(), BenchmarkModel().vocab_size());
  trainer::v1::JobSpec job;
  *job.mutable_model() = BenchmarkModel();
  job.mutable_data()->set_dataset(folder.path());
  job.mutable_data()->set_sequence_length(kLength);
  job.mutable_data()->set_batch_sequences(kBatch);
  job.set_total_steps(1000);
  job.set_threads(threads);
  const auto dataset = trainer::OpenDataset(job);
  CHECK(dataset.ok()) << dataset.status();
  const auto spec =
      trainer::ResolveJobSpec(job, **dataset, trainer::ThisMachine());
  CHECK(spec.ok()) << spec.status();
  auto trainer = trainer::Trainer::Create(
      {.spec = *spec, .job = "jobs/benchmark", .directory = folder.path()});
  CHECK(trainer.ok()) << trainer.status();
  CHECK((*trainer)->Step().ok());  // takes its memory
  const double flops =
      kBatch * kLength * TrainingFlopsPerToken((*trainer)->weights().table());
  std::vector<double> seconds, shares;
  for (int i = 0; i < kTrainingSteps; ++i) {
    const double before = sgemm.Rate();
    seconds.push_back(Seconds([&] { CHECK((*trainer)->Step().ok()); }));
    const double limit = 0.5 * (before + sgemm.Rate());
    shares.push_back(flops / seconds.back() / limit);
  }
  const double step = Median(seconds);
  return {.tokens_per_second = kBatch * kLength / step,
          .utilisation = Median(shares),
          .step_seconds = step};
}

// Tokens per second of `batch` sequences decoded together.
double MeasureDecode(const ExecutionContext& ctx, const GlaModel& model,
                     int batch) {
  DecodeStates states(model.config(), batch);
  std::vector<int32_t> tokens(batch, 7), slots(batch);
  for (int i = 0; i < batch; ++i) slots[i] = i;
  const int64_t vocab_size = model.config().vocab_size;
  std::vector<float> logits(batch * vocab_size);
  std::vector<double> seconds;
  for (int i = 0; i < kDecodeSteps; ++i) {
    seconds.push_back(Seconds([&] {
      model.DecodeStep(ctx, tokens, slots, &states,
                       {logits.data(), {batch, vocab_size}});
    }));
  }
  return batch / Median(seconds);
}

nlohmann::ordered_json Measure(int num_threads) {
  ThreadPool threads(num_threads);
  Arena scratch;
  const ExecutionContext ctx = {.device = Device::kCpu,
                                .threads = &threads,
                                .scratch = &scratch,
                                .stream = nullptr};
  Sgemm sgemm(ctx);
  const double sgemm_rate = std::max(sgemm.Rate(), sgemm.Rate());
  const Training training = MeasureTraining(sgemm, num_threads);
  const ChunkGlaTiming op = MeasureChunkGla(
      ctx, {.B = 2, .T = 2048, .H = 4, .K = 128, .V = 256}, kGlaRounds);

  const auto config = GlaConfig::FromProto(BenchmarkModel());
  CHECK(config.ok()) << config.status();
  const ParameterTable table(*config);
  Parameters weights(&table);
  InitializeParameters(/*seed=*/1, *config, &weights);
  const GlaModel model(*config, &weights);
  const ChunkGlaTiming layer = MeasureChunkGla(ctx,
                                               {.B = kBatch,
                                                .T = kLength,
                                                .H = config->num_heads,
                                                .K = config->head_k_dim(),
                                                .V = config->head_v_dim()},
                                               kGlaRounds);
  const double copy = CopyBandwidth(ctx);
  const double decode_1 = MeasureDecode(ctx, model, 1);
  const double decode_16 = MeasureDecode(ctx, model, 16);
  const double weight_bytes = 4.0 * table.num_parameters();
  return {
      {"threads", num_threads},
      {"parameters", table.num_parameters()},
      {"sgemm_gflops", 1e-9 * sgemm_rate},
      {"train_tokens_per_second", training.tokens_per_second},
      {"train_utilisation", training.utilisation},
      {"gla_sgemm_share", op.step_share},
      {"gla_gflops", 1e-9 * (op.fwd_flops + op.bwd_flops) /
                         (op.fwd_seconds + op.bwd_seconds)},
      {"gla_step_share", config->num_hidden_layers *
                             (layer.fwd_seconds + layer.bwd_seconds) /
                             training.step_seconds},
      {"copy_gbytes_per_second", 1e-9 * copy},
      {"decode_tokens_per_second_1", decode_1},
      {"decode_weight_gbytes_per_second_1", 1e-9 * weight_bytes * decode_1},
      {"decode_copy_share_1", weight_bytes * decode_1 / copy},
      {"decode_tokens_per_second_16", decode_16},
  };
}

void PrintTable(const nlohmann::ordered_json& m) {
  const auto row = [](const char* what, double value, const char* unit,
                      const std::string& beside) {
    std::printf("%-34s %10.2f %-9s %s\n", what, value, unit, beside.c_str());
  };
  const auto share = [&](const char* key, const char* of) {
    return absl::StrCat(static_cast<int>(100 * m[key].get<double>() + 0.5),
                        " % of ", of);
  };
  std::printf("%d threads, %.1fM parameters\n", m["threads"].get<int>(),
              1e-6 * m["parameters"].get<double>());
  row("sgemm 2048^3", m["sgemm_gflops"], "GFLOP/s", "");
  row("training, 8 x 512 tokens a step", m["train_tokens_per_second"],
      "tokens/s", share("train_utilisation", "sgemm (6 N tokens/s)"));
  row("GLA op 2,2048,4,128,256 fwd+bwd", m["gla_gflops"], "GFLOP/s",
      share("gla_sgemm_share", "sgemm"));
  row("GLA op in a training step", 100 * m["gla_step_share"].get<double>(), "%",
      "of the step's time");
  row("copy", m["copy_gbytes_per_second"], "GB/s", "read + written");
  row("decode, 1 sequence", m["decode_tokens_per_second_1"], "tokens/s",
      absl::StrCat(share("decode_copy_share_1", "the copy bandwidth"),
                   " for its weights"));
  row("decode, 16 sequences", m["decode_tokens_per_second_16"], "tokens/s", "");
}

}  // namespace
}  // namespace gla

int main(int argc, char** argv) {
  google::InitGoogleLogging(argv[0]);
  absl::ParseCommandLine(argc, argv);
  const std::string output = absl::GetFlag(FLAGS_output);
  const int threads = absl::GetFlag(FLAGS_threads);
  const int most = gla::HardwareThreads();
  if ((output != "text" && output != "json") || threads < 1 || threads > most) {
    std::cerr << "want --output=text|json and --threads=1 to " << most << "\n";
    return 2;
  }
  const auto measured = gla::Measure(threads);
  if (output == "json") {
    std::cout << measured.dump(2) << std::endl;
  } else {
    gla::PrintTable(measured);
  }
  return 0;
}
