#!/usr/bin/env python3
"""Draws what `cargo bench` left in target/ratios/ as bars: one SVG for each benchmark, into docs/performance/.

Machine, command, date and spread stand in the picture. Nothing but Python's own library is needed."""

import csv
import datetime
import html
import pathlib
import platform

here = pathlib.Path(__file__).resolve().parent
source = here / "target" / "ratios"
target = here.parent / "docs" / "performance"


def machine():
    model = "unknown processor"
    try:
        for line in open("/proc/cpuinfo"):
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return f"{model}, {platform.machine()}, {platform.system()} {platform.release()}"


def draw(name, rows):
    groups = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    out, y = [], 64
    for group, lines in groups.items():
        out.append(f'<text x="10" y="{y}" font-weight="bold">{html.escape(group)} (ns)</text>')
        y += 20
        widest = max(float(line["upper_quartile"]) for line in lines)
        for line in lines:
            median, low, high = (float(line[key]) for key in ("median_ns", "lower_quartile", "upper_quartile"))
            scale = 380 / widest
            colour = "#2a6" if line["contender"] == "greenlet" else "#889"
            ratio = f", greenlet is {line['ratio']} of it" if line["ratio"] else ""
            label = f"{median:.1f} [{low:.1f} .. {high:.1f}]{ratio}"
            out.append(f'<text x="20" y="{y}">{html.escape(line["contender"])}</text>')
            out.append(f'<rect x="200" y="{y - 11}" width="{median * scale:.1f}" height="13" fill="{colour}"/>')
            out.append(f'<path d="M{200 + low * scale:.1f} {y - 4.5}H{200 + high * scale:.1f}" stroke="#000"/>')
            out.append(f'<text x="{206 + high * scale:.1f}" y="{y}" font-size="11">{html.escape(label)}</text>')
            y += 18
        y += 14
    head = (
        f'<text x="10" y="20">cd benches; cargo bench --bench {name}; {datetime.date.today()}</text>'
        f'<text x="10" y="38">{html.escape(machine())}; bars are medians, lines span half of the rounds</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="860" height="{y}" font-family="sans-serif" font-size="13">'
        f'<rect width="100%" height="100%" fill="#fff"/>{head}{"".join(out)}</svg>\n'
    )


target.mkdir(parents=True, exist_ok=True)
for table in sorted(source.glob("*.tsv")):
    with open(table) as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    if rows:
        (target / f"{table.stem}.svg").write_text(draw(table.stem, rows))
        print(target / f"{table.stem}.svg")
