//! rhai: functions of a script await.
//!
//! `engine.register_fn("fetch", |key: &str| awaited(client.fetch(key)))`

use std::fmt::Display;

use greenlet::try_await_;
use rhai::{EvalAltResult, Position};

/// Waits for a future, in a function that a script calls.
///
/// The script can catch an error of the future. It cannot catch the end of its greenlet.
pub fn awaited<T, E: Display>(future: impl Future<Output = Result<T, E>>) -> Result<T, Box<EvalAltResult>> {
    match try_await_(future) {
        Ok(output) => output.map_err(|error| error.to_string().into()),
        Err(ended) => Err(EvalAltResult::ErrorTerminated(ended.to_string().into(), Position::NONE).into()),
    }
}
