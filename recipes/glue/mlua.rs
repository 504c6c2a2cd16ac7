//! mlua: functions of a script await. Each greenlet has a `Lua` of its own.
//!
//! Two greenlets that share one `Lua` and take turns corrupt it: Lua keeps a chain of jumps on the
//! C stack. Make the `Lua` inside of the spawned function, and do not let it leave.
//!
//! `lua.create_function(|_, key: String| awaited(client.fetch(key)))`

use greenlet::await_;
use mlua::{Error, Lua, LuaOptions, StdLib};

/// Makes a `Lua` in which `pcall` does not catch the end of the greenlet.
pub fn new_lua() -> mlua::Result<Lua> {
    Lua::new_with(StdLib::ALL_SAFE, LuaOptions::new().catch_rust_panics(false))
}

/// Waits for a future, in a function that a script calls.
///
/// An error of the future is an error of the script. The end of the greenlet unwinds: mlua carries
/// that through Lua's frames as it does a panic.
pub fn awaited<T, E>(future: impl Future<Output = Result<T, E>>) -> mlua::Result<T>
where
    E: Into<Box<dyn std::error::Error>>,
{
    await_(future).map_err(Error::external)
}
