#!/usr/bin/env python3
"""Compare the event logs of switching programs on Python's greenlet and on this library.

    python3 compare.py --seed 1 --count 22000 PROGRAM [PROGRAM...]

Writes random programs (a third each by generate.py, generate_more.py and generate_generators.py), runs them by
oracle.py and by each PROGRAM (builds of tests/oracle/run.rs), and compares. Where the two differ on
purpose (a killed greenlet stays suspended, or parents come to stand in a cycle: see OPS.md), the logs are
compared up to that moment. Programs that do not end are left out. Both are counted.

The first programs that differ are shrunk and shown, with both logs. Exit status 1 if any differs.
With `--programs FILE` the programs are those of the file. Needs `pip install greenlet`.
"""

import argparse
import json
import os
import selectors
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
REFEREE = [sys.executable, os.path.join(HERE, "oracle.py"), "--verdicts"]

BATCH = 2000

# the ops whose last operand says what they catch
CATCHING = ("switch", "throw", "next", "send", "throw_in", "close", "yield")

# seconds that one program may take: a cycle of parents, which the original allows to come about, makes
# it loop for ever
PATIENCE = 10
HANGS = f" hangs: nothing for {PATIENCE} seconds"


def run(command, lines):
    """Run programs; return for each its log (a list of lines) and what stood after the closing `--`.

    A process that dies or hangs is started again behind the program that did it, whose log then ends with
    a line that says so.
    """
    results = []
    while len(results) < len(lines):
        text = "".join(line + "\n" for line in lines[len(results):])
        env = dict(os.environ, RUST_BACKTRACE="0")
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env,
                                   stderr=subprocess.DEVNULL)
        how = exchange(process, text.encode(), results, len(lines))
        if len(results) < len(lines):
            results[-1] = (results[-1][0] + [how], how)
    return results


def exchange(process, text, results, wanted):
    """Feed a process and collect what it prints; the last result is the broken one if that is said."""
    selector = selectors.DefaultSelector()
    os.set_blocking(process.stdin.fileno(), False)
    os.set_blocking(process.stdout.fileno(), False)
    selector.register(process.stdin, selectors.EVENT_WRITE)
    selector.register(process.stdout, selectors.EVENT_READ)
    sent, rest, log = 0, b"", []
    last_progress = time.monotonic()
    is_open = True
    while is_open:
        for key, _ in selector.select(1):
            if key.fileobj is process.stdin:
                try:
                    sent += os.write(key.fd, text[sent:sent + 65536])
                except BrokenPipeError:
                    sent = len(text)
                if sent == len(text):
                    selector.unregister(process.stdin)
                    process.stdin.close()
                continue
            got = os.read(key.fd, 1 << 20)
            if not got:
                is_open = False
            *complete, rest = (rest + got).split(b"\n")
            for line in complete:
                line = line.decode()
                if line.startswith("--"):
                    results.append((log, line[2:]))
                    log = []
                    last_progress = time.monotonic()
                else:
                    log.append(line)
        if time.monotonic() - last_progress > PATIENCE:
            process.kill()
            process.wait()
            results.append((log, ""))
            return HANGS
    status = process.wait()
    if len(results) < wanted:
        results.append((log, ""))
        return f" ended with status {status} in the middle"
    return None


def is_different(expected, verdict, got, got_verdict):
    if got_verdict:
        # a program that ends because a greenlet stays undead need not end where it does not
        return not (verdict and got_verdict == HANGS)
    if verdict:
        known = int(verdict.split()[1])
        return expected[:known] != got[:known]
    return expected != got


def is_comparable(verdict):
    return verdict == "" or verdict.startswith((" undead", " cycle"))


def differing(command, programs):
    """Of the programs, the first that differs, with both logs; `None` if none does."""
    lines = [json.dumps(program, separators=(",", ":")) for program in programs]
    expected = run(REFEREE, lines)
    chosen = [index for index, (_, verdict) in enumerate(expected) if is_comparable(verdict)]
    got = run(command, [lines[index] for index in chosen])
    for index, (log, verdict) in zip(chosen, got):
        if is_different(*expected[index], log, verdict):
            return programs[index], expected[index], (log, verdict)
    return None


def smaller(program):
    """All programs that are one step smaller."""
    bodies = program["bodies"]

    def used(ops):
        for op in ops:
            if op[0] in ("new", "generator"):
                yield op[2]
            elif op[0] == "finally":
                yield from used(op[1])
                yield from used(op[2])

    def renumbered(ops, gone):
        for op in ops:
            if op[0] in ("new", "generator"):
                yield op[:2] + [op[2] - (op[2] > gone)] + op[3:]
            elif op[0] == "finally":
                yield ["finally", list(renumbered(op[1], gone)), list(renumbered(op[2], gone))]
            else:
                yield op

    for index in range(1, len(bodies)):
        if all(index not in used(body) for body in bodies):
            yield {"bodies": [list(renumbered(body, index)) for at, body in enumerate(bodies) if at != index]}

    def variants(ops):
        size = len(ops) // 2
        while size > 1:
            for start in range(0, len(ops), size):
                yield ops[:start] + ops[start + size:]
            size //= 2
        for at, op in enumerate(ops):
            before, after = ops[:at], ops[at + 1:]
            yield before + after
            if op[0] == "finally":
                yield before + op[1] + after
                yield before + op[1] + op[2] + after
                for part in (1, 2):
                    for inner in variants(op[part]):
                        changed = list(op)
                        changed[part] = inner
                        yield before + [changed] + after
            elif op[0] in CATCHING and op[-1] != "none":
                yield before + [op[:-1] + ["none"]] + after
            elif op[0] == "new" and op[3] is not None:
                yield before + [op[:3] + [None]] + after

    for index, body in enumerate(bodies):
        for changed in variants(body):
            yield {"bodies": bodies[:index] + [changed] + bodies[index + 1:]}


def shrink(command, program):
    """The smallest program that still differs and that can be reached step by step."""
    found = differing(command, [program])
    while found:
        best = found
        found = differing(command, [dict(candidate, name="shrunk") for candidate in smaller(best[0])])
    return best


def show(program, expected, got):
    print("  bodies:")
    for index, body in enumerate(program["bodies"]):
        print(f"    {index}: {json.dumps(body)}")
    print(f"  as one line: {json.dumps(program, separators=(',', ':'))}")
    (left, verdict), (right, got_verdict) = expected, got
    width = max([len(line) for line in left] + [10])
    print(f"  {'on Python':{width}} | here{got_verdict}{'    (compared:' + verdict + ')' if verdict else ''}")
    for at in range(max(len(left), len(right))):
        one = left[at] if at < len(left) else ""
        other = right[at] if at < len(right) else ""
        print(f"  {one:{width}} {'|' if one == other else '!'} {other}")


def generated(seed, count):
    third = count // 3
    for script, share in (("generate.py", count - 2 * third), ("generate_more.py", third),
                          ("generate_generators.py", third)):
        command = [sys.executable, os.path.join(HERE, script), "--seed", str(seed), "--count", str(share)]
        yield from subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="default: from the clock")
    parser.add_argument("--count", type=int, default=24_000, help="how many programs are to be compared")
    parser.add_argument("--programs", help="a file of programs to run instead")
    parser.add_argument("--show", type=int, default=3, help="how many differences are shrunk and shown")
    parser.add_argument("builds", nargs="+", metavar="PROGRAM")
    args = parser.parse_args()
    if args.programs:
        with open(args.programs, encoding="utf-8") as file:
            lines = [line.strip() for line in file if line.strip()]
    else:
        print(f"seed {args.seed} (run the same again with --seed {args.seed} --count {args.count})", flush=True)
        lines = list(generated(args.seed, args.count))
    whole = partly = left_out = 0
    differences = {build: [] for build in args.builds}
    for start in range(0, len(lines), BATCH):
        batch = lines[start:start + BATCH]
        expected = run(REFEREE, batch)
        chosen = [index for index, (_, verdict) in enumerate(expected) if is_comparable(verdict)]
        whole += sum(expected[index][1] == "" for index in chosen)
        partly += sum(expected[index][1] != "" for index in chosen)
        left_out += len(batch) - len(chosen)
        for build in args.builds:
            got = run([build], [batch[index] for index in chosen])
            for index, (log, verdict) in zip(chosen, got):
                if is_different(*expected[index], log, verdict):
                    differences[build].append(json.loads(batch[index]))
    is_equal = True
    for build in args.builds:
        found = differences[build]
        print(f"{build}: {whole} programs compared, {partly} more up to where the two differ on purpose, "
              f"{left_out} left out; {len(found)} differences", flush=True)
        for program in found[:args.show]:
            is_equal = False
            print(f"differs: {program.get('name')}; shrunk:")
            show(*shrink([build], program))
    return 0 if is_equal and all(not found for found in differences.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
