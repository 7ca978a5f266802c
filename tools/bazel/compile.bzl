"""What our own C++ rules share: toolchain set-up, compiling, linking."""

load("@bazel_tools//tools/cpp:toolchain_utils.bzl", "find_cpp_toolchain")

CC_FRAGMENTS = ["cpp"]
CC_TOOLCHAINS = ["@bazel_tools//tools/cpp:toolchain_type"]
CC_ATTRS = {
    "_cc_toolchain": attr.label(default = "@bazel_tools//tools/cpp:current_cc_toolchain"),
}

def _toolchain(ctx):
    toolchain = find_cpp_toolchain(ctx)
    features = cc_common.configure_features(
        ctx = ctx,
        cc_toolchain = toolchain,
        requested_features = ctx.features,
        unsupported_features = ctx.disabled_features,
    )
    return toolchain, features

def library_providers(ctx, compilation_context, compilation_outputs):
    """[DefaultInfo, CcInfo] of a library made of objects and ctx.attr.deps."""
    toolchain, features = _toolchain(ctx)
    linking_context, outputs = cc_common.create_linking_context_from_compilation_outputs(
        actions = ctx.actions,
        name = ctx.label.name,
        feature_configuration = features,
        cc_toolchain = toolchain,
        compilation_outputs = compilation_outputs,
        linking_contexts = [dep[CcInfo].linking_context for dep in ctx.attr.deps],
        disallow_dynamic_library = True,
    )
    library = outputs.library_to_link
    archives = [library.static_library or library.pic_static_library] if library else []
    return [
        DefaultInfo(files = depset([file for file in archives if file])),
        CcInfo(
            compilation_context = compilation_context,
            linking_context = linking_context,
        ),
    ]

def compile_cc(ctx, srcs, hdrs, system_includes, copts):
    """Compiles C++ sources against ctx.attr.deps; returns library_providers."""
    toolchain, features = _toolchain(ctx)
    compilation_context, outputs = cc_common.compile(
        actions = ctx.actions,
        name = ctx.label.name,
        feature_configuration = features,
        cc_toolchain = toolchain,
        srcs = srcs,
        public_hdrs = hdrs,
        system_includes = system_includes,
        user_compile_flags = copts,
        compilation_contexts = [dep[CcInfo].compilation_context for dep in ctx.attr.deps],
    )
    return library_providers(ctx, compilation_context, outputs)
