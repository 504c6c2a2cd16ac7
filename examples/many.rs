//! Measures how many greenlets can be alive at once, and the cost of each.
//!
//! ```console
//! $ cargo run --release --example many -- 1000000
//! $ cargo run --release --example many -- 1000000 524288
//! ```
//!
//! The program creates that many greenlets, each suspended inside its function on its own guarded
//! stack, of 64 KiB or of the given bytes. It switches into each once more, and then ends them all. It prints its progress to
//! standard error, and one line of JSON to standard output: nanoseconds and bytes for each
//! greenlet, and the number of mappings of the process while all are alive. A larger stack takes
//! more of the kernel's page tables, but no other memory until it is touched.
//!
//! The exit status is 0 if all could be created, and 2 if the system gave no more stacks. The JSON
//! line then describes the greenlets that were created, and has the error. With
//! `GREENLET_GUARD=mprotect` in the environment this happens at about 32,000, half of
//! `vm.max_map_count`.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use greenlet::{Greenlet, GreenletExit, StackError, getparent};

/// A stack size that is enough for the function of the greenlets, and for a panic.
const SMALL_STACK: usize = 64 << 10;

fn main() -> Result<ExitCode> {
    let wanted: usize = match std::env::args().nth(1) {
        Some(count) => count
            .parse()
            .context("the argument is how many greenlets to make")?,
        None => 100_000,
    };
    ensure!(wanted > 0, "one greenlet at least");
    let stack_size: usize = match std::env::args().nth(2) {
        Some(bytes) => bytes
            .parse()
            .context("the second argument is the size of each stack")?,
        None => SMALL_STACK,
    };

    let before = Memory::now();
    let mut greenlets = Vec::with_capacity(wanted);
    let mut refusal = None;
    let clock = Instant::now();
    while greenlets.len() < wanted {
        let greenlet = Greenlet::builder().stack_size(stack_size).build(body);
        match greenlet.switch::<usize>(greenlets.len()) {
            Ok(answer) => ensure!(answer == greenlets.len(), "a greenlet answered for another"),
            Err(error) => {
                refusal = Some(error.downcast::<StackError>()?);
                break;
            }
        }
        greenlets.push(greenlet);
        if greenlets.len() % 100_000 == 0 {
            eprintln!("{} greenlets are suspended", greenlets.len());
        }
    }
    let create = clock.elapsed();
    let count = greenlets.len();
    if let Some(error) = &refusal {
        eprintln!("no more than {count} greenlets: {error}");
    }
    let after = Memory::now();

    eprintln!("switching into each of the {count} once more");
    let clock = Instant::now();
    for (number, greenlet) in greenlets.iter().enumerate() {
        let answer: usize = greenlet.switch(())?;
        ensure!(answer == number * 2, "a greenlet answered for another");
    }
    let switch = clock.elapsed();

    eprintln!("ending all {count}");
    let clock = Instant::now();
    for greenlet in &greenlets {
        let _: GreenletExit = greenlet.throw(GreenletExit::new())?;
    }
    let exit = clock.elapsed();
    ensure!(greenlets.iter().all(Greenlet::is_dead), "a greenlet is left");

    let each = |total: u128| total / count.max(1) as u128;
    let mut line = format!(
        r#"{{"greenlets":{count},"create_ns":{},"switch_ns":{},"exit_ns":{},"rss_bytes_each":{},"page_table_bytes_each":{},"mappings":{}"#,
        each(create.as_nanos()),
        each(switch.as_nanos()),
        each(exit.as_nanos()),
        each(after.resident.saturating_sub(before.resident).into()),
        each(after.page_tables.saturating_sub(before.page_tables).into()),
        after.mappings,
    );
    if let Some(error) = &refusal {
        line += &format!(r#","error":{:?}"#, error.to_string()); // no character that JSON writes otherwise
    }
    println!("{line}}}");
    Ok(ExitCode::from(if refusal.is_some() { 2 } else { 0 }))
}

/// The function of each greenlet: it is suspended twice, and then ended.
fn body(number: usize) -> Result<()> {
    let main = getparent().context("a greenlet that was made has a parent")?;
    main.switch::<()>(number)?;
    main.switch::<()>(number * 2)
}

/// The resources of the process, from Linux; nothing on other systems.
struct Memory {
    resident: u64,
    page_tables: u64,
    mappings: usize,
}

impl Memory {
    fn now() -> Memory {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let bytes = |field: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
            kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) << 10
        };
        // Do not read the file as a whole: at the limit of mappings there may be no memory for it.
        let maps = File::open("/proc/self/maps").map(BufReader::new);
        Memory {
            resident: bytes("VmRSS:"),
            page_tables: bytes("VmPTE:"),
            mappings: maps.map_or(0, |maps| maps.split(b'\n').count()),
        }
    }
}
