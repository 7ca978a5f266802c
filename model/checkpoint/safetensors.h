// safetensors files: named tensors with a JSON header.
// (github.com/huggingface/safetensors, "Format")
//
//   8 bytes   header length N, little-endian
//   N bytes   JSON: {"NAME": {"dtype", "shape", "data_offsets": [begin, end]}}
//             and, optionally, "__metadata__"; padded with spaces
//   the rest  tensors, row-major, little-endian, without gaps
#ifndef GLA_MODEL_CHECKPOINT_SAFETENSORS_H_
#define GLA_MODEL_CHECKPOINT_SAFETENSORS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace gla {

// A tensor of an open file.
struct SafetensorsTensor {
  int64_t num_elements() const;

  std::string dtype;  // "F32", "BF16", "F16" or "I32"
  std::vector<int64_t> shape;
  const char* data = nullptr;  // mapped; aligned as the file's writer chose
  int64_t size_bytes = 0;
};

// A file mapped into memory. Immutable, hence thread-safe. The file must not
// shrink while it is open.
class SafetensorsReader {
 public:
  // Reads and checks the header: a file of any content is safe to open.
  //   NOT_FOUND         no such file
  //   DATA_LOSS         not well formed, truncated, or with gaps or overlaps
  //   INVALID_ARGUMENT  a tensor of another dtype; names it
  static absl::StatusOr<std::unique_ptr<SafetensorsReader>> Open(
      const std::string& path);
  ~SafetensorsReader();
  SafetensorsReader(const SafetensorsReader&) = delete;
  SafetensorsReader& operator=(const SafetensorsReader&) = delete;

  const std::string& path() const { return path_; }
  const std::map<std::string, SafetensorsTensor>& tensors() const {
    return tensors_;
  }
  // NOT_FOUND names the file and the tensor. Lives as long as this.
  absl::StatusOr<const SafetensorsTensor*> Find(const std::string& name) const;

 private:
  SafetensorsReader(std::string path, const char* data, int64_t size);
  absl::Status ReadHeader();

  const std::string path_;
  const char* const data_;
  const int64_t size_;  // bytes of the file
  std::map<std::string, SafetensorsTensor> tensors_;
};

// Elements from `first` on, as many as `out` holds, overwritten; BF16 and F16
// are widened. INVALID_ARGUMENT: I32. CHECK-fails beyond the tensor's end.
absl::Status ReadAsFloat(const SafetensorsTensor& tensor, absl::Span<float> out,
                         int64_t first = 0);

// Collects tensors, then writes them all.
class SafetensorsWriter {
 public:
  // `data` is not copied: it must live until Write.
  void AddFloat(std::string name, std::vector<int64_t> shape,
                const float* data);
  void AddInt32(std::string name, std::vector<int64_t> shape,
                const int32_t* data);

  // Writes and syncs a new file, byte for byte as Hugging Face's library does:
  // F32 before I32, each by name, metadata {"format": "pt"}. The same tensors
  // give the same bytes. ALREADY_EXISTS rather than overwrite.
  absl::Status Write(const std::string& path) const;

 private:
  using Order = std::pair<bool, std::string>;  // is I32, name
  std::map<Order, SafetensorsTensor> tensors_;
};

// "[64, 128]", for error messages.
std::string ShapeText(absl::Span<const int64_t> shape);

}  // namespace gla

#endif  // GLA_MODEL_CHECKPOINT_SAFETENSORS_H_
