#!/usr/bin/env python3
"""Write random switching programs (see OPS.md) of the kinds that generate.py leaves out.

    python3 generate_more.py --seed 1 --count 1000

Everything that the language allows: exits that are caught, switches in what a `finally` runs last,
bodies that make greenlets of themselves or of main's body, `return` and `raise` in main. Each program
draws its own mix of ops. Some of them do not end, or leave killed greenlets suspended: `oracle.py
--verdicts` says which. The same seed and count always give the same programs.
"""

import argparse
import json
import random

KINDS = ["new", "switch", "throw", "set_parent", "drop", "copy", "state", "who", "return", "raise", "finally", "trace"]


class Generator:
    def __init__(self, rng):
        self.rng = rng
        # many ops of few kinds find more than a few ops of all kinds
        self.weights = [rng.choice([0, 1, 1, 3, 8]) for _ in KINDS]
        self.weights[KINDS.index("new")] = rng.choice([3, 6])
        self.weights[KINDS.index("switch")] = rng.choice([6, 12])
        self.weights[KINDS.index("return")] = rng.choice([0, 0, 1])
        self.weights[KINDS.index("raise")] = rng.choice([0, 0, 1, 2])
        self.bodies = rng.randint(2, 8)
        self.slots = rng.choice([1, 2, 3, 4, 4, 10])
        self.catches = rng.choice([
            ["none"],
            ["none", "errors"],
            ["none", "none", "none", "none", "errors", "errors", "all"],
            ["none", "errors", "all"],
        ])
        self.places = rng.choices(["slot", "parent", "main", "current"], k=3) + ["slot"] * rng.randint(1, 6)
        self.recursion = rng.choice([0, 0, 0.05, 0.3])
        self.value = 0

    def slot(self):
        return self.rng.randrange(self.slots)

    def place(self):
        kind = self.rng.choice(self.places)
        return self.slot() if kind == "slot" else kind

    def catch(self):
        return self.rng.choice(self.catches)

    def fresh(self):
        self.value += 1
        return self.rng.choice([self.value, self.value, -self.value, self.value << 80]) \
            if self.rng.random() < 0.02 else self.value

    def error(self):
        return self.rng.choice(["E1", "E2", "Exit"])

    def op(self, body, depth):
        kind = self.rng.choices(KINDS, self.weights)[0]
        if kind == "new":
            child = self.rng.randrange(self.bodies)
            if child <= body and self.rng.random() >= self.recursion:
                if body + 1 >= self.bodies:
                    return ["state", self.place()]
                child = self.rng.randrange(body + 1, self.bodies)
            return ["new", self.slot(), child, None if self.rng.random() < 0.6 else self.place()]
        if kind == "switch":
            return ["switch", self.place(), self.fresh(), self.catch()]
        if kind == "throw":
            return ["throw", self.place(), self.error(), self.catch()]
        if kind == "set_parent":
            return ["set_parent", self.place(), self.place()]
        if kind == "drop":
            return ["drop", self.slot()]
        if kind == "copy":
            return ["copy", self.slot(), self.slot()]
        if kind == "state":
            return ["state", self.place()]
        if kind == "trace":
            return ["trace", self.rng.random() < 0.7]
        if kind == "raise" and (body or self.rng.random() < 0.2):
            return ["raise", self.error()]
        if kind == "return" and (body or self.rng.random() < 0.2):
            return ["return", self.fresh()]
        if kind == "finally" and depth < 3:
            return self.finally_(body, depth)
        return ["who"]

    def finally_(self, body, depth):
        return ["finally", self.ops(body, depth + 1, 0, 4), self.ops(body, depth + 1, 0, 3)]

    def ops(self, body, depth, low, high):
        return [self.op(body, depth) for _ in range(self.rng.randint(low, high))]

    def program(self):
        first = [["new", self.slot(), self.rng.randrange(1, self.bodies), None] for _ in range(self.rng.randint(1, 3))]
        longest = self.rng.choice([4, 8, 12])
        main = first + self.ops(0, 0, 4, 2 * longest)
        return {"bodies": [main] + [self.ops(body, 0, 1, longest) for body in range(1, self.bodies)]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--count", type=int, default=100)
    args = parser.parse_args()
    for index in range(args.count):
        program = Generator(random.Random(f"{args.seed}/more/{index}")).program()
        print(json.dumps({"name": f"more-{args.seed}-{index}", **program}, separators=(",", ":")))


if __name__ == "__main__":
    main()
