#include "model/checkpoint/sha256.h"

#include <sys/stat.h>

#include <fstream>
#include <string>

#include "absl/strings/escaping.h"
#include "gtest/gtest.h"

namespace gla {
namespace {

// FIPS 180-2, appendix B.
constexpr char kOfAbc[] =
    "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

TEST(Sha256, IsThatOfTheStandard) {
  EXPECT_EQ(absl::BytesToHexString(Sha256("abc")), kOfAbc);
  Sha256Stream stream;
  stream.Update("a");
  stream.Update("");
  stream.Update("bc");
  EXPECT_EQ(absl::BytesToHexString(stream.Finish()), kOfAbc);
}

TEST(Sha256OfFile, ReadsAllOfIt) {
  const std::string path = testing::TempDir() + "/file";
  const std::string bytes((1 << 20) + 3, 'x');  // more than one buffer
  std::ofstream(path, std::ios::binary) << bytes;
  EXPECT_EQ(*Sha256OfFile(path), Sha256(bytes));
}

TEST(Sha256OfFile, NamesWhatItCannotRead) {
  const std::string path = testing::TempDir() + "/absent";
  const absl::Status status = Sha256OfFile(path).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_NE(status.message().find(path), std::string::npos);
}

TEST(Sha256OfFile, RefusesWhatIsNoRegularFile) {
  const std::string fifo = testing::TempDir() + "/fifo";
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  for (const std::string& path : {fifo, testing::TempDir()}) {
    EXPECT_EQ(Sha256OfFile(path).status().code(),
              absl::StatusCode::kFailedPrecondition);
  }
}

}  // namespace
}  // namespace gla
