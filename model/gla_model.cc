#include "model/gla_model.h"

#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "kernels/embedding/embedding.h"
#include "model/layers/gla_block.h"
#include "model/layers/lm_head.h"
#include "model/layers/pass.h"
#include "model/layers/weight.h"

namespace gla {
namespace {

void CheckState(TensorView<const float, 4> state, const TokenMixer& mixer) {
  if (state.empty()) return;
  const auto [H, K, V] = mixer.state_shape();
  CheckShape("states of another model", state, {state.dim(0), H, K, V});
}

// [M, D] -> [1, D].
TensorView<float, 2> LastRow(TensorView<float, 2> x) {
  return {x[x.dim(0) - 1].data(), {1, x.dim(1)}};
}

// `n` default values in scratch memory.
template <typename T>
absl::Span<T> NewArray(const ExecutionContext& ctx, size_t n) {
  T* array = ctx.scratch->Allocate<T>(static_cast<int64_t>(n));
  std::uninitialized_value_construct_n(array, n);
  return absl::MakeSpan(array, n);
}

}  // namespace

struct GlaModel::Layers {
  Layers(const GlaConfig& config, const Parameters& parameters)
      : embeddings(parameters, "model.embeddings.weight"),
        head(config, parameters) {
    for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
      blocks.emplace_back(config, parameters, layer);
    }
  }

  // Everything up to the last block. With pass.keep, `saved` has an entry for
  // each block.
  ResidualStream Forward(const ExecutionContext& ctx, const Pass& pass,
                         TensorView<const int32_t, 1> tokens,
                         absl::Span<GlaBlock::Saved> saved) const;
  // And back; dx [M, D] is used up.
  void Backward(const ExecutionContext& ctx, const Pass& pass,
                TensorView<const int32_t, 1> tokens,
                absl::Span<const GlaBlock::Saved> saved, Parameters* gradients,
                TensorView<float, 2> dx) const;

  Weight<2> embeddings;
  std::vector<GlaBlock> blocks;
  LmHead head;
};

ResidualStream GlaModel::Layers::Forward(
    const ExecutionContext& ctx, const Pass& pass,
    TensorView<const int32_t, 1> tokens,
    absl::Span<GlaBlock::Saved> saved) const {
  ResidualStream x;
  x.delta =
      ctx.scratch->Tensor<float, 2>({pass.M(), embeddings.value().dim(1)});
  EmbeddingFwd(ctx, tokens, embeddings.value(), x.delta);
  for (size_t i = 0; i < blocks.size(); ++i) {
    CheckState(pass.state(static_cast<int>(i)), blocks[i].mixer());
    GlaBlock::Saved not_kept;
    x = blocks[i].Forward(ctx, pass, x, pass.keep ? &saved[i] : &not_kept);
  }
  return x;
}

void GlaModel::Layers::Backward(const ExecutionContext& ctx, const Pass& pass,
                                TensorView<const int32_t, 1> tokens,
                                absl::Span<const GlaBlock::Saved> saved,
                                Parameters* gradients,
                                TensorView<float, 2> dx) const {
  for (size_t i = blocks.size(); i-- > 0;) {
    blocks[i].Backward(ctx, pass, saved[i], gradients, dx);
  }
  EmbeddingBwd(ctx, tokens, dx, embeddings.GradientIn(gradients));
}

GlaModel::GlaModel(const GlaConfig& config, const Parameters* parameters)
    : config_(config),
      parameters_(parameters),
      layers_(std::make_unique<Layers>(config, *parameters)) {}

GlaModel::~GlaModel() = default;

void GlaModel::Loss(const ExecutionContext& ctx, const LossArgs& args) const {
  ArenaScope scope(ctx.scratch);
  Pass pass;
  pass.B = args.tokens.dim(0);
  pass.T = args.tokens.dim(1);
  pass.states = args.states;
  pass.keep = args.gradients != nullptr;
  CheckShape("labels", args.labels, {pass.B, pass.T});
  CheckShape("loss", args.loss, {pass.B, pass.T});
  const auto tokens = args.tokens.Reshape<1>({pass.M()});

  absl::Span<GlaBlock::Saved> saved;
  LmHead::LossArgs loss;
  if (pass.keep) {
    CHECK_EQ(args.gradients->flat().size(), parameters_->flat().size());
    saved = NewArray<GlaBlock::Saved>(ctx, layers_->blocks.size());
    loss.gradients = args.gradients;
    loss.dx =
        ctx.scratch->Tensor<float, 2>({pass.M(), int64_t{config_.hidden_size}});
  }
  loss.x = layers_->Forward(ctx, pass, tokens, saved);
  loss.labels = args.labels.Reshape<1>({pass.M()});
  loss.grad_scale = args.grad_scale;
  loss.loss = args.loss.Reshape<1>({pass.M()});
  layers_->head.Loss(ctx, loss);
  if (pass.keep) {
    layers_->Backward(ctx, pass, tokens, saved, args.gradients, loss.dx);
  }
}

void GlaModel::Forward(const ExecutionContext& ctx,
                       TensorView<const int32_t, 2> tokens,
                       DecodeStates* states,
                       TensorView<float, 3> logits) const {
  ArenaScope scope(ctx.scratch);
  Pass pass;
  pass.B = tokens.dim(0);
  pass.T = tokens.dim(1);
  pass.states = states;
  const ResidualStream x =
      layers_->Forward(ctx, pass, tokens.Reshape<1>({pass.M()}), {});
  layers_->head.Logits(ctx, pass.form, x,
                       logits.Reshape<2>({pass.M(), logits.dim(2)}));
}

void GlaModel::Prefill(const ExecutionContext& ctx,
                       absl::Span<const int32_t> tokens, int slot,
                       DecodeStates* states,
                       TensorView<float, 1> logits) const {
  CHECK(!tokens.empty());
  ArenaScope scope(ctx.scratch);
  Pass pass;
  pass.B = 1;
  pass.T = static_cast<int64_t>(tokens.size());
  pass.states = states;
  pass.first_slot = slot;
  const ResidualStream x =
      layers_->Forward(ctx, pass, {tokens.data(), {pass.T}}, {});
  if (logits.empty()) return;
  layers_->head.Logits(ctx, Pass::Form::kStep, {LastRow(x.h), LastRow(x.delta)},
                       logits.Reshape<2>({1, logits.dim(0)}));
}

void GlaModel::DecodeStep(const ExecutionContext& ctx,
                          absl::Span<const int32_t> tokens,
                          absl::Span<const int32_t> slots, DecodeStates* states,
                          TensorView<float, 2> logits) const {
  CHECK_EQ(tokens.size(), slots.size());
  ArenaScope scope(ctx.scratch);
  Pass pass;
  pass.form = Pass::Form::kStep;
  pass.B = static_cast<int64_t>(tokens.size());
  pass.states = states;
  pass.slots = slots;
  const ResidualStream x =
      layers_->Forward(ctx, pass, {tokens.data(), {pass.B}}, {});
  layers_->head.Logits(ctx, pass.form, x, logits);
}

}  // namespace gla
