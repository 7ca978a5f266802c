"""CUDA in the build: .cu files, the switch, and tests that need a GPU.

`--config=cuda` turns CUDA on. Only targets that select on it are then rebuilt;
everything else is shared between the two builds. An op looks like this:

    cuda_library(
        name = "rms_norm_cuda",
        srcs = ["rms_norm_cuda.cu"],
        deps = [":rms_norm_args"],
    )

    cc_library(
        name = "rms_norm",
        srcs = ["rms_norm_cpu.cc", "rms_norm.cc"],
        hdrs = ["rms_norm.h"],
        local_defines = if_cuda(["GLA_CUDA=1"]),
        deps = [":rms_norm_args"] + if_cuda([":rms_norm_cuda"]),
    )
"""

load("//tools/bazel:compile.bzl", "CC_ATTRS", "CC_FRAGMENTS", "CC_TOOLCHAINS", "library_providers")

# wgmma and TMA need the 'a' variant: code for exactly Hopper.
_NVCC_FLAGS = [
    "-gencode=arch=compute_90a,code=sm_90a",
    "-std=c++20",
    "-O3",
    "-lineinfo",
    "--Werror=all-warnings",
    "-Xcompiler=-march=x86-64-v3,-fPIC,-Wall,-Wextra,-Werror",
    # Else in /tmp, under names made of the process ID: sandboxes share the one
    # and repeat the other, so actions side by side take each other's away.
    "--objdir-as-tempdir",
]

def if_cuda(then, otherwise = []):
    """`then` in a --config=cuda build, else `otherwise`."""
    return select({
        "//tools/bazel:cuda_enabled": then,
        "//conditions:default": otherwise,
    })

def _requires_cuda():
    """Makes `bazel build //...` skip a target while CUDA is off."""
    return if_cuda([], ["@platforms//:incompatible"])

def _cuda_library_impl(ctx):
    own = CcInfo(compilation_context = cc_common.create_compilation_context(
        headers = depset(ctx.files.hdrs),
        quote_includes = depset([".", ctx.bin_dir.path]),
    ))
    context = cc_common.merge_cc_infos(
        cc_infos = [own] + [dep[CcInfo] for dep in ctx.attr.deps],
    ).compilation_context
    includes = ctx.actions.args()
    includes.add_all(context.quote_includes, before_each = "-I")
    includes.add_all(context.includes, before_each = "-I")
    includes.add_all(context.system_includes, before_each = "-isystem")
    includes.add_all(depset(transitive = [context.defines, context.local_defines]), format_each = "-D%s")

    objects = []
    for src in ctx.files.srcs:
        object = ctx.actions.declare_file("_objs/%s/%s.o" % (ctx.label.name, src.basename))
        ctx.actions.run(
            executable = ctx.executable._nvcc,
            arguments = _NVCC_FLAGS + ctx.attr.copts + [
                includes,
                "-c",
                src.path,
                "-o",
                object.path,
            ],
            inputs = depset([src], transitive = [context.headers]),
            outputs = [object],
            use_default_shell_env = True,  # nvcc looks for the host compiler on PATH.
            mnemonic = "Nvcc",
            progress_message = "Compiling %s for the GPU" % src.short_path,
        )
        objects.append(object)
    return library_providers(ctx, context, cc_common.create_compilation_outputs(
        objects = depset(objects),
        pic_objects = depset(objects),
    ))

_cuda_library = rule(
    implementation = _cuda_library_impl,
    attrs = dict(
        CC_ATTRS,
        srcs = attr.label_list(allow_files = [".cu"]),
        hdrs = attr.label_list(allow_files = [".h", ".cuh"]),
        copts = attr.string_list(),
        deps = attr.label_list(providers = [CcInfo]),
        _nvcc = attr.label(
            default = "@cuda//:nvcc",
            allow_single_file = True,
            executable = True,
            cfg = "host",
        ),
    ),
    fragments = CC_FRAGMENTS,
    toolchains = CC_TOOLCHAINS,
    provides = [CcInfo],
)

def cuda_library(name, srcs = [], hdrs = [], deps = [], copts = [], tags = [], **kwargs):
    """A library of .cu files, one nvcc action each, linked like a cc_library.

    Args:
      name: the target.
      srcs: .cu files.
      hdrs: headers, .cuh ones included.
      deps: cc_library and cuda_library targets; @cuda//:cuda is implied.
      copts: further nvcc flags.
      tags: tags besides "cuda".
      **kwargs: visibility, testonly.
    """
    _cuda_library(
        name = name,
        srcs = srcs,
        hdrs = hdrs,
        copts = copts,
        tags = tags + ["cuda"],
        target_compatible_with = _requires_cuda(),
        deps = deps + ["@cuda//:cuda"],
        **kwargs
    )

def gpu_test(name, tags = [], local_defines = [], **kwargs):
    """A cc_test that needs a GPU: tagged "gpu", only in --config=cuda builds.

    The test itself skips (GTEST_SKIP) where there is no GPU."""
    native.cc_test(
        name = name,
        tags = tags + ["gpu"],
        local_defines = local_defines + ["GLA_CUDA=1"],
        target_compatible_with = _requires_cuda(),
        **kwargs
    )
