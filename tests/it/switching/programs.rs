//! Switching programs do the same here as on Python's greenlet. The corpus was recorded there
//! (`tests/oracle`); `.ci/oracle` runs new random programs on both.

#[path = "../../oracle/machine.rs"]
mod machine;
#[path = "../../oracle/program.rs"]
mod program;

const CORPUS: &str = include_str!("../../oracle/corpus.jsonl");
const LOGS: &str = include_str!("../../oracle/corpus.log");

/// Runs a program, and returns its log.
pub(crate) fn run(program: &str) -> Vec<String> {
    machine::run(program).expect("the program is well formed")
}

#[test]
fn the_recorded_programs_have_the_logs_of_python() {
    let mut logs = LOGS.split_terminator("\n--\n");
    let mut programs = 0;
    for line in CORPUS.lines() {
        let recorded: Vec<&str> = logs.next().expect("every program has a log").lines().collect();
        let log = run(line);
        assert_eq!(log, recorded, "of program {}: {line}", programs + 1);
        programs += 1;
    }
    assert_eq!(logs.next(), None);
    assert!(programs > 1_000, "{programs}");
}

#[test]
fn finally_can_be_nested_to_its_limit() {
    let nested = |depth| {
        let body = (0..depth).fold("[\"who\"]".to_owned(), |inner, _| {
            format!("[\"finally\",[{inner}],[]]")
        });
        format!("{{\"name\":\"deep\",\"bodies\":[[[\"new\",0,1,null],[\"switch\",0,1,\"none\"]],[{body}]]}}")
    };
    let log = run(&nested(500));
    assert_eq!(log.iter().filter(|line| *line == "g1 finally").count(), 500);
    let error = machine::run(&nested(501)).unwrap_err().to_string();
    assert!(error.ends_with("`finally` is nested deeper than 500"), "{error}");
}

/// The error names each mistake and its place.
#[test]
fn malformed_programs_are_refused() {
    let mistakes = [
        ("", "not JSON: EOF while parsing a value at column 0"),
        (
            "{\"bodies\":[[]]",
            "not JSON: EOF while parsing an object at column 14",
        ),
        ("[]", "a program is an object with the fields `name` and `bodies`"),
        ("{\"name\":\"x\"}", "the field `bodies` is missing"),
        (
            "{\"name\":1,\"bodies\":[[]]}",
            "`name` is to be a string, not `1`",
        ),
        (
            "{\"bodies\":{}}",
            "`bodies` is to be a list of lists of ops, not `{}`",
        ),
        ("{\"bodies\":[]}", "`bodies` is empty; body 0 is what main runs"),
        (
            "{\"bodies\":[[],3]}",
            "body 1, a list of ops is expected, not `3`",
        ),
        (
            "{\"bodies\":[[[\"who\"],[]]]}",
            "body 0, op 1: an op is a list that begins with its name, not `[]`",
        ),
        (
            "{\"bodies\":[[[1]]]}",
            "body 0, op 0: an op is a list that begins with its name, not `[1]`",
        ),
        (
            "{\"bodies\":[[[\"jump\",1]]]}",
            "body 0, op 0: there is no op `jump`",
        ),
        (
            "{\"bodies\":[[[\"who\",1]]]}",
            "body 0, op 0: `who` takes 0 operands, and 1 are given",
        ),
        (
            "{\"bodies\":[[[\"switch\",0,1]]]}",
            "body 0, op 0: `switch` takes 3 operands, and 2 are given",
        ),
        (
            "{\"bodies\":[[[\"switch\",10,1,\"none\"]]]}",
            "body 0, op 0: a place is a slot from 0 to 9, \"main\", \"current\" or \"parent\", not `10`",
        ),
        (
            "{\"bodies\":[[[\"switch\",\"child\",1,\"none\"]]]}",
            "body 0, op 0: a place is a slot from 0 to 9, \"main\", \"current\" or \"parent\", not `\"child\"`",
        ),
        (
            "{\"bodies\":[[[\"switch\",0,1.5,\"none\"]]]}",
            "body 0, op 0: an integer is expected, not `1.5`",
        ),
        (
            "{\"bodies\":[[[\"switch\",0,1,\"some\"]]]}",
            "body 0, op 0: what is caught is \"none\", \"errors\" or \"all\", not `\"some\"`",
        ),
        (
            "{\"bodies\":[[[\"throw\",0,\"GreenletError\",\"none\"]]]}",
            "body 0, op 0: an error is \"E1\", \"E2\" or \"Exit\", not `\"GreenletError\"`",
        ),
        (
            "{\"bodies\":[[[\"raise\",\"E3\"]]]}",
            "body 0, op 0: an error is \"E1\", \"E2\" or \"Exit\", not `\"E3\"`",
        ),
        (
            "{\"bodies\":[[[\"drop\",-1]]]}",
            "body 0, op 0: a slot is a number from 0 to 9, not `-1`",
        ),
        (
            "{\"bodies\":[[[\"copy\",0,true]]]}",
            "body 0, op 0: a slot is a number from 0 to 9, not `true`",
        ),
        (
            "{\"bodies\":[[[\"new\",0,1,null]]]}",
            "body 0, op 0: a body is a number from 0 to 0, not `1`",
        ),
        (
            "{\"bodies\":[[[\"return\",\"1\"]]]}",
            "body 0, op 0: an integer is expected, not `\"1\"`",
        ),
        (
            "{\"bodies\":[[[\"trace\",1]]]}",
            "body 0, op 0: `trace` takes true or false, not `1`",
        ),
        (
            "{\"bodies\":[[[\"finally\",[[\"who\"],[\"drop\",99]],[]]]]}",
            "body 0, op 0: op 1: a slot is a number from 0 to 9, not `99`",
        ),
        (
            "{\"bodies\":[[[\"finally\",[],1]]]}",
            "body 0, op 0: a list of ops is expected, not `1`",
        ),
        (
            "{\"bodies\":[[[\"generator\",4,0]]]}",
            "body 0, op 0: a slot is a number from 0 to 3, not `4`",
        ),
        (
            "{\"bodies\":[[[\"generator\",0,1]]]}",
            "body 0, op 0: a body is a number from 0 to 0, not `1`",
        ),
        (
            "{\"bodies\":[[[\"next\",0]]]}",
            "body 0, op 0: `next` takes 2 operands, and 1 are given",
        ),
        (
            "{\"bodies\":[[[\"send\",0,null,\"none\"]]]}",
            "body 0, op 0: an integer is expected, not `null`",
        ),
        (
            "{\"bodies\":[[[\"throw_in\",0,\"Busy\",\"none\"]]]}",
            "body 0, op 0: an error is \"E1\", \"E2\" or \"Exit\", not `\"Busy\"`",
        ),
        (
            "{\"bodies\":[[[\"yield\",1,true]]]}",
            "body 0, op 0: what is caught is \"none\", \"errors\" or \"all\", not `true`",
        ),
        (
            "{\"bodies\":[[[\"copy_generator\",\"main\",0]]]}",
            "body 0, op 0: a slot is a number from 0 to 3, not `\"main\"`",
        ),
    ];
    for (line, wanted) in mistakes {
        assert_eq!(machine::run(line).unwrap_err().to_string(), wanted, "{line}");
    }
}

// DE-8: the same in the language of `tests/oracle`. No op of an unwound greenlet runs, not even in
// `finally`, and the greenlet is dead. (On Python it stays active for good.)
#[test]
fn in_a_switching_program_no_op_runs_during_the_unwinding() {
    let log = run(r#"{"name":"undead","bodies":[
        [["new",0,1,null],["new",1,2,0],["switch",0,1,"none"],["drop",0],["state",1],["drop",1],["who"]],
        [["finally",[["switch","main",2,"all"],["switch","main",3,"all"]],[["who"]]]],
        []]}"#);
    assert_eq!(
        log,
        [
            "main new 0 -> g1",
            "main new 1 -> g2",
            "g1 start 1",
            "main switch 0 1 -> 2",
            "main drop 0",
            "main dropped 0", // g2 is a child of g1, so it keeps g1
            "main state 1 -> pending parent g1",
            "main drop 1",
            "g1 switch main 2 -> error Exit",
            "main dropped 1",
            "main who -> main parent none",
            "main end",
        ]
    );
}

// PA-14: clean-up that puts the old parent below the ending greenlet makes no cycle: the old parent
// is not restored then. (Python restores it, and the next search for an ancestor loops for ever.)
#[test]
fn in_a_switching_program_an_end_makes_no_cycle_of_parents() {
    let log = run(r#"{"name":"cycle","bodies":[
        [["new",0,1,null],["new",1,2,0],["switch",1,1,"none"],["drop",1],["state",0],["switch",0,5,"none"]],
        [["who"],["state","parent"]],
        [["finally",[["switch","main",2,"none"]],[["set_parent",0,"current"]]]]]}"#);
    assert_eq!(
        log,
        [
            "main new 0 -> g1",
            "main new 1 -> g2",
            "g2 start 1",
            "main switch 1 1 -> 2",
            "main drop 1",
            "g2 switch main 2 -> error Exit",
            "g2 finally",
            "g2 set_parent 0 current -> ok",
            "g2 end error Exit",
            "main dropped 1",
            "main state 0 -> pending parent g2",
            "g1 start 5",
            "g1 who -> g1 parent g2",
            "g1 state parent -> dead parent main",
            "g1 end 0",
            "main switch 0 5 -> 0",
            "main end",
            "main drop 0",
            "main dropped 0",
        ]
    );
}
