#include "model/checkpoint/model_directory.h"

#include <filesystem>
#include <map>
#include <set>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "kernels/base/status_macros.h"
#include "model/checkpoint/durable_file.h"
#include "model/checkpoint/manifest.h"
#include "model/checkpoint/safetensors.h"
#include "nlohmann/json.hpp"

namespace gla {
namespace {

using nlohmann::json;

constexpr char kConfig[] = "/config.json";
constexpr char kWeights[] = "/model.safetensors";
constexpr char kIndex[] = "/model.safetensors.index.json";

// The error with `place` before its message.
absl::Status In(const std::string& place, const absl::Status& status) {
  return absl::Status(status.code(),
                      absl::StrCat(place, ": ", status.message()));
}

// All tensors of a directory's weight files.
class WeightFiles {
 public:
  absl::Status Add(const std::string& path) {
    ASSIGN_OR_RETURN(auto reader, SafetensorsReader::Open(path));
    for (const auto& [name, tensor] : reader->tensors()) {
      if (!tensors_.insert({name, &tensor}).second) {
        return absl::InvalidArgumentError(
            absl::StrCat(path, ": ", name, ": in another file too"));
      }
    }
    readers_.push_back(std::move(reader));
    return absl::OkStatus();
  }

  const SafetensorsTensor* Find(const std::string& name) const {
    const auto found = tensors_.find(name);
    return found == tensors_.end() ? nullptr : found->second;
  }
  const std::map<std::string, const SafetensorsTensor*>& tensors() const {
    return tensors_;
  }

 private:
  std::vector<std::unique_ptr<SafetensorsReader>> readers_;
  std::map<std::string, const SafetensorsTensor*> tensors_;
};

// Names of the shards in an index file.
absl::StatusOr<std::set<std::string>> ShardNames(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  const json index =
      json::parse(text, /*cb=*/nullptr, /*allow_exceptions=*/false);
  if (!index.is_object() || !index.contains("weight_map") ||
      !index["weight_map"].is_object()) {
    return absl::DataLossError(absl::StrCat(path, ": no weight_map"));
  }
  std::set<std::string> names;
  for (const auto& [tensor, file] : index["weight_map"].items()) {
    const std::string name = file.is_string() ? file.get<std::string>() : "";
    if (name.empty() || name.find('/') != std::string::npos) {
      return absl::DataLossError(
          absl::StrCat(path, ": ", tensor, ": not a file name"));
    }
    names.insert(name);
  }
  return names;
}

absl::StatusOr<WeightFiles> OpenWeights(const std::string& directory) {
  WeightFiles files;
  const std::string index = directory + kIndex;
  std::error_code error;
  if (std::filesystem::exists(directory + kWeights, error) ||
      !std::filesystem::exists(index, error)) {
    RETURN_IF_ERROR(files.Add(directory + kWeights));
    return files;
  }
  ASSIGN_OR_RETURN(const std::set<std::string> names, ShardNames(index));
  for (const std::string& name : names) {
    RETURN_IF_ERROR(files.Add(absl::StrCat(directory, "/", name)));
  }
  return files;
}

// Where a parameter's values are.
struct Source {
  const SafetensorsTensor* tensor = nullptr;
  int64_t first = 0;  // element to start from
};

// Files of before 2025-02 have one mlp.gate_proj [2I, hidden] for gate_proj
// and up_proj: gate rows, then up rows.
Source FindJoinedMlp(const WeightFiles& files, const ParameterSpec& spec) {
  const bool is_up = absl::EndsWith(spec.name, "mlp.up_proj.weight");
  if (!is_up && !absl::EndsWith(spec.name, "mlp.gate_proj.weight")) return {};
  std::string prefix(absl::StripSuffix(
      spec.name, is_up ? "up_proj.weight" : "gate_proj.weight"));
  if (files.Find(prefix + "up_proj.weight") != nullptr) return {};
  const SafetensorsTensor* joined = files.Find(prefix + "gate_proj.weight");
  const std::vector<int64_t> want = {2 * spec.shape[0], spec.shape[1]};
  if (joined == nullptr || joined->shape != want) return {};
  return {joined, is_up ? spec.size : 0};
}

absl::StatusOr<Source> FindSource(const WeightFiles& files,
                                  const ParameterSpec& spec) {
  const Source joined = FindJoinedMlp(files, spec);
  if (joined.tensor != nullptr) return joined;
  const SafetensorsTensor* tensor = files.Find(spec.name);
  if (tensor == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(spec.name, ": want ", ShapeText(spec.shape), ", missing"));
  }
  if (tensor->shape != spec.shape) {
    return absl::InvalidArgumentError(
        absl::StrCat(spec.name, ": want ", ShapeText(spec.shape), ", got ",
                     ShapeText(tensor->shape)));
  }
  return Source{tensor, 0};
}

// Where each parameter is, in the table's order; every tensor of the files is
// used.
absl::StatusOr<std::vector<Source>> MatchTensors(const WeightFiles& files,
                                                 const ParameterTable& table) {
  std::vector<Source> sources;
  std::set<const SafetensorsTensor*> used;
  for (const ParameterSpec& spec : table.specs()) {
    ASSIGN_OR_RETURN(const Source source, FindSource(files, spec));
    sources.push_back(source);
    used.insert(source.tensor);
  }
  for (const auto& [name, tensor] : files.tensors()) {
    if (used.contains(tensor)) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        name, ": unknown to this config, got ", ShapeText(tensor->shape)));
  }
  return sources;
}

absl::Status ReadTensors(const std::vector<Source>& sources,
                         Parameters* parameters) {
  const auto& specs = parameters->table().specs();
  for (size_t i = 0; i < specs.size(); ++i) {
    const absl::Status read =
        ReadAsFloat(*sources[i].tensor,
                    absl::MakeSpan(parameters->data(specs[i]), specs[i].size),
                    sources[i].first);
    if (!read.ok()) return In(specs[i].name, read);
  }
  return absl::OkStatus();
}

absl::StatusOr<GlaConfig> ReadConfig(const std::string& directory) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(directory + kConfig));
  auto config = GlaConfig::FromJson(text);
  if (!config.ok()) return In(directory + kConfig, config.status());
  return config;
}

}  // namespace

absl::StatusOr<LoadedModel> LoadModelDirectory(const std::string& directory) {
  std::error_code error;  // of a path that cannot be: also no directory
  if (!std::filesystem::is_directory(directory, error)) {
    return absl::NotFoundError(absl::StrCat(directory, ": no such directory"));
  }
  const auto manifest = VerifyCheckpoint(directory);
  if (!manifest.ok() && !absl::IsNotFound(manifest.status())) {
    return manifest.status();
  }
  ASSIGN_OR_RETURN(const GlaConfig config, ReadConfig(directory));
  ASSIGN_OR_RETURN(const WeightFiles files, OpenWeights(directory));
  LoadedModel model;
  model.config = config;
  model.table = std::make_unique<ParameterTable>(config);
  // Before memory is taken: what the files hold bounds it.
  const auto sources = MatchTensors(files, *model.table);
  if (!sources.ok()) return In(directory, sources.status());
  model.parameters = std::make_unique<Parameters>(model.table.get());
  RETURN_IF_ERROR(ReadTensors(*sources, model.parameters.get()));
  return model;
}

absl::Status SaveModelDirectory(const std::string& directory,
                                const GlaConfig& config,
                                const Parameters& parameters) {
  SafetensorsWriter weights;
  for (const ParameterSpec& spec : parameters.table().specs()) {
    weights.AddFloat(spec.name, spec.shape, parameters.data(spec));
  }
  RETURN_IF_ERROR(WriteDurableFile(directory + kConfig, config.ToJson()));
  RETURN_IF_ERROR(weights.Write(directory + kWeights));
  return SyncDirectory(directory);
}

}  // namespace gla
