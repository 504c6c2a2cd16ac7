//! `std::io` over asynchronous I/O.

use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};

use futures::future::join_all;
use greenlet::{AwaitFailed, FuturesIo, GreenletExit, TokioIo, greenlet_spawn};
use tokio::net::{TcpListener, TcpStream};

use crate::bridge::{poll, ready};
use crate::support::NoLeaks;

fn on_tokio<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime
        .unwrap()
        .block_on(tokio::task::LocalSet::new().run_until(future))
}

/// Two hundred connections on one thread: synchronous clients send JSON and read it back,
/// synchronous servers copy with `std::io::copy`.
#[test]
fn many_synchronous_copies_over_live_connections_on_one_thread() {
    const CONNECTIONS: usize = 200;
    let sums = on_tokio(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::task::spawn_local(async move {
            let mut echoes = Vec::new();
            for _ in 0..CONNECTIONS {
                let (stream, _) = listener.accept().await.unwrap();
                echoes.push(tokio::task::spawn_local(greenlet_spawn(move || {
                    let (read, write) = stream.into_split();
                    io::copy(&mut TokioIo::new(read), &mut TokioIo::new(write)).unwrap()
                })));
            }
            let copied: Vec<_> = join_all(echoes).await;
            copied.into_iter().map(Result::unwrap).sum::<u64>()
        });
        let clients = (0..CONNECTIONS).map(|n| async move {
            let stream = TcpStream::connect(address).await.unwrap();
            greenlet_spawn(move || {
                let sent: Vec<usize> = (n..n + 500).collect();
                let mut stream = TokioIo::new(stream);
                serde_json::to_writer(io::BufWriter::new(&mut stream), &sent).unwrap();
                writeln!(stream).unwrap();
                stream.flush().unwrap();
                let mut line = String::new();
                BufReader::new(&mut stream).read_line(&mut line).unwrap();
                assert_eq!(serde_json::from_str::<Vec<usize>>(&line).unwrap(), sent);
                line.len() as u64
            })
            .await
        });
        let received: u64 = join_all(clients).await.into_iter().sum();
        (received, server.await.unwrap())
    });
    assert_eq!(sums.0, sums.1);
    assert!(sums.0 > 100_000);
}

#[test]
fn a_csv_reader_and_a_json_reader_parse_what_arrives_in_pieces() {
    on_tokio(async {
        let (client, server) = tokio::io::duplex(7);
        let write = greenlet_spawn(move || {
            let mut writer = csv::Writer::from_writer(TokioIo::new(client));
            for n in 0..50 {
                writer
                    .write_record([n.to_string(), "a, \"quoted\" field".into()])
                    .unwrap();
            }
            writer.flush().unwrap();
        });
        let read = greenlet_spawn(move || {
            let mut reader = csv::ReaderBuilder::new()
                .has_headers(false)
                .from_reader(TokioIo::new(server));
            reader
                .records()
                .map(|record| record.unwrap()[1].len())
                .sum::<usize>()
        });
        let ((), sum) = futures::join!(write, read);
        assert_eq!(sum, 50 * "a, \"quoted\" field".len());
    });
    let (read, write) = (
        smol::net::TcpListener::bind("127.0.0.1:0"),
        smol::net::TcpStream::connect("127.0.0.1:1"),
    );
    drop(write);
    smol::block_on(async {
        let listener = read.await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = async {
            let (stream, _) = listener.accept().await.unwrap();
            greenlet_spawn(move || serde_json::from_reader::<_, Vec<String>>(FuturesIo::new(stream)).unwrap())
                .await
        };
        let client = async {
            let stream = smol::net::TcpStream::connect(address).await.unwrap();
            greenlet_spawn(move || {
                let mut stream = FuturesIo::new(stream);
                for piece in ["[\"on", "e\", \"tw", "o\"]"] {
                    stream.write_all(piece.as_bytes()).unwrap();
                }
            })
            .await;
        };
        let (found, ()) = futures::join!(server, client);
        assert_eq!(found, ["one", "two"]);
    });
}

#[test]
fn an_exit_is_an_error_that_is_not_retried_and_can_be_taken_out() {
    let _no_leaks = NoLeaks::watch();
    let (_client, server) = tokio::io::duplex(8);
    let mut spawned = greenlet_spawn(move || {
        let mut text = String::new();
        // `read_to_string` retries after `Interrupted`.
        let error = TokioIo::new(server).read_to_string(&mut text).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Other);
        assert!(AwaitFailed::of(&error).unwrap().is::<GreenletExit>());
        AwaitFailed::into_error(error)
    });
    assert!(poll(&mut spawned).is_pending());
    let error = ready(poll(&mut spawned.cancel())).unwrap();
    assert!(error.is::<GreenletExit>());
}

#[test]
fn an_io_error_is_returned_unchanged() {
    let reader = tokio_reader(io::ErrorKind::ConnectionReset);
    let mut spawned = greenlet_spawn(move || TokioIo::new(reader).read(&mut [0]).unwrap_err());
    let error = ready(poll(&mut spawned));
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert!(AwaitFailed::of(&error).is_none());
}

/// A reader that fails.
fn tokio_reader(kind: io::ErrorKind) -> impl tokio::io::AsyncRead + Unpin {
    struct Fails(io::ErrorKind);
    impl tokio::io::AsyncRead for Fails {
        fn poll_read(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            _: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            std::task::Poll::Ready(Err(self.0.into()))
        }
    }
    Fails(kind)
}

#[test]
fn async_files_support_lines_and_seeks() {
    let mut spawned = greenlet_spawn(|| {
        let mut cursor = TokioIo::new(io::Cursor::new(b"one\ntwo\nthree".to_vec()));
        cursor.seek(SeekFrom::Start(4)).unwrap();
        let lines: Vec<_> = Read::by_ref(&mut cursor).lines().map(Result::unwrap).collect();
        assert_eq!(cursor.seek(SeekFrom::Current(-5)).unwrap(), 8);
        let mut futures_cursor = FuturesIo::new(futures::io::Cursor::new(b"abc".to_vec()));
        futures_cursor.seek(SeekFrom::End(-1)).unwrap();
        let mut rest = String::new();
        futures_cursor.read_to_string(&mut rest).unwrap();
        (lines, rest, cursor.lines().count())
    });
    let (lines, rest, after) = ready(poll(&mut spawned));
    assert_eq!(lines, ["two", "three"]);
    assert_eq!((rest.as_str(), after), ("c", 1));
}

/// A reader whose every second poll is pending, as `futures-test`'s `InterleavePending`.
struct EverySecond {
    data: &'static [u8],
    polls: u32,
}

impl EverySecond {
    fn new(data: &'static [u8]) -> EverySecond {
        EverySecond { data, polls: 0 }
    }

    fn fill(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<io::Result<&[u8]>> {
        self.polls += 1;
        if self.polls % 2 == 1 {
            cx.waker().wake_by_ref();
            return std::task::Poll::Pending;
        }
        std::task::Poll::Ready(Ok(self.data))
    }
}

impl futures::io::AsyncRead for EverySecond {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: &mut [u8],
    ) -> std::task::Poll<io::Result<usize>> {
        unreachable!("`fill_buf` does not read")
    }
}

impl futures::io::AsyncBufRead for EverySecond {
    fn poll_fill_buf(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<&[u8]>> {
        self.get_mut().fill(cx)
    }

    fn consume(self: std::pin::Pin<&mut Self>, amount: usize) {
        let data = &mut self.get_mut().data;
        *data = &data[amount..];
    }
}

impl tokio::io::AsyncRead for EverySecond {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        unreachable!("`fill_buf` does not read")
    }
}

impl tokio::io::AsyncBufRead for EverySecond {
    fn poll_fill_buf(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<&[u8]>> {
        self.get_mut().fill(cx)
    }

    fn consume(self: std::pin::Pin<&mut Self>, amount: usize) {
        futures::io::AsyncBufRead::consume(self, amount);
    }
}

#[test]
fn a_buffer_is_lent_by_the_poll_that_is_ready() {
    let lines = |reader: &mut dyn io::BufRead| {
        let lines: io::Result<Vec<String>> = io::BufRead::lines(reader).collect();
        lines.unwrap()
    };
    let mut in_futures = FuturesIo::new(EverySecond::new(b"ab\ncd\n"));
    let mut in_tokio = TokioIo::new(EverySecond::new(b"ab\ncd\n"));
    let spawned = greenlet_spawn(move || {
        let both = [lines(&mut in_futures), lines(&mut in_tokio)];
        // Two polls for the data, and two for its end.
        (both, in_futures.get_ref().polls, in_tokio.get_ref().polls)
    });
    let (both, in_futures, in_tokio) = on_tokio(spawned);
    assert_eq!(both, [["ab", "cd"], ["ab", "cd"]]);
    assert_eq!((in_futures, in_tokio), (6, 6));
}
