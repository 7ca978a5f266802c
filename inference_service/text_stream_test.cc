#include "inference_service/text_stream.h"

#include <algorithm>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "gtest/gtest.h"
#include "model/tokenizer/tokenizer.h"

namespace gla::inference {
namespace {

struct Streamed {
  std::vector<std::string> pieces;  // Flush() included
  std::string matched_stop;

  std::string text() const {
    std::string all;
    for (const std::string& piece : pieces) all += piece;
    return all;
  }
};

Streamed Stream(const std::vector<std::string>& tokens,
                const std::vector<std::string>& stop) {
  TextStream stream(stop);
  Streamed result;
  for (const std::string& token : tokens) {
    if (stream.stopped()) break;
    result.pieces.push_back(stream.Append(token));
  }
  result.pieces.push_back(stream.Flush());
  result.matched_stop = stream.matched_stop();
  return result;
}

// The contract, on the whole text at once.
Streamed NotStreamed(const std::string& bytes,
                     const std::vector<std::string>& stop) {
  for (size_t end = 1; end <= bytes.size(); ++end) {
    std::string match;
    for (const std::string& s : stop) {
      const bool here =
          end >= s.size() && bytes.substr(end - s.size(), s.size()) == s;
      if (here && s.size() > match.size()) match = s;
    }
    if (!match.empty()) return {{bytes.substr(0, end - match.size())}, match};
  }
  return {{bytes}, ""};
}

TEST(TextStream, PassesPlainTextOnAtOnce) {
  EXPECT_EQ(Stream({"In ", "the", " beginning"}, {}).pieces,
            (std::vector<std::string>{"In ", "the", " beginning", ""}));
}

TEST(TextStream, WaitsForWholeCharacters) {
  EXPECT_EQ(Stream({"a\xe2", "\x82",
                    "\xac"
                    "b"},
                   {})
                .pieces,
            (std::vector<std::string>{"a", "",
                                      "\xe2\x82\xac"
                                      "b",
                                      ""}));
}

TEST(TextStream, PassesMalformedBytesOnOnceNothingCanCompleteThem) {
  EXPECT_EQ(Stream({"\xe2\x82", "x"}, {}).pieces,
            (std::vector<std::string>{"", "\xe2\x82x", ""}));
  EXPECT_EQ(Stream({"\xff"}, {}).pieces,
            (std::vector<std::string>{"\xff", ""}));
}

TEST(TextStream, FlushesAnIncompleteCharacter) {
  EXPECT_EQ(Stream({"a\xf0\x9f"}, {}).pieces,
            (std::vector<std::string>{"a", "\xf0\x9f"}));
}

TEST(TextStream, HoldsBackWhatMayBecomeAStopString) {
  const Streamed got = Stream({"one\n", "\nx", "y\n", "\n", "\nz"}, {"\n\n\n"});
  EXPECT_EQ(got.pieces,
            (std::vector<std::string>{"one", "\n\nx", "y", "", "", ""}));
  EXPECT_EQ(got.matched_stop, "\n\n\n");
}

TEST(TextStream, EndsBeforeAStopStringInsideOneToken) {
  const Streamed got = Stream({"abc STOP def"}, {"STOP"});
  EXPECT_EQ(got.text(), "abc ");
  EXPECT_EQ(got.matched_stop, "STOP");
}

TEST(TextStream, TheMatchThatIsCompleteFirstWinsAndThenTheLongest) {
  EXPECT_EQ(Stream({"abcd"}, {"abcd", "bc"}).text(), "a");
  EXPECT_EQ(Stream({"abcd"}, {"d", "bcd"}).text(), "a");
}

TEST(TextStream, GivesHeldBackTextAtTheEnd) {
  EXPECT_EQ(Stream({"ends in ST"}, {"STOP"}).text(), "ends in ST");
}

TEST(TextStream, TakesNothingAfterTheMatch) {
  TextStream stream({"."});
  EXPECT_EQ(stream.Append("a.b"), "a");
  EXPECT_EQ(stream.Append("c"), "");
  EXPECT_EQ(stream.Flush(), "");
}

// Random bytes of a small alphabet that has whole, broken and stop-like parts.
std::string RandomBytes(std::mt19937* random, int parts) {
  static const std::vector<std::string> kParts = {"a",
                                                  "b",
                                                  "ab",
                                                  "aab",
                                                  "\xc3\xa9",
                                                  "\xe2\x82\xac",
                                                  "\xf0\x9f\x98\x80",
                                                  "\xe2",
                                                  "\x82",
                                                  "\xff",
                                                  "\n"};
  std::string bytes;
  for (int i = 0; i < parts; ++i) bytes += kParts[(*random)() % kParts.size()];
  return bytes;
}

std::vector<std::string> RandomStops(std::mt19937* random) {
  static const std::vector<std::string> kStops = {"aab",
                                                  "aabaab",
                                                  "ab\xc3\xa9",
                                                  "\xe2\x82\xac\xe2\x82\xac",
                                                  "\n\n",
                                                  "bbb",
                                                  "\xf0\x9f\x98\x80"
                                                  "a",
                                                  "baab"};
  std::vector<std::string> stops;
  for (int n = (*random)() % 4; n > 0; --n) {
    stops.push_back(kStops[(*random)() % kStops.size()]);
  }
  return stops;
}

TEST(TextStream, GivesTheSameTextHoweverTheBytesAreCut) {
  std::mt19937 random(1);
  int matches = 0;
  for (int round = 0; round < 20000; ++round) {
    const std::string bytes = RandomBytes(&random, 1 + random() % 30);
    const std::vector<std::string> stop = RandomStops(&random);
    std::vector<std::string> tokens;
    for (size_t at = 0; at < bytes.size();) {
      const size_t n = random() % 6;  // some tokens stand for no bytes
      tokens.push_back(bytes.substr(at, n));
      at += n;
    }
    const Streamed want = NotStreamed(bytes, stop);
    const Streamed got = Stream(tokens, stop);
    ASSERT_EQ(got.text(), want.text());
    ASSERT_EQ(got.matched_stop, want.matched_stop);
    matches += !got.matched_stop.empty();
  }
  EXPECT_GT(matches, 5000);  // both outcomes were tried
  EXPECT_LT(matches, 15000);
}

TEST(TextStream, PiecesOfValidTextAreValid) {
  std::mt19937 random(2);
  const std::vector<std::string> characters = {"a", "\xc3\xa9", "\xe2\x82\xac",
                                               "\xf0\x9f\x98\x80", "\n"};
  for (int round = 0; round < 2000; ++round) {
    std::string text;
    for (int i = random() % 20; i > 0; --i) {
      text += characters[random() % characters.size()];
    }
    TextStream stream(RandomStops(&random));
    for (size_t at = 0; at < text.size(); ++at) {
      const std::string piece = stream.Append(text.substr(at, 1));
      ASSERT_TRUE(ValidateUtf8(piece).ok()) << piece;
    }
    ASSERT_TRUE(ValidateUtf8(stream.Flush()).ok());
  }
}

}  // namespace
}  // namespace gla::inference
