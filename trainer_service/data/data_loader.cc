#include "trainer_service/data/data_loader.h"

#include <algorithm>
#include <array>
#include <vector>

#include "glog/logging.h"
#include "kernels/base/philox.h"
#include "kernels/loss/linear_cross_entropy.h"  // kIgnoreLabel

namespace gla {
namespace {

// Philox streams of the loader, apart from those of other users of the seed.
constexpr uint64_t kOffsetStream = 0x6c6f6164'00000000;  // start of an epoch
constexpr uint64_t kOrderStream = 0x6c6f6164'00000001;   // order in an epoch

// A permutation of [0, n): a keyed 4-round Feistel network on the next even
// number of bits, walked until it lands inside. Needs no memory.
class Permutation {
 public:
  Permutation(uint64_t seed, uint64_t epoch, int64_t n) : n_(n) {
    while ((int64_t{1} << (2 * half_bits_)) < n) ++half_bits_;
    for (uint64_t round = 0; round < keys_.size(); ++round) {
      keys_[round] =
          Philox(seed, kOrderStream, epoch * keys_.size() + round)[0];
    }
  }

  int64_t operator()(int64_t i) const {
    do {
      i = Mix(i);
    } while (i >= n_);
    return i;
  }

 private:
  int64_t Mix(int64_t x) const {
    const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
    uint64_t left = static_cast<uint64_t>(x) >> half_bits_;
    uint64_t right = static_cast<uint64_t>(x) & mask;
    for (uint32_t key : keys_) {
      const uint64_t mixed = Philox(key, kOrderStream, right)[1] & mask;
      const uint64_t next = left ^ mixed;
      left = right;
      right = next;
    }
    return static_cast<int64_t>(left << half_bits_ | right);
  }

  const int64_t n_;
  int half_bits_ = 1;
  std::array<uint32_t, 4> keys_;
};

}  // namespace

void LoadTrainingRows(const TokenStream& stream, const DataOrder& order,
                      int64_t step, int32_t first_row,
                      TensorView<int32_t, 2> tokens,
                      TensorView<int32_t, 2> labels) {
  const int64_t length = order.sequence_length;
  const int64_t rows = tokens.dim(0);
  CheckShape("tokens", tokens, {rows, length});
  CheckShape("labels", labels, {rows, length});
  CHECK_GE(stream.size(), MinimumStreamTokens(order.sequence_length));
  // The offset moves windows by less than one length, so that epochs do not
  // cut the text at the same places; one window is given up for it when the
  // stream has more than one.
  const int64_t fitting = (stream.size() - 1) / length;
  const int64_t windows = std::max<int64_t>(1, fitting - 1);
  const int64_t spare = stream.size() - 1 - windows * length;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t sample = step * order.batch_sequences + first_row + row;
    const uint64_t epoch = sample / windows;
    const int64_t offset =
        Philox(order.seed, kOffsetStream, epoch)[0] %
        static_cast<uint64_t>(std::min(spare, length - 1) + 1);
    const int64_t window =
        Permutation(order.seed, epoch, windows)(sample % windows);
    const int64_t begin = offset + window * length;
    stream.Read(begin, {&tokens[row][0], static_cast<size_t>(length)});
    stream.Read(begin + 1, {&labels[row][0], static_cast<size_t>(length)});
  }
}

int64_t NumEvaluationRows(const TokenStream& stream, int32_t sequence_length) {
  const int64_t predictions = std::max<int64_t>(0, stream.size() - 1);
  return (predictions + sequence_length - 1) / sequence_length;
}

void LoadEvaluationRows(const TokenStream& stream, int64_t first_row,
                        TensorView<int32_t, 2> tokens,
                        TensorView<int32_t, 2> labels) {
  const int64_t length = tokens.dim(1);
  CheckShape("labels", labels, tokens.shape());
  std::fill_n(tokens.data(), tokens.size(), 0);
  std::fill_n(labels.data(), labels.size(), kIgnoreLabel);
  for (int64_t row = 0; row < tokens.dim(0); ++row) {
    const int64_t begin = (first_row + row) * length;
    const int64_t count = std::min(length, stream.size() - 1 - begin);
    if (count <= 0) return;
    stream.Read(begin, {&tokens[row][0], static_cast<size_t>(count)});
    stream.Read(begin + 1, {&labels[row][0], static_cast<size_t>(count)});
  }
}

}  // namespace gla
