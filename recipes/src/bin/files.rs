//! zip, csv and quick-xml, which want `Read`, `Write` and `Seek`, over asynchronous object stores.

use std::io::{self, BufReader, Read, Seek, Write};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use greenlet::{TokioIo, await_, greenlet_spawn};
use greenlet_recipes::proxy::{FAULTS, Fault, Proxy, absent};
use greenlet_recipes::{checks, measured};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use object_store::{ObjectStore, buffered};
use quick_xml::events::Event;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use glue::Ranges;

#[path = "../../glue/files.rs"]
mod glue;

const LIMIT: Duration = Duration::from_secs(1);
const ROWS: u64 = 5000;

// ---- the program: knows nothing of awaiting ----------------------------------------------------

/// Writes an archive with a table and a document.
fn pack(out: impl Write) -> Result<()> {
    let mut archive = ZipWriter::new_stream(out);
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
    archive.start_file("table.csv", options)?;
    let mut table = csv::Writer::from_writer(&mut archive);
    table.write_record(["number", "square"])?;
    for number in 0..ROWS {
        table.write_record([number.to_string(), (number * number).to_string()])?;
    }
    table.flush()?;
    drop(table);
    archive.start_file("document.xml", options)?;
    write!(archive, "<rows>{}</rows>", "<row n='1'/>".repeat(ROWS as usize))?;
    archive.finish()?;
    Ok(())
}

/// Reads the archive, and returns the sum of the table and the number of elements.
fn unpack(file: impl Read + Seek) -> Result<(u64, u64)> {
    let mut archive = ZipArchive::new(file)?;
    let mut sum = 0;
    for row in csv::Reader::from_reader(archive.by_name("table.csv")?).into_records() {
        sum += row?.get(1).context("a row has two columns")?.parse::<u64>()?;
    }
    let mut document = quick_xml::Reader::from_reader(BufReader::new(archive.by_name("document.xml")?));
    let (mut rows, mut buffer) = (0, Vec::new());
    loop {
        match document.read_event_into(&mut buffer)? {
            Event::Empty(_) => rows += 1,
            Event::Eof => return Ok((sum, rows)),
            _ => {}
        }
        buffer.clear();
    }
}

// ---- the checks --------------------------------------------------------------------------------

fn expect((sum, rows): (u64, u64)) -> Result<()> {
    let expected = (0..ROWS).map(|number| number * number).sum::<u64>();
    ensure!(
        sum == expected && rows == ROWS,
        "the sum is {sum}, not {expected}; there are {rows} rows"
    );
    Ok(())
}

/// A store that takes 5 ms for each request.
fn slow_store() -> Arc<dyn ObjectStore> {
    let wait = Duration::from_millis(5);
    let config = ThrottleConfig {
        wait_get_per_call: wait,
        wait_put_per_call: wait,
        ..Default::default()
    };
    Arc::new(ThrottledStore::new(InMemory::new(), config))
}

async fn an_archive_goes_to_a_store_and_back() -> Result<()> {
    let store = slow_store();
    let one = |number: usize| {
        let store = store.clone();
        measured(move || {
            let path = Path::from(format!("archive {number}.zip"));
            let mut writer = TokioIo::new(buffered::BufWriter::new(store.clone(), path.clone()));
            pack(&mut writer)?;
            await_(writer.get_mut().shutdown())?;
            let about = await_(store.head(&path))?;
            expect(unpack(TokioIo::new(buffered::BufReader::with_capacity(
                store.clone(),
                &about,
                1 << 14,
            )))?)?;
            let fetch = |range| async { store.get_range(&path, range).await.map_err(io::Error::other) };
            expect(unpack(BufReader::with_capacity(
                1 << 14,
                Ranges::new(about.size, fetch),
            ))?)
        })
    };
    let start = Instant::now();
    one(0).await?;
    let alone = start.elapsed();
    try_join_all((0..8).map(one)).await?;
    eprintln!("one took {alone:?}, then eight {:?}", start.elapsed() - alone);
    Ok(())
}

async fn a_missing_object_is_an_error_of_the_store() -> Result<()> {
    let store = slow_store();
    let fetch = move |range| {
        let store = store.clone();
        async move {
            store
                .get_range(&Path::from("nowhere"), range)
                .await
                .map_err(io::Error::other)
        }
    };
    let error = greenlet_spawn(|| unpack(Ranges::new(1000, fetch)))
        .await
        .unwrap_err();
    ensure!(
        format!("{error:#}").contains("nowhere"),
        "the error is: {error:#}"
    );
    Ok(())
}

/// Starts a store of one archive, which answers a line with the first and last offset.
async fn server() -> Result<(Proxy, u64)> {
    let mut archive = Vec::new();
    pack(&mut archive)?;
    let (size, archive) = (archive.len() as u64, Arc::new(archive));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let archive = archive.clone();
            tokio::spawn(async move {
                let (mut socket, mut line) = (tokio::io::BufReader::new(socket), String::new());
                socket.read_line(&mut line).await?;
                let (start, end) = line.trim().split_once(' ').context("two offsets")?;
                socket.write_all(&archive[start.parse()?..end.parse()?]).await?;
                anyhow::Ok(())
            });
        }
    });
    Ok((Proxy::to(address).await?, size))
}

async fn fetch(server: SocketAddr, range: Range<u64>) -> io::Result<Vec<u8>> {
    let fetched = timeout(LIMIT, async {
        let mut socket = TcpStream::connect(server).await?;
        socket
            .write_all(format!("{} {}\n", range.start, range.end).as_bytes())
            .await?;
        let mut bytes = Vec::new();
        socket.read_to_end(&mut bytes).await?;
        Ok(bytes)
    });
    fetched.await.unwrap_or_else(|_| {
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the store did not answer in time",
        ))
    })
}

fn open(server: SocketAddr, size: u64) -> impl Read + Seek {
    BufReader::with_capacity(1 << 10, Ranges::new(size, move |range| fetch(server, range)))
}

async fn a_store_that_is_not_there() -> Result<()> {
    let nowhere = absent().await?;
    let error = greenlet_spawn(move || unpack(open(nowhere, 1000)))
        .await
        .unwrap_err();
    ensure!(
        format!("{error:#}").contains("refused"),
        "the error is: {error:#}"
    );
    Ok(())
}

async fn a_store_that_fails_in_the_middle() -> Result<()> {
    let (proxy, size) = server().await?;
    for fault in FAULTS {
        for after in [0, 1, 3, 5] {
            let (address, breaks, mut requests) = (proxy.address, proxy.clone(), 0);
            let fetch = move |range| {
                breaks.set(if requests >= after { fault } else { Fault::None });
                requests += 1;
                fetch(address, range)
            };
            let file = BufReader::with_capacity(1 << 10, Ranges::new(size, fetch));
            let error = greenlet_spawn(move || unpack(file)).await.unwrap_err();
            eprintln!("{fault:?} after {after} requests: {error:#}");
        }
        proxy.set(Fault::None);
        let address = proxy.address;
        expect(greenlet_spawn(move || unpack(open(address, size))).await?)?;
    }
    Ok(())
}

async fn bytes_that_are_not_the_archive() -> Result<()> {
    for (size, byte) in [(0, 0), (10, 0), (5000, 0xff), (5000, b'P')] {
        let fetch =
            move |range: Range<u64>| async move { Ok(vec![byte; (range.end - range.start) as usize]) };
        let error = greenlet_spawn(move || unpack(Ranges::new(size, fetch)))
            .await
            .unwrap_err();
        eprintln!("{size} bytes of {byte}: {error:#}");
    }
    Ok(())
}

async fn a_drop_or_cancel_in_the_middle() -> Result<()> {
    let (proxy, size) = server().await?;
    let address = proxy.address;
    let whole = Instant::now();
    expect(greenlet_spawn(move || unpack(open(address, size))).await?)?;
    let whole = whole.elapsed();
    for part in 0..10 {
        drop(
            timeout(
                whole * part / 12,
                greenlet_spawn(move || unpack(open(address, size))),
            )
            .await,
        );
    }
    proxy.set(Fault::Silent);
    let mut cancelled = greenlet_spawn(move || unpack(open(address, size)));
    ensure!(
        timeout(LIMIT / 6, &mut cancelled).await.is_err(),
        "it does not wait"
    );
    let error = cancelled.cancel().await?.unwrap_err();
    ensure!(
        format!("{error:#}").contains("cancelled"),
        "the error is: {error:#}"
    );
    Ok(())
}

fn main() {
    let checks = checks![
        an_archive_goes_to_a_store_and_back,
        a_missing_object_is_an_error_of_the_store,
        a_store_that_is_not_there,
        a_store_that_fails_in_the_middle,
        bytes_that_are_not_the_archive,
        a_drop_or_cancel_in_the_middle,
    ];
    greenlet_recipes::main("files", checks, None);
}
