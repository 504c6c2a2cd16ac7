#!/usr/bin/env python3
"""Draws the figures of docs/performance/figures.json, which `record.py` wrote: bars, as SVG, into docs/performance/; and
tables, into docs/performance.md and README.md, between their markers `<!-- figures: NAME -->` and `<!-- end -->`.

Machine, command, date and spread stand in each picture. Nothing but Python's own library is needed."""

import html
import json
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
README = ROOT / "README.md"
TARGET = ROOT / "docs" / "performance"
FIGURES = TARGET / "figures.json"

# The pictures: which groups stand in one.
PICTURES = {
    "switch": [
        "ping-pong",
        "ping-pong, 50 frames deep",
        "generator, per value",
        "generator, per &str",
        "generator, per three words",
        "throw there and switch back",
        "ping-pong with a tracer",
    ],
    "rings": ["ring of 1,000", "ring of 10,000", "ring of 100,000"],
    "lifecycle": [
        "create, run, end",
        "first switch",
        "kill of a suspended one",
        "generator: create, one value, end",
        "generator: create, one value, drop",
        "create at 1,000,000",
    ],
    "threads": ["two threads, switches", "two threads, create, run, end"],
}

WIDTH, LEFT, RIGHT = 760, 216, 560

# Both for light and dark backgrounds: the picture follows the reader's choice.
STYLE = """
text{font:12px system-ui,sans-serif;fill:#1f2328}.title{font-weight:600;font-size:13px}.small{font-size:11px;fill:#59636e}
.back{fill:#fff}.bar{fill:#9aa7b5}.ours{fill:#2da44e}.spread{stroke:#1f2328;fill:none}
.goal{stroke:#cf222e;stroke-width:2;stroke-dasharray:3 2;fill:none}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.small{fill:#9198a1}.back{fill:#0d1117}.bar{fill:#59636e}
.ours{fill:#2ea043}.spread{stroke:#e6edf3}.goal{stroke:#ff7b72}}
"""


def read():
    return json.loads(FIGURES.read_text()) if FIGURES.exists() else {}


def short(value):
    """With about three digits that count, and thousands apart."""
    if value < 0.1:
        return f"{value:.4f}"
    if value < 10:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def spread(figure):
    return f"{short(figure['low'])} to {short(figure['high'])}"


def conditions(section):
    load = f"; load before it: {section['load']:.1f}" if "load" in section else ""
    return f"{section['machine']}; {section['date']}{load}"


def is_ours(name):
    return name.startswith("greenlet")


# ---- pictures -----------------------------------------------------------------------------------------


def wrapped(line, most=112):
    """Lines of at most so many letters, broken at semicolons and commas."""
    lines = [""]
    for part in re.split(r"(?<=[;,]) ", line):
        if len(lines[-1]) + len(part) > most and lines[-1]:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + part
    return lines


def picture(groups, section):
    out, y = [], 24
    for group in groups:
        best = group["statistic"] == "best"
        rounds = f"ns each, {group['statistic']} of {group['rounds']} rounds"
        if group["of"] != group["rounds"]:
            rounds += f", the quietest of {group['of']}"
        out.append(
            f'<text class="title" x="12" y="{y}">{html.escape(group["name"])} '
            f'<tspan class="small" font-weight="400">{rounds}</tspan></text>'
        )
        y += 10
        lines = group["contenders"]
        ours = next(line for line in lines if line["name"] == "greenlet")
        goals = [
            goal["nanoseconds"]
            if "nanoseconds" in goal
            else goal["most"] * next(line["typical"] for line in lines if line["name"] == goal["than"])
            for goal in group["goals"]
        ]
        # Who takes many times longer than the others gets a bar that is cut off.
        widest = min(max(line["high"] for line in lines), 6 * ours["typical"])
        widest = max(widest, ours["high"], *goals, 0) if goals else max(widest, ours["high"])
        scale = (RIGHT - LEFT) / widest
        for line in lines:
            y += 18
            name, typical = line["name"], line["typical"]
            is_cut = typical > widest
            end = LEFT + min(typical, widest) * scale
            kind = "bar ours" if is_ours(name) else "bar"
            out.append(f'<text x="{LEFT - 8}" y="{y}" text-anchor="end">{html.escape(name)}</text>')
            out.append(f'<rect class="{kind}" x="{LEFT}" y="{y - 11}" width="{max(end - LEFT, 1):.1f}" height="14"/>')
            right = end
            if is_cut:
                # A gap near the end says that it is cut.
                out.append(f'<path class="back" d="M{end - 18:.1f} {y + 4}l6 -16h4l-6 16z"/>')
            else:
                low = LEFT + max(min(line["low"], widest), 0) * scale
                high = LEFT + min(line["high"], widest) * scale
                out.append(
                    f'<path class="spread" d="M{low:.1f} {y - 7}v6m0 -3H{high:.1f}m0 -3v6"/>'
                )
                right = max(end, high)
            if name == "greenlet":
                for goal in goals:
                    x = LEFT + goal * scale
                    out.append(f'<path class="goal" d="M{x:.1f} {y - 14}v20"/>')
                    right = max(right, x)
            label = short(typical)
            if not best:
                label += f' <tspan class="small">{spread(line)}</tspan>'
            out.append(f'<text x="{right + 6:.1f}" y="{y}">{label}</text>')
        y += 34
    notes = [
        *wrapped(f"{section['command']}; {conditions(section)}"),
        "Thin lines: half of the rounds were between their ends. Dashed: the goal. A bar with a gap is cut off.",
    ]
    for note in notes:
        out.append(f'<text class="small" x="12" y="{y}">{html.escape(note)}</text>')
        y += 16
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}">'
        f'<style>{STYLE.strip()}</style><rect class="back" width="100%" height="100%"/>\n' + "\n".join(out) + "\n</svg>\n"
    )


# ---- tables -------------------------------------------------------------------------------------------


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] + ["---:"] * (len(head) - 1)) + " |"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def goals(section):
    rows = []
    for group in section["groups"]:
        figures = {line["name"]: line for line in group["contenders"]}
        for goal in group["goals"]:
            ours = short(figures["greenlet"]["typical"])
            measured = goal["measured"]
            verdict = "met" if goal["met"] else "**missed**"
            if "than" in goal:
                what = f"{group['name']}, by {goal['than']}"
                most = short(goal["most"])
                times = f"{ours} / {short(figures[goal['than']]['typical'])} ns"
                value = f"{short(measured['typical'])} ({spread(measured)})"
            else:
                what, most = group["name"], f"{goal['nanoseconds']:g} ns"
                times, value = f"{ours} ns", f"{short(measured['typical'])} ns ({spread(measured)})"
            rows.append([what, most, times, value, verdict])
    return table(["what", "at most", "greenlet / other", "measured", ""], rows) + "\n\n" + stands(section)


def stands(section):
    return f"`{section['command']}`; {conditions(section)}."


COLUMNS = ["raw", "greenlet", "greenlet (context)", "corosensei", "generator", "wasmtime-fiber", "native async"]


def everyone(section):
    rows = []
    for group in section["groups"]:
        figures = {line["name"]: line for line in group["contenders"]}
        row = [group["name"]]
        for name in COLUMNS:
            row.append(f"{short(figures[name]['typical'])}" if name in figures else "")
        others = [
            f"{line['name']} {short(line['typical'])}" for line in group["contenders"] if line["name"] not in COLUMNS
        ]
        rows.append(row + ["; ".join(others)])
    return table(["ns each", *COLUMNS, "others"], rows) + "\n\n" + stands(section)


def build(section):
    seconds = min(section["seconds"])
    rows = [
        [
            f"greenlet-core and what it depends on, {section['crates']} crates, from scratch",
            f"{seconds:.1f} s",
            f"goal under 10 s: {'met' if seconds < 10 else '**missed**'}",
        ]
    ]
    for profile, sizes in section["sizes"].items():
        for name, what in (("core", "one greenlet of the core"), ("bridge", "one await in a greenlet")):
            gained = (sizes[name] - sizes["without"]) / 1024
            rows.append(
                [f"what a program gains by {what}, stripped, profile {profile}", f"{gained:.0f} KiB", f"of {sizes[name] / 1024:.0f} KiB"]
            )
    return table(["what", "measured", ""], rows) + "\n\n" + stands(section)


def instructions(section):
    rows = [
        [f"{count['what']}, profile {count['profile']}", f"{count['each']:g}", str(count["most"] or "")]
        for count in section["counts"]
    ]
    return table(["instructions for each", "executed", "allowed by the gate"], rows) + "\n\n" + stands(section)


# What the bridge is to reach: the start of the line's name; which figure; at most, or at least.
BRIDGE_GOALS = [
    ("an await of what is ready", "difference", "at most 10 ns over native", lambda line: line["bridge"] - line["native"] <= 10),
    ("the same, polled in place", "difference", "at most 10 ns over native", lambda line: line["bridge"] - line["native"] <= 10),
    ("a call with 0 awaits", "difference", "at most 60 ns over native", lambda line: line["bridge"] - line["native"] <= 60),
    ("resident memory", "bytes", "at most 5,000 bytes", lambda line: line["bytes"] <= 5000),
    ("the same by spawn_blocking", "times", "at least 50 times the bridge", lambda line: line["times"] >= 50),
    ("a row of the repaint loop", "difference", "at most 2 % over native", lambda line: line["bridge"] <= line["native"] * 1.02),
]


def bridge(section):
    rows = []
    for line in section["lines"]:
        goal, verdict = "", ""
        for start, key, stated, is_met in BRIDGE_GOALS:
            if line["what"].startswith(start) and (key in line or key == "difference"):
                goal, verdict = stated, "met" if is_met(line) else "**missed**"
        if "bytes" in line:
            figures = ["", f"{line['bytes']:,} bytes", ""]
        elif "times" in line:
            figures = [short(line["native"]), "", f"{line['times']:g} times the bridge"]
        else:
            figures = [short(line["native"]), short(line["bridge"]), line["more"]]
        rows.append([line["what"], *figures, goal, verdict])
    head = ["ns each", "native async", "bridge", "difference", "goal", ""]
    return table(head, rows) + "\n\n" + stands(section)


def python(section, peers):
    ours = {group["name"]: group for group in peers.get("groups", [])}
    rows = []
    for name, figures in section["groups"].items():
        figure = next((line for line in ours.get(name, {}).get("contenders", []) if line["name"] == "greenlet"), None)
        row = [name, short(figure["typical"]) if figure else ""]
        for who in ("greenlet", "gevent", "yield"):
            cell = ""
            if who in figures:
                cell = f"{short(figures[who]['typical'])} ({spread(figures[who])})"
            row.append(cell)
        if figure:
            row.append(f"{figures['greenlet']['typical'] / figure['typical']:,.0f} times")
        rows.append(row + [""] * (6 - len(row)))
    versions = ", ".join(f"{name} {version}" for name, version in section["versions"].items())
    head = ["ns each", "here", "Python's greenlet", "gevent", "`yield`", "greenlet by here"]
    return table(head, rows) + f"\n\n{versions}. " + stands(section)


def in_short(recorded):
    """The three numbers with which the README and the page begin."""
    peers, in_python, in_bridge = recorded["peers"], recorded["python"], recorded["bridge"]
    group = next(group for group in peers["groups"] if group["name"] == "ping-pong")
    switch = {line["name"]: short(line["typical"]) for line in group["contenders"]}
    python_switch = short(in_python["groups"]["ping-pong"]["greenlet"]["typical"])
    lines = {line["what"]: line for line in in_bridge["lines"]}
    waits = lines["an await that yields"]
    memory = lines["resident memory of a suspended function"]
    over = float(waits["more"])
    rows = [
        ["one switch", f"{switch['greenlet']} ns", f"corosensei {switch['corosensei']}, Python's greenlet {python_switch}"],
        ["an `await_` that suspends", f"{short(waits['bridge'])} ns", f"{over:.0f} ns more than the same `.await` in `async` code"],
        ["memory of a suspended function", f"{memory['bytes']:,} bytes", "one page of its stack is touched"],
    ]
    commands = f"`{peers['command']}` prints the first line, `{in_bridge['command']}` the others"
    runs = {f"{section['machine']}, {section['date']}": None for section in (peers, in_python, in_bridge)}
    return table(["what", "measured", "beside"], rows) + f"\n\n{commands}. Measured on {'; '.join(runs)}."


def fill(text, name, made):
    marker = re.compile(rf"(<!-- figures: {name} -->\n).*?(<!-- end -->)", re.S)
    if not marker.search(text):
        raise SystemExit(f"no page has a place for the figures of {name}")
    return marker.sub(lambda found: f"{found[1]}\n{made}\n\n{found[2]}", text)


def main():
    recorded = read()
    text = PAGE.read_text()
    if "peers" in recorded:
        peers = recorded["peers"]
        groups = {group["name"]: group for group in peers["groups"]}
        for name, members in PICTURES.items():
            shown = [groups.pop(member) for member in members if member in groups]
            if shown:
                (TARGET / f"{name}.svg").write_text(picture(shown, peers))
                print(TARGET.relative_to(ROOT) / f"{name}.svg")
        if groups:
            raise SystemExit(f"in no picture: {', '.join(groups)}")
        text = fill(text, "goals", goals(peers))
        text = fill(text, "everyone", everyone(peers))
    for make in (build, instructions, bridge):
        if make.__name__ in recorded:
            text = fill(text, make.__name__, make(recorded[make.__name__]))
    if "python" in recorded:
        text = fill(text, "python", python(recorded["python"], recorded.get("peers", {})))
    if {"peers", "python", "bridge"} <= recorded.keys():
        text = fill(text, "short", in_short(recorded))
        README.write_text(fill(README.read_text(), "short", in_short(recorded)))
        print(README.relative_to(ROOT))
    PAGE.write_text(text)
    print(PAGE.relative_to(ROOT))


if __name__ == "__main__":
    main()
