"""The CUDA toolkit of this machine as a Bazel repository."""

_BUILD = """
package(default_visibility = ["//visibility:public"])

cc_library(
    name = "cuda",
    hdrs = glob(["include/*.h", "include/*.hpp", "include/crt/*"] +
                [d + "/nv/**" for d in ["include", "include/cccl"]]),
    includes = ["include", "include/cccl"],  # Given as -isystem.
    # The runtime is an archive; cuBLASLt and NCCL exist only as shared
    # libraries, found again at run time in the toolkit or on the loader's path.
    linkopts = [
        "-L{home}/lib64",
        "-Wl,-rpath,{home}/lib64",
        "-Wl,--push-state,--as-needed",
        "-lcublasLt",
        "-lnccl",
        "-Wl,--pop-state",
        "-l:libcudart_static.a",
        "-pthread",
        "-ldl",
        "-lrt",
    ],
)

exports_files(["nvcc"])
"""

# Without a toolkit the targets exist, so that //... can be analysed, but a
# build of them prints this line.
_ABSENT_BUILD = """
package(default_visibility = ["//visibility:public"])

cc_library(name = "cuda", hdrs = [":nvcc"])

genrule(
    name = "absent",
    outs = ["nvcc"],
    cmd = "echo 'No CUDA toolkit in {home}: set CUDA_HOME, or build without --config=cuda' >&2; exit 1",
)
"""

def _cuda_repository_impl(ctx):
    home = ctx.os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    if not ctx.path(home + "/bin/nvcc").exists:
        ctx.file("BUILD", _ABSENT_BUILD.format(home = home))
        return
    ctx.symlink(home + "/include", "include")

    # A wrapper, because nvcc finds its parts relative to its own path.
    ctx.file("nvcc", "#!/bin/sh\nexec %s/bin/nvcc \"$@\"\n" % home)
    ctx.file("BUILD", _BUILD.format(home = home))

cuda_repository = repository_rule(
    implementation = _cuda_repository_impl,
    environ = ["CUDA_HOME"],
    local = True,
)
