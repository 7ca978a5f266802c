"""Libraries of the operating system as Bazel repositories."""

_TARGET = """
cc_library(
    name = "{name}",
    linkopts = {linkopts},
    visibility = ["//visibility:public"],
    deps = {deps},
)
"""

# Linked by its symbols, never copied: the loader finds the system's own.
_INTERFACE = """
cc_import(
    name = "{lib}_interface",
    interface_library = "{file}",
    system_provided = True,
)
"""

def _install_error(package, missing):
    fail("\n\n  Missing %s: run tools/setup.sh, or: apt-get install %s\n" % (missing, package))

def _find(ctx, file):
    """Path of a library file, from the compiler that will link it, or None."""
    found = ctx.execute(["cc", "-print-file-name=" + file]).stdout.strip()
    return found if found.startswith("/") else None

def _require(ctx, file):
    return _find(ctx, file) or _install_error(ctx.attr.package, file)

def _system_library_impl(ctx):
    if not ctx.which("cc"):
        _install_error("g++", "the C++ compiler")
    for program, package in ctx.attr.programs.items():
        if not ctx.path(program).exists:
            _install_error(package, program)
    if ctx.attr.header and not ctx.path(ctx.attr.header).exists:
        _install_error(ctx.attr.package, ctx.attr.header)

    # Archives by file name, since -l would prefer the shared library.
    archives = ["lib%s.a" % lib for lib in ctx.attr.static_libs]
    for archive in archives:
        _require(ctx, archive)
    for lib in ctx.attr.static_families:
        folder = ctx.path(_require(ctx, "lib%s.a" % lib)).dirname
        prefix = "lib%s_" % lib.split("_")[0]
        archives += sorted([
            file.basename
            for file in folder.readdir()
            if file.basename.startswith(prefix) and file.basename.endswith(".a")
        ])

    linkopts = ["-l:" + archive for archive in archives]
    if len(linkopts) > 1:  # They may refer to each other in any order.
        linkopts = ["-Wl,--start-group"] + linkopts + ["-Wl,--end-group"]
    for lib in ctx.attr.shared_libs:
        _require(ctx, "lib%s.so" % lib)
        linkopts.append("-l" + lib)
    if linkopts:
        linkopts += ["-pthread", "-ldl", "-lm"]

    build = ""
    deps = [dep + "//:" + dep[1:] for dep in ctx.attr.deps]
    for lib, pattern in ctx.attr.interface_libs.items():
        file = "lib%s.so" % lib
        result = ctx.execute(
            [ctx.path(ctx.attr._interface_tool), _require(ctx, file), pattern, file],
        )
        if result.return_code:
            fail(result.stderr)
        build += _INTERFACE.format(lib = lib, file = file)
        deps.append(":%s_interface" % lib)

    build += _TARGET.format(
        name = ctx.name,
        linkopts = repr(linkopts),
        deps = repr(deps),
    )
    for name, lib in ctx.attr.whole_archives.items():
        _require(ctx, "lib%s.a" % lib)
        build += _TARGET.format(
            name = name,
            linkopts = repr([
                "-Wl,--whole-archive",
                "-l:lib%s.a" % lib,
                "-Wl,--no-whole-archive",
            ]),
            deps = repr([":" + ctx.name]),
        )
    ctx.file("BUILD", build)

system_library = repository_rule(
    implementation = _system_library_impl,
    local = True,
    doc = """Makes @<name>//:<name> from a Debian package.

Headers need no declaration: they lie in the compiler's own search path, which
also keeps their warnings out of our builds. A missing package stops only the
targets that need it, with one line that says what to install.""",
    attrs = {
        "package": attr.string(
            mandatory = True,
            doc = "Debian package, named when something is missing",
        ),
        "header": attr.string(doc = "header to check for, of a library without archives"),
        "programs": attr.string_dict(doc = "program that must exist -> its package"),
        "static_libs": attr.string_list(doc = "archives, without lib and .a"),
        "static_families": attr.string_list(
            doc = "one archive of a family that shares the name up to '_'; all are linked",
        ),
        "shared_libs": attr.string_list(doc = "shared libraries, without lib and .so"),
        "interface_libs": attr.string_dict(
            doc = "shared library -> pattern of the mangled names to link against, the only ones seen",
        ),
        "whole_archives": attr.string_dict(
            doc = "further target -> archive linked as a whole, for its initialisers",
        ),
        "deps": attr.string_list(doc = "repositories of this kind, as @name"),
        "_interface_tool": attr.label(default = "//tools/bazel:interface_library.sh"),
    },
)
