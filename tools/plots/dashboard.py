#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Ask a Prometheus what the dashboard asks it, and draw the answers as one SVG picture.

    dashboard.py --prometheus URL [--dashboard FILE] [--minutes N] [--interval 1m] [--svg FILE]

Every query of the dashboard is sent as Grafana would send it, with its variables filled in; one
that Prometheus refuses is an error.  Prints a line for each panel: its title, and the last value
of each series.

The picture has the panels where the dashboard puts them; Grafana draws them its own way.
"""

import argparse
import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from xml.sax.saxutils import escape

CELL_W, CELL_H, GAP = 56, 26, 6
COLORS = ["#2a78d6", "#eb6834", "#1baf7a", "#eda100", "#e87ba4", "#4a3aa7", "#888888"]
STEPS = 60


def ask(base, path, **params):
    url = f"{base}/api/v1/{path}?{urllib.parse.urlencode(params)}"
    try:
        with urllib.request.urlopen(url, timeout=30) as reply:
            answer = json.load(reply)
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{params.get('query', path)}: {error.read().decode()}") from error
    if answer["status"] != "success":
        raise SystemExit(f"{params.get('query', path)}: {answer}")
    return answer["data"]["result"]


def legend(target, labels):
    text = target.get("legendFormat") or ""
    for name, value in labels.items():
        text = text.replace("{{" + name + "}}", value)
    return text


def series_of(options, panel, end):
    """[(name, [(second, value), ...]), ...] of all targets."""
    found = []
    for target in panel.get("targets", []):
        query = target["expr"].replace("$__rate_interval", options.interval)
        query = query.replace("$job", ".*").replace("$instance", ".*")
        start = end - 60 * options.minutes
        for row in ask(options.prometheus, "query_range", query=query, start=start, end=end,
                       step=max(1, 60 * options.minutes / STEPS)):
            points = [(float(t), float(v)) for t, v in row["values"]]
            found.append((legend(target, row["metric"]), [p for p in points if p[1] == p[1]]))
    return [s for s in found if s[1]]


def shown(value, unit):
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "s":
        for factor, name in ((1, "s"), (1e3, "ms"), (1e6, "us"), (1e9, "ns")):
            if value * factor >= 1:
                return f"{value * factor:.3g} {name}"
        return "0 s"
    if unit in ("bytes", "Bps"):
        end = "/s" if unit == "Bps" else ""
        for factor, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
            if abs(value) >= factor:
                return f"{value / factor:.3g} {name}{end}"
        return f"{value:.3g} B{end}"
    number = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return number + ("/s" if unit == "ops" else "")


def text(x, y, size, what, fill="#333", anchor="start", weight="normal"):
    return (f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" fill="{fill}" '
            f'text-anchor="{anchor}" font-weight="{weight}">{escape(what)}</text>')


def mapped(panel, value):
    for mapping in panel.get("fieldConfig", {}).get("defaults", {}).get("mappings", []):
        entry = mapping.get("options", {}).get(f"{value:g}")
        if entry:
            return entry.get("text", f"{value:g}")
    return None


def draw_stat(panel, series, box, unit):
    x, y, w, h = box
    if not series:
        return [text(x + w / 2, y + h / 2 + 12, 15, "no data", "#999", "middle")]
    value = series[0][1][-1][1]
    what = mapped(panel, value) or shown(value, unit)
    return [text(x + w / 2, y + h / 2 + 16, 26, what, COLORS[0], "middle", "bold")]


def draw_lines(series, box, unit, span):
    x, y, w, h = box
    left, top, right, bottom = x + 62, y + 26, x + w - 10, y + h - 34
    if not series:
        return [text(x + w / 2, y + h / 2, 12, "no data", "#999", "middle")]
    highest = max(v for _, points in series for _, v in points) or 1
    out = []
    for part in (0, 0.5, 1):
        at = bottom - part * (bottom - top)
        out.append(f'<line x1="{left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}" stroke="#e4e4e4"/>')
        out.append(text(left - 5, at + 3, 9, shown(part * highest, unit), "#777", "end"))
    along = left
    for number, (name, points) in enumerate(series):
        color = COLORS[number % len(COLORS)]
        path = " ".join(f"{left + (t - span[0]) / (span[1] - span[0]) * (right - left):.1f},"
                        f"{bottom - v / highest * (bottom - top):.1f}" for t, v in points)
        out.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.6"/>')
        out.append(f'<rect x="{along}" y="{y + h - 19}" width="8" height="3" fill="{color}"/>')
        out.append(text(along + 11, y + h - 14, 9, name, "#555"))
        along += 18 + 4.6 * len(name)
    return out


def draw(dashboard, data, span):
    panels = dashboard["panels"]
    width = 24 * CELL_W
    height = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in panels) * CELL_H
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
           'font-family="sans-serif">', "<!-- SPDX-License-Identifier: Apache-2.0 -->",
           f'<rect width="{width}" height="{height}" fill="#f4f5f5"/>']
    for panel in panels:
        grid = panel["gridPos"]
        x, y = grid["x"] * CELL_W + GAP / 2, grid["y"] * CELL_H + GAP / 2
        w, h = grid["w"] * CELL_W - GAP, grid["h"] * CELL_H - GAP
        if panel["type"] == "row":
            out.append(text(x + 2, y + 15, 13, panel["title"], "#222", weight="bold"))
            continue
        unit = panel.get("fieldConfig", {}).get("defaults", {}).get("unit")
        out.append(f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="2" fill="#fff" '
                   'stroke="#dcdcdc"/>')
        out.append(text(x + 8, y + 16, 11, panel["title"], "#333", weight="bold"))
        series = data[panel["id"]]
        if panel["type"] == "stat":
            out += draw_stat(panel, series, (x, y, w, h), unit)
        else:
            out += draw_lines(series, (x, y, w, h), unit, span)
    return "\n".join(out + ["</svg>", ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prometheus", required=True, help="its address, as http://127.0.0.1:9090")
    parser.add_argument("--dashboard", default="tools/grafana/skvcd.json")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--interval", default="1m", help="for $__rate_interval")
    parser.add_argument("--svg", help="write the picture there")
    options = parser.parse_args()
    with open(options.dashboard, encoding="utf-8") as f:
        dashboard = json.load(f)
    end = time.time()
    data = {}
    for panel in dashboard["panels"]:
        data[panel["id"]] = series_of(options, panel, end)
        if panel["type"] == "row":
            continue
        unit = panel.get("fieldConfig", {}).get("defaults", {}).get("unit")
        values = ", ".join(f"{n} {shown(p[-1][1], unit)}".strip() for n, p in data[panel["id"]])
        print(f"{panel['title']}: {values or 'no data'}")
    if options.svg:
        with open(options.svg, "w", encoding="utf-8") as f:
            f.write(draw(dashboard, data, (end - 60 * options.minutes, end)))


if __name__ == "__main__":
    sys.exit(main())
