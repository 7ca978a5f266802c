#include "model/checkpoint/checkpoint.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "glog/logging.h"
#include "kernels/base/status_macros.h"
#include "model/checkpoint/build_id.h"
#include "model/checkpoint/durable_file.h"
#include "model/checkpoint/model_directory.h"
#include "model/checkpoint/safetensors.h"
#include "model/checkpoint/sha256.h"

namespace gla {
namespace {

namespace fs = std::filesystem;

constexpr char kTrainState[] = "train_state.pb";
constexpr char kWeights[] = "model.safetensors";  // as SaveModelDirectory
constexpr char kOptimizer[] = "optimizer.safetensors";
constexpr char kCommittedPrefix[] = "step-";
constexpr char kStagingPrefix[] = ".staging-";

std::string CommittedName(int64_t step) {
  return absl::StrFormat("%s%012d", kCommittedPrefix, step);
}

// The step in a committed directory's name, or -1.
int64_t StepOfName(const std::string& name) {
  const size_t prefix = sizeof(kCommittedPrefix) - 1;
  int64_t step = -1;
  if (!absl::StartsWith(name, kCommittedPrefix) || name.size() != prefix + 12 ||
      !absl::SimpleAtoi(name.substr(prefix), &step)) {
    return -1;
  }
  return step;
}

// The attempt in a staging directory's name, or -1 for another name.
int32_t AttemptOfStaging(const std::string& name) {
  const size_t mark = name.rfind("-a");
  int32_t attempt = -1;
  if (!absl::StartsWith(name, kStagingPrefix) || mark == std::string::npos ||
      !absl::SimpleAtoi(name.substr(mark + 2), &attempt)) {
    return -1;
  }
  return attempt;
}

absl::Status FromErrorCode(const char* action, const std::string& path,
                           const std::error_code& error) {
  if (!error) return absl::OkStatus();
  errno = error.value();
  return ErrnoStatus(action, path);
}

absl::Status CheckSpace(const std::string& root, const Parameters& weights) {
  struct statvfs disk = {};
  if (statvfs(root.c_str(), &disk) != 0) return ErrnoStatus("ask", root);
  const int64_t free_bytes =
      static_cast<int64_t>(disk.f_bavail) * static_cast<int64_t>(disk.f_frsize);
  constexpr int64_t kCopies = 3;                        // weights, m, v
  constexpr int64_t kReserveBytes = int64_t{64} << 20;  // tokenizer, headers
  const int64_t want =
      kCopies * weights.table().flat_size() * sizeof(float) + kReserveBytes;
  if (free_bytes >= want) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat(root, ": a checkpoint needs ", want, " bytes, the disk has ",
                   free_bytes));
}

absl::Status WriteOptimizer(const std::string& path,
                            const CheckpointContents& contents) {
  SafetensorsWriter writer;
  for (const ParameterSpec& spec : contents.weights->table().specs()) {
    writer.AddFloat("m." + spec.name, spec.shape, contents.adam_m->data(spec));
    writer.AddFloat("v." + spec.name, spec.shape, contents.adam_v->data(spec));
  }
  return writer.Write(path);
}

absl::StatusOr<gla::v1::Manifest> DescribeFiles(
    const std::string& directory, const CheckpointContents& contents) {
  gla::v1::Manifest manifest;
  manifest.set_job(contents.job);
  manifest.set_attempt(contents.attempt);
  manifest.set_step(contents.train_state.step());
  manifest.set_parent(contents.parent);
  manifest.set_build_id(ProgramBuildId());
  if (contents.evaluation_loss.has_value()) {
    manifest.set_evaluation_loss(*contents.evaluation_loss);
  }
  manifest.mutable_create_time()->set_seconds(absl::ToUnixSeconds(absl::Now()));
  ASSIGN_OR_RETURN(const std::vector<std::string> names,
                   ListDirectory(directory));
  for (const std::string& name : names) {
    const std::string path = absl::StrCat(directory, "/", name);
    gla::v1::FileEntry* file = manifest.add_files();
    file->set_path(name);
    std::error_code error;
    file->set_size_bytes(fs::file_size(path, error));
    RETURN_IF_ERROR(FromErrorCode("ask the size", path, error));
    ASSIGN_OR_RETURN(*file->mutable_sha256(), Sha256OfFile(path));
  }
  return manifest;
}

// The tokenizer writes its files itself; makes them durable like ours.
absl::Status SyncFiles(const std::string& directory) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names,
                   ListDirectory(directory));
  for (const std::string& name : names) {
    const std::string path = absl::StrCat(directory, "/", name);
    ASSIGN_OR_RETURN(const InputFile file, InputFile::Open(path));
    if (fsync(file.fd()) != 0) return ErrnoStatus("sync", path);
  }
  return absl::OkStatus();
}

absl::Status Stage(const std::string& staging,
                   const CheckpointContents& contents) {
  RETURN_IF_ERROR(
      SaveModelDirectory(staging, *contents.config, *contents.weights));
  RETURN_IF_ERROR(
      WriteOptimizer(absl::StrCat(staging, "/", kOptimizer), contents));
  RETURN_IF_ERROR(contents.tokenizer->Save(staging));
  RETURN_IF_ERROR(WriteDurableFile(absl::StrCat(staging, "/", kTrainState),
                                   contents.train_state.SerializeAsString()));
  RETURN_IF_ERROR(SyncFiles(staging));
  ASSIGN_OR_RETURN(const gla::v1::Manifest manifest,
                   DescribeFiles(staging, contents));
  RETURN_IF_ERROR(WriteManifest(staging, manifest));
  return SyncDirectory(staging);
}

// Fills `values` with the tensors of a file that are called PREFIX + name.
absl::Status LoadTensors(const SafetensorsReader& reader,
                         const std::string& prefix, Parameters* values) {
  for (const ParameterSpec& spec : values->table().specs()) {
    const std::string name = prefix + spec.name;
    ASSIGN_OR_RETURN(const auto* tensor, reader.Find(name));
    if (tensor->shape != spec.shape) {
      return absl::InvalidArgumentError(absl::StrCat(
          reader.path(), ": ", name, ": want ", ShapeText(spec.shape), ", got ",
          ShapeText(tensor->shape)));
    }
    RETURN_IF_ERROR(
        ReadAsFloat(*tensor, absl::MakeSpan(values->data(spec), spec.size)));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> CommitCheckpoint(
    const std::string& root, const CheckpointContents& contents) {
  RETURN_IF_ERROR(CreateDurableDirectories(root));
  const int64_t step = contents.train_state.step();
  const std::string committed = absl::StrCat(root, "/", CommittedName(step));
  std::error_code error;
  if (fs::exists(committed, error)) {
    if (VerifyCheckpoint(committed).ok()) return committed;
    RETURN_IF_ERROR(QuarantineCheckpoint(committed).status());
  }
  RETURN_IF_ERROR(CheckSpace(root, *contents.weights));
  const std::string staging = absl::StrFormat(
      "%s/%s%012d-a%d", root, kStagingPrefix, step, contents.attempt);
  fs::remove_all(staging, error);  // of a save that failed before
  fs::create_directory(staging, error);
  RETURN_IF_ERROR(FromErrorCode("create", staging, error));
  const absl::Status staged = Stage(staging, contents);
  if (!staged.ok()) {
    fs::remove_all(staging, error);
    return staged;
  }
  if (renameat2(AT_FDCWD, staging.c_str(), AT_FDCWD, committed.c_str(),
                RENAME_NOREPLACE) != 0) {
    return ErrnoStatus("commit to", committed);
  }
  RETURN_IF_ERROR(SyncDirectory(root));
  return committed;
}

absl::StatusOr<std::vector<std::string>> ListCheckpoints(
    const std::string& root) {
  const auto names = ListDirectory(root);
  std::vector<std::string> found;
  if (absl::IsNotFound(names.status())) return found;
  if (!names.ok()) return names.status();
  for (const std::string& name : *names) {  // sorted: steps are zero-padded
    if (StepOfName(name) >= 0) found.push_back(absl::StrCat(root, "/", name));
  }
  return found;
}

absl::StatusOr<std::string> QuarantineCheckpoint(const std::string& directory) {
  const fs::path from(directory);
  const fs::path quarantine = from.parent_path() / "quarantine";
  std::error_code error;
  fs::create_directories(quarantine, error);
  RETURN_IF_ERROR(FromErrorCode("create", quarantine, error));
  fs::path to = quarantine / from.filename();
  for (int n = 2; fs::exists(to, error); ++n) {
    to = quarantine / absl::StrCat(from.filename().string(), ".", n);
  }
  fs::rename(from, to, error);
  RETURN_IF_ERROR(FromErrorCode("move away", directory, error));
  RETURN_IF_ERROR(SyncDirectory(quarantine));
  RETURN_IF_ERROR(SyncDirectory(from.parent_path()));
  return to.string();
}

absl::Status CollectCheckpoints(const std::string& root, int keep_latest,
                                int32_t attempt) {
  CHECK_GE(keep_latest, 2);
  ASSIGN_OR_RETURN(const std::vector<std::string> all, ListCheckpoints(root));
  std::vector<fs::path> doomed;
  for (int64_t i = 0; i + keep_latest < static_cast<int64_t>(all.size()); ++i) {
    doomed.push_back(all[i]);
  }
  const auto names = ListDirectory(root);
  if (absl::IsNotFound(names.status())) return absl::OkStatus();
  if (!names.ok()) return names.status();
  for (const std::string& name : *names) {
    const int32_t staged = AttemptOfStaging(name);
    if (staged >= 0 && staged < attempt) doomed.push_back(root + "/" + name);
  }
  std::error_code error;
  for (const fs::path& path : doomed) {
    fs::path trash = path;
    if (absl::StartsWith(path.filename().string(), kCommittedPrefix)) {
      // Out of the list at once: a crash must not leave half a checkpoint.
      trash = path.parent_path() /
              absl::StrCat(kStagingPrefix, path.filename().string(), "-a0");
      fs::remove_all(trash, error);  // of a collection that did not end
      RETURN_IF_ERROR(FromErrorCode("delete", trash, error));
      fs::rename(path, trash, error);
      RETURN_IF_ERROR(FromErrorCode("move away", path, error));
      RETURN_IF_ERROR(SyncDirectory(root));
    }
    fs::remove_all(trash, error);
    RETURN_IF_ERROR(FromErrorCode("delete", trash, error));
  }
  return absl::OkStatus();
}

absl::StatusOr<gla::v1::TrainState> LoadTrainingState(
    const std::string& directory, Parameters* weights, Parameters* adam_m,
    Parameters* adam_v) {
  ASSIGN_OR_RETURN(const auto model, SafetensorsReader::Open(absl::StrCat(
                                         directory, "/", kWeights)));
  RETURN_IF_ERROR(LoadTensors(*model, "", weights));
  ASSIGN_OR_RETURN(const auto optimizer, SafetensorsReader::Open(absl::StrCat(
                                             directory, "/", kOptimizer)));
  RETURN_IF_ERROR(LoadTensors(*optimizer, "m.", adam_m));
  RETURN_IF_ERROR(LoadTensors(*optimizer, "v.", adam_v));
  const std::string path = absl::StrCat(directory, "/", kTrainState);
  ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path));
  gla::v1::TrainState state;
  if (!state.ParseFromString(bytes)) {
    return absl::DataLossError(absl::StrCat(path, ": cannot be parsed"));
  }
  return state;
}

}  // namespace gla
