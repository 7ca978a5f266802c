// `gla forward`: a checkpoint's forward and backward pass on given tokens, from
// file to file, for verifying a port of a model.
#ifndef GLA_TOOLS_FORWARD_H_
#define GLA_TOOLS_FORWARD_H_

#include <string>

#include "absl/status/status.h"

namespace gla {

struct ForwardOptions {
  std::string model;       // model directory or checkpoint; needs no tokenizer
  std::string input;       // safetensors with `tokens` [B, T] int32, T >= 2
  std::string output;      // safetensors; replaced if it is there
  bool gradients = false;  // also write grad.NAME
  std::string device = "cpu";
};

// Writes, all float32:
//   logits     [B, T, vocab_size]
//   loss       [1] mean over the B * (T - 1) predictions of the next token, in
//              nats
//   state.I    [B, H, K, V] recurrent state of layer I after all T tokens
//   grad.NAME  as the parameter: d loss / d parameter; under tied embeddings
//              both uses of the matrix together, as model.embeddings.weight
//
//   NOT_FOUND            a file or the tensor `tokens` is missing
//   INVALID_ARGUMENT     tokens of another dtype or rank, or outside the
//                        vocabulary (names place and value); T < 2; a device
//                        of another name
//   FAILED_PRECONDITION  a device that this program cannot use
// and the errors of LoadModelDirectory.
absl::Status RunForward(const ForwardOptions& options);

}  // namespace gla

#endif  // GLA_TOOLS_FORWARD_H_
