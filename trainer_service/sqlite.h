// A thin layer over SQLite: owned handles, statuses, typed bind and read.
#ifndef GLA_TRAINER_SERVICE_SQLITE_H_
#define GLA_TRAINER_SERVICE_SQLITE_H_

#include <sqlite3.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace gla::trainer {

// A statement that is being bound and stepped. Errors of any call are kept and
// told by Step(); binding returns *this so that calls chain.
class SqliteStatement {
 public:
  SqliteStatement(sqlite3* database, std::string_view sql);
  SqliteStatement(SqliteStatement&&) = default;

  // Parameters in the order of the question marks.
  SqliteStatement& Int(int64_t value);
  SqliteStatement& Text(std::string_view value);
  SqliteStatement& Blob(std::string_view value);

  // True: a row is there to read. False: done.
  absl::StatusOr<bool> Step();
  // For statements without rows.
  absl::Status Run();

  int64_t IntColumn(int column) const;
  std::string BlobColumn(int column) const;  // text too

 private:
  struct Finalizer {
    void operator()(sqlite3_stmt* statement) const;
  };
  sqlite3* database_;
  std::unique_ptr<sqlite3_stmt, Finalizer> statement_;
  int bound_ = 0;
  int error_ = SQLITE_OK;
};

// One connection to a database file, created if needed: write-ahead log,
// synced at every commit, so what is committed survives kill -9 and power
// loss. Thread-compatible.
class SqliteDatabase {
 public:
  static absl::StatusOr<SqliteDatabase> Open(const std::string& file);

  SqliteStatement Prepare(std::string_view sql) const {
    return SqliteStatement(database_.get(), sql);
  }
  // Statements without rows and parameters, separated by semicolons.
  absl::Status Execute(const std::string& sql) const;

  // All or nothing: commits when `body` returns OK, else rolls back and
  // returns its error.
  absl::Status Transaction(absl::FunctionRef<absl::Status()> body) const;

 private:
  struct Closer {
    void operator()(sqlite3* database) const { sqlite3_close_v2(database); }
  };
  std::unique_ptr<sqlite3, Closer> database_;
};

}  // namespace gla::trainer

#endif  // GLA_TRAINER_SERVICE_SQLITE_H_
