#!/usr/bin/env python3
"""Write the recorded corpus anew: corpus.jsonl, and corpus.log with what Python's greenlet printed.

    python3 record.py

Hand-written programs (tricky.jsonl) stand first, then generated ones of all kinds; of those, only such as
are to be equal as a whole. Needs `pip install greenlet`.
"""

import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))

# of each generator: seed, how many
GENERATED = [("generate.py", 2026, 360), ("generate_more.py", 2026, 500), ("generate_generators.py", 2026, 900)]

# what is long says little that something short does not
LONGEST_LOG = 100
LONGEST_PROGRAM = 1000


def in_here(name):
    return os.path.join(HERE, name)


def main():
    with open(in_here("tricky.jsonl"), encoding="utf-8") as file:
        programs = [line.strip() for line in file if line.strip()]
    tricky = len(programs)
    for script, seed, count in GENERATED:
        command = [sys.executable, in_here(script), "--seed", str(seed), "--count", str(count)]
        programs += subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    command = [sys.executable, in_here("oracle.py"), "--verdicts"]
    output = subprocess.run(command, input="\n".join(programs) + "\n", capture_output=True, text=True, check=True).stdout
    logs = output.split("\n--")
    logs = [logs[0]] + [log.partition("\n")[2] for log in logs[1:]]
    verdicts = [line[2:] for line in output.splitlines() if line.startswith("--")]
    with open(in_here("corpus.jsonl"), "w", encoding="utf-8") as jsonl, open(in_here("corpus.log"), "w", encoding="utf-8") as log:
        kept = 0
        for index, (program, lines, verdict) in enumerate(zip(programs, logs, verdicts)):
            if verdict and index < tricky:
                sys.exit(f"tricky program {index + 1} is not to be compared:{verdict}")
            is_long = lines.count("\n") > LONGEST_LOG or len(program) > LONGEST_PROGRAM
            if verdict or (is_long and index >= tricky):
                continue
            jsonl.write(program + "\n")
            log.write(lines + "\n--\n")
            kept += 1
    print(f"{kept} programs")


if __name__ == "__main__":
    main()
