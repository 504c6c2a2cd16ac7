#!/usr/bin/env python3
"""Measures everything that docs/performance.md shows, and writes it there. One command, on a machine that is idle:

    python3 benches/record.py                   # peers, build, instructions: within five minutes
    python3 benches/record.py all               # and bridge, python
    python3 benches/record.py peers python      # these sections; the others keep the figures that they have

| section        | what it measures                                                                        |
| -------------- | --------------------------------------------------------------------------------------- |
| `peers`        | `cargo bench -- --table` in benches/                                                    |
| `build`        | compile time of greenlet-core from scratch; what a program gains in size                |
| `instructions` | `.ci/instructions`: what a switch, a value and a creation execute (needs valgrind)      |
| `bridge`       | `cargo bench --bench bridge --features postgres`; the repaint loop needs `DATABASE_URL` |
| `python`       | `python_peers.py`, in a virtual environment of its own with greenlet and gevent         |

The figures go to docs/performance/figures.json, each section with machine, date, command and load. From there
`draw.py` makes the pictures and the tables. Nothing but Python's own library is needed.
"""

import datetime
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time

import draw

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
# A throw takes a backtrace where this asks for one.
ENVIRONMENT = dict(os.environ, RUST_BACKTRACE="0", CARGO_TERM_COLOR="never")
# What a section's command is measured with is what a user gets.
ENVIRONMENT.pop("RUSTFLAGS", None)


def run(*command, cwd=ROOT):
    """Runs a command in sight of who waits, and returns what it printed."""
    print("$", *command, flush=True)
    process = subprocess.Popen(command, cwd=cwd, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    if process.wait() != 0:
        sys.exit(f"{command[0]} has failed with status {process.returncode}")
    return "".join(lines)


def machine():
    fields = {}
    try:
        for line in open("/proc/cpuinfo"):
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    model = re.sub(r"\(R\)|\(TM\)", "", fields.get("model name", "unknown processor"))
    if "model" in fields:
        model += f" (family {fields['cpu family']}, model {fields['model']})"
    kind = "virtual, " if "hypervisor" in fields.get("flags", "") else ""
    kernel = ".".join(platform.release().split(".")[:2])
    rust = subprocess.run(["rustc", "--version"], capture_output=True, text=True, cwd=HERE).stdout.split()[1]
    return f"{os.cpu_count()} cores of {model}, {kind}{platform.machine()}, {platform.system()} {kernel}, Rust {rust}"


def peers():
    # Compiled before the clock runs.
    run("cargo", "bench", "--no-run", cwd=HERE)
    load = os.getloadavg()[0]
    run("cargo", "bench", "--", "--table", cwd=HERE)
    figures = json.loads((HERE / "target" / "figures.json").read_text())
    return {
        "command": f"cd benches && {figures['command']}",
        "load": load,
        "groups": figures["groups"],
    }


def build():
    load = os.getloadavg()[0]
    times = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as fresh:
            start = time.monotonic()
            command = ["cargo", "build", "-p", "greenlet-core", "--release"]
            run(*command, "--target-dir", fresh)
            times.append(round(time.monotonic() - start, 2))
    sizes = {}
    profiles = {"release": [], "release, lto": ["--config", "profile.release.lto=true"]}
    for profile, options in profiles.items():
        target = HERE / "target" / ("size-" + profile.replace(", ", "-"))
        strip = ["--config", "profile.release.strip=true"]
        run("cargo", "build", "-q", "-p", "greenlet-size", "--release", "--target-dir", str(target), *strip, *options, cwd=HERE)
        sizes[profile] = {
            name: (target / "release" / name).stat().st_size for name in ("without", "core", "bridge")
        }
    return {
        "command": " ".join(command),
        "load": load,
        "seconds": times,
        "crates": compiled(),
        "sizes": sizes,
    }


def compiled():
    """How many crates greenlet-core is, with its dependencies."""
    tree = ["cargo", "tree", "-p", "greenlet-core", "-e", "normal,build", "--prefix", "none", "--no-dedupe"]
    listed = subprocess.run(tree, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return len({line.split(" (")[0] for line in listed.splitlines() if line})


def instructions():
    if not shutil.which("valgrind"):
        print("left out: instructions are counted by valgrind")
        return None
    printed = run(".ci/instructions")
    lines = re.findall(r"for each (.*), profile (\w+): ([\d.]+)(?:, at most (\d+))?", printed)
    return {
        "command": ".ci/instructions",
        "counts": [
            {"what": what, "profile": profile, "each": float(each), "most": int(most) if most else None}
            for what, profile, each, most in lines
        ],
    }


def bridge():
    command = ["cargo", "bench", "--bench", "bridge", "--features", "postgres"]
    run(*command, "--no-run")
    load = os.getloadavg()[0]
    printed = run(*command)
    lines = []
    for line in printed.splitlines():
        found = re.fullmatch(r"(\S.*?) {2,}([\d.]+) +([\d.]+) +([+-][\d.]+%?)", line.strip())
        if found:
            what, native, ours, more = found.groups()
            lines.append({"what": what, "native": float(native), "bridge": float(ours), "more": more})
            continue
        found = re.fullmatch(r"(the same by .*?) {2,}([\d.]+) +([\d.]+)x", line.strip())
        if found:
            lines.append({"what": found[1], "native": float(found[2]), "times": float(found[3])})
        found = re.fullmatch(r"(resident memory .*): (\d+) bytes", line.strip())
        if found:
            lines.append({"what": found[1], "bytes": int(found[2])})
    return {"command": " ".join(command), "load": load, "lines": lines}


def python():
    environment = HERE / "target" / "python"
    if not (environment / "bin" / "python").exists():
        run(sys.executable, "-m", "venv", str(environment))
        run(str(environment / "bin" / "pip"), "install", "-q", "greenlet", "gevent")
    load = os.getloadavg()[0]
    printed = run(str(environment / "bin" / "python"), "python_peers.py", "--json", cwd=HERE)
    return {"command": "benches/python_peers.py", "load": load, **json.loads(printed)}


SECTIONS = [peers, build, instructions, bridge, python]
BY_DEFAULT = ["peers", "build", "instructions"]


def main():
    asked = sys.argv[1:] or BY_DEFAULT
    known = [section.__name__ for section in SECTIONS]
    if asked == ["all"]:
        asked = known
    for name in asked:
        if name not in known:
            sys.exit(f"there is no section {name}: {', '.join(known)}, or all")
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"CAUTION: the machine has other work, a load of {load}: these are not figures to keep")
    start = time.monotonic()
    recorded = draw.read()
    for section in SECTIONS:
        if section.__name__ not in asked:
            continue
        figures = section()
        if figures is None:
            continue
        recorded[section.__name__] = {
            "machine": machine(),
            "date": datetime.date.today().isoformat(),
            **figures,
        }
        # As far as it came, also if what follows fails.
        draw.FIGURES.parent.mkdir(parents=True, exist_ok=True)
        draw.FIGURES.write_text(json.dumps(recorded, indent=1) + "\n")
    draw.main()
    print(f"took {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
