#!/usr/bin/env python3
"""Write random switching programs with generators (see OPS.md), one JSON object a line.

    python3 generate_generators.py --seed 1 --count 1000

Bodies step generators that others have made, switch to other greenlets in the middle of a step, and are killed there.
Each program draws its own mix of ops. The same seed and count always give the same programs.
"""

import argparse
import json
import random

from generate_more import Generator as More

STEPS = ["generator", "next", "send", "throw_in", "close", "drop_generator", "copy_generator", "generator_state"]


class Generator(More):
    def __init__(self, rng):
        super().__init__(rng)
        self.bodies = rng.randint(3, 8)
        # which bodies are meant for generators
        self.yields = [False] + [rng.random() < 0.6 for _ in range(self.bodies - 1)]
        # most clean-ups end, and most errors stop: otherwise little is left to compare
        self.catches = rng.choice([["none"], ["none", "errors"], ["none", "errors", "errors", "errors"], ["errors"],
                                   ["none", "errors", "errors", "errors", "errors", "all"]])
        self.step_weights = [rng.choice([3, 6]), rng.choice([4, 8]), rng.choice([4, 8])]
        self.step_weights += [rng.choice([0, 1, 1, 3]) for _ in STEPS[len(self.step_weights):]]
        self.generator_slots = rng.choice([1, 2, 2, 3, 4])
        # how many of the ops are steps, and how many of a generator's are yields
        self.steps = rng.choice([0.2, 0.4, 0.6])
        self.yield_rate = rng.choice([0.15, 0.3, 0.5])
        # in the last ops of a `finally`, a yield makes that a close is ignored
        self.yields_in_last = rng.choice([0, 0, 0, 0.3])
        self.last_depth = 0
        # the body that is being written
        self.body = 0

    def catch(self):
        # main goes on, as a rule: the others' stories end with it
        return "errors" if self.body == 0 and self.rng.random() < 0.9 else super().catch()

    def place(self):
        # out of a generator, most often to somebody who may step it
        return "parent" if self.yields[self.body] and self.rng.random() < 0.5 else super().place()

    def generator_slot(self):
        return self.rng.randrange(self.generator_slots)

    def child(self, body, is_generators):
        """A body to make something of: one further on that is meant for it, but for a few; `None` if there is none."""
        if self.rng.random() < self.recursion * 0.3:
            return self.rng.randrange(1, self.bodies)
        later = range(body + 1, self.bodies)
        fitting = [child for child in later if self.yields[child] == is_generators]
        if not fitting or self.rng.random() < 0.03:
            fitting = later
        return self.rng.choice(fitting) if fitting else None

    def op(self, body, depth):
        self.body = body
        if self.yields[body] and self.rng.random() < self.yield_rate:
            if self.last_depth and self.rng.random() >= self.yields_in_last:
                return ["who"]
            return ["yield", self.fresh(), self.catch()]
        if self.rng.random() >= self.steps:
            op = super().op(body, depth)
            if op[0] == "new":
                child = self.child(body, False)
                op = ["who"] if child is None else [*op[:2], child, op[3]]
            return op
        kind = self.rng.choices(STEPS, self.step_weights)[0]
        slot = self.generator_slot()
        if kind == "generator":
            child = self.child(body, True)
            return ["generator_state", slot] if child is None else [kind, slot, child]
        if kind in ("next", "close"):
            return [kind, slot, self.catch()]
        if kind == "send":
            return [kind, slot, self.fresh(), self.catch()]
        if kind == "throw_in":
            return [kind, slot, self.error(), self.catch()]
        if kind == "copy_generator":
            return [kind, slot, self.generator_slot()]
        return [kind, slot]

    def finally_(self, body, depth):
        ops = self.ops(body, depth + 1, 0, 4)
        self.last_depth += 1
        last = self.ops(body, depth + 1, 0, 3)
        self.last_depth -= 1
        return ["finally", ops, last]

    def program(self):
        greenlets = [["new", slot, self.child(0, False), None] for slot in range(min(self.slots, self.rng.randint(1, 3)))]
        generators = [["generator", slot, self.child(0, True)] for slot in range(self.generator_slots)]
        main = greenlets + generators + self.ops(0, 0, 6, 24)
        return {"bodies": [main] + [self.ops(body, 0, 2, 10) for body in range(1, self.bodies)]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--count", type=int, default=100)
    args = parser.parse_args()
    for index in range(args.count):
        program = Generator(random.Random(f"{args.seed}/generators/{index}")).program()
        print(json.dumps({"name": f"generators-{args.seed}-{index}", **program}, separators=(",", ":")))


if __name__ == "__main__":
    main()
