// Messages for people and for programs.
#ifndef GLA_TOOLS_CLI_PRINT_H_
#define GLA_TOOLS_CLI_PRINT_H_

#include <string>

#include "google/protobuf/message.h"

namespace gla::cli {

// One line of JSON on stdout, field names as in the .proto file.
void PrintJson(const google::protobuf::Message& message);

// "4m12s", to the second.
std::string FormatSeconds(double seconds);

// "12.3k", "4.1M".
std::string FormatCount(double count);

}  // namespace gla::cli

#endif  // GLA_TOOLS_CLI_PRINT_H_
