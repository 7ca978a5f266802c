#include "model/checkpoint/safetensors.h"

#include <sys/stat.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace gla {
namespace {

std::string NewPath(const std::string& name) {
  const std::string path = testing::TempDir() + "/" + name;
  std::filesystem::remove_all(path);
  return path;
}

// A file with this header and these tensor bytes.
std::string FileOf(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  const std::string path = NewPath("made.safetensors");
  std::ofstream(path, std::ios::binary)
      << std::string(reinterpret_cast<const char*>(&length), 8) << header
      << data;
  return path;
}

std::string Bytes(const std::vector<uint16_t>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()),
                     values.size() * 2);
}

absl::Status OpenStatus(const std::string& header, const std::string& data) {
  return SafetensorsReader::Open(FileOf(header, data)).status();
}

TEST(Safetensors, ComeBackFromAFile) {
  const std::vector<float> x = {1, -2.5, 3e-40f, INFINITY, -0.0f, 6};
  const std::vector<int32_t> n = {-1, 1 << 30};
  const float one = 1;
  SafetensorsWriter writer;
  writer.AddFloat("x", {2, 3}, x.data());
  writer.AddInt32("a.n", {2}, n.data());
  writer.AddFloat("scalar", {}, &one);
  writer.AddFloat("empty", {0, 4}, nullptr);
  const std::string path = NewPath("written.safetensors");
  ASSERT_TRUE(writer.Write(path).ok());

  const auto reader = SafetensorsReader::Open(path);
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_EQ((*reader)->tensors().size(), 4u);
  const SafetensorsTensor* tensor = *(*reader)->Find("x");
  EXPECT_EQ(tensor->dtype, "F32");
  EXPECT_EQ(tensor->shape, (std::vector<int64_t>{2, 3}));
  std::vector<float> back(6);
  ASSERT_TRUE(ReadAsFloat(*tensor, absl::MakeSpan(back)).ok());
  EXPECT_EQ(std::memcmp(back.data(), x.data(), 24), 0);
  ASSERT_TRUE(ReadAsFloat(*tensor, absl::MakeSpan(back.data(), 2), 1).ok());
  EXPECT_EQ(back[0], -2.5f);
  tensor = *(*reader)->Find("a.n");
  EXPECT_EQ(tensor->dtype, "I32");
  EXPECT_EQ(std::memcmp(tensor->data, n.data(), 8), 0);
  EXPECT_EQ((*(*reader)->Find("scalar"))->num_elements(), 1);
  EXPECT_EQ((*(*reader)->Find("empty"))->num_elements(), 0);
}

TEST(Safetensors, WriteTheSameBytesInAnyOrder) {
  const float x = 1, y = 2;
  const int32_t n = 3;
  SafetensorsWriter a, b;
  a.AddFloat("x", {1}, &x);
  a.AddFloat("y", {1}, &y);
  a.AddInt32("b", {1}, &n);
  b.AddInt32("b", {1}, &n);
  b.AddFloat("y", {1}, &y);
  b.AddFloat("x", {1}, &x);
  const std::string path_a = NewPath("a"), path_b = NewPath("b");
  ASSERT_TRUE(a.Write(path_a).ok() && b.Write(path_b).ok());
  std::ifstream in_a(path_a), in_b(path_b);
  const std::string text_a(std::istreambuf_iterator<char>(in_a), {});
  EXPECT_EQ(text_a, std::string(std::istreambuf_iterator<char>(in_b), {}));
  const std::string want =
      R"({"__metadata__":{"format":"pt"},)"
      R"("x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
      R"("y":{"dtype":"F32","shape":[1],"data_offsets":[4,8]},)"
      R"("b":{"dtype":"I32","shape":[1],"data_offsets":[8,12]}})";
  EXPECT_EQ(text_a.substr(8, want.size()), want);
  EXPECT_EQ((text_a.size() - 12) % 8, 0u);
}

TEST(Safetensors, DoNotOverwrite) {
  const float x = 1;
  SafetensorsWriter writer;
  writer.AddFloat("x", {1}, &x);
  const std::string path = NewPath("once");
  EXPECT_TRUE(writer.Write(path).ok());
  EXPECT_EQ(writer.Write(path).code(), absl::StatusCode::kAlreadyExists);
}

TEST(Safetensors, WidenHalfPrecision) {
  const std::string header =
      R"({"b":{"dtype":"BF16","shape":[3],"data_offsets":[0,6]},)"
      R"("h":{"dtype":"F16","shape":[4],"data_offsets":[6,14]}})";
  const auto reader = SafetensorsReader::Open(
      FileOf(header, Bytes({0x3F80, 0xC049, 0x7F80}) +
                         Bytes({0x3C00, 0xC200, 0x0001, 0x7C00})));
  ASSERT_TRUE(reader.ok()) << reader.status();
  float b[3], h[4];
  ASSERT_TRUE(ReadAsFloat(**(*reader)->Find("b"), absl::MakeSpan(b)).ok());
  ASSERT_TRUE(ReadAsFloat(**(*reader)->Find("h"), absl::MakeSpan(h)).ok());
  EXPECT_EQ(b[0], 1);
  EXPECT_EQ(b[1], -3.140625f);
  EXPECT_EQ(b[2], INFINITY);
  EXPECT_EQ(h[0], 1);
  EXPECT_EQ(h[1], -3);
  EXPECT_EQ(h[2], std::ldexp(1.0f, -24));  // subnormal
  EXPECT_EQ(h[3], INFINITY);
}

TEST(Safetensors, NameWhatIsMissing) {
  const auto reader = SafetensorsReader::Open(FileOf("{}", ""));
  ASSERT_TRUE(reader.ok()) << reader.status();
  const absl::Status status = (*reader)->Find("x.weight").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_NE(status.message().find("x.weight"), std::string::npos);
  EXPECT_EQ(SafetensorsReader::Open(NewPath("absent")).status().code(),
            absl::StatusCode::kNotFound);
}

TEST(Safetensors, RefuseOtherTypesByName) {
  const absl::Status status = OpenStatus(
      R"({"w":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}})", "1234");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("w: dtype F8_E4M3"), std::string::npos);
  const auto reader = SafetensorsReader::Open(FileOf(
      R"({"n":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}})", "1234"));
  float x;
  EXPECT_EQ(ReadAsFloat(**(*reader)->Find("n"), absl::MakeSpan(&x, 1)).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(Safetensors, RefuseHeadersThatDoNotHold) {
  const std::pair<std::string, std::string> damaged[] = {
      {"", ""},
      {"{", ""},
      {"[]", ""},
      {R"({"w":3})", ""},
      {R"({"w":{}})", ""},
      {R"({"w":{"dtype":7,"shape":[1],"data_offsets":[0,4]}})", "1234"},
      {R"({"w":{"dtype":"F32","data_offsets":[0,4]}})", "1234"},
      {R"({"w":{"dtype":"F32","shape":[1]}})", "1234"},
      {R"({"w":{"dtype":"F32","shape":"1","data_offsets":[0,4]}})", "1234"},
      {R"({"w":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})", "1234"},
      {R"({"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", "1234"},
      {R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0]}})", "1234"},
      {R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", "1234"},
      {R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}})", "1234"},
      {R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", "1234"},
      {R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "1234"},
      {R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", "1234"},
      {R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", "12345"},
      // A gap, and an overlap.
      {R"({"v":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
       R"("w":{"dtype":"F32","shape":[1],"data_offsets":[5,9]}})",
       "123456789"},
      {R"({"v":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
       R"("w":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
       "123456789012"},
      // Sizes that wrap around.
      {R"({"w":{"dtype":"F32","shape":[4611686018427387904,4],)"
       R"("data_offsets":[0,0]}})",
       ""},
      {R"({"w":{"dtype":"F32","shape":[18446744073709551615],)"
       R"("data_offsets":[0,4]}})",
       "1234"},
      {R"({"w":{"dtype":"F32","shape":[1],)"
       R"("data_offsets":[9223372036854775804,9223372036854775808]}})",
       "1234"},
      {R"({"w":{"dtype":"F32","shape":[1],)"
       R"("data_offsets":[9223372036854775803,9223372036854775807]}})",
       "1234"},
  };
  for (const auto& [header, data] : damaged) {
    const absl::Status status = OpenStatus(header, data);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << header;
    EXPECT_NE(status.message().find("made.safetensors"), std::string::npos);
  }
}

TEST(Safetensors, RefuseAHeaderLengthBeyondTheFile) {
  for (const uint64_t length :
       {uint64_t{1}, uint64_t{100'000'001}, uint64_t{1} << 63, ~uint64_t{0}}) {
    const std::string path = NewPath("long");
    std::ofstream(path, std::ios::binary)
        << std::string(reinterpret_cast<const char*>(&length), 8);
    EXPECT_EQ(SafetensorsReader::Open(path).status().code(),
              absl::StatusCode::kDataLoss)
        << length;
  }
}

TEST(Safetensors, RefuseWhatIsNoRegularFile) {
  const std::string fifo = NewPath("fifo");
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  for (const std::string& path : {fifo, testing::TempDir()}) {
    const absl::Status status = SafetensorsReader::Open(path).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_NE(status.message().find(path), std::string::npos);
  }
}

TEST(Safetensors, NameTheTensorThatIsCutOff) {
  const absl::Status status =
      OpenStatus(R"({"v":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                 R"("w":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
                 "12345678901");
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_NE(status.message().find("w: truncated"), std::string::npos) << status;
}

// Every cut of a good file is refused; flipped bits never crash.
TEST(Safetensors, SurviveDamage) {
  const float x[] = {1, 2, 3};
  SafetensorsWriter writer;
  writer.AddFloat("first.weight", {3}, x);
  writer.AddFloat("second.weight", {1, 3}, x);
  const std::string good = NewPath("good");
  ASSERT_TRUE(writer.Write(good).ok());
  std::ifstream in(good, std::ios::binary);
  const std::string bytes(std::istreambuf_iterator<char>(in), {});
  const std::string path = NewPath("bad");
  for (size_t n = 0; n < bytes.size(); ++n) {
    std::ofstream(path, std::ios::binary) << bytes.substr(0, n);
    EXPECT_EQ(SafetensorsReader::Open(path).status().code(),
              absl::StatusCode::kDataLoss)
        << n;
  }
  std::mt19937 random(1);
  for (int i = 0; i < 500; ++i) {
    std::string flipped = bytes;
    flipped[random() % (bytes.size() - 24)] ^= char(1 << random() % 8);
    std::ofstream(path, std::ios::binary) << flipped;
    const auto reader = SafetensorsReader::Open(path);
    if (!reader.ok()) continue;
    for (const auto& [name, tensor] : (*reader)->tensors()) {
      std::vector<float> values(tensor.num_elements());
      (void)ReadAsFloat(tensor, absl::MakeSpan(values));
    }
  }
}

}  // namespace
}  // namespace gla
