"""Counts test cases from Bazel's build events, and fails if any failed.

    count_tests.py --bazel_status=N EVENTS...

EVENTS are files of --build_event_json_file. They name exactly the results of
their run, cached ones included; bazel-testlogs also keeps those of tests that
no longer exist.
"""

import argparse
import collections
import json
import sys
import urllib.parse
import xml.etree.ElementTree as ElementTree


def case_outcome(case):
    """"passed", "failed" or "skipped" for one <testcase>."""
    children = {child.tag for child in case}
    if children & {"failure", "error"}:
        return "failed"
    if "skipped" in children or case.get("status") == "notrun":
        return "skipped"
    return "passed"


def count_cases(label, result):
    """Outcomes of one run of a test target, case by case where it tells."""
    target_outcome = "passed" if result["status"] in ("PASSED", "FLAKY") else "failed"
    counts = collections.Counter()
    for output in result.get("testActionOutput", []):
        if output["name"] == "test.xml":
            path = urllib.parse.unquote(urllib.parse.urlparse(output["uri"]).path)
            try:
                cases = ElementTree.parse(path).iter("testcase")
                for case in cases:
                    outcome = case_outcome(case)
                    counts[outcome] += 1
                    if outcome == "skipped":
                        print("skipped:", label, "%s.%s" % (case.get("classname"), case.get("name")))
            except (OSError, ElementTree.ParseError):
                pass  # Killed while writing; counted as one case below.
    # No cases, or a crash or time-out outside of any.
    if not counts or (target_outcome == "failed" and not counts["failed"]):
        counts[target_outcome] += 1
    return counts


def count_file(path):
    """Outcomes of one Bazel run, and the labels that did not build."""
    results = {}
    broken = set()
    with open(path, encoding="utf-8") as lines:
        for event in map(json.loads, lines):
            identity = event["id"]
            if "testResult" in identity:
                key = identity["testResult"]
                # A later attempt at a flaky test replaces the earlier one.
                results[key["label"], key.get("run"), key.get("shard")] = event["testResult"]
            elif "targetCompleted" in identity:
                if "aborted" in event:
                    # SKIPPED: not for this configuration.
                    failed = event["aborted"].get("reason") != "SKIPPED"
                else:
                    failed = not event["completed"].get("success")
                if failed:
                    broken.add(identity["targetCompleted"]["label"])
    counts = collections.Counter()
    for (label, _, _), result in results.items():
        counts += count_cases(label, result)
    # A failed test is not a broken target.
    broken -= {label for label, _, _ in results}
    return counts, broken


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bazel_status", type=int, required=True)
    parser.add_argument("events", nargs="+")
    args = parser.parse_args()

    counts = collections.Counter()
    broken = set()
    for path in args.events:
        file_counts, file_broken = count_file(path)
        counts += file_counts
        broken |= file_broken
    for label in sorted(broken):
        print("not built:", label)
    counts["failed"] += len(broken)
    if args.bazel_status and not counts["failed"]:
        counts["failed"] = 1  # Bazel failed before it knew the targets.
    print("%d passed, %d failed, %d skipped"
          % (counts["passed"], counts["failed"], counts["skipped"]))
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
