//! redis: its synchronous commands on any of its asynchronous connections.
//!
//! Features of redis: `tokio-comp`.

use std::io;

use greenlet::try_await_;
use redis::{Cmd, ConnectionLike, Parser, Pipeline, RedisResult, Value, aio};

/// An asynchronous connection, for `Commands`, `Cmd::query` and `Pipeline::query`.
#[derive(Clone)]
pub struct Bridged<C>(pub C);

fn answer<T>(future: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    try_await_(future).unwrap_or_else(|ended| Err(io::Error::other(ended).into()))
}

/// Returns the commands of a pipeline. A transaction skips the answers before the last one.
fn unpack(packed: &[u8], skipped: usize, count: usize) -> RedisResult<Pipeline> {
    let (mut parser, mut rest, mut pipeline) = (Parser::new(), packed, Pipeline::new());
    for index in 0..skipped + count {
        let mut command = Cmd::new();
        for argument in redis::from_redis_value::<Vec<Vec<u8>>>(parser.parse_value(&mut rest)?)? {
            command.arg(argument);
        }
        // The asynchronous pipeline adds MULTI and EXEC itself.
        match skipped > 0 && (index == 0 || index == skipped) {
            true => pipeline.atomic(),
            false => pipeline.add_command(command),
        };
    }
    Ok(pipeline)
}

impl<C: aio::ConnectionLike> ConnectionLike for Bridged<C> {
    fn req_command(&mut self, command: &Cmd) -> RedisResult<Value> {
        answer(self.0.req_packed_command(command))
    }

    fn req_packed_command(&mut self, packed: &[u8]) -> RedisResult<Value> {
        let answers = self.req_packed_commands(packed, 0, 1)?;
        answers
            .into_iter()
            .next()
            .ok_or_else(|| io::Error::other("no answer").into())
    }

    fn req_packed_commands(
        &mut self,
        packed: &[u8],
        skipped: usize,
        count: usize,
    ) -> RedisResult<Vec<Value>> {
        answer(
            self.0
                .req_packed_commands(&unpack(packed, skipped, count)?, skipped, count),
        )
    }

    fn get_db(&self) -> i64 {
        self.0.get_db()
    }

    fn check_connection(&mut self) -> bool {
        redis::cmd("PING").query::<String>(self).is_ok()
    }

    /// The asynchronous connections reconnect, or fail at the next command.
    fn is_open(&self) -> bool {
        true
    }
}
