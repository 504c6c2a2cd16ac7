//! What the bridge costs, beside native async code, in the same run and on the same runtime.
//!
//! ```text
//! cargo bench --bench bridge
//! DATABASE_URL=postgres://user@host/db cargo bench --bench bridge --features postgres    # with the repaint loop
//! ```
//!
//! Each pair is measured in turns, so that both see the same machine; medians of the rounds are
//! printed. Not in criterion, because it does not take turns.

use std::future::Future;
use std::hint::black_box;
use std::io::Write;
use std::pin::Pin;
use std::time::{Duration, Instant};

use futures::future::join_all;
use greenlet::{Spawn, SpawnBuilder, await_, greenlet_spawn};
use tokio::task::{LocalSet, spawn_local, yield_now};

type Boxed<T> = Pin<Box<dyn Future<Output = T>>>;

/// Short rounds, and many: a median that bears other work on the machine.
const ROUNDS: usize = 201;

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// A line of the table: nanoseconds each, native and bridge, in turns.
async fn pair<A, B>(name: &str, each: usize, native: impl Fn() -> A, bridge: impl Fn() -> B) -> (f64, f64)
where
    A: Future,
    B: Future,
{
    let (mut natives, mut bridges) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let start = Instant::now();
        black_box(native().await);
        natives.push(nanos(start.elapsed(), each));
        let start = Instant::now();
        black_box(bridge().await);
        bridges.push(nanos(start.elapsed(), each));
    }
    let (native, bridge) = (median(natives), median(bridges));
    println!("{name:44} {native:12.1} {bridge:12.1} {:+12.1}", bridge - native);
    (native, bridge)
}

fn nanos(time: Duration, each: usize) -> f64 {
    time.as_nanos() as f64 / each as f64
}

/// A future that is ready, and that the compiler does not see through.
fn number(n: u64) -> impl Future<Output = u64> {
    std::future::poll_fn(move |_| std::task::Poll::Ready(black_box(n)))
}

fn boxed_native(awaits: u64) -> Boxed<u64> {
    Box::pin(async move {
        let mut sum = 0;
        for n in 0..awaits {
            sum += number(n).await;
        }
        sum
    })
}

fn bridged(awaits: u64) -> u64 {
    (0..awaits).map(|n| await_(number(n))).sum()
}

fn spawn_in_place<T: 'static>(function: impl FnOnce() -> T + 'static) -> Spawn<T> {
    SpawnBuilder::new().poll_in_place(true).spawn(function)
}

async fn costs() {
    const N: usize = 2_000;
    let n = N as u64;
    pair(
        "an await of what is ready",
        N,
        || boxed_native(n),
        || greenlet_spawn(move || bridged(n)),
    )
    .await;
    pair(
        "the same, polled in place",
        N,
        || boxed_native(n),
        || spawn_in_place(move || bridged(n)),
    )
    .await;
    pair(
        "an await that yields",
        N,
        || async {
            for _ in 0..N {
                yield_now().await;
            }
        },
        || greenlet_spawn(|| (0..N).for_each(|_| await_(yield_now()))),
    )
    .await;
    pair(
        "a call with 1 await that yields",
        N,
        || async {
            for _ in 0..N {
                let call: Boxed<()> = Box::pin(async { yield_now().await });
                black_box(call).await;
            }
        },
        || async {
            for _ in 0..N {
                greenlet_spawn(|| await_(yield_now())).await;
            }
        },
    )
    .await;
    for awaits in [0, 1, 100] {
        let calls = N / (awaits as usize + 1);
        pair(
            &format!("a call with {awaits} awaits of what is ready"),
            calls,
            || async move {
                for _ in 0..calls {
                    black_box(boxed_native(black_box(awaits)).await);
                }
            },
            || async move {
                for _ in 0..calls {
                    black_box(greenlet_spawn(move || bridged(black_box(awaits))).await);
                }
            },
        )
        .await;
    }
}

/// A future of a little more than `N` bytes, which it fills, and which is ready.
async fn large<const N: usize>() -> u64 {
    let mut buffer = [0_u8; N];
    black_box(&mut buffer);
    number(1).await + u64::from(black_box(&buffer)[N - 1])
}

async fn large_futures<const N: usize>() {
    const COUNT: usize = 200;
    pair(
        &format!("an await of a future of {} KiB", N >> 10),
        COUNT,
        || async {
            for _ in 0..COUNT {
                black_box(large::<N>().await);
            }
        },
        || {
            greenlet_spawn(|| {
                for _ in 0..COUNT {
                    black_box(await_(large::<N>()));
                }
            })
        },
    )
    .await;
}

async fn calls_in_place() {
    const N: usize = 2_000;
    pair(
        "a call with 1 await of it, in place",
        N,
        || async {
            for _ in 0..N {
                black_box(boxed_native(black_box(1)).await);
            }
        },
        || async {
            for _ in 0..N {
                black_box(spawn_in_place(|| bridged(black_box(1))).await);
            }
        },
    )
    .await;
}

const TASKS: usize = 1_000;

/// A thousand tasks at once, each of which awaits so often what `future` makes, by hand, on the
/// bridge, and on threads of their own.
async fn tasks<F>(name: &str, awaits: usize, in_place: bool, future: fn() -> F)
where
    F: Future + Send + 'static,
{
    let (_, bridge) = pair(
        &format!("a task of 1,000 at once, {name}"),
        TASKS,
        || {
            join_all((0..TASKS).map(|_| {
                spawn_local(async move {
                    for _ in 0..awaits {
                        future().await;
                    }
                })
            }))
        },
        || {
            let task = move || (0..awaits).for_each(|_| drop(await_(future())));
            let spawn = move || SpawnBuilder::new().poll_in_place(in_place).spawn(task);
            join_all((0..TASKS).map(|_| spawn_local(spawn())))
        },
    )
    .await;
    let mut blocking = Vec::new();
    for _ in 0..11 {
        let start = Instant::now();
        let handle = tokio::runtime::Handle::current();
        join_all((0..TASKS).map(|_| {
            let handle = handle.clone();
            tokio::task::spawn_blocking(move || {
                for _ in 0..awaits {
                    handle.block_on(future());
                }
            })
        }))
        .await;
        blocking.push(nanos(start.elapsed(), TASKS));
    }
    let blocking = median(blocking);
    println!(
        "{:44} {blocking:12.1}              {:11.1}x",
        "  the same by spawn_blocking and block_on",
        blocking / bridge
    );
}

fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: usize = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .unwrap_or(0);
    pages * 4096
}

async fn memory() {
    const MANY: usize = 20_000;
    let before = resident();
    let mut suspended = Vec::with_capacity(MANY);
    for _ in 0..MANY {
        let mut spawned = Box::pin(greenlet_spawn(|| await_(std::future::pending::<()>())));
        assert!(futures::poll!(&mut spawned).is_pending());
        suspended.push(spawned);
    }
    let each = (resident() - before) / MANY;
    println!("resident memory of a suspended function: {each} bytes");
}

/// The repaint loop: a row is written and read back, a hundred times.
#[cfg(feature = "postgres")]
mod repaint {
    use sqlx::{Connection, PgConnection, Row};

    use super::*;

    const ROWS: usize = 100;

    async fn write_and_read(conn: &mut PgConnection, data: &str) -> String {
        let insert = sqlx::query("insert into bench_bridge(data) values ($1) returning id").bind(data);
        let id: i64 = insert.fetch_one(&mut *conn).await.unwrap().get("id");
        let select = sqlx::query("select data from bench_bridge where id = ($1)").bind(id);
        select.fetch_one(&mut *conn).await.unwrap().get("data")
    }

    fn write_and_read_repainted(conn: &mut PgConnection, data: &str) -> String {
        let insert = sqlx::query("insert into bench_bridge(data) values ($1) returning id").bind(data);
        let id: i64 = await_(insert.fetch_one(&mut *conn)).unwrap().get("id");
        let select = sqlx::query("select data from bench_bridge where id = ($1)").bind(id);
        await_(select.fetch_one(&mut *conn)).unwrap().get("data")
    }

    pub(super) async fn run(url: &str) {
        let mut conn = PgConnection::connect(url).await.unwrap();
        let table = "create temporary table bench_bridge (id bigserial primary key, data text not null)";
        sqlx::query(table).execute(&mut conn).await.unwrap();
        let (mut natives, mut bridges) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let start = Instant::now();
            for _ in 0..ROWS {
                black_box(write_and_read(&mut conn, "data").await);
            }
            natives.push(nanos(start.elapsed(), ROWS));
            let start = Instant::now();
            for _ in 0..ROWS {
                conn = greenlet_spawn(move || {
                    black_box(write_and_read_repainted(&mut conn, "data"));
                    conn
                })
                .await;
            }
            bridges.push(nanos(start.elapsed(), ROWS));
        }
        let (native, bridge) = (median(natives), median(bridges));
        let percent = (bridge / native - 1.0) * 100.0;
        println!(
            "{:44} {native:12.1} {bridge:12.1} {percent:+11.1}%",
            "a row of the repaint loop, PostgreSQL"
        );
    }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    println!(
        "{:44} {:>12} {:>12} {:>12}",
        "nanoseconds", "native", "bridge", "difference"
    );
    runtime.block_on(LocalSet::new().run_until(async {
        costs().await;
        calls_in_place().await;
        large_futures::<{ 1 << 10 }>().await;
        large_futures::<{ 16 << 10 }>().await;
        large_futures::<{ 64 << 10 }>().await;
        tasks("1 ready", 1, false, || number(1)).await;
        tasks("1 ready, in place", 1, true, || number(1)).await;
        tasks("1 that yields", 1, false, yield_now).await;
        tasks("10 that yield", 10, false, yield_now).await;
        #[cfg(feature = "postgres")]
        match std::env::var("DATABASE_URL") {
            Ok(url) if url.starts_with("postgres") => repaint::run(&url).await,
            _ => println!("left out: the repaint loop wants a PostgreSQL DATABASE_URL"),
        }
        memory().await; // last: it leaves the allocator with much to tidy up
    }));
    std::io::stdout().flush().unwrap();
}
