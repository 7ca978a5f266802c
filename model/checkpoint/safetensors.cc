#include "model/checkpoint/safetensors.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "glog/logging.h"
#include "kernels/base/status_macros.h"
#include "model/checkpoint/durable_file.h"
#include "nlohmann/json.hpp"

namespace gla {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little);

constexpr int64_t kLengthBytes = 8;
constexpr int64_t kMaxHeaderBytes = 100'000'000;  // Hugging Face's limit
constexpr char kMetadata[] = "__metadata__";

// Bytes of an element; 0: a dtype that is not read here.
int64_t ElementBytes(const std::string& dtype) {
  if (dtype == "F32" || dtype == "I32") return 4;
  if (dtype == "BF16" || dtype == "F16") return 2;
  return 0;
}

absl::Status Damaged(const std::string& path, const std::string& what) {
  return absl::DataLossError(absl::StrCat(path, ": ", what));
}

// The JSON array of non-negative integers at `key`.
std::optional<std::vector<int64_t>> Integers(const json& object,
                                             const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_array()) return std::nullopt;
  std::vector<int64_t> values;
  for (const json& value : *found) {
    if (!value.is_number_unsigned()) return std::nullopt;
    const uint64_t n = value.get<uint64_t>();
    if (n > static_cast<uint64_t>(INT64_MAX)) return std::nullopt;
    values.push_back(static_cast<int64_t>(n));
  }
  return values;
}

// Bytes of a tensor; nothing when an int64 cannot count them.
std::optional<int64_t> SizeBytes(const std::vector<int64_t>& shape,
                                 int64_t element_bytes) {
  int64_t bytes = element_bytes;
  for (int64_t dim : shape) {
    if (__builtin_mul_overflow(bytes, dim, &bytes)) return std::nullopt;
  }
  return bytes;
}

// One header entry of a file whose tensor bytes are `data`. Within its bounds.
absl::StatusOr<SafetensorsTensor> ParseTensor(const std::string& path,
                                              const std::string& name,
                                              const json& fields,
                                              std::string_view data) {
  if (!fields.is_object() || !fields.contains("dtype") ||
      !fields["dtype"].is_string()) {
    return Damaged(path, absl::StrCat(name, ": no dtype in the header"));
  }
  const std::string dtype = fields["dtype"].get<std::string>();
  const int64_t element_bytes = ElementBytes(dtype);
  if (element_bytes == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": ", name, ": dtype ", dtype, ": want F32, BF16, F16 or I32"));
  }
  const auto shape = Integers(fields, "shape");
  const auto offsets = Integers(fields, "data_offsets");
  const auto bytes = shape ? SizeBytes(*shape, element_bytes) : std::nullopt;
  if (!bytes || !offsets || offsets->size() != 2) {
    return Damaged(path,
                   absl::StrCat(name, ": bad shape or offsets in the header"));
  }
  const int64_t begin = (*offsets)[0], end = (*offsets)[1];
  if (end - begin != *bytes) {
    return Damaged(
        path, absl::StrCat(name, ": ", dtype, " ", ShapeText(*shape), " is ",
                           *bytes, " bytes, but offsets ", begin, " to ", end));
  }
  if (end > static_cast<int64_t>(data.size())) {
    return Damaged(path,
                   absl::StrCat(name, ": truncated: ends at byte ", end, " of ",
                                data.size(), " bytes of tensors"));
  }
  return SafetensorsTensor{.dtype = dtype,
                           .shape = *shape,
                           .data = data.data() + begin,
                           .size_bytes = *bytes};
}

// Tensors must follow each other without gap or overlap, up to the end.
absl::Status CheckLayout(
    const std::string& path,
    const std::map<std::string, SafetensorsTensor>& tensors,
    std::string_view data) {
  std::vector<std::pair<const char*, int64_t>> places;
  for (const auto& [name, tensor] : tensors) {
    places.emplace_back(tensor.data, tensor.size_bytes);
  }
  std::sort(places.begin(), places.end());
  const char* end = data.data();
  for (const auto& [begin, bytes] : places) {
    if (begin != end) {
      return Damaged(path, absl::StrCat("tensors with a gap or an overlap at "
                                        "byte ",
                                        begin - data.data()));
    }
    end += bytes;
  }
  const int64_t used = end - data.data();
  if (used == static_cast<int64_t>(data.size())) return absl::OkStatus();
  return Damaged(path, absl::StrCat("tensors take ", used,
                                    " bytes, the file "
                                    "has ",
                                    data.size()));
}

float WidenBf16(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

float WidenF16(uint16_t bits) {
  return static_cast<float>(std::bit_cast<_Float16>(bits));
}

void Widen(const char* data, float (*widen)(uint16_t), absl::Span<float> out) {
  for (size_t i = 0; i < out.size(); ++i) {
    uint16_t bits;
    std::memcpy(&bits, data + i * sizeof(bits), sizeof(bits));
    out[i] = widen(bits);
  }
}

}  // namespace

std::string ShapeText(absl::Span<const int64_t> shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

int64_t SafetensorsTensor::num_elements() const {
  return size_bytes / ElementBytes(dtype);
}

SafetensorsReader::SafetensorsReader(std::string path, const char* data,
                                     int64_t size)
    : path_(std::move(path)), data_(data), size_(size) {}

SafetensorsReader::~SafetensorsReader() {
  munmap(const_cast<char*>(data_), size_);
}

absl::StatusOr<std::unique_ptr<SafetensorsReader>> SafetensorsReader::Open(
    const std::string& path) {
  ASSIGN_OR_RETURN(const InputFile file, InputFile::Open(path));
  if (file.size() < kLengthBytes) {
    return Damaged(path, absl::StrCat("not safetensors: a file of ",
                                      file.size(), " bytes"));
  }
  void* data = mmap(nullptr, file.size(), PROT_READ, MAP_PRIVATE, file.fd(), 0);
  if (data == MAP_FAILED) return ErrnoStatus("map", path);
  std::unique_ptr<SafetensorsReader> reader(
      new SafetensorsReader(path, static_cast<const char*>(data), file.size()));
  RETURN_IF_ERROR(reader->ReadHeader());
  return reader;
}

absl::Status SafetensorsReader::ReadHeader() {
  uint64_t length = 0;
  std::memcpy(&length, data_, kLengthBytes);
  if (length > kMaxHeaderBytes ||
      static_cast<int64_t>(length) > size_ - kLengthBytes) {
    return Damaged(path_, absl::StrCat("a header of ", length,
                                       " bytes in a file of ", size_));
  }
  const std::string_view file(data_, size_);
  const json header = json::parse(file.substr(kLengthBytes, length),
                                  /*cb=*/nullptr, /*allow_exceptions=*/false);
  if (!header.is_object()) {
    return Damaged(path_, "the header is not a JSON object");
  }
  const std::string_view data = file.substr(kLengthBytes + length);
  for (const auto& [name, fields] : header.items()) {
    if (name == kMetadata) continue;
    ASSIGN_OR_RETURN(tensors_[name], ParseTensor(path_, name, fields, data));
  }
  return CheckLayout(path_, tensors_, data);
}

absl::StatusOr<const SafetensorsTensor*> SafetensorsReader::Find(
    const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found != tensors_.end()) return &found->second;
  return absl::NotFoundError(absl::StrCat(path_, ": no tensor ", name));
}

absl::Status ReadAsFloat(const SafetensorsTensor& tensor, absl::Span<float> out,
                         int64_t first) {
  const int64_t count = static_cast<int64_t>(out.size());
  CHECK(first >= 0 && first + count <= tensor.num_elements());
  const char* data = tensor.data + first * ElementBytes(tensor.dtype);
  if (tensor.dtype == "F32") {
    std::memcpy(out.data(), data, count * sizeof(float));
  } else if (tensor.dtype == "BF16") {
    Widen(data, WidenBf16, out);
  } else if (tensor.dtype == "F16") {
    Widen(data, WidenF16, out);
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("want floats, got dtype ", tensor.dtype));
  }
  return absl::OkStatus();
}

void SafetensorsWriter::AddFloat(std::string name, std::vector<int64_t> shape,
                                 const float* data) {
  const int64_t bytes = SizeBytes(shape, sizeof(float)).value();
  tensors_[{false, std::move(name)}] = {
      .dtype = "F32",
      .shape = std::move(shape),
      .data = reinterpret_cast<const char*>(data),
      .size_bytes = bytes};
}

void SafetensorsWriter::AddInt32(std::string name, std::vector<int64_t> shape,
                                 const int32_t* data) {
  const int64_t bytes = SizeBytes(shape, sizeof(int32_t)).value();
  tensors_[{true, std::move(name)}] = {
      .dtype = "I32",
      .shape = std::move(shape),
      .data = reinterpret_cast<const char*>(data),
      .size_bytes = bytes};
}

absl::Status SafetensorsWriter::Write(const std::string& path) const {
  nlohmann::ordered_json header;
  header[kMetadata] = {{"format", "pt"}};
  int64_t offset = 0;
  for (const auto& [order, tensor] : tensors_) {
    nlohmann::ordered_json& fields = header[order.second];
    fields["dtype"] = tensor.dtype;
    fields["shape"] = tensor.shape;
    fields["data_offsets"] = {offset, offset + tensor.size_bytes};
    offset += tensor.size_bytes;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t length = text.size();
  ASSIGN_OR_RETURN(DurableFile file, DurableFile::Create(path));
  RETURN_IF_ERROR(
      file.Append({reinterpret_cast<const char*>(&length), kLengthBytes}));
  RETURN_IF_ERROR(file.Append(text));
  for (const auto& [order, tensor] : tensors_) {
    RETURN_IF_ERROR(
        file.Append({tensor.data, static_cast<size_t>(tensor.size_bytes)}));
  }
  return file.Close();
}

}  // namespace gla
