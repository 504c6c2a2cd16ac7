/*!
Threads do not share a handle.

```compile_fail,E0277
# extern crate greenlet_core as greenlet;
fn is_sync<T: Sync>() {}
is_sync::<greenlet::Greenlet>();
```
*/
