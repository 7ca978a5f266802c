#include "tools/forward.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/arena.h"
#include "kernels/base/execution_context.h"
#include "kernels/base/status_macros.h"
#include "kernels/base/tensor_view.h"
#include "kernels/base/thread_pool.h"
#include "kernels/loss/linear_cross_entropy.h"
#include "model/checkpoint/model_directory.h"
#include "model/checkpoint/safetensors.h"
#include "model/decode_states.h"
#include "model/gla_model.h"
#include "model/parameters.h"

namespace gla {
namespace {

absl::Status CheckDevice(const std::string& device) {
  if (device == "cpu") return absl::OkStatus();
  if (device == "cuda") {
    return absl::FailedPreconditionError(
        "device cuda: this program computes models on the CPU only");
  }
  return absl::InvalidArgumentError(
      absl::StrCat("device: want cpu or cuda, got \"", device, "\""));
}

struct Tokens {
  int64_t B = 0, T = 0;
  std::vector<int32_t> ids;  // [B, T]

  // The same, one place to the left.
  std::vector<int32_t> Labels() const {
    std::vector<int32_t> labels(ids.size(), kIgnoreLabel);
    for (int64_t b = 0; b < B; ++b) {
      std::copy_n(&ids[b * T + 1], T - 1, &labels[b * T]);
    }
    return labels;
  }
};

absl::Status CheckIds(const Tokens& tokens, int32_t vocab_size) {
  for (size_t i = 0; i < tokens.ids.size(); ++i) {
    const int32_t id = tokens.ids[i];
    if (id >= 0 && id < vocab_size) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("tokens[", i / tokens.T, ", ", i % tokens.T, "]: id ", id,
                     " is outside the vocabulary [0, ", vocab_size, ")"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Tokens> ReadTokens(const std::string& path, int32_t vocab_size) {
  ASSIGN_OR_RETURN(const auto file, SafetensorsReader::Open(path));
  ASSIGN_OR_RETURN(const auto* tensor, file->Find("tokens"));
  const std::string got =
      absl::StrCat(tensor->dtype, " ", ShapeText(tensor->shape));
  if (tensor->dtype != "I32" || tensor->shape.size() != 2) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": tokens: want I32 [B, T], got ", got));
  }
  Tokens tokens{.B = tensor->shape[0], .T = tensor->shape[1], .ids = {}};
  if (tokens.B < 1 || tokens.T < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": tokens: want B >= 1 and T >= 2, got ", got,
                     ": without a next token there is no prediction, hence no "
                     "loss"));
  }
  tokens.ids.resize(tensor->num_elements());
  std::memcpy(tokens.ids.data(), tensor->data, tensor->size_bytes);
  RETURN_IF_ERROR(CheckIds(tokens, vocab_size));
  return tokens;
}

// What a pass computes, and everything that it needs for it.
class ForwardPass {
 public:
  ForwardPass(const LoadedModel& loaded, const Tokens& tokens)
      : loaded_(loaded),
        tokens_(tokens),
        model_(loaded.config, loaded.parameters.get()),
        threads_(HardwareThreads()),
        states_(loaded.config, static_cast<int>(tokens.B)),
        logits_(tokens.ids.size() * loaded.config.vocab_size) {
    ctx_.threads = &threads_;
    ctx_.scratch = &scratch_;
  }

  void ComputeLogitsAndStates() {
    model_.Forward(
        ctx_, TokenView(tokens_.ids), &states_,
        {logits_.data(), {tokens_.B, tokens_.T, loaded_.config.vocab_size}});
  }

  void ComputeLoss(bool gradients) {
    const auto predictions = static_cast<double>(tokens_.B * (tokens_.T - 1));
    const std::vector<int32_t> labels = tokens_.Labels();
    std::vector<float> loss(labels.size());
    if (gradients) gradients_.emplace(loaded_.table.get());
    GlaModel::LossArgs args;
    args.tokens = TokenView(tokens_.ids);
    args.labels = TokenView(labels);
    args.grad_scale = static_cast<float>(1 / predictions);
    args.gradients = gradients_ ? &*gradients_ : nullptr;
    args.loss = {loss.data(), {tokens_.B, tokens_.T}};
    model_.Loss(ctx_, args);
    loss_ = static_cast<float>(std::accumulate(loss.begin(), loss.end(), 0.0) /
                               predictions);
  }

  absl::Status Write(const std::string& path) {
    SafetensorsWriter writer;
    writer.AddFloat("logits", {tokens_.B, tokens_.T, loaded_.config.vocab_size},
                    logits_.data());
    writer.AddFloat("loss", {1}, &loss_);
    for (int layer = 0; layer < loaded_.config.num_hidden_layers; ++layer) {
      const TensorView<float, 4> state = states_.layer(layer);
      writer.AddFloat(absl::StrCat("state.", layer),
                      {state.shape().begin(), state.shape().end()},
                      state.data());
    }
    if (gradients_) {
      for (const ParameterSpec& spec : loaded_.table->specs()) {
        writer.AddFloat("grad." + spec.name, spec.shape,
                        gradients_->data(spec));
      }
    }
    std::error_code error;  // Write tells what stands in its way.
    std::filesystem::remove(path, error);
    return writer.Write(path);
  }

 private:
  TensorView<const int32_t, 2> TokenView(
      const std::vector<int32_t>& values) const {
    return {values.data(), {tokens_.B, tokens_.T}};
  }

  const LoadedModel& loaded_;
  const Tokens& tokens_;
  const GlaModel model_;
  ThreadPool threads_;
  Arena scratch_;
  ExecutionContext ctx_;
  DecodeStates states_;
  std::vector<float> logits_;  // [B, T, vocab_size]
  float loss_ = 0;
  std::optional<Parameters> gradients_;
};

}  // namespace

absl::Status RunForward(const ForwardOptions& options) {
  RETURN_IF_ERROR(CheckDevice(options.device));
  ASSIGN_OR_RETURN(const LoadedModel loaded, LoadModelDirectory(options.model));
  ASSIGN_OR_RETURN(const Tokens tokens,
                   ReadTokens(options.input, loaded.config.vocab_size));
  ForwardPass pass(loaded, tokens);
  pass.ComputeLogitsAndStates();
  pass.ComputeLoss(options.gradients);
  return pass.Write(options.output);
}

}  // namespace gla
