//! Runs switching programs: reads one JSON object a line from standard input, writes event logs to
//! standard output.
//!
//! `OPS.md` beside this file describes the language. `oracle.py` runs the same programs on Python's
//! greenlet, and `.ci/oracle` compares the logs.
//!
//! ```text
//! $ echo '{"name":"hello","bodies":[[["new",0,1,null],["switch",0,7,"none"]],[["return",8]]]}' |
//!       cargo run --example switching_programs
//! main new 0 -> g1
//! g1 start 7
//! g1 end 8
//! main switch 0 7 -> 8
//! main end
//! main drop 0
//! main dropped 0
//! --
//! ```
//!
//! A malformed program ends the run with status 2 and a message on standard error, with the number
//! of its line. No op of it runs. Errors of a greenlet whose last handle was dropped are not
//! printed.

#![forbid(unsafe_code)]

use std::io::{self, BufRead, Write};
use std::process::ExitCode;

mod machine;
mod program;

fn main() -> io::Result<ExitCode> {
    greenlet::set_unraisable_hook(|_| {});
    let mut input = io::stdin().lock();
    let mut output = io::stdout().lock();
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let log = match std::str::from_utf8(&line) {
            Ok(text) if text.trim().is_empty() => continue,
            Ok(text) => machine::run(text.trim()).map_err(|error| error.to_string()),
            Err(_) => Err("not UTF-8".to_owned()),
        };
        match log {
            Ok(log) => writeln!(output, "{}\n--", log.join("\n"))?,
            Err(what) => {
                output.flush()?;
                eprintln!("malformed program: line {number}: {what}");
                return Ok(ExitCode::from(2));
            }
        }
    }
    output.flush()?;
    Ok(ExitCode::SUCCESS)
}
