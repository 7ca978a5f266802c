#include "model/checkpoint/build_id.h"

#include <elf.h>
#include <link.h>

#include <cstring>

#include "absl/strings/escaping.h"

namespace gla {
namespace {

// The build id among the notes of a segment: each is a header, a name and a
// content, both padded to 4 bytes.
std::string BuildIdOfNotes(const char* notes, size_t size) {
  const auto padded = [](size_t n) { return (n + 3) / 4 * 4; };
  ElfW(Nhdr) note;
  while (size >= sizeof(note)) {
    std::memcpy(&note, notes, sizeof(note));
    const char* content = notes + sizeof(note) + padded(note.n_namesz);
    const size_t total = content - notes + padded(note.n_descsz);
    if (total > size) break;
    if (note.n_type == NT_GNU_BUILD_ID) {
      return absl::BytesToHexString(absl::string_view(content, note.n_descsz));
    }
    notes += total;
    size -= total;
  }
  return "";
}

// Called for the program first, then for its shared libraries: stops at once.
int VisitProgram(dl_phdr_info* program, size_t, void* result) {
  for (int i = 0; i < program->dlpi_phnum; ++i) {
    const auto& segment = program->dlpi_phdr[i];
    if (segment.p_type != PT_NOTE) continue;
    const std::string id = BuildIdOfNotes(
        reinterpret_cast<const char*>(program->dlpi_addr + segment.p_vaddr),
        segment.p_memsz);
    if (!id.empty()) *static_cast<std::string*>(result) = id;
  }
  return 1;
}

}  // namespace

std::string ProgramBuildId() {
  std::string id;
  dl_iterate_phdr(VisitProgram, &id);
  return id;
}

}  // namespace gla
