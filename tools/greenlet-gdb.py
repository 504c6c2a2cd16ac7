"""Greenlets in gdb: in a process that is stopped, and in a core file.

    $ gdb -iex 'set auto-load safe-path /' -p PID    (the program contains this script)
    $ gdb -p PID -x tools/greenlet-gdb.py            (or: gdb PROGRAM core -x ...)
    (gdb) greenlets                 lists the greenlets of all threads
    (gdb) greenlet-bt               prints the backtraces of all that are suspended
    (gdb) greenlet-bt 2.5           prints that of greenlet 5 of gdb's thread 2
    (gdb) greenlet-select 2.5       makes it what `bt`, `up` and `info locals` see, from frame 1 on
    (gdb) greenlet-select none      back to the thread itself

It needs the program's debug information (`debug = true` in the profile), and x86_64. It runs nothing in
the program, and writes nothing to it. So it works on a core file, and in any state of the program.

How it works. The threads that have greenlets are in `greenlet_core::thread::inbox::REGISTRY`, each with a
pointer into its state, which has a list of all nodes. The saved context of a suspended node has the address on its stack
where its registers are (see `greenlet-core/src/backend`). gdb asks an unwinder about the innermost frame of the
thread. The unwinder answers with these registers, so gdb takes the greenlet for the caller of that frame.
"""

import gdb
import gdb.unwinder

# The bits of `node::status::Status`.
STATE, ACTIVE, MAIN = 0b11, 1, 1 << 7
STATES = ["pending", "active", "dead"]
# The first frames of a greenlet are the library's own.
OWN_FRAMES = ["greenlet_core::switch::first_frame::"]
# No greenlet's backtrace is longer. A longer one follows wrong frame pointers.
MOST_FRAMES = 256


# ---- reading Rust's structures ---------------------------------------------------------------------


def word(address):
    """The machine word at an address."""
    pointer = gdb.lookup_type("unsigned long").pointer()
    return int(gdb.Value(address).cast(pointer).dereference())


def text(address, length):
    return gdb.selected_inferior().read_memory(address, length).tobytes().decode("utf-8", "replace")


def first_pointer(value):
    """The first thin pointer inside nested structs: that of a `Vec`, a `Weak`, a `NonNull`."""
    kind = value.type.strip_typedefs()
    if kind.code == gdb.TYPE_CODE_PTR:
        return value
    if kind.code == gdb.TYPE_CODE_STRUCT:
        for field in kind.fields():
            if not field.is_base_class and field.name is not None:
                found = first_pointer(value[field])
                if found is not None:
                    return found
    return None


def inside(value, part):
    """The first field of nested structs (`Mutex`, `UnsafeCell`, `RefCell` ...) whose type is as named."""
    kind = value.type.strip_typedefs()
    if kind.code != gdb.TYPE_CODE_STRUCT:
        return None
    if str(kind.name).startswith(part):
        return value
    for field in kind.fields():
        if field.name is not None:
            found = inside(value[field], part)
            if found is not None:
                return found
    return None


def elements(vector):
    """The elements of a `Vec<T>`."""
    length = int(vector["len"])
    if length == 0:
        return
    element = vector.type.strip_typedefs().template_argument(0)
    start = first_pointer(vector["buf"]).cast(element.pointer())
    for index in range(length):
        yield (start + index).dereference()


def location(address, kind):
    """The text of a `&'static Location`, given the reference's address and type. `None` if it is null."""
    at = word(address)
    if at == 0:
        return None
    value = gdb.Value(at).cast(kind).dereference()
    names = [field.name for field in value.type.strip_typedefs().fields()]
    file = value["filename" if "filename" in names else "file"]
    # A reference to `str`, perhaps in a `NonNull`, is an address and a length.
    start, length = word(int(file.address)), word(int(file.address) + 8)
    file = text(start, length)
    return "%s:%d" % (file[:-1] if file.endswith("\0") else file, int(value["line"]))


# ---- threads and greenlets -------------------------------------------------------------------------


class Greenlet:
    """One greenlet, read out of its node."""

    def __init__(self, thread, node, current):
        self.thread = thread
        self.node = int(node.address)
        self.id = word(int(node["id"].address))
        status = word(int(node["status"].address))
        self.is_main = bool(status & MAIN)
        name = word(int(node["extras"]["name"].address))
        self.name = text(word(name), word(name + 8)) if name else None
        self.state = STATES[status & STATE]
        context, hidden = (int(node[field].address) for field in ("context", "hidden_sp"))
        # The resume point of the running greenlet has no meaning.
        self.resume = 0 if self.node == current else word(context) or word(hidden)
        self.code = word(context + 8)
        self.is_awaiting = not word(context) and bool(self.resume)
        place = first_pointer(node["created_at"]).type
        self.suspended_at = location(context + 16, place)
        self.created_at = location(int(node["created_at"].address), place)

    @property
    def label(self):
        return "%d.%d" % (self.thread.num, self.id)

    def condition(self):
        if self.state != "active":
            return self.state
        if not self.resume:
            return "current"
        place = " at " + self.suspended_at if self.suspended_at else ""
        return ("awaiting" if self.is_awaiting else "suspended") + place

    def registers(self):
        """The registers with which the greenlet resumes: see the pictures in the backends."""
        at = self.resume
        if self.code:  # the backend `asm`
            return {"rip": self.code, "rbx": word(at), "rbp": word(at + 8), "rsp": at + 16}
        return {  # the backend `fcontext`
            "r12": word(at + 8),
            "r13": word(at + 16),
            "r14": word(at + 24),
            "r15": word(at + 32),
            "rbx": word(at + 40),
            "rbp": word(at + 48),
            "rip": word(at + 56),
            "rsp": at + 64,
        }


def greenlets():
    """All greenlets of all threads."""
    register = gdb.lookup_static_symbol("greenlet_core::thread::inbox::REGISTRY")
    if register is None:
        symbol = gdb.lookup_global_symbol("greenlet_core::thread::inbox::REGISTRY")
        if symbol is None:
            raise gdb.GdbError(
                "no greenlets: the program does not use the `greenlet` crate, or has no debug information"
            )
        register = symbol
    state_type = gdb.lookup_type("greenlet_core::thread::ThreadState")
    offset = next(field.bitpos // 8 for field in state_type.fields() if field.name == "flags")
    threads = {thread.ptid[1] or thread.ptid[2]: thread for thread in gdb.selected_inferior().threads()}
    found = []
    for entry in elements(inside(register.value(), "alloc::vec::Vec<")):
        # `Option<u64>`: whether there is one, then the number.
        os_id = word(int(entry["thread"]["os"].address) + 8)
        thread = threads.get(os_id)
        if thread is None:
            continue  # of another process, before a fork
        state = gdb.Value(int(entry["flags"]) - offset).cast(state_type.pointer()).dereference()
        current = word(int(state["current"].address))
        found.extend(Greenlet(thread, node, current) for node in nodes(state))
    return sorted(found, key=lambda greenlet: (greenlet.thread.num, greenlet.id))


def nodes(state):
    """The nodes of a thread: those in the slots of its chunks that are active or referred to."""
    for chunk in elements(inside(state["pool"]["chunks"], "alloc::vec::Vec<")):
        slots = first_pointer(chunk).dereference()["value"]["nodes"]
        node_type = gdb.lookup_type("greenlet_core::node::Inner")
        first = int(slots["data_ptr"])
        for slot in range(int(slots["length"])):
            node = gdb.Value(first + slot * node_type.sizeof).cast(node_type.pointer()).dereference()
            is_active = word(int(node["status"].address)) & STATE == ACTIVE
            if is_active or word(int(node["counts"].address)) & 0xFFFFFFFF:
                yield node


def named(argument):
    """The greenlet that an argument names: `ID` in the selected thread, or `THREAD.ID`."""
    thread, _, number = argument.rpartition(".")
    thread = thread or str(gdb.selected_thread().num)
    for greenlet in greenlets():
        if greenlet.label == "%s.%s" % (thread, number):
            return greenlet
    raise gdb.GdbError("there is no greenlet %s; `greenlets` lists them" % argument)


# ---- stacks ----------------------------------------------------------------------------------------


class FrameId:
    """Identifies a frame for gdb."""

    def __init__(self, sp, pc):
        self.sp = gdb.Value(sp)
        self.pc = gdb.Value(pc)


def is_first_code(pc):
    """Whether an address is in the code that calls a greenlet's first function."""
    symbol = gdb.execute("info symbol %d" % pc, to_string=True).split(" ")[0]
    return symbol.startswith("greenlet_core_trampoline_") and not symbol.endswith("_segment")


class Unwinder(gdb.unwinder.Unwinder):
    """Presents the chosen greenlet as the caller of the thread's innermost frame.

    Its first frame has no caller then. The program's own description of that frame names the parent
    (`greenlet-core/src/backend/asm/mod.rs`). That is right for the running greenlet only: if the chosen
    one is below the running one, the running one's saved context has no meaning.
    """

    def __init__(self):
        super().__init__("greenlet")
        self.chosen = None
        self.was_asked = False

    def choose(self, greenlet):
        self.chosen = greenlet
        self.was_asked = False
        gdb.invalidate_cached_frames()

    def first_frame(self):
        """The innermost frame of the chosen greenlet."""
        frame = gdb.newest_frame().older()
        if not self.was_asked:
            # gdb has found the thread's own frames only.
            raise gdb.GdbError("this gdb does not ask unwinders; version 12 or later is needed")
        return frame

    def __call__(self, pending):
        if self.chosen is None:
            return None
        if gdb.selected_thread() is None or gdb.selected_thread().num != self.chosen.thread.num:
            return None
        if pending.level() != 0:
            return self.end(pending) if is_first_code(int(pending.read_register("rip"))) else None
        registers = self.chosen.registers()
        # gdb checks that this frame is deeper on the stack than its caller.
        frame_id = FrameId(registers["rsp"] - 8, int(pending.read_register("rip")))
        answer = pending.create_unwind_info(frame_id)
        for register, value in registers.items():
            answer.add_saved_register(register, gdb.Value(value).cast(pending.read_register(register).type))
        self.was_asked = True
        return answer

    @staticmethod
    def end(pending):
        """Says that a frame has no caller."""
        pc = pending.read_register("rip")
        answer = pending.create_unwind_info(FrameId(int(pending.read_register("rsp")), int(pc)))
        answer.add_saved_register("rip", gdb.Value(0).cast(pc.type))
        return answer


UNWINDER = Unwinder()
gdb.unwinder.register_unwinder(None, UNWINDER, replace=True)


def require_x86_64():
    architecture = gdb.selected_frame().architecture().name()
    if "x86-64" not in architecture:
        raise gdb.GdbError("backtraces of greenlets are known for x86_64 only, not for %s" % architecture)


def print_backtrace(greenlet):
    """Prints the frames of a suspended greenlet, without those of the library."""
    thread, frame = gdb.selected_thread(), None
    greenlet.thread.switch()
    require_x86_64()
    UNWINDER.choose(greenlet)
    try:
        frame = UNWINDER.first_frame()
        for number in range(MOST_FRAMES):
            if frame is None or not frame.is_valid():
                break
            name = frame.name()
            if name is None or any(own in name for own in OWN_FRAMES):
                break
            place = frame.find_sal()
            where = " at %s:%d" % (place.symtab.filename, place.line) if place.symtab else ""
            if not name.startswith(("greenlet_core::", "context::context::Context::")):
                print("  #%-3d %s%s" % (number + 1, name, where))
            frame = frame.older()
    finally:
        UNWINDER.choose(None)
        thread.switch()


# ---- commands --------------------------------------------------------------------------------------


class Greenlets(gdb.Command):
    """Lists the greenlets of all threads."""

    def __init__(self):
        super().__init__("greenlets", gdb.COMMAND_STACK)

    def invoke(self, argument, from_tty):
        for greenlet in greenlets():
            created = "" if greenlet.is_main else "  created at %s" % greenlet.created_at
            print("%-6s %-16s %s%s" % (greenlet.label, greenlet.name or "-", greenlet.condition(), created))


class GreenletBacktrace(gdb.Command):
    """Prints the backtrace of a suspended greenlet (THREAD.ID), or of all."""

    def __init__(self):
        super().__init__("greenlet-bt", gdb.COMMAND_STACK)

    def invoke(self, argument, from_tty):
        for greenlet in [named(argument)] if argument else greenlets():
            if greenlet.state == "active" and greenlet.resume:
                print("%s %s, %s" % (greenlet.label, greenlet.name or "-", greenlet.condition()))
                print_backtrace(greenlet)
            elif argument:
                raise gdb.GdbError("greenlet %s is %s: it has no suspended stack" % (argument, greenlet.condition()))


class GreenletSelect(gdb.Command):
    """Makes a suspended greenlet (THREAD.ID) what `bt` shows, from frame 1 on; `none` ends that."""

    def __init__(self):
        super().__init__("greenlet-select", gdb.COMMAND_STACK)

    def invoke(self, argument, from_tty):
        if argument == "none":
            UNWINDER.choose(None)
            return
        greenlet = named(argument)
        if greenlet.state != "active" or not greenlet.resume:
            raise gdb.GdbError("greenlet %s is %s: it has no suspended stack" % (argument, greenlet.condition()))
        greenlet.thread.switch()
        require_x86_64()
        UNWINDER.choose(greenlet)
        UNWINDER.first_frame()


Greenlets()
GreenletBacktrace()
GreenletSelect()
