/*!
Threads do not share a handle.

```compile_fail,E0277
fn is_sync<T: Sync>() {}
is_sync::<greenlet_core::Greenlet>();
```
*/
