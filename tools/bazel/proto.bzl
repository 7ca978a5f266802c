"""C++ code from .proto files, with the protoc of the operating system.

    proto_cc_library(
        name = "trainer_cc_proto",
        srcs = ["trainer.proto"],
        grpc = True,
        deps = ["//proto/gla/v1:common_cc_proto"],
    )

Files import each other by their path below the top folder proto/
("gla/v1/common.proto"), and C++ includes them the same way
("gla/v1/common.pb.h"), wherever the BUILD file is.
"""

load("//tools/bazel:compile.bzl", "CC_ATTRS", "CC_FRAGMENTS", "CC_TOOLCHAINS", "compile_cc")

_ROOT = "proto/"

_ProtoInfo = provider(fields = {"files": "depset of .proto files, with all they import"})

def _outputs(ctx, src, suffixes):
    """Declares the files that protoc makes from src, beside it."""
    if not src.short_path.startswith(_ROOT):
        fail("%s is not below %s" % (src.short_path, _ROOT))
    stem = src.short_path[:-len(".proto")]
    package = ctx.label.package
    stem = stem[len(package) + 1:] if package else stem
    return [ctx.actions.declare_file(stem + suffix) for suffix in suffixes]

def _proto_cc_impl(ctx):
    files = depset(
        ctx.files.srcs,
        transitive = [dep[_ProtoInfo].files for dep in ctx.attr.deps if _ProtoInfo in dep],
    )
    out_root = ctx.bin_dir.path + "/" + _ROOT
    suffixes = [".pb.h", ".pb.cc"]
    args = ctx.actions.args()
    args.add("-I" + _ROOT)
    args.add("--cpp_out=" + out_root)
    if ctx.attr.grpc:
        suffixes += [".grpc.pb.h", ".grpc.pb.cc"]
        args.add("--plugin=protoc-gen-grpc=/usr/bin/grpc_cpp_plugin")
        args.add("--grpc_out=" + out_root)
    args.add_all(ctx.files.srcs)

    outputs = []
    for src in ctx.files.srcs:
        outputs += _outputs(ctx, src, suffixes)
    ctx.actions.run(
        executable = "/usr/bin/protoc",
        arguments = [args],
        inputs = files,
        outputs = outputs,
        mnemonic = "Protoc",
        progress_message = "Generating C++ for %s" % ctx.label,
    )
    return [_ProtoInfo(files = files)] + compile_cc(
        ctx,
        srcs = [file for file in outputs if file.extension == "cc"],
        hdrs = [file for file in outputs if file.extension == "h"],
        system_includes = [out_root[:-1]],
        copts = ["-w"],  # Not our code.
    )

_proto_cc = rule(
    implementation = _proto_cc_impl,
    attrs = dict(
        CC_ATTRS,
        srcs = attr.label_list(allow_files = [".proto"], mandatory = True),
        grpc = attr.bool(),
        deps = attr.label_list(providers = [CcInfo]),
    ),
    fragments = CC_FRAGMENTS,
    toolchains = CC_TOOLCHAINS,
    provides = [CcInfo],
)

def proto_cc_library(name, srcs, deps = [], grpc = False, **kwargs):
    """C++ messages, and with grpc = True service stubs, of .proto files.

    Args:
      name: the target; goes into the deps of cc_library and its kind.
      srcs: .proto files below //proto.
      deps: proto_cc_library targets of the files that srcs import.
      grpc: whether srcs define services.
      **kwargs: visibility, testonly, tags.
    """
    _proto_cc(
        name = name,
        srcs = srcs,
        grpc = grpc,
        deps = deps + ["@protobuf//:protobuf"] + (["@grpc//:grpc"] if grpc else []),
        **kwargs
    )
