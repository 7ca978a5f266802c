// Which build this program is.
#ifndef GLA_MODEL_CHECKPOINT_BUILD_ID_H_
#define GLA_MODEL_CHECKPOINT_BUILD_ID_H_

#include <string>

namespace gla {

// The linker's digest of this program (GNU build id), in hexadecimal, as
// `readelf -n` prints it; empty when the linker left none.
std::string ProgramBuildId();

}  // namespace gla

#endif  // GLA_MODEL_CHECKPOINT_BUILD_ID_H_
