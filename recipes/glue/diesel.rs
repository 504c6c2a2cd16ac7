//! Diesel on connections of diesel-async: queries await, and no thread is blocked.
//!
//! Features of diesel: `postgres_backend`. Of diesel-async: `postgres`, `deadpool`, `tokio`,
//! `async-connection-wrapper`.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use diesel::Connection as _;
use diesel::connection::TransactionManager;
use diesel_async::AsyncPgConnection;
use diesel_async::async_connection_wrapper::{AsyncConnectionWrapper, BlockOn};
use diesel_async::pooled_connection::deadpool::{Object, Pool};
use greenlet::await_;

/// A connection for Diesel's synchronous traits.
pub type BridgedConnection = AsyncConnectionWrapper<Object<AsyncPgConnection>, Bridge>;

/// Awaits where diesel-async would block.
pub struct Bridge;

impl BlockOn for Bridge {
    fn block_on<F: Future>(&self, future: F) -> F::Output {
        await_(future)
    }

    fn get_runtime() -> Bridge {
        Bridge
    }
}

/// Takes a connection from a pool.
pub fn connect(pool: &Pool<AsyncPgConnection>) -> anyhow::Result<BridgedConnection> {
    Ok(await_(pool.get())?.into())
}

type Manager = <BridgedConnection as diesel::Connection>::TransactionManager;

/// `Connection::transaction`, which also rolls back when the function panics or is cancelled.
///
/// Diesel's own leaves the transaction open then, and the pool closes the connection.
pub fn transaction<T, E: From<diesel::result::Error>>(
    connection: &mut BridgedConnection,
    function: impl FnOnce(&mut BridgedConnection) -> Result<T, E>,
) -> Result<T, E> {
    let depth = |connection: &mut BridgedConnection| {
        Manager::transaction_manager_status_mut(connection)
            .transaction_depth()
            .ok()
            .flatten()
    };
    let before = depth(connection);
    catch_unwind(AssertUnwindSafe(|| connection.transaction(function))).unwrap_or_else(|payload| {
        // Nothing unwinds any more, so this may await. After a drop the await unwinds, and the pool
        // closes the connection.
        let _ = catch_unwind(AssertUnwindSafe(|| {
            while depth(connection) > before && Manager::rollback_transaction(connection).is_ok() {}
        }));
        resume_unwind(payload)
    })
}
