# SPDX-License-Identifier: Apache-2.0
"""promtext - a strict reader of Prometheus' text format 0.0.4, and what is asked of ours.

promtext.py FILE                 the text is well-formed; says how many families and samples it has
promtext.py FILE DASHBOARD.json  and has every metric that the dashboard's queries name
promtext.py --rules DASHBOARD.json   its queries, for promtool check rules
"""
import json
import re
import sys

NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(,|(?=\}))')
KINDS = ("counter", "gauge", "histogram")
# Functions and words of PromQL that stand where a metric's name could.
WORDS = set(
    "sum avg min max rate irate increase histogram_quantile by without on ignoring le clamp_min"
    " clamp_max group_left group_right label_values topk bottomk and or unless bool vector time"
    " changes delta deriv".split()
)


def fail(number, line, what):
    raise SystemExit(f"line {number}: {what}: {line!r}")


def labels_of(text, number, line):
    """'{a="b",c="d"}' -> dict, and the rest behind it."""
    labels = {}
    if not text.startswith("{"):
        return labels, text
    at = 1
    while text[at : at + 1] != "}":
        m = LABEL.match(text, at)
        if not m or m.group(1) in labels:
            fail(number, line, "labels")
        labels[m.group(1)] = m.group(2)
        at = m.end()
        if m.group(3) == "," and text[at : at + 1] == "}":
            fail(number, line, "a comma with nothing behind it")
    return labels, text[at + 1 :]


def parse(text):
    """Families by name: kind, help, samples [(name, labels, value)]."""
    families, current = {}, None
    if not text.endswith("\n"):
        raise SystemExit("the last line does not end")
    for number, line in enumerate(text[:-1].split("\n"), 1):
        if line.startswith("# HELP "):
            name, _, about = line[7:].partition(" ")
            if not NAME.fullmatch(name) or name in families or not about:
                fail(number, line, "HELP of no new metric")
            current = families[name] = {"help": about, "kind": None, "samples": []}
            current["name"] = name
        elif line.startswith("# TYPE "):
            name, _, kind = line[7:].partition(" ")
            if not current or name != current["name"] or current["kind"] or kind not in KINDS:
                fail(number, line, "TYPE does not follow its HELP")
            current["kind"] = kind
        else:
            m = NAME.match(line)
            if not m or not current or not current["kind"]:
                fail(number, line, "a sample outside of a family")
            labels, rest = labels_of(line[m.end() :], number, line)
            if not re.fullmatch(r" (NaN|[+-]?Inf|[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?)", rest):
                fail(number, line, "no value")
            add(current, m.group(0), labels, float(rest), number, line)
    for family in families.values():
        check(family)
    return families


def add(family, name, labels, value, number, line):
    allowed = [family["name"]]
    if family["kind"] == "histogram":
        allowed = [family["name"] + end for end in ("_bucket", "_sum", "_count")]
    if name not in allowed or any(s[0] == name and s[1] == labels for s in family["samples"]):
        fail(number, line, f"not of {family['name']}, or twice")
    family["samples"].append((name, labels, value))


def check(family):
    name = family["name"]
    if not family["samples"]:
        raise SystemExit(f"{name}: no sample")
    if (family["kind"] == "counter") != name.endswith("_total"):
        raise SystemExit(f"{name}: counters, and only counters, end in _total")
    if not name.startswith("skvcd_"):
        raise SystemExit(f"{name}: not ours")
    if family["kind"] != "histogram":
        return
    buckets = [(float(s[1]["le"]), s[2]) for s in family["samples"] if s[0] == name + "_bucket"]
    count = [s[2] for s in family["samples"] if s[0] == name + "_count"]
    if buckets != sorted(buckets) or [b[1] for b in buckets] != sorted(b[1] for b in buckets):
        raise SystemExit(f"{name}: buckets do not rise")
    if buckets[-1][0] != float("inf") or count != [buckets[-1][1]]:
        raise SystemExit(f"{name}: +Inf is not the count")


def queries(node):
    if isinstance(node, dict) and node.get("type") != "datasource":
        for key, value in node.items():
            if key in ("expr", "query") and isinstance(value, str):
                yield value
            else:
                yield from queries(value)
    elif isinstance(node, list):
        for value in node:
            yield from queries(value)


def names_in(query):
    """Metric names of a query: no label, string, range nor word of the language."""
    query = re.sub(r'"[^"]*"', "", query)
    query = re.sub(r"\[[^\]]*\]|\{[^}]*\}", "", query)
    query = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", "", query)
    query = re.sub(r"label_values\(([^,)]*),[^)]*\)", r"\1", query)
    return {n for n in NAME.findall(query) if n not in WORDS}


def check_dashboard(families, path):
    known = set(families)
    for f in families.values():
        if f["kind"] == "histogram":
            known |= {f["name"] + end for end in ("_bucket", "_sum", "_count")}
    with open(path, encoding="utf-8") as f:
        dashboard = json.load(f)
    asked = set()
    for query in queries(dashboard):
        asked |= names_in(query)
    unknown = sorted(asked - known)
    if unknown:
        raise SystemExit(f"{path}: no such metric: {', '.join(unknown)}")
    if len(asked) < 20:
        raise SystemExit(f"{path}: only {len(asked)} metrics were found in it")
    ids = [p["id"] for p in dashboard["panels"]]
    if len(ids) != len(set(ids)):
        raise SystemExit(f"{path}: two panels have one id")
    print(f"{path}: {len(ids)} panels, {len(asked)} metrics, all known")


def print_rules(path):
    """The dashboard's queries as recording rules, for promtool check rules to parse."""
    with open(path, encoding="utf-8") as f:
        dashboard = json.load(f)
    print("groups:\n- name: dashboard\n  rules:")
    for number, query in enumerate(queries(dashboard["panels"])):
        query = query.replace("$__rate_interval", "1m").replace("'", "''")
        print(f"  - record: dashboard:query:{number}\n    expr: '{query}'")


def main():
    if sys.argv[1] == "--rules":
        print_rules(sys.argv[2])
        return
    with open(sys.argv[1], encoding="utf-8") as f:
        families = parse(f.read())
    samples = sum(len(f["samples"]) for f in families.values())
    print(f"{len(families)} families, {samples} samples")
    for path in sys.argv[2:]:
        check_dashboard(families, path)


if __name__ == "__main__":
    main()
