//! minijinja and tera: functions of templates await, and the output streams into an axum body.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use axum::body::Body;
use futures::StreamExt;
use greenlet::{PinnedPool, greenlet_spawn};
use greenlet_recipes::backend::{self, LIMIT, ask};
use greenlet_recipes::proxy::{FAULTS, absent};
use greenlet_recipes::{checks, measured};
use minijinja::{Environment, context};
use tera::{Context, Kwargs, State, Tera};
use tokio::time::sleep;

use glue::{awaited, body};

#[path = "../../glue/templates.rs"]
mod glue;

const PAGE: &str = "{% for key in keys %}[{{ fetch(key) }}]{% endfor %} end";
const TERA_PAGE: &str = "{% for key in keys %}[{{ fetch(key=key) | safe }}]{% endfor %} end";

/// The functions that run at the moment.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

struct Running;

impl Running {
    fn new() -> Running {
        RUNNING.fetch_add(1, Ordering::Relaxed);
        Running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::Relaxed);
    }
}

fn environment(server: SocketAddr) -> Environment<'static> {
    let mut environment = Environment::new();
    environment
        .add_template("page", PAGE)
        .expect("the template is right");
    environment.add_function("fetch", move |key: String| {
        awaited(ask(server, key)).map_err(|error| {
            minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, "cannot fetch").with_source(error)
        })
    });
    environment
}

fn tera(server: SocketAddr) -> Tera {
    let mut tera = Tera::default();
    tera.register_function("fetch", move |arguments: Kwargs, _: &State<'_>| {
        let key: String = arguments.must_get("key")?;
        awaited(ask(server, key)).map_err(|error| tera::Error::chain("cannot fetch", error))
    });
    tera.add_raw_template("page", TERA_PAGE)
        .expect("the template is right");
    tera
}

fn pool() -> PinnedPool {
    PinnedPool::new(1.try_into().expect("one is not zero"))
}

/// Returns a page as a body.
fn page(pool: &PinnedPool, server: SocketAddr, keys: &[&str]) -> Body {
    let environment = environment(server);
    let keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
    body(pool, move |out| {
        let _running = Running::new();
        environment
            .get_template("page")?
            .render_captured_to(context!(keys), out)
            .map(drop)
    })
}

async fn text(body: Body) -> Result<String> {
    Ok(String::from_utf8(
        axum::body::to_bytes(body, usize::MAX).await?.to_vec(),
    )?)
}

async fn functions_of_templates_await() -> Result<()> {
    let server = backend::start().await?.address;
    let (environment, tera) = (Arc::new(environment(server)), Arc::new(tera(server)));
    let start = Instant::now();
    let pages = (0..20).map(|_| {
        let (environment, tera) = (environment.clone(), tera.clone());
        measured(move || {
            let keys = ["wait 20", "b"];
            let first = environment.get_template("page")?.render(context!(keys))?;
            let mut context = Context::new();
            context.insert("keys", &keys);
            let second = tera.render("page", &context)?;
            anyhow::Ok((first, second))
        })
    });
    for (minijinja, tera) in futures::future::try_join_all(pages).await? {
        ensure!(
            minijinja.replace("&lt;", "<").replace("&gt;", ">") == "[<wait 20>][<b>] end",
            "got {minijinja}"
        );
        ensure!(tera == "[<wait 20>][<b>] end", "got {tera}");
    }
    ensure!(
        start.elapsed() < Duration::from_millis(20 * 40),
        "the pages were rendered one after the other"
    );
    Ok(())
}

async fn the_body_streams_while_the_template_waits() -> Result<()> {
    let server = backend::start().await?.address;
    let long = "x".repeat(20_000);
    let mut stream = page(&pool(), server, &[&long, "wait 800"]).into_data_stream();
    let start = Instant::now();
    let first = stream.next().await.expect("the body has a beginning")?;
    ensure!(
        start.elapsed() < LIMIT * 2 / 3,
        "the first part came with the last"
    );
    ensure!(
        first.starts_with(b"[") && !first.ends_with(b"end"),
        "not the beginning"
    );
    let mut last = first;
    while let Some(part) = stream.next().await {
        last = part?;
    }
    ensure!(last.ends_with(b" end"), "the end is missing");
    Ok(())
}

async fn a_client_that_goes_away_ends_the_template() -> Result<()> {
    let server = backend::start().await?.address;
    let pool = pool();
    let bodies: Vec<Body> = (0..30)
        .map(|_| page(&pool, server, &["a", "wait 200", "wait 200"]))
        .collect();
    sleep(Duration::from_millis(50)).await;
    ensure!(
        RUNNING.load(Ordering::Relaxed) == 30,
        "{:?} templates wait",
        RUNNING
    );
    drop(bodies);
    sleep(Duration::from_millis(50)).await;
    ensure!(
        RUNNING.load(Ordering::Relaxed) == 0,
        "{:?} templates go on",
        RUNNING
    );
    Ok(())
}

async fn a_client_that_reads_slowly_holds_the_template_back() -> Result<()> {
    let written = Arc::new(AtomicUsize::new(0));
    let count = written.clone();
    let slow = body(&pool(), move |out| {
        for _ in 0..1000 {
            count.fetch_add(10_000, Ordering::Relaxed);
            out.write_all(&[b'x'; 10_000])?;
        }
        std::io::Result::Ok(())
    });
    sleep(Duration::from_millis(50)).await;
    let ahead = written.load(Ordering::Relaxed);
    ensure!(
        (10_000..100_000).contains(&ahead),
        "{ahead} bytes were written before the first was read"
    );
    ensure!(text(slow).await?.len() == 10_000_000, "bytes are lost");
    Ok(())
}

async fn a_panic_breaks_the_body_off() -> Result<()> {
    let broken = body(&pool(), |out| -> std::io::Result<()> {
        out.write_all(&[b'x'; 10_000])?;
        out.write_all(b"the last that is buffered")?;
        panic!("a panic in a template")
    });
    let ended = tokio::spawn(text(broken)).await;
    ensure!(
        ended.is_err_and(|error| error.is_panic()),
        "the body ended as if it were whole"
    );
    Ok(())
}

async fn a_server_that_is_not_there_or_fails_breaks_the_body_off() -> Result<()> {
    let error = text(page(&pool(), absent().await?, &["a"])).await.unwrap_err();
    ensure!(
        format!("{error:?}").contains("refused"),
        "the error is: {error:?}"
    );
    let proxy = backend::start().await?;
    for fault in FAULTS {
        proxy.set(fault);
        let error = text(page(&pool(), proxy.address, &["a"])).await.unwrap_err();
        eprintln!("{fault:?}: {error:#}");
        ensure!(
            format!("{error:?}").contains("cannot fetch"),
            "{fault:?}: {error:?}"
        );
        let tera = tera(proxy.address);
        let error = greenlet_spawn(move || {
            let mut context = Context::new();
            context.insert("keys", &["a"]);
            tera.render("page", &context)
        });
        let error = error.await.unwrap_err();
        eprintln!("{fault:?}: {error:?}");
    }
    Ok(())
}

async fn a_cancel_ends_the_template_with_an_error() -> Result<()> {
    let server = backend::start().await?.address;
    let environment = environment(server);
    let mut spawned = greenlet_spawn(move || {
        let keys = ["wait 200"];
        environment.get_template("page")?.render(context!(keys))
    });
    ensure!(
        tokio::time::timeout(LIMIT / 6, &mut spawned).await.is_err(),
        "it does not wait"
    );
    let error = spawned.cancel().await?.unwrap_err();
    ensure!(
        format!("{error:?}").contains("cancelled"),
        "the error is: {error:?}"
    );
    Ok(())
}

fn main() {
    let checks = checks![
        functions_of_templates_await,
        the_body_streams_while_the_template_waits,
        a_client_that_goes_away_ends_the_template,
        a_client_that_reads_slowly_holds_the_template_back,
        a_panic_breaks_the_body_off,
        a_server_that_is_not_there_or_fails_breaks_the_body_off,
        a_cancel_ends_the_template_with_an_error,
    ];
    greenlet_recipes::main("templates", checks, None);
}
