//! rusqlite: functions that SQL calls await. Each greenlet has a connection of its own.
//!
//! `db.create_scalar_function("fetch", 1, flags, |c| awaited(client.fetch(c.get(0)?)))`
//!
//! Features of rusqlite: `functions`.

use greenlet::try_await_;
use rusqlite::Error::UserFunctionError;

/// Waits for a future, in a function that SQL calls.
///
/// An error, or the end of the greenlet, makes the query fail. Not `await_`: it would unwind, and
/// rusqlite would replace that by an error without a text.
pub fn awaited<T, E>(future: impl Future<Output = Result<T, E>>) -> rusqlite::Result<T>
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let output = try_await_(future).map_err(|ended| UserFunctionError(ended.into()))?;
    output.map_err(|error| UserFunctionError(error.into()))
}
