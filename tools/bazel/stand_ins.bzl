"""Minimal stand-ins for repositories that Bazel 4 would otherwise download.

Debian's own rules_cc is too new for its Bazel 4.2.3, and the rest only has to
exist: the embedded tools load these files but we use none of their rules."""

_CC_RULES = [
    "cc_binary",
    "cc_import",
    "cc_library",
    "cc_proto_library",
    "cc_test",
    "cc_toolchain",
    "cc_toolchain_suite",
    "fdo_prefetch_hints",
    "fdo_profile",
    "objc_import",
    "objc_library",
]

_JAVA_RULES = [
    "java_binary",
    "java_import",
    "java_library",
    "java_plugin",
    "java_runtime",
    "java_test",
    "java_toolchain",
]

_PROTO_RULES = [
    "proto_lang_toolchain",
    "proto_library",
]

def _stand_in_impl(ctx):
    for path, content in ctx.attr.files.items():
        ctx.file(path, content)

_stand_in = repository_rule(
    implementation = _stand_in_impl,
    attrs = {"files": attr.string_dict(doc = "path -> content")},
)

def _native(rules):
    """A .bzl file that re-exports built-in rules."""
    return "".join(["%s = native.%s\n" % (rule, rule) for rule in rules])

def stand_in_repositories():
    _stand_in(name = "rules_cc", files = {
        "BUILD": "",
        "cc/BUILD": "",
        "cc/defs.bzl": _native(_CC_RULES),
    })
    _stand_in(name = "rules_java", files = {
        "BUILD": "",
        "java/BUILD": "",
        "java/defs.bzl": _native(_JAVA_RULES),
    })
    _stand_in(name = "rules_proto", files = {
        "BUILD": "",
        "proto/BUILD": "",
        "proto/defs.bzl": _native(_PROTO_RULES),
    })
    _stand_in(name = "remote_coverage_tools", files = {
        "BUILD": """filegroup(
    name = "coverage_report_generator",
    visibility = ["//visibility:public"],
)
""",
    })
