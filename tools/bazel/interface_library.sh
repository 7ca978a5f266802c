#!/bin/sh
# interface_library.sh LIBRARY PATTERN OUTPUT
#
# Writes a shared library to link against in place of LIBRARY. It has the same
# soname but only the symbols that match PATTERN, and no code: at run time the
# loader takes LIBRARY. The linker thus cannot bind us to anything else that
# LIBRARY happens to contain.
set -eu
soname=$(objdump -p "$1" | awk '$1 == "SONAME" { print $2 }')
nm --dynamic --defined-only --print-size "$1" | awk -v pattern="$2" '
  $4 ~ pattern {
    type = $3 ~ /[TtWwi]/ ? "@function" : "@object"
    printf ".globl %s\n.type %s, %s\n.size %s, 0x%s\n%s:\n", $4, $4, type, $4, $2, $4
  }' |
  cc -shared -nostdlib -Wl,-soname,"$soname" -x assembler - -o "$3"
