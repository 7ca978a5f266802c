#include "model/checkpoint/model_directory.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gtest/gtest.h"
#include "model/checkpoint/durable_file.h"
#include "model/checkpoint/safetensors.h"

namespace gla {
namespace {

namespace fs = std::filesystem;

constexpr char kTiny[] = "tests/goldens/tiny";
constexpr char kOld[] = "tests/goldens/tied_old_layout";

std::string NewDirectory(const std::string& name) {
  const std::string path = testing::TempDir() + "/" + name;
  fs::remove_all(path);
  fs::create_directories(path);
  return path;
}

void ExpectSameBits(const Parameters& a, const Parameters& b) {
  ASSERT_EQ(a.flat().size(), b.flat().size());
  EXPECT_EQ(std::memcmp(a.flat().data(), b.flat().data(),
                        a.flat().size() * sizeof(float)),
            0);
}

// The tensors of a model directory, to be changed and written again.
class EditedModel {
 public:
  explicit EditedModel(const std::string& directory)
      : reader_(
            SafetensorsReader::Open(directory + "/model.safetensors").value()),
        config_(ReadFile(directory + "/config.json").value()) {
    for (const auto& [name, tensor] : reader_->tensors()) {
      values[name].resize(tensor.num_elements());
      EXPECT_TRUE(ReadAsFloat(tensor, absl::MakeSpan(values[name])).ok());
      shapes[name] = tensor.shape;
    }
  }

  void Remove(const std::string& name) {
    shapes.erase(name);
    values.erase(name);
  }
  void Add(const std::string& name, std::vector<int64_t> shape) {
    int64_t size = 1;
    for (int64_t dim : shape) size *= dim;
    shapes[name] = std::move(shape);
    values[name].assign(size, 0.5f);
  }

  // Tensors that `wanted` says go into this file.
  void WriteTensors(const std::string& path,
                    const std::function<bool(const std::string&)>& wanted) {
    SafetensorsWriter writer;
    for (const auto& [name, shape] : shapes) {
      if (wanted(name)) writer.AddFloat(name, shape, values[name].data());
    }
    EXPECT_TRUE(writer.Write(path).ok());
  }
  std::string Write(const std::string& directory_name) {
    const std::string directory = NewDirectory(directory_name);
    WriteTensors(directory + "/model.safetensors",
                 [](const std::string&) { return true; });
    EXPECT_TRUE(WriteDurableFile(directory + "/config.json", config_).ok());
    return directory;
  }

  std::map<std::string, std::vector<int64_t>> shapes;
  std::map<std::string, std::vector<float>> values;

 private:
  std::unique_ptr<SafetensorsReader> reader_;
  std::string config_;
};

void ExpectRefused(const std::string& directory, absl::StatusCode code,
                   const std::vector<std::string>& parts) {
  const absl::Status status = LoadModelDirectory(directory).status();
  EXPECT_EQ(status.code(), code) << status;
  for (const std::string& part : parts) {
    EXPECT_NE(std::string(status.message()).find(part), std::string::npos)
        << status << "\nwant: " << part;
  }
}

TEST(ModelDirectory, LoadsEveryTensorOfAGolden) {
  const auto model = LoadModelDirectory(kTiny);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->config.vocab_size, 512);
  EditedModel files(kTiny);
  EXPECT_EQ(files.shapes.size(), model->table->specs().size());
  for (const ParameterSpec& spec : model->table->specs()) {
    EXPECT_EQ(files.shapes[spec.name], spec.shape) << spec.name;
    EXPECT_EQ(std::memcmp(model->parameters->data(spec),
                          files.values[spec.name].data(), spec.size * 4),
              0)
        << spec.name;
  }
}

TEST(ModelDirectory, SplitsTheOldMlpLayout) {
  const auto model = LoadModelDirectory(kOld);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->table->Find("lm_head.weight"), nullptr);
  EditedModel files(kOld);
  const std::vector<float>& joined =
      files.values["model.layers.1.mlp.gate_proj.weight"];
  const auto gate =
      model->parameters->matrix("model.layers.1.mlp.gate_proj.weight");
  const auto up =
      model->parameters->matrix("model.layers.1.mlp.up_proj.weight");
  ASSERT_EQ(static_cast<int64_t>(joined.size()), 2 * gate.size());
  EXPECT_TRUE(
      std::equal(joined.begin(), joined.begin() + gate.size(), gate.data()));
  EXPECT_TRUE(
      std::equal(joined.begin() + gate.size(), joined.end(), up.data()));
}

TEST(ModelDirectory, SavesTheGoldenByteForByte) {
  const auto model = LoadModelDirectory(kTiny);
  ASSERT_TRUE(model.ok()) << model.status();
  const std::string saved = NewDirectory("saved");
  ASSERT_TRUE(
      SaveModelDirectory(saved, model->config, *model->parameters).ok());
  EXPECT_TRUE(*ReadFile(saved + "/model.safetensors") ==
              *ReadFile(absl::StrCat(kTiny, "/model.safetensors")));
  const auto again = LoadModelDirectory(saved);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->config, model->config);
  ExpectSameBits(*again->parameters, *model->parameters);
}

TEST(ModelDirectory, SavesTheOldLayoutAsTheNew) {
  const auto model = LoadModelDirectory(kOld);
  ASSERT_TRUE(model.ok()) << model.status();
  const std::string saved = NewDirectory("split");
  ASSERT_TRUE(
      SaveModelDirectory(saved, model->config, *model->parameters).ok());
  const auto again = LoadModelDirectory(saved);
  ASSERT_TRUE(again.ok()) << again.status();
  ExpectSameBits(*again->parameters, *model->parameters);
}

TEST(ModelDirectory, DoesNotOverwrite) {
  const auto model = LoadModelDirectory(kTiny);
  const std::string saved = NewDirectory("once");
  ASSERT_TRUE(
      SaveModelDirectory(saved, model->config, *model->parameters).ok());
  EXPECT_EQ(SaveModelDirectory(saved, model->config, *model->parameters).code(),
            absl::StatusCode::kAlreadyExists);
}

TEST(ModelDirectory, ReadsShards) {
  EditedModel model(kTiny);
  const std::string directory = model.Write("shards");
  fs::remove(directory + "/model.safetensors");
  const auto in_first = [](const std::string& name) {
    return name < "model.layers.1";
  };
  model.WriteTensors(directory + "/a.safetensors", in_first);
  model.WriteTensors(
      directory + "/b.safetensors",
      std::not_fn(std::function<bool(const std::string&)>(in_first)));
  const std::string index = directory + "/model.safetensors.index.json";
  ASSERT_TRUE(WriteDurableFile(index, R"({"metadata": {}, "weight_map": {
      "lm_head.weight": "a.safetensors",
      "model.norm.weight": "b.safetensors"}})")
                  .ok());
  const auto loaded = LoadModelDirectory(directory);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  ExpectSameBits(*loaded->parameters, *LoadModelDirectory(kTiny)->parameters);

  fs::remove(directory + "/b.safetensors");
  ExpectRefused(directory, absl::StatusCode::kNotFound, {"b.safetensors"});
  fs::copy(directory + "/a.safetensors", directory + "/b.safetensors");
  ExpectRefused(directory, absl::StatusCode::kInvalidArgument,
                {"b.safetensors", "lm_head.weight"});
}

TEST(ModelDirectory, RefusesABadIndex) {
  const std::string directory = EditedModel(kTiny).Write("index");
  fs::remove(directory + "/model.safetensors");
  const std::string index = directory + "/model.safetensors.index.json";
  for (const char* text :
       {"", "{}", R"({"weight_map": 3})", R"({"weight_map": {"x": 3}})",
        R"({"weight_map": {"x": "../tiny/model.safetensors"}})"}) {
    fs::remove(index);
    ASSERT_TRUE(WriteDurableFile(index, text).ok());
    ExpectRefused(directory, absl::StatusCode::kDataLoss, {index});
  }
}

TEST(ModelDirectory, NamesAMissingTensor) {
  EditedModel model(kTiny);
  model.Remove("model.layers.1.attn.gk_proj.1.bias");
  ExpectRefused(model.Write("missing"), absl::StatusCode::kInvalidArgument,
                {"model.layers.1.attn.gk_proj.1.bias", "[64]", "missing"});
}

TEST(ModelDirectory, NamesAnUnknownTensor) {
  EditedModel model(kTiny);
  model.Add("model.layers.0.attn.q_conv1d.weight", {64, 1, 4});
  ExpectRefused(model.Write("unknown"), absl::StatusCode::kInvalidArgument,
                {"model.layers.0.attn.q_conv1d.weight", "[64, 1, 4]"});
  model = EditedModel(kTiny);
  model.Add("model.layers.2.attn_norm.weight", {128});
  ExpectRefused(model.Write("unknown"), absl::StatusCode::kInvalidArgument,
                {"model.layers.2.attn_norm.weight"});
}

// Every tensor in turn, with a row more, and transposed into rank 3.
TEST(ModelDirectory, NamesAWrongShape) {
  const EditedModel good(kTiny);
  for (const auto& [name, shape] : good.shapes) {
    std::vector<int64_t> longer = shape;
    longer[0] += 1;
    std::vector<int64_t> deeper = shape;
    deeper.push_back(1);
    for (const auto& wrong : {longer, deeper}) {
      EditedModel model(kTiny);
      model.Add(name, wrong);
      ExpectRefused(model.Write("shape"), absl::StatusCode::kInvalidArgument,
                    {name, absl::StrCat("want ", ShapeText(shape)),
                     absl::StrCat("got ", ShapeText(wrong))});
    }
  }
}

TEST(ModelDirectory, RefusesAJoinedMlpOfAnotherSize) {
  EditedModel model(kOld);
  model.Add("model.layers.0.mlp.gate_proj.weight", {513, 96});
  ExpectRefused(
      model.Write("joined"), absl::StatusCode::kInvalidArgument,
      {"model.layers.0.mlp.gate_proj.weight", "[256, 96]", "[513, 96]"});
}

TEST(ModelDirectory, RefusesATiedModelWithAHead) {
  EditedModel model(kOld);
  model.Add("lm_head.weight", {384, 96});
  ExpectRefused(model.Write("head"), absl::StatusCode::kInvalidArgument,
                {"lm_head.weight"});
}

TEST(ModelDirectory, RefusesATruncatedFile) {
  const std::string directory = EditedModel(kTiny).Write("truncated");
  const std::string path = directory + "/model.safetensors";
  fs::resize_file(path, fs::file_size(path) - 1);
  ExpectRefused(directory, absl::StatusCode::kDataLoss,
                {path, "model.norm.weight"});
  fs::resize_file(path, 1000);
  ExpectRefused(directory, absl::StatusCode::kDataLoss, {path});
  fs::resize_file(path, 0);
  ExpectRefused(directory, absl::StatusCode::kDataLoss, {path});
}

TEST(ModelDirectory, NamesWhatIsNotThere) {
  const std::string directory = NewDirectory("absent");
  ExpectRefused(directory, absl::StatusCode::kNotFound, {"config.json"});
  fs::copy(absl::StrCat(kTiny, "/config.json"), directory);
  ExpectRefused(directory, absl::StatusCode::kNotFound, {"model.safetensors"});
  fs::remove_all(directory);
  ExpectRefused(directory, absl::StatusCode::kNotFound, {directory});
  ExpectRefused(std::string(5000, 'x'), absl::StatusCode::kNotFound, {"xxx"});
  ExpectRefused("", absl::StatusCode::kNotFound, {"no such directory"});
}

TEST(ModelDirectory, NamesTheConfigThatIsRefused) {
  const std::string directory = EditedModel(kTiny).Write("config");
  const std::string path = directory + "/config.json";
  const std::string good = *ReadFile(path);
  fs::remove(path);
  ASSERT_TRUE(WriteDurableFile(
                  path, absl::StrReplaceAll(good, {{"\"clamp_min\": null",
                                                    "\"clamp_min\": -1.5"}}))
                  .ok());
  ExpectRefused(directory, absl::StatusCode::kInvalidArgument,
                {path, "clamp_min", "-1.5"});
}

// The size of a model comes from its config, memory only after its files agree.
TEST(ModelDirectory, TakesNoMemoryForAConfigThatLies) {
  const std::string directory = EditedModel(kTiny).Write("lies");
  const std::string path = directory + "/config.json";
  const std::string good = *ReadFile(path);
  fs::remove(path);
  ASSERT_TRUE(WriteDurableFile(
                  path, absl::StrReplaceAll(good, {{"\"hidden_size\": 128",
                                                    "\"hidden_size\": 32768"}}))
                  .ok());
  ExpectRefused(directory, absl::StatusCode::kInvalidArgument,
                {"model.embeddings.weight", "[512, 32768]", "[512, 128]"});
}

}  // namespace
}  // namespace gla
