//! Compares speeds in one run: variants take turns, and the medians are compared.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::Future;

/// Times each variant so many times, and prints its median beside that of the first.
pub async fn compare(rounds: usize, variants: &[(&str, &dyn Fn() -> Future)]) -> Result<()> {
    let mut times = vec![Vec::new(); variants.len()];
    for round in 0..=rounds {
        for ((_, variant), times) in variants.iter().zip(&mut times) {
            let (start, cpu) = (Instant::now(), cpu_time()?);
            variant().await?;
            // The first round fills pools and caches.
            if round > 0 {
                times.push((start.elapsed(), cpu_time()?.saturating_sub(cpu)));
            }
        }
    }
    let medians: Vec<(Duration, Duration)> = times.iter().map(|times| medians(times)).collect();
    let (first, first_cpu) = medians[0];
    for ((name, _), (wall, cpu)) in variants.iter().zip(&medians) {
        let ratio = wall.as_secs_f64() / first.as_secs_f64();
        let cpu_ratio = cpu.as_secs_f64() / first_cpu.as_secs_f64();
        println!("{name:24} {wall:9.1?} ({ratio:.2}), of the processor {cpu:9.1?} ({cpu_ratio:.2})");
    }
    Ok(())
}

fn medians(times: &[(Duration, Duration)]) -> (Duration, Duration) {
    let median = |mut column: Vec<Duration>| {
        column.sort();
        column[column.len() / 2]
    };
    (
        median(times.iter().map(|time| time.0).collect()),
        median(times.iter().map(|time| time.1).collect()),
    )
}

/// Returns the processor time of all threads of this process.
fn cpu_time() -> Result<Duration> {
    let mut total = Duration::ZERO;
    for thread in std::fs::read_dir("/proc/self/task")? {
        // A thread may have ended meanwhile. The blocking pools of the comparisons keep theirs.
        let Ok(line) = std::fs::read_to_string(thread?.path().join("schedstat")) else {
            continue;
        };
        total += Duration::from_nanos(line.split_whitespace().next().unwrap_or("0").parse()?);
    }
    Ok(total)
}
