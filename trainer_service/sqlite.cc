#include "trainer_service/sqlite.h"

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace gla::trainer {
namespace {

absl::Status Error(sqlite3* database, int code) {
  const std::string message =
      absl::StrCat("database: ", sqlite3_errmsg(database));
  switch (code & 0xff) {
    case SQLITE_FULL:
      return absl::ResourceExhaustedError(message);
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return absl::DataLossError(message);
    case SQLITE_CONSTRAINT:
      return absl::AlreadyExistsError(message);
    default:
      return absl::InternalError(message);
  }
}

}  // namespace

void SqliteStatement::Finalizer::operator()(sqlite3_stmt* statement) const {
  sqlite3_finalize(statement);
}

SqliteStatement::SqliteStatement(sqlite3* database, std::string_view sql)
    : database_(database) {
  sqlite3_stmt* statement = nullptr;
  error_ = sqlite3_prepare_v2(database, sql.data(),
                              static_cast<int>(sql.size()), &statement,
                              /*pzTail=*/nullptr);
  statement_.reset(statement);
}

SqliteStatement& SqliteStatement::Int(int64_t value) {
  if (error_ == SQLITE_OK) {
    error_ = sqlite3_bind_int64(statement_.get(), ++bound_, value);
  }
  return *this;
}

SqliteStatement& SqliteStatement::Text(std::string_view value) {
  if (error_ == SQLITE_OK) {
    error_ = sqlite3_bind_text64(statement_.get(), ++bound_, value.data(),
                                 value.size(), SQLITE_TRANSIENT, SQLITE_UTF8);
  }
  return *this;
}

SqliteStatement& SqliteStatement::Blob(std::string_view value) {
  if (error_ == SQLITE_OK) {
    error_ = sqlite3_bind_blob64(statement_.get(), ++bound_, value.data(),
                                 value.size(), SQLITE_TRANSIENT);
  }
  return *this;
}

absl::StatusOr<bool> SqliteStatement::Step() {
  if (error_ != SQLITE_OK) return Error(database_, error_);
  const int code = sqlite3_step(statement_.get());
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) return false;
  return Error(database_, code);
}

absl::Status SqliteStatement::Run() { return Step().status(); }

int64_t SqliteStatement::IntColumn(int column) const {
  return sqlite3_column_int64(statement_.get(), column);
}

std::string SqliteStatement::BlobColumn(int column) const {
  const void* data = sqlite3_column_blob(statement_.get(), column);
  const int size = sqlite3_column_bytes(statement_.get(), column);
  return std::string(static_cast<const char*>(data), size);
}

absl::StatusOr<SqliteDatabase> SqliteDatabase::Open(const std::string& file) {
  sqlite3* handle = nullptr;
  const int code = sqlite3_open_v2(file.c_str(), &handle,
                                   SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE,
                                   /*zVfs=*/nullptr);
  SqliteDatabase database;
  database.database_.reset(handle);
  if (code != SQLITE_OK) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot open ", file, ": ", sqlite3_errmsg(handle)));
  }
  sqlite3_busy_timeout(handle, /*ms=*/5000);
  RETURN_IF_ERROR(database.Execute(
      "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"));
  return database;
}

absl::Status SqliteDatabase::Execute(const std::string& sql) const {
  const int code = sqlite3_exec(database_.get(), sql.c_str(),
                                /*callback=*/nullptr, nullptr, nullptr);
  return code == SQLITE_OK ? absl::OkStatus() : Error(database_.get(), code);
}

absl::Status SqliteDatabase::Transaction(
    absl::FunctionRef<absl::Status()> body) const {
  RETURN_IF_ERROR(Execute("BEGIN IMMEDIATE"));
  absl::Status status = body();
  if (status.ok()) status = Execute("COMMIT");
  if (!status.ok()) Execute("ROLLBACK").IgnoreError();
  return status;
}

}  // namespace gla::trainer
